"""The views of a run's events: permanent lines, above a live footer (the plan, and what is happening now).

On a terminal, rich draws them; without one, ``PlainView`` prints lines as they come; ``JsonView`` prints the durable events.
Views leave the outcome, and the model's complete final message, to ``summary``, so that only those go to standard output.
No view raises when its reader is gone: the run continues, and its log has everything.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from agent.conversation import Channel, Role
from agent.events import (
    EXIT_CODES,
    Checked,
    Delta,
    Event,
    MessageAdded,
    PlanChanged,
    RunEnded,
    RunStarted,
    Sampled,
    State,
    StepState,
    ToolFinished,
    ToolStarted,
    step,
)
from agent.lines import (
    call_text,
    call_title,
    check_line,
    clean,
    ended_lines,
    event_lines,
    model_line,
    one_line,
    patch_text,
    result_line,
    seconds,
    shown_result,
)
from agent.record import Entry, dump

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

MAX_DIFF_LINES = 400
MAX_PATCH_LINES = 24
MAX_PLAN_LINES = 10
FOOT_CHARS = 400  # how much of the current text is kept for the footer
STEP_STYLES = {
    StepState.PENDING: ("○", "dim"),
    StepState.IN_PROGRESS: ("▸", "bold yellow"),
    StepState.COMPLETED: ("✔", "green"),
}
PATCH_FRAME = re.compile(r"\*\*\* (Begin|End) Patch")
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class View(Protocol):
    """Something that shows events. A context manager, so that the terminal is restored."""

    def __call__(self, event: Event) -> None:
        """Show one event. Never raises when the reader is gone."""
        ...

    def diff(self, patch: str, max_lines: int | None = MAX_DIFF_LINES) -> None:
        """Show the change, its first lines or (None) all of it."""
        ...

    def say(self, text: str) -> None:
        """Show a notice that is not an event. Any thread may call it."""
        ...

    def summary(self, ended: RunEnded) -> None:
        """Show the model's final message and the outcome."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_view(stream: TextIO) -> View:
    """Return the view for a stream: rich on a terminal that can move its cursor, otherwise plain lines."""
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        if not console.is_dumb_terminal:
            return TerminalView(console)
    return PlainView(stream)


class PlainView:
    """Lines for a log or a pipe, each flushed, so that a reader sees them at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._state = State()

    def __call__(self, event: Event) -> None:
        """Print the lines for an event."""
        lines = _lines(event, self._state)
        self._state = step(self._state, event)
        if lines:
            write(self._stream, "\n".join(lines) + "\n")

    def diff(self, patch: str, max_lines: int | None = MAX_DIFF_LINES) -> None:
        """Print the change, but only if all of it is wanted; in the output of a run it would bury everything else."""
        if max_lines is None:
            write(self._stream, clean(patch))

    def say(self, text: str) -> None:
        """Print a notice."""
        write(self._stream, one_line(text, 600) + "\n")

    def summary(self, ended: RunEnded) -> None:
        """Print the final message and the outcome."""
        write(self._stream, summary_text(ended))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


class JsonView:
    """Durable events as JSON lines, as in the log, while ``follow`` shows them to the user elsewhere."""

    def __init__(
        self, stream: TextIO, follow: View, first_seq: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self._stream = stream
        self._follow = follow
        self._seq = first_seq
        self._clock = clock

    def __call__(self, event: Event) -> None:
        """Print a durable event as one line."""
        if not isinstance(event, Delta):
            write(self._stream, dump(Entry(self._seq, round(self._clock(), 3), event)).decode("ascii"))
            self._seq += 1
        self._follow(event)

    def diff(self, patch: str, max_lines: int | None = MAX_DIFF_LINES) -> None:
        """Leave it to the user's view."""
        self._follow.diff(patch, max_lines)

    def say(self, text: str) -> None:
        """Leave it to the user's view."""
        self._follow.say(text)

    def summary(self, ended: RunEnded) -> None:
        """Leave it to the user's view."""
        self._follow.summary(ended)

    def __enter__(self) -> Self:
        self._follow.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._follow.__exit__(*error)


