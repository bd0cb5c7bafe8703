from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from agent.conversation import Channel, Conversation, Message, Role
from agent.events import (
    Checked,
    CheckResult,
    Delta,
    Event,
    MessageAdded,
    Outcome,
    PlanChanged,
    PlanStep,
    Retried,
    RunEnded,
    RunStarted,
    Sampled,
    StepState,
    ToolFinished,
    ToolResult,
    ToolStarted,
)
from agent.record import load
from agent.tally import Tally
from agent.view import JsonView, PlainView, TerminalView, diff_line, open_view, summary_text

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/bold red] :smile: [link=http://evil]y[/link]\u202e"
PATCH = "*** Begin Patch\n*** Update File: a.py\n@@\n-old\n+new\n*** End Patch"
PLAN = (PlanStep("look", StepState.COMPLETED), PlanStep("fix", StepState.IN_PROGRESS), PlanStep("check"))
ENDED = RunEnded(Outcome.PASSED, "1 of 1 checks pass", "It is fixed.\nReally.", ("a.py",), (), "agent/x-1")


def call(text: str, recipient: str) -> MessageAdded:
    return MessageAdded(Message(Role.ASSISTANT, text, Channel.COMMENTARY, recipient))


def answer(text: str, recipient: str) -> Message:
    return Message(Role.TOOL, text, name=recipient)


def a_run(extra: str = "") -> list[Event]:
    return [
        RunStarted(
            "r1", "fix it" + extra, "fix", Conversation(), "/r", "c0", {"wire": "scripted", "script": "s" + extra}
        ),
        Delta(Channel.ANALYSIS, "I thi" + extra),
        MessageAdded(Message(Role.ASSISTANT, "I think." + extra, Channel.ANALYSIS)),
        call('{"command": ["bash", "-lc", "pytest' + json.dumps(extra)[1:-1] + '"]}', "container.exec"),
        Sampled(10, 5, "call"),
        Checked("before", (CheckResult("pytest" + extra, 1, 0.5, extra, {"t": "failed"}),)),
        ToolStarted(1, "shell"),
        ToolFinished(1, "shell", ToolResult("1 failed" + extra, exit_code=1, duration_s=1.5), answer("1 failed", "x")),
        PlanChanged(PLAN),
        call(PATCH + extra, "apply_patch"),
        ToolStarted(3, "apply_patch"),
        ToolFinished(3, "apply_patch", ToolResult("done" + extra), answer("done", "x")),
        Retried("429" + extra, 1, 2.0),
        MessageAdded(Message(Role.ASSISTANT, "Preamble" + extra, Channel.COMMENTARY)),
        MessageAdded(Message(Role.USER, "The checks fail still" + extra)),
        MessageAdded(Message(Role.ASSISTANT, "It is fixed.\nReally." + extra, Channel.FINAL)),
        Checked("after", (CheckResult("pytest", 0, 0.5, "", {"t": "passed"}),)),
        RunEnded(
            Outcome.PASSED, "1 of 1 checks pass" + extra, "It is fixed." + extra, ("a.py" + extra,), (), "agent/x-1"
        ),
    ]


def on_a_terminal(events: list[Event], width: int = 100) -> tuple[str, str]:
    """What rich wrote, and the same without its colours and cursor moves."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=True,
        width=width,
        height=40,
        color_system="truecolor",
        highlight=False,
        markup=False,
        emoji=False,
    )
    ticks = iter(range(10_000))
    with TerminalView(console, clock=lambda: float(next(ticks))) as view:
        for event in events:
            view(event)
        view.diff("diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-old\n+new\n")
    view.summary(ENDED)
    written = stream.getvalue()
    return written, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)


def test_the_terminal_shows_the_run() -> None:
    _, text = on_a_terminal(a_run())
    for shown in (
        "● fix it",
        "run r1 · a recording, s: nothing is sampled, everything else is real",
        "✻ I think.",
        "✘ check before: pytest: fails (exit 1): 1 failed (0.5 s)",
        "✘ $ pytest",
        "exit 1 in 1.5 s",
        "    1 failed",
        "▸ fix",
        "✔ apply_patch update a.py",
        "    -old",
        "retrying in 2.0 s (attempt 1): 429",
        "Preamble",
        "told the model: The checks fail still",
        "answers: It is fixed. Really.",
        "✔ check after: pytest: passes: 1 passed (0.5 s)",
        "+++ b/a.py",
        "It is fixed.\nReally.\n",
        "passed: fixed, and the checks confirm it",
        "branch: agent/x-1",
    ):
        assert shown in text, shown
    assert "Begin Patch" not in text


def test_the_terminal_is_left_with_its_cursor() -> None:
    written, _ = on_a_terminal(a_run())
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1


@pytest.mark.parametrize("width", [20, 40, 100, 300])
def test_nothing_hostile_reaches_the_terminal_at_any_width(width: int) -> None:
    written, text = on_a_terminal(a_run(HOSTILE), width)
    assert "\x1b]" not in written, "rich writes no OSC here, so this one would be the run's"
    assert "\x1b[2J" not in written
    assert "\x07" not in written
    assert "\u202e" not in written
    if width == 300:
        assert "[bold red]x[/bold red] :smile: [link=http://evil]y[/link]\\u202e" in text


def test_lines_with_a_time_fit_the_terminal() -> None:
    _, text = on_a_terminal(a_run(" wide 日本語" * 30), width=60)
    heads = re.findall(r"(?:✻|✔ \$|✘ \$|answers:)[^\n]*", text)
    assert heads
    assert all(cell_len(line.rstrip()) <= 60 for line in heads), heads


def test_a_long_diff_is_cut_and_says_where_the_rest_is() -> None:
    stream = io.StringIO()
    view = TerminalView(Console(file=stream, width=80))
    view(a_run()[0])
    view.diff("+x\n" * 1000)
    assert "600 more lines: agent diff r1" in stream.getvalue()
    view.diff("+x\n" * 1000, max_lines=None)
    assert stream.getvalue().count("+x\n") == 1400


@pytest.mark.parametrize(
    ("line", "style"),
    [
        ("+a", "green"),
        ("-a", "red"),
        ("@@ -1 +1 @@", "cyan"),
        ("+++ b/a", "bold"),
        ("--- a/a", "bold"),
        (" a", "dim"),
        ("    +a", "green"),
        ("diff --git", "bold"),
    ],
)
def test_a_diff_line_has_its_colour(line: str, style: str) -> None:
    assert diff_line(line).style == style


def test_without_a_terminal_there_are_plain_lines() -> None:
    stream = io.StringIO()
    view = open_view(stream)
    assert isinstance(view, PlainView)
    with view:
        for event in a_run(HOSTILE):
            view(event)
        view.diff("+x\n")
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "$ pytest" in text
    assert "exit 1 in 1.5 s" in text
    assert "passed: fixed" not in text, "that is the summary's"
    assert "+x" not in text
    view.summary(ENDED)
    assert stream.getvalue().endswith(summary_text(ENDED))
    view.diff("+x\n", max_lines=None)
    assert stream.getvalue().endswith("+x\n")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(Terminal()), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_view(Terminal()), TerminalView)


def test_json_lines_are_the_log_and_people_follow_elsewhere() -> None:
    out, err = io.StringIO(), io.StringIO()
    with JsonView(out, PlainView(err), first_seq=3, clock=lambda: 7.0) as view:
        for event in a_run(HOSTILE):
            view(event)
    entries = [load(line.encode()) for line in out.getvalue().splitlines()]
    assert [entry.event for entry in entries] == [event for event in a_run(HOSTILE) if not isinstance(event, Delta)]
    assert [entry.seq for entry in entries] == list(range(3, 3 + len(entries)))
    assert "$ pytest" in err.getvalue()
    view.summary(ENDED)
    assert "passed" in err.getvalue()
    assert out.getvalue().isascii()


def test_a_reader_that_went_away_does_not_end_the_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        view = PlainView(stream)
        for _ in range(3):
            for event in a_run():
                view(event)
        view.summary(ENDED)


def test_summary_text() -> None:
    assert summary_text(ENDED) == (
        "It is fixed.\nReally.\n\npassed: fixed, and the checks confirm it\n1 of 1 checks pass\nchanged: a.py\nbranch: agent/x-1\n"
    )
    assert summary_text(RunEnded(Outcome.LIMIT, "")) == "limit: a limit was reached\n"


def test_the_tally_is_one_record_of_all() -> None:
    ticks = iter([0.0, 12.5])
    tally = Tally(clock=lambda: next(ticks))
    for event in a_run():
        tally(event)
    assert tally.result(ENDED) == {
        "event": "result",
        "run": "r1",
        "outcome": "passed",
        "exit_code": 0,
        "reason": "1 of 1 checks pass",
        "claimed": "It is fixed.\nReally.",
        "branch": "agent/x-1",
        "changed_paths": ["a.py"],
        "test_paths": [],
        "checks": {
            "before": [{"command": "pytest", "exit_code": 1, "duration_s": 0.5, "tests": 1, "failing": ["t"]}],
            "after": [{"command": "pytest", "exit_code": 0, "duration_s": 0.5, "tests": 1, "failing": []}],
        },
        "turns": 1,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 0,
        "retries": 1,
        "repairs": 0,
        "duration_s": 12.5,
    }
