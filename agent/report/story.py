"""The story of a run: a pure fold of its log's entries to one frozen record, turn by turn.

Every report (page, Markdown, JUnit) is made only from this record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.conversation import Channel, Message, Role
from agent.errors import LogError
from agent.events import (
    Checked,
    CheckResult,
    Compacted,
    Durable,
    MessageAdded,
    PlanStep,
    Repaired,
    Resumed,
    Retried,
    RunEnded,
    RunStarted,
    Sampled,
    State,
    ToolFinished,
    ToolResult,
    ToolStarted,
    step,
)
from agent.lines import seconds
from agent.log import LOG_NAME, read
from agent.record import Entry
from agent.runs import PATCH_NAME, is_running
from agent.workshop import SNAPSHOT_NAME


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning of the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is not reasoning: the model's, or a message of this program to the model."""

    text: str
    by_model: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A call and its result; None if the run ended before there was one. ``asked`` is the call's body."""

    tool: str
    asked: str
    result: ToolResult | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Another event of the run, on one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The results of the checks. ``when`` is before or after."""

    when: str
    results: tuple[CheckResult, ...]


Item = Thought | Said | Call | Note | Seen


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the model and its tool calls. ``at_s`` is when it began, in seconds of working time since the start."""

    number: int
    at_s: float
    items: tuple[Item, ...]
    sampled: Sampled | None = None

    @property
    def model_s(self) -> float:
        """Seconds that the model took."""
        return self.sampled.duration_s if self.sampled else 0.0

    @property
    def tools_s(self) -> float:
        """Seconds that its calls took."""
        return sum(item.result.duration_s for item in self.items if isinstance(item, Call) and item.result)

    @property
    def checks_s(self) -> float:
        """Seconds that checks took."""
        return sum(check.duration_s for item in self.items if isinstance(item, Seen) for check in item.results)