class TerminalView:
    """The view on a terminal: finished items scroll up, the plan and the current activity stay at the bottom."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self._console = console
        self._clock = clock
        self._state = State()
        self._said = ""  # the last characters of the current text
        self._channel: Channel | None = None
        self._since_s = clock()
        self._live = Live(
            get_renderable=self._foot,
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event: a delta changes only the footer, all others also add lines above it."""
        if isinstance(event, Delta):
            if event.channel is not self._channel:
                self._said, self._channel = "", event.channel
            self._said = (self._said + event.text)[-FOOT_CHARS:]
            return
        for line in self._lines(event):
            self._console.print(line)
        self._state = step(self._state, event)
        if isinstance(event, MessageAdded | Sampled | ToolStarted | ToolFinished | Checked):
            self._said, self._since_s = "", self._clock()

    def diff(self, patch: str, max_lines: int | None = MAX_DIFF_LINES) -> None:
        """Show the change in colour, cut if it would bury everything else."""
        lines = clean(patch).rstrip("\n").split("\n") if patch else []
        for line in lines[:max_lines]:
            self._console.print(diff_line(line))
        if max_lines is not None and len(lines) > max_lines:
            self._console.print(_text(f"… {len(lines) - max_lines} more lines: agent diff {self._state.run}", "dim"))

    def say(self, text: str) -> None:
        """Show a notice among the lines."""
        self._console.print(_text(f"  {one_line(text, 600)}", "dim"))

    def summary(self, ended: RunEnded) -> None:
        """Show the final message and the outcome."""
        style = "bold green" if EXIT_CODES[ended.outcome] == 0 else "bold red"
        if ended.claimed.strip():
            self._console.print(_text("\n" + clean(ended.claimed).strip() + "\n"))
        for number, line in enumerate(ended_lines(ended)):
            self._console.print(_text(line, style if number == 0 else ""))

    def _lines(self, event: Event) -> list[Text]:
        now_s = self._clock() - self._since_s
        match event:
            case RunStarted():
                head = _text("").append("● ", style="bold blue").append(one_line(event.task), style="bold")
                return [head, _text(f"  run {event.run} · {model_line(event.config)}", "dim")]
            case MessageAdded(message) if message.channel is Channel.ANALYSIS and not message.is_call:
                thought = _text(f"✻ {one_line(message.text, 600)}", "dim italic")
                return [self._spread(thought, seconds(now_s))] if message.text.strip() else []
            case ToolStarted() | PlanChanged():
                return []  # the footer shows them; the plan is printed at the end
            case ToolFinished():
                return self._finished(event)
            case Checked(when, results):
                return [
                    _mark(check.exit_code == 0).append(f"check {when}: ", style="bold").append(check_line(check))
                    for check in results
                ] or [_text(f"○ check {when}: there is none", "yellow")]
            case RunEnded():
                return self._plan()
            case MessageAdded(message):
                if (
                    message.is_final or message.role is Role.USER
                ):  # a final is printed in full at the end, a user message is our own
                    return [self._spread(_text(line, "dim"), "") for line in _lines(event, self._state)]
                return [_text(line) for line in _lines(event, self._state)]
            case _:
                return [_text(line, "yellow") for line in _lines(event, self._state)]

    def _finished(self, event: ToolFinished) -> list[Text]:
        """Return the lines for a finished call: title and time, an edit in colour, and the end of a command's output."""
        body, good = call_text(self._state, event.call), event.result.ok and not event.result.exit_code
        if event.tool == "plan" and good:
            return []
        head = self._spread(_mark(good).append(call_title(event.tool, body)), result_line(event.result))
        if event.tool != "apply_patch":
            return [head, *(_text("    " + line, "dim") for line in shown_result(event.result.text, 3 if good else 8))]
        lines = [line for line in clean(patch_text(body)).strip().split("\n") if not PATCH_FRAME.match(line)]
        edit = [diff_line("    " + line) for line in lines[:MAX_PATCH_LINES]]
        return [
            head,
            *edit,
            *([] if good else [_text("    " + line, "red") for line in shown_result(event.result.text, 8)]),
        ]

    def _spread(self, left: Text, right: str) -> Text:
        """Return left and right on one line, if they fit."""
        room = self._console.width - len(right) - 1
        if left.cell_len > room:
            left.truncate(max(room - 1, 20), overflow="ellipsis")
        return left.append(" " * max(room - left.cell_len, 0) + " ").append(right, style="dim")

    def _plan(self) -> list[Text]:
        steps = self._state.plan[:MAX_PLAN_LINES]
        return [_text(f"  {STEP_STYLES[s.state][0]} {one_line(s.text)}", STEP_STYLES[s.state][1]) for s in steps]

    def _foot(self) -> RenderableType:
        from rich.console import Group

        spent_s = self._clock() - self._since_s
        spinner = SPINNER[int(spent_s * 8) % len(SPINNER)]
        if self._state.ended is not None:
            return Group()
        if self._state.pending is not None:
            now = call_title(self._state.pending.tool, call_text(self._state, self._state.pending.call))
        elif self._said:
            words = {Channel.ANALYSIS: "thinks", Channel.FINAL: "answers"}.get(
                self._channel or Channel.COMMENTARY, "says"
            )
            now = f"{words}: … {' '.join(clean(self._said).split())[-max(self._console.width - 40, 20) :]}"
        else:
            now = "waiting for the model" if self._state.run else "starts"
        line = _text("").append(f"{spinner} ", style="cyan").append(now).append(f"  {seconds(spent_s)}", style="dim")
        line.truncate(self._console.width, overflow="ellipsis")
        return Group(*self._plan(), line)


def summary_text(ended: RunEnded) -> str:
    """Return the final message and the outcome as plain text."""
    words = clean(ended.claimed).strip()
    return (words + "\n\n" if words else "") + "\n".join(ended_lines(ended)) + "\n"


def diff_line(line: str) -> Text:
    """Return a line of a diff in its colour."""
    bare = line.lstrip(" ") if line.startswith("    ") else line
    match bare[:3]:
        case "+++" | "---" | "***" | "dif":
            return _text(line, "bold")
        case start if start.startswith("+"):
            return _text(line, "green")
        case start if start.startswith("-"):
            return _text(line, "red")
        case start if start.startswith("@@"):
            return _text(line, "cyan")
        case _:
            return _text(line, "dim")


def write(stream: TextIO, text: str) -> None:
    """Print and flush. If the reader is gone, further output is dropped, and the run continues."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # So that the interpreter does not hit the closed pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _lines(event: Event, state: State) -> list[str]:
    """Return the lines for an event during the run; what the summary will show in full is only mentioned."""
    match event:
        case RunEnded():
            return []
        case MessageAdded(message) if message.is_final:
            return [f"answers: {one_line(message.text)}"]
        case _:
            return event_lines(event, state)


def _mark(good: bool) -> Text:
    return _text("").append("✔ " if good else "✘ ", style="green" if good else "red")


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(text), style=style)
