"""Formats events as lines of plain text that are safe to print, for the screen, a pipe and `agent show`.

Text from a model, a tool or a repository is hostile until it has passed ``clean``: it may contain escape sequences that move the
cursor, change the title or fill the clipboard, and characters that make a line look like something else.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from agent.backends import IN_PROCESS
from agent.conversation import Channel, Message, Role
from agent.events import (
    TEST_STATES,
    Checked,
    CheckResult,
    Compacted,
    Delta,
    Event,
    MessageAdded,
    Outcome,
    PlanChanged,
    PlanStep,
    Repaired,
    Resumed,
    Retried,
    RunEnded,
    RunStarted,
    Sampled,
    State,
    StepState,
    ToolFinished,
    ToolResult,
    ToolStarted,
    step,
)

# Colours are dropped silently; every other sequence is shown, so that an attack is visible.
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Zero-width joiners and the soft hyphen occur in ordinary text; other format characters can reorder or hide it.
HARMLESS_FORMAT = "\u200c\u200d\u00ad"
MARKS = {StepState.PENDING: "[ ]", StepState.IN_PROGRESS: "[>]", StepState.COMPLETED: "[x]"}
TITLE_CHARS = 160
TAIL_LINES = 6
OUTPUT = re.compile(r"<output>\n(.*)</output>", re.DOTALL)  # the shell tool's format for the model
PATCH_FILE = re.compile(r"^\*\*\* (Add|Update|Delete) File: *(.+)$", re.MULTILINE)
VERDICTS = {
    Outcome.PASSED: "fixed, and the checks confirm it",
    Outcome.ANSWERED: "answered",
    Outcome.UNVERIFIED: "changed, but no check could be run",
    Outcome.INTERNAL: "stopped by an error on this machine",
    Outcome.ENDPOINT: "the model could not be reached",
    Outcome.LIMIT: "a limit was reached",
    Outcome.CHECKS_FAILED: "changed, but the checks fail",
    Outcome.NO_CHANGE: "no change was made",
    Outcome.REFUSED: "the change was refused by policy",
    Outcome.SANDBOX: "the sandbox is not available",
    Outcome.INTERRUPTED: "the work so far is kept; agent resume continues it",
}


def clean(text: str) -> str:
    r"""Return text that a terminal only displays: newlines and tabs stay, other control characters are escaped as ``\x1b``."""
    text = LINE_END.sub("\n", COLOUR.sub("", text))
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(character if _shows(character) else _escaped(character) for character in text)


def _shows(character: str) -> bool:
    if character in "\n\t" or character in HARMLESS_FORMAT:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def path_line(path: str) -> str:
    r"""Return a path on one line. Newlines, which a name may contain, are escaped; bytes that are not UTF-8 become ``\xff``."""
    plain = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return clean(plain).replace("\n", r"\n").replace("\t", r"\t")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: str, width: int = TITLE_CHARS) -> str:
    """Return the text's words on one line, cut at ``width`` characters."""
    joined = " ".join(clean(text[: 4 * width]).split())
    return joined if len(joined) <= width else joined[: width - 1] + "…"


def call_title(tool: str, text: str) -> str:
    """Return a call's content on one line, whatever form its body has."""
    body = _arguments(text)
    match tool:
        case "shell":
            return "$ " + one_line(command_text(text))
        case "apply_patch":
            changes = PATCH_FILE.findall(patch_text(text))
            return one_line("apply_patch " + ", ".join(f"{kind.lower()} {path}" for kind, path in changes))
        case "python":
            return "python: " + one_line(code_text(text))
        case _:
            values = ", ".join(str(value) for value in body.values() if value not in ("", None)) if body else text
            return one_line(f"{tool} {values}".rstrip())


def command_text(text: str) -> str:
    """Return the command in the body of a shell call, without the shell around it."""
    body = _arguments(text)
    command = body.get("command", body.get("cmd", text))
    if isinstance(command, list):
        words = [str(word) for word in command]
        return words[2] if len(words) == 3 and words[1] in ("-c", "-lc") else " ".join(words)
    return str(command)


def code_text(text: str) -> str:
    """Return the source in the body of a python call, which is plain or an argument."""
    return str(_arguments(text).get("code", text))


def patch_text(text: str) -> str:
    """Return the patch in the body of an apply_patch call, which is plain or an argument."""
    body = _arguments(text)
    return str(body.get("patch", body.get("input", text)))


def _arguments(text: str) -> dict[str, object]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def seconds(duration_s: float) -> str:
    """Return a duration in a readable form."""
    if duration_s < 9.95:
        return f"{duration_s:.1f} s" if duration_s >= 0.05 else f"{duration_s * 1000:.0f} ms"
    minutes, rest = divmod(round(duration_s), 60)
    if minutes >= 120:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def tail(text: str, lines: int = TAIL_LINES) -> list[str]:
    """Return the last lines that are not empty, and before them how many were left out."""
    all_lines = [line for line in clean(text).rstrip().split("\n") if line.strip()]
    kept = [line if len(line) <= 400 else line[:399] + "…" for line in all_lines[-lines:]]
    left_out = len(all_lines) - len(kept)
    return [f"… {left_out} earlier lines", *kept] if left_out else kept


def output_text(text: str) -> str:
    """Return a tool's output without the markup for the model."""
    framed = OUTPUT.search(text)
    return framed[1] if framed else text