@dataclass(frozen=True, slots=True)
class Story:
    """The story of a run. ``state`` is its outcome's name, running or stopped; ``patch`` is its change, b"" if there is none.

    ``duration_s`` is working time: the time between a stop and its resume does not count.
    """

    run: str = ""
    task: str = ""
    mode: str = "fix"
    repository: str = ""
    base_commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    started_at: float = 0.0  # seconds since the epoch
    duration_s: float = 0.0
    state: str = "stopped"
    ended: RunEnded | None = None
    plan: tuple[PlanStep, ...] = ()
    before: tuple[CheckResult, ...] | None = None
    after: tuple[CheckResult, ...] | None = None
    turns: tuple[Turn, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    patch: bytes = b""

    @property
    def cost(self) -> float | None:
        """The cost of the tokens, in the currency of the configured prices; None without prices."""
        read, written = self.config.get("price_input"), self.config.get("price_output")
        if read is None or written is None:
            return None
        cached = self.config.get("price_cached")
        fresh_tokens = max(self.prompt_tokens - self.cached_tokens, 0)
        spent = fresh_tokens * read + self.cached_tokens * (read if cached is None else cached)
        return float(spent + self.completion_tokens * written) / 1e6

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call, oldest first."""
        return tuple(item for turn in self.turns for item in turn.items if isinstance(item, Call))

    @property
    def answers(self) -> tuple[Sampled, ...]:
        """Every completed answer of the model."""
        return tuple(turn.sampled for turn in self.turns if turn.sampled)


def read_story(run: Path) -> Story:
    """Read the run in a folder. Raises LogError if its log cannot be read or is empty."""
    log = run / LOG_NAME
    entries = read(log)
    if not entries or not isinstance(entries[0].event, RunStarted):
        raise LogError(
            f"{log} does not begin with RunStarted: it is not the log of a run, or was killed before it began"
        )
    story = tell(entries)
    if story.ended is None and is_running(log):
        story = replace(story, state="running")
    patch = _bytes(run / PATCH_NAME)
    if not patch and story.ended is None:  # the saved copy of a run that has ended may be older than its end
        patch = _bytes(run / SNAPSHOT_NAME)
    return replace(story, patch=patch)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def tell(entries: Sequence[Entry]) -> Story:
    """Fold a log's entries into a story. Total and pure: an empty log gives an empty story."""
    teller = _Teller()
    for entry in entries:
        teller.take(entry)
    return teller.story()


class _Teller:
    """The fold's accumulator."""

    def __init__(self) -> None:
        self._state = State()
        self._before: tuple[CheckResult, ...] | None = None
        self._after: tuple[CheckResult, ...] | None = None
        self._turns: list[Turn] = []
        self._items: list[Item] = []
        self._sampled: Sampled | None = None
        self._began_s = 0.0
        self._open: dict[int, int] = {}  # message index of an unanswered call -> its index among the items
        self._started_at: float | None = None
        self._last_at = 0.0
        self._worked_s = 0.0

    def take(self, entry: Entry) -> None:
        """Add one entry."""
        event = entry.event
        if self._started_at is None:
            self._started_at = self._last_at = entry.at
        if not isinstance(event, Resumed):
            self._worked_s += max(entry.at - self._last_at, 0.0)
        self._last_at = entry.at
        if isinstance(event, MessageAdded | Retried | Repaired | Compacted | Resumed):
            self._turn()
        self._take(event)
        self._state = step(self._state, event)

    def _turn(self) -> None:
        """Begin a new turn if the last one has its answer and all results of its calls."""
        if self._sampled is not None and not self._open:
            self._close()

    def _close(self) -> None:
        if self._items or self._sampled:
            turn = Turn(len(self._turns) + 1, self._began_s, tuple(self._items), self._sampled)
            self._turns.append(turn)
        self._items, self._sampled, self._began_s = [], None, self._worked_s
        self._open.clear()

    def _take(self, event: Durable) -> None:
        match event:
            case MessageAdded(message):
                self._said(message)
            case Sampled():
                if self._sampled is not None:  # the previous answer had no message
                    self._close()
                self._sampled = event
            case ToolStarted(call, tool) if call in self._open:
                place = self._open[call]
                self._items[place] = replace(self._call(place), tool=tool)
            case ToolFinished(call, tool, result) if call in self._open:
                place = self._open.pop(call)
                self._items[place] = replace(self._call(place), tool=tool, result=result)
            case Checked(when, results):
                self._items.append(Seen(when, results))
                if when == "before":
                    self._before = results
                else:
                    self._after = results
            case Compacted():
                self._items.append(
                    Note(
                        f"The context window was full: {event.tokens_before:,} tokens compacted to {event.tokens_after:,}."
                    )
                )
                self._open.clear()
            case _:
                self._note(event)

    def _note(self, event: Durable) -> None:
        match event:
            case Retried():
                told = f"Retried in {seconds(event.wait_s)} (attempt {event.attempt}): {event.reason}"
            case Repaired(kind, detail):
                told = f"Repaired: {kind.replace('_', ' ')}{': ' + detail if detail else ''}"
            case Resumed(note):
                told = f"The run was resumed{', ' + note if note else ''}."
            case _:
                return
        self._items.append(Note(told))

    def _said(self, message: Message) -> None:
        if message.is_call:
            self._open[len(self._state.conversation.messages)] = len(self._items)
            self._items.append(Call(message.recipient or "", message.text))
        elif message.channel is Channel.ANALYSIS:
            self._items.append(Thought(message.text))
        else:
            self._items.append(Said(message.text, by_model=message.role is Role.ASSISTANT))

    def _call(self, place: int) -> Call:
        call = self._items[place]
        assert isinstance(call, Call)
        return call

    def story(self) -> Story:
        """Return the story so far."""
        self._close()
        state = self._state
        answers = [turn.sampled for turn in self._turns if turn.sampled]
        return Story(
            run=state.run,
            task=state.task,
            mode=state.mode,
            repository=state.repository,
            base_commit=state.base_commit,
            config=state.config,
            started_at=self._started_at or 0.0,
            duration_s=self._worked_s,
            state=state.ended.outcome.value if state.ended else "stopped",
            ended=state.ended,
            plan=state.plan,
            before=self._before,
            after=self._after,
            turns=tuple(self._turns),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
        )
