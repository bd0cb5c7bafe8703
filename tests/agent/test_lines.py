from __future__ import annotations

import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel, Conversation, Message, Role
from agent.events import (
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
    fold,
)
from agent.lines import (
    VERDICTS,
    call_title,
    check_line,
    clean,
    ended_lines,
    event_lines,
    one_line,
    path_line,
    result_line,
    seconds,
    shown_result,
    tail,
    transcript,
)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain text\twith tab\n", "plain text\twith tab\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b]52;c;cm0gLXJm\x07", "\\x1b]52;c;cm0gLXJm\\x07"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b2J", "\\x9b2J"),
        ("progress\rdone", "progress\ndone"),
        ("a\r\nb", "a\nb"),
        ("a\u2028b\x85c", "a\nb\nc"),
        ("if admin\u202e \u2066# check", "if admin\\u202e \\u2066# check"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("lone\ud800", "lone\\ud800"),
        ("family: 👨\u200d👩\u200d👧 naïve größe 日本", "family: 👨\u200d👩\u200d👧 naïve größe 日本"),
        ("back\x08space\x00\x7f", "back\\x08space\\x00\\x7f"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ],
)
def test_clean_leaves_text_and_shows_what_would_act(hostile: str, shown: str) -> None:
    assert clean(hostile) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"a b/\xc3\xbc", "a b/ü"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"\x07", r"\x07"),
    ],
)
def test_a_path_is_on_a_line_of_its_own(path: bytes, shown: str) -> None:
    assert path_line(os.fsdecode(path)) == shown


@given(st.text())
def test_clean_leaves_nothing_that_acts_and_is_stable(text: str) -> None:
    cleaned = clean(text)
    for character in cleaned:
        assert character in "\n\t\u200c\u200d\u00ad" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned


@given(st.text(), st.integers(min_value=2, max_value=80))
def test_one_line_is_one_line_of_that_width(text: str, width: int) -> None:
    line = one_line(text, width)
    assert "\n" not in line
    assert len(line) <= width


@pytest.mark.parametrize(
    ("tool", "body", "title"),
    [
        ("shell", '{"command": ["bash", "-lc", "pytest -q && ls"]}', "$ pytest -q && ls"),
        ("shell", '{"command": "ls -la"}', "$ ls -la"),
        ("shell", '{"cmd": ["git", "status"]}', "$ git status"),
        ("shell", "ls -R", "$ ls -R"),
        ("shell", '{"command": null}', "$ None"),
        ("shell", '["ls"]', '$ ["ls"]'),
        ("python", "import os\nprint(os.getcwd())", "python: import os print(os.getcwd())"),
        ("python", '{"code": "1+1"}', "python: 1+1"),
        ("open_file", '{"path": "a.py", "line_start": 3}', "open_file a.py, 3"),
        ("search", "{broken", "search {broken"),
        ("print_tree", "", "print_tree"),
        (
            "apply_patch",
            "*** Begin Patch\n*** Update File: a.py\n@@\n-x\n+y\n*** Add File: b c.py\n+1\n*** End Patch",
            "apply_patch update a.py, add b c.py",
        ),
        ("apply_patch", json.dumps({"patch": "*** Delete File: \x1b[2Ja"}), "apply_patch delete \\x1b[2Ja"),
        ("apply_patch", "nonsense", "apply_patch"),
        ("shell", "[" * 100_000, "$ " + "[" * 159 + "…"),
    ],
)
def test_a_call_has_a_title_whatever_its_shape(tool: str, body: str, title: str) -> None:
    assert call_title(tool, body) == title


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [
        (0.0, "0 ms"),
        (0.004, "4 ms"),
        (0.05, "0.1 s"),
        (1.25, "1.2 s"),
        (9.97, "10 s"),
        (59.7, "1 min 0 s"),
        (3725, "62 min 5 s"),
        (20_260, "5 h 37 min"),
    ],
)
def test_seconds(duration_s: float, shown: str) -> None:
    assert seconds(duration_s) == shown


def test_tail_says_how_much_it_left_out() -> None:
    assert tail("\n".join(str(number) for number in range(10)), 2) == ["… 8 earlier lines", "8", "9"]
    assert tail("a\n\n\n") == ["a"]
    assert tail("") == []
    assert len(tail("x" * 10_000)[0]) == 400


def test_the_frame_around_a_command_is_for_the_model() -> None:
    framed = "<exit_code>1</exit_code>\n<output>\none\n</output> two\n</output>\n<cwd>/workspace</cwd>"
    assert shown_result(framed, 3) == ["one", "</output> two"]
    assert shown_result("plain", 3) == ["plain"]


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (ToolResult("", duration_s=1), "ok in 1.0 s"),
        (ToolResult("", exit_code=0, duration_s=1), "ok in 1.0 s"),
        (ToolResult("", exit_code=2, duration_s=1), "exit 2 in 1.0 s"),
        (ToolResult("", ok=False, duration_s=1, cut_bytes=7), "failed in 1.0 s, 7 bytes cut"),
    ],
)
def test_a_result_on_one_line(result: ToolResult, line: str) -> None:
    assert result_line(result) == line