def shown_result(text: str, lines: int) -> list[str]:
    """Return the last lines of a tool's output."""
    return tail(output_text(text), lines)


def result_line(result: ToolResult) -> str:
    """Return the status of a call on one line."""
    state = (
        "ok"
        if result.ok and not result.exit_code
        else "failed"
        if result.exit_code is None
        else f"exit {result.exit_code}"
    )
    cut = f", {result.cut_bytes} bytes cut" if result.cut_bytes else ""
    return f"{state} in {seconds(result.duration_s)}{cut}"


def check_line(check: CheckResult) -> str:
    """Return the result of one check on one line."""
    state = (
        "out of time"
        if check.exit_code is None
        else "passes"
        if check.exit_code == 0
        else f"fails (exit {check.exit_code})"
    )
    counts = {name: sum(1 for value in check.tests.values() if value == name) for name in TEST_STATES}
    tests = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{one_line(check.command)}: {state}{': ' + tests if tests else ''} ({seconds(check.duration_s)})"


def plan_lines(steps: Sequence[PlanStep]) -> list[str]:
    """Return the plan, one line per step."""
    return [f"{MARKS[step.state]} {one_line(step.text)}" for step in steps]


def model_line(config: object) -> str:
    """Return the model's name, from the recorded configuration."""
    known = config if isinstance(config, dict) else {}
    if known.get("wire") == "scripted":
        return f"a recording, {one_line(str(known.get('script')))}: nothing is sampled, everything else is real"
    name = str(known.get("model") or "the model")
    if known.get("wire") in IN_PROCESS or (known.get("endpoint") is None and name.startswith(("/", "./", "../", "~"))):
        return one_line(f"{name}, on this machine")
    return one_line(f"{name} at {known.get('endpoint') or 'the first local port that answers'}")


def ended_lines(ended: RunEnded) -> list[str]:
    """Return how a run ended: first what was observed, then what the model claimed."""
    lines = [f"{ended.outcome}: {VERDICTS[ended.outcome]}", *([one_line(ended.reason, 600)] if ended.reason else [])]
    if ended.changed_paths:
        lines.append(
            f"changed: {', '.join(one_line(path_line(path)) for path in ended.changed_paths[:20])}"
            + _more(ended.changed_paths)
        )
    if ended.test_paths:
        lines.append(
            f"tests changed: {', '.join(one_line(path_line(path)) for path in ended.test_paths[:20])}"
            + _more(ended.test_paths)
        )
    if ended.branch:
        lines.append(f"branch: {one_line(ended.branch)}")
    return lines


def _more(paths: Sequence[str]) -> str:
    return f" and {len(paths) - 20} more" if len(paths) > 20 else ""


def event_lines(event: Event, state: State) -> list[str]:
    """Return the lines for an event; ``state`` is the run's state before it. Every line is clean, whatever the event contains."""
    return [clean(line).replace("\n", " ") for line in _described(event, state)]


def _described(event: Event, state: State) -> list[str]:
    match event:
        case RunStarted():
            return [f"run {event.run} ({event.mode}): {one_line(event.task)}", f"model: {model_line(event.config)}"]
        case Resumed(note):
            return ["resumed" + (f": {one_line(note)}" if note else "")]
        case Retried():
            return [f"retrying in {seconds(event.wait_s)} (attempt {event.attempt}): {one_line(event.reason, 400)}"]
        case Repaired():
            return [f"recovery: {one_line(event.kind)} {one_line(event.detail)}".rstrip()]
        case MessageAdded(message):
            return message_lines(message)
        case ToolStarted():
            return [] if event.tool == "plan" else [call_title(event.tool, call_text(state, event.call))]
        case ToolFinished(_, tool, result):
            if tool == "plan" and result.ok:
                return []
            shown = shown_result(result.text, TAIL_LINES if not result.ok or result.exit_code else 3)
            return [result_line(result), *("  | " + line for line in shown)]
        case PlanChanged(steps):
            return ["plan:", *("  " + line for line in plan_lines(steps))]
        case Compacted():
            return [
                f"the context window was full: {event.tokens_before} tokens compacted to {event.tokens_after} ({one_line(event.reason)})"
            ]
        case Checked(when, results):
            return [f"check {when}: {check_line(check)}" for check in results] or [f"check {when}: there is none"]
        case RunEnded():
            return ended_lines(event)
        case Sampled() | Delta():
            return []


def message_lines(message: Message) -> list[str]:
    """Return the lines for a message: the first words of reasoning, nothing for calls (ToolStarted shows them), the rest in full."""
    if message.is_call or not message.text.strip():
        return []
    if message.role is Role.USER:
        return [f"told the model: {one_line(message.text)}"]
    if message.channel is Channel.ANALYSIS:
        return [f"thought: {one_line(message.text)}"]
    return clean(message.text).strip().split("\n")


def call_text(state: State, call: int) -> str:
    """Return the body of the call with this index, "" if the conversation does not have it."""
    messages = state.conversation.messages
    return messages[call].text if 0 <= call < len(messages) else ""


def transcript(events: Iterable[tuple[float, Event]]) -> Iterator[str]:
    """Yield a whole recorded run as lines, each entry with the seconds since the start."""
    state, start = State(), None
    for at, event in events:
        start = at if start is None else start
        lines = event_lines(event, state)
        state = step(state, event)
        for number, line in enumerate(lines):
            yield (f"{at - start:8.1f}  " if number == 0 else " " * 10) + line
