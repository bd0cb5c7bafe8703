"""Runs and batches to report on, written as the product writes them, with whatever text a test wants in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.batch.attempt import Attempt, Kind, to_record
from agent.batch.results import RESULTS_NAME, SETTINGS_NAME
from agent.conversation import Channel, Conversation, Message, Role
from agent.events import (
    Checked,
    CheckResult,
    Durable,
    MessageAdded,
    Outcome,
    PlanChanged,
    PlanStep,
    Repaired,
    RunEnded,
    RunStarted,
    Sampled,
    StepState,
    ToolFinished,
    ToolResult,
    ToolStarted,
)
from agent.log import LOG_NAME
from agent.record import Entry, dump

START = 1_790_000_000.0
PATCH = "\n".join(
    [
        "diff --git a/shop/price.py b/shop/price.py",
        "index 1111111..2222222 100644",
        "--- a/shop/price.py",
        "+++ b/shop/price.py",
        "@@ -3,7 +3,9 @@ class Price:",
        '     """What a thing costs."""',
        " ",
        "     def total(self, count):",
        "-        return self.each * count  # of each",
        "+        if count < 0:",
        '+            raise ValueError("a count is not negative")',
        "+        return self.each * count",
        " ",
        "     def __repr__(self):",
        '         return "Price"',
        "diff --git a/tests/test_price.py b/tests/test_price.py",
        "new file mode 100644",
        "index 0000000..3333333",
        "--- /dev/null",
        "+++ b/tests/test_price.py",
        "@@ -0,0 +1,2 @@",
        "+def test_total():",
        "+    assert Price(2).total(3) == 6",
        "",
    ]
)
BEFORE = CheckResult("python -m pytest -q", 1, 1.25, "1 failed, 1 passed", {"t.py::a": "passed", "t.py::b": "failed"})
AFTER = CheckResult(
    "python -m pytest -q", 0, 1.5, "3 passed", {"t.py::a": "passed", "t.py::b": "passed", "t.py::c": "skipped"}
)
CONFIG = {"model": "gpt-oss-20b", "endpoint": "http://127.0.0.1:8000/v1", "wire": "completions", "effort": "medium"}


def entries(events: Iterable[Durable], step_s: float = 1.0) -> list[Entry]:
    return [Entry(number, START + number * step_s, event) for number, event in enumerate(events)]


def turn(
    number: int,
    call: int,
    *,
    thought: str,
    tool: str = "shell",
    asked: str,
    result: ToolResult,
    prompt_tokens: int = 2000,
) -> list[Durable]:
    """One turn: reasoning, a call and its result. ``call`` is the index of the call's message."""
    answer = Message(Role.TOOL, result.text, Channel.COMMENTARY, "assistant", name="container.exec")
    return [
        MessageAdded(Message(Role.ASSISTANT, thought, Channel.ANALYSIS)),
        MessageAdded(Message(Role.ASSISTANT, asked, Channel.COMMENTARY, "container.exec", "json")),
        Sampled(prompt_tokens, 40 + number, "call", prompt_tokens // 2, 0.5 + number % 7 / 3, 0.1),
        ToolStarted(call, tool),
        ToolFinished(call, tool, result, answer),
    ]


def run_events(
    turns: int = 3, *, text: str = "", task: str = "Fix the price.", outcome: Outcome | None = Outcome.PASSED,
    output: str = "one\ntwo\n", checks: bool = True,
) -> list[Durable]:  # fmt: skip
    """A run of so many turns with a call each; ``text`` is put wherever a model, tool or repository may write."""
    conversation = Conversation("be good", (), (Message(Role.USER, task + text),))
    plan = (
        PlanStep("Look" + text, StepState.COMPLETED),
        PlanStep("Fix" + text, StepState.IN_PROGRESS),
        PlanStep("Test"),
    )
    events: list[Durable] = [
        RunStarted(
            "20261122-101500-abcdef", task + text, "fix", conversation, "/home/ada/shop" + text, "c0ffee" * 6, CONFIG
        )
    ]
    for number in range(turns):
        call = 2 + 3 * number
        match number % 4:
            case 0:
                body, tool, result = json.dumps({"steps": [text]}), "plan", ToolResult("The plan now", plan=plan)
            case 1:
                command = {"command": ["bash", "-lc", f"python -m pytest -q{text}"]}
                framed = f"<exit_code>1</exit_code>\n<output>\n{output}{text}</output>"
                body, tool, result = json.dumps(command), "shell", ToolResult(framed, True, 1, 0.75, cut_bytes=12)
            case 2:
                patch = f"*** Begin Patch\n*** Update File: shop/price.py\n@@\n-old{text}\n+new{text}\n*** End Patch"
                body, tool, result = (
                    json.dumps({"patch": patch}),
                    "apply_patch",
                    ToolResult("Done." + text, duration_s=0.1),
                )
            case _:
                body, tool, result = (
                    json.dumps({"path": "a", "query": "b" + text}),
                    "search",
                    ToolResult(output + text, False),
                )
        events += turn(number, call, thought=f"Thinking of {number}.{text}", tool=tool, asked=body, result=result, prompt_tokens=1500 + 90 * number)  # fmt: skip
        if number == 0:
            events.append(PlanChanged(plan))
            events += [Checked("before", (BEFORE,))] * checks
        if number == 3:
            events.append(Repaired("header_words", "stray" + text))
    if outcome is not None:
        claimed = "It is fixed." + text
        events += [
            MessageAdded(Message(Role.ASSISTANT, claimed, Channel.FINAL)),
            Sampled(2500, 30, "stop", 1000, 1.0, 0.1),
            *([Checked("after", (AFTER,))] * checks),
            RunEnded(outcome, "all pass" + text, claimed, ("shop/price.py" + text,), ("tests/test_price.py",), "agent/price-1", "abc"),
        ]  # fmt: skip
    return events


def write_run(folder: Path, events: Iterable[Durable], patch: str | bytes = PATCH) -> Path:
    folder.mkdir(parents=True)
    (folder / LOG_NAME).write_bytes(b"".join(map(dump, entries(events))))
    (folder / "patch.diff").write_bytes(patch if isinstance(patch, bytes) else patch.encode())
    return folder


def attempt(number: int = 1, kind: Kind = Kind.DONE, **keys: Any) -> Attempt:
    outcome = {Kind.DONE: "passed", Kind.LIMIT: "limit", Kind.ENDPOINT: "endpoint"}.get(kind, "checks_failed")
    return Attempt(
        number, kind, outcome, **({"reason": "because", "run": f"run-{number}", "model": "gpt-oss-20b"} | keys)
    )


def record(task: str, attempts: list[Attempt], kept: int = 1, **keys: Any) -> dict[str, Any]:
    best = attempts[kept - 1]
    return {
        "task": task, "class": best.kind.value, "outcome": best.outcome, "reason": best.reason, "kept": kept,
        "folder": f"tasks/{task}/{kept}/{best.run}", "model": "gpt-oss-agent/gpt-oss-20b", "language": "python",
        "difficulty": "easy", "tags": [], "sampled_tokens": sum(each.sampled_tokens for each in attempts),
        "total_tokens": sum(each.total_tokens for each in attempts),
        "duration_s": sum(each.duration_s for each in attempts), "attempts": [to_record(each) for each in attempts],
    } | keys  # fmt: skip


def write_batch(out: Path, records: Iterable[dict[str, Any]], runs: bool = True) -> Path:
    """A batch's folder, and (``runs``) a small run for each attempt that has one."""
    out.mkdir(parents=True)
    lines = list(records)
    (out / RESULTS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / SETTINGS_NAME).write_text(json.dumps({"model": "gpt-oss-20b", "attempts": 2, "effort_ladder": []}))
    for line in lines if runs else ():
        for each in line["attempts"]:
            if each["run"]:
                write_run(out / "tasks" / line["task"] / str(each["attempt"]) / each["run"], run_events())
    return out


def many_records(count: int) -> list[dict[str, Any]]:
    """Tasks of every class, sizes over two decades: something for every plot."""
    kinds = [
        Kind.DONE,
        Kind.DONE,
        Kind.DONE,
        Kind.MODEL,
        Kind.LIMIT,
        Kind.DONE,
        Kind.TOOL,
        Kind.DONE,
        Kind.ENDPOINT,
        Kind.PARSER,
    ]
    found = []
    for number in range(count):
        kind, tries = kinds[number * 7 % 10], 1 + number % 3
        attempts = [
            attempt(
                each + 1, kind, turns=3 + number * 13 % 40, sampled_tokens=200 + (number * 7919) % 9000,
                total_tokens=90_000 + number, duration_s=20.0 + (number * 37) % 300, patch_lines=number % 50,
            )
            for each in range(tries)
        ]  # fmt: skip
        language, difficulty = ("python", "go", "javascript")[number % 3], ("easy", "hard")[number % 2]
        found.append(record(f"task-{number:03}", attempts, tries, language=language, difficulty=difficulty))
    return found
