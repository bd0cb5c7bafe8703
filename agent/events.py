"""The events of a run. State is a pure fold over them; log, screen, resume and report all read the same list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from agent.conversation import Channel, Conversation, Message
from agent.outcome import EXIT_CODES as EXIT_CODES
from agent.outcome import Outcome as Outcome


class StepState(StrEnum):
    """Where a step of the plan stands."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of the model's plan."""

    text: str
    state: StepState = StepState.PENDING


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call. ``ok`` is False when the model made a mistake; a tool never raises for one.

    ``text`` is what the model reads, already truncated; ``cut_bytes`` is how much was left out of it.
    """

    text: str
    ok: bool = True
    exit_code: int | None = None
    duration_s: float = 0.0
    cut_bytes: int = 0
    plan: tuple[PlanStep, ...] | None = None
    changed_paths: tuple[str, ...] = ()


NO_VERDICT = ("skipped", "xfailed")  # test states that say nothing about the change: not run, or expected to fail
TEST_STATES = ("failed", "error", "passed", *NO_VERDICT)  # in the order of interest to a reader


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check command. ``tests`` maps test ids to one of ``TEST_STATES``, as far as they are known."""

    command: str
    exit_code: int | None  # None: it timed out
    duration_s: float
    output: str
    tests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first event: everything the run was asked to do, so that it can be resumed from the log alone."""

    run: str
    task: str
    mode: str  # "fix" or "ask"
    conversation: Conversation
    repository: str
    base_commit: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resumed:
    """A killed run continues. ``note`` says in what: the sandbox it left, or a restored copy."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """Text to show while the model answers. Never logged. ``recipient`` is set for the body of a call."""

    channel: Channel | None
    text: str
    recipient: str | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """The request is retried; everything received so far for it is discarded."""

    reason: str
    attempt: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Repaired:
    """The model's output was repaired, or the model was told what it got wrong. ``kind`` says which (agent/harmony/repair.py)."""

    kind: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MessageAdded:
    """A complete message was added to the conversation."""

    message: Message


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer of the model ended. ``finish`` is stop, call, length or cancelled."""

    prompt_tokens: int
    completion_tokens: int
    finish: str
    cached_tokens: int = 0
    duration_s: float = 0.0
    first_token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A call is about to run and may have effects. ``call`` is the index of its message in the conversation."""

    call: int
    tool: str


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """The call's result; folding it appends ``message``, the tool's answer to the model."""

    call: int
    tool: str
    result: ToolResult
    message: Message


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """The model's current plan."""

    steps: tuple[PlanStep, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """The context window was nearly full: from here on ``messages`` replace the messages of the conversation."""

    messages: tuple[Message, ...]
    reason: str
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class Checked:
    """The checks ran. ``when`` is before or after."""

    when: str
    results: tuple[CheckResult, ...]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The last event. ``claimed`` is the model's final text; ``outcome`` is what was observed.

    ``changed_paths`` and ``test_paths`` (those of them that are tests) come from the diff. ``commit`` is the commit that
    ``branch`` pointed to when it was made, so that `agent discard` does not delete a branch that has moved since.
    """

    outcome: Outcome
    reason: str
    claimed: str = ""
    changed_paths: tuple[str, ...] = ()
    test_paths: tuple[str, ...] = ()
    branch: str | None = None
    commit: str | None = None


Durable = (
    RunStarted
    | Resumed
    | Retried
    | Repaired
    | MessageAdded
    | Sampled
    | ToolStarted
    | ToolFinished
    | PlanChanged
    | Compacted
    | Checked
    | RunEnded
)
Event = Durable | Delta


CALL_TEXT_CHARS = 400


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What State keeps of a finished call, so that it survives compaction. ``text`` is the beginning of its body."""

    tool: str
    text: str
    ok: bool
    exit_code: int | None
    changed_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """The state of a run: everything the loop needs to know, all of it derived from the events."""

    run: str = ""
    task: str = ""
    mode: str = "fix"
    repository: str = ""
    base_commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)
    pending: ToolStarted | None = None  # a call that started and did not finish: after a crash its effect is unknown
    plan: tuple[PlanStep, ...] = ()
    checks_before: tuple[CheckResult, ...] | None = None
    checks_after: tuple[CheckResult, ...] | None = None  # of the current work: reset by every new message
    checks_latest: tuple[CheckResult, ...] = ()  # the most recent results, before or after
    calls: tuple[CallRecord, ...] = ()  # every finished call of the run, oldest first
    turns: int = 0
    finish: str = ""  # how the latest answer ended
    prompt_tokens: int = 0  # of the latest answer; 0: unknown, for example after a compaction
    completion_tokens: int = 0  # over the whole run
    total_tokens: int = 0  # prompt and completion over the whole run
    repairs: Mapping[str, int] = field(default_factory=dict)
    ended: RunEnded | None = None


def step(state: State, event: Event) -> State:
    """Return the state after an event. Pure and total: every event is valid in every state."""
    match event:
        case RunStarted():
            return State(
                run=event.run,
                task=event.task,
                mode=event.mode,
                repository=event.repository,
                base_commit=event.base_commit,
                config=event.config,
                conversation=event.conversation,
            )
        case MessageAdded(message):
            return replace(state, conversation=state.conversation.add(message), checks_after=None)
        case Sampled():
            return replace(
                state,
                turns=state.turns + 1,
                finish=event.finish,
                prompt_tokens=event.prompt_tokens,
                completion_tokens=state.completion_tokens + event.completion_tokens,
                total_tokens=state.total_tokens + event.prompt_tokens + event.completion_tokens,
            )
        case Repaired(kind):
            return replace(state, repairs={**state.repairs, kind: state.repairs.get(kind, 0) + 1})
        case ToolStarted():
            return replace(state, pending=event)
        case ToolFinished():
            messages = state.conversation.messages
            body = messages[event.call].text if 0 <= event.call < len(messages) else ""
            result = event.result
            record = CallRecord(event.tool, body[:CALL_TEXT_CHARS], result.ok, result.exit_code, result.changed_paths)
            return replace(
                state,
                pending=None,
                conversation=state.conversation.add(event.message),
                calls=(*state.calls, record),
                plan=state.plan if result.plan is None else result.plan,
            )
        case PlanChanged(steps):
            return replace(state, plan=steps)
        case Compacted():
            return replace(
                state,
                conversation=replace(state.conversation, messages=event.messages),
                pending=None,
                prompt_tokens=0,
            )
        case Checked(when, results):
            if when == "before":
                return replace(state, checks_before=results, checks_latest=results)
            return replace(state, checks_after=results, checks_latest=results)
        case RunEnded():
            return replace(state, ended=event)
        case Resumed():
            # If work was lost, the model has to be told once more that nothing has changed.
            repairs = {kind: count for kind, count in state.repairs.items() if kind != "no_change"}
            return replace(state, ended=None, repairs=repairs)
        case Delta() | Retried():
            return state


def fold(events: Iterable[Event], state: State | None = None) -> State:
    """Fold events over a state (by default the empty one). Resuming a run is this fold over its log."""
    result = State() if state is None else state
    for event in events:
        result = step(result, event)
    return result