def test_a_check_on_one_line() -> None:
    tests = {"a": "passed", "b": "failed", "c": "passed"}
    assert (
        check_line(CheckResult("pytest -q", 1, 0.5, "", tests))
        == "pytest -q: fails (exit 1): 1 failed, 2 passed (0.5 s)"
    )
    assert check_line(CheckResult("make", None, 600, "")) == "make: out of time (10 min 0 s)"
    assert check_line(CheckResult("make", 0, 1, "")) == "make: passes (1.0 s)"


CALL = Message(Role.ASSISTANT, '{"command": "ls"}', Channel.COMMENTARY, "container.exec")
ANSWER = Message(Role.TOOL, "a.py", name="container.exec")
EVENTS: list[Event] = [
    RunStarted("r1", "fix it", "fix", Conversation(), "/repo", "c0ffee", {"wire": "scripted", "script": "demo.json"}),
    Checked("before", (CheckResult("pytest -q", 1, 0.5, ""),)),
    Delta(Channel.ANALYSIS, "thinking"),
    MessageAdded(Message(Role.ASSISTANT, "First I look.\nThen I act.", Channel.ANALYSIS)),
    MessageAdded(CALL),
    Sampled(10, 5, "call"),
    ToolStarted(1, "shell"),
    ToolFinished(1, "shell", ToolResult("a.py\nb.py", duration_s=0.01, exit_code=0), ANSWER),
    PlanChanged((PlanStep("look", StepState.COMPLETED), PlanStep("fix", StepState.IN_PROGRESS), PlanStep("check"))),
    ToolStarted(1, "plan"),
    ToolFinished(1, "plan", ToolResult("ok"), ANSWER),
    Retried("429", 1, 2.0),
    Repaired("name", "functions.shell"),
    Compacted((CALL,), "window", 1000, 100),
    Resumed("the same container"),
    MessageAdded(Message(Role.ASSISTANT, "Let me test.", Channel.COMMENTARY)),
    MessageAdded(Message(Role.ASSISTANT, "Done.\nIt works.", Channel.FINAL)),
    Checked("after", ()),
    RunEnded(Outcome.PASSED, "1 of 1 pass", "Done.", ("a.py",), (), "agent/fix-it-r1"),
]


def test_a_run_as_lines() -> None:
    shown: list[str] = []
    state = State()
    for event in EVENTS:
        shown += event_lines(event, state)
        state = fold([event], state)
    assert shown == [
        "run r1 (fix): fix it",
        "model: a recording, demo.json: nothing is sampled, everything else is real",
        "check before: pytest -q: fails (exit 1) (0.5 s)",
        "thought: First I look. Then I act.",
        "$ ls",
        "ok in 10 ms",
        "  | a.py",
        "  | b.py",
        "plan:",
        "  [x] look",
        "  [>] fix",
        "  [ ] check",
        "retrying in 2.0 s (attempt 1): 429",
        "recovery: name functions.shell",
        "the context window was full: 1000 tokens compacted to 100 (window)",
        "resumed: the same container",
        "Let me test.",
        "Done.",
        "It works.",
        "check after: there is none",
        "passed: fixed, and the checks confirm it",
        "1 of 1 pass",
        "changed: a.py",
        "branch: agent/fix-it-r1",
    ]


def test_a_transcript_carries_the_seconds_since_the_start() -> None:
    lines = list(transcript((100.0 + number, event) for number, event in enumerate(EVENTS[:2])))
    assert lines == [
        "     0.0  run r1 (fix): fix it",
        "          model: a recording, demo.json: nothing is sampled, everything else is real",
        "     1.0  check before: pytest -q: fails (exit 1) (0.5 s)",
    ]


def test_every_outcome_has_its_words() -> None:
    assert VERDICTS.keys() == set(Outcome)


def test_many_changed_paths_do_not_bury_the_outcome() -> None:
    lines = ended_lines(
        RunEnded(Outcome.PASSED, "", changed_paths=tuple(f"f{n}" for n in range(30)), test_paths=("t\n.py",))
    )
    assert lines[1].endswith("f19 and 10 more")
    assert lines[2] == r"tests changed: t\n.py"


HOSTILE = "\x1b]0;x\x07[bold]\u202e\r\n"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_no_event_lets_hostile_text_through(event: Event) -> None:
    """Put hostile text into every string of every event: nothing that acts may come out."""
    lines = event_lines(_poisoned(event), State(conversation=Conversation(messages=(CALL, _poisoned(CALL)))))
    for line in lines:
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert "\n" not in line


def _poisoned(value: object) -> object:
    import dataclasses
    from enum import Enum

    if isinstance(value, str) and not isinstance(value, Enum):
        return value + HOSTILE
    if isinstance(value, tuple):
        return tuple(_poisoned(item) for item in value)
    if isinstance(value, dict):
        return {_poisoned(key): _poisoned(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: _poisoned(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
