from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.batch.attempt import Kind
from agent.errors import LogError, UsageError
from agent.events import Checked, Outcome, Repaired, RunStarted, ToolResult
from agent.log import LOG_NAME
from agent.report.markdown import story_markdown
from agent.report.page import batch_page, run_page, story_page, tasks_page, write_run_pages
from agent.report.story import Story, tell
from agent.report.tasks import read_batch, tell_batch
from tests.agent.report.hostile import texts
from tests.agent.report.stories import (
    AFTER,
    PATCH,
    START,
    attempt,
    entries,
    many_records,
    record,
    run_events,
    turn,
    write_batch,
    write_run,
)
from tests.agent.report.test_html import Reader, read

TAGS = set(
    re.findall(
        r"\w+",
        "html head meta link title style body script header nav main section article details summary p h1 h2 h3 h4 pre code"
        " a i b span div small strong ul ol li dl dt dd table thead tbody tr th td button figure figcaption svg g rect line"
        " text input label output",
    )
)
MARK = "Qx7"


def held_to_the_rules(page: str) -> Reader:
    """Nothing on the page but what we put there: no tag, handler, address, style or script of another's."""
    found = read(page)
    script = files("agent.report").joinpath("page.js").read_text()
    assert page.count("<script") == 1
    assert f"<script>{script}</script></body></html>\n" in page
    assert {tag for tag, _ in found.tags} <= TAGS
    for _, attributes in found.tags:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset", "action") for name in attributes)
        link = attributes.get("href") or "#"
        assert link.startswith(("#", "data:,", "tasks/", "../")), link
    return found


@settings(max_examples=40)
@given(texts, st.sampled_from([*Outcome, None]))
def test_hostile_text_is_only_text(text: str, outcome: Outcome | None) -> None:
    events = run_events(5, text=f"{MARK}{text}{MARK}", outcome=outcome, output=text)
    story = tell(entries(events))
    page = story_page(Story(**{**_fields(story), "patch": (PATCH + text).encode("utf-8", "replace")}))
    held_to_the_rules(page)
    page.encode()


def _fields(story: Story) -> dict[str, object]:
    return {name: getattr(story, name) for name in Story.__slots__}


@settings(max_examples=40)
@given(texts)
def test_hostile_names_and_reasons_are_only_text_in_a_batch(text: str) -> None:
    records = {
        "t": record("t" + text, [attempt(reason=text, run="r" + text.replace("\ud800", ""), model=text)], language=text)
    }
    held_to_the_rules(tasks_page(tell_batch(text, records, {"model": text}, {})))


def test_a_run_says_its_outcome_first_and_everything_after(tmp_path: Path) -> None:
    page = run_page(write_run(tmp_path / "r", run_events(5)))
    text = held_to_the_rules(page).text
    said = [
        "agent fix · run 20261122-101500-abcdef", "Fix the price.", "passed fixed, and the checks confirm it", "all pass",
        "Tests were changed: tests/test_price.py", "gpt-oss-20b at http://127.0.0.1:8000/v1", "agent/price-1",
        "10,900 read (5,200 of them cached), 240 written", "What the model says", "A claim.", "It is fixed.", "Checks",
        "exit 1 1 failed, 1 passed", "passes 2 passed, 1 skipped", "2 tests that fail or changed", "t.py::b", "Change",
        "2 files, +5 -1", "shop/price.py", "Plan", "Look (done)", "Fix (begun)", "Test (to do)", "Turns", "Turn 1", "Reasoning",
        "Checks before:", "Turn 2", "$ python -m pytest -q", "exit 1 in 0.8 s, 12 bytes cut", "one\ntwo", "Turn 3", "*** Update File: shop/price.py",
        "Turn 4", "failed in 0 ms", "Repaired: header words: stray", "Turn 6", "Settings", "completions",
    ]  # fmt: skip
    at = 0
    for each in said:
        found = text.find(each, at)
        assert found >= 0, f"{each!r} is not there, or not in its place"
        at = found


def test_a_long_task_is_there_as_a_whole() -> None:
    for task, folded in (("short", False), ("first\nsecond", True), ("word " * 100, True)):
        page = story_page(tell(entries(run_events(1, task=task))))
        assert ("Full task" in page) == folded
        assert f"<h1>{task.strip().partition(chr(10))[0][:199]}" in page


def test_a_question_has_an_answer_and_no_claim() -> None:
    first, *rest = run_events(1, outcome=Outcome.ANSWERED)
    assert isinstance(first, RunStarted)
    story = tell(entries([replace(first, mode="ask"), *rest]))
    assert "<h2>The answer</h2>" in story_page(story)
    assert "A claim." not in story_page(story)
    assert "**Answer**" in story_markdown(story)


def test_a_page_is_the_same_every_time(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", run_events(5))
    assert run_page(run) == run_page(run)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(Outcome.PASSED, "good"), (Outcome.UNVERIFIED, "open"), (Outcome.LIMIT, "bad"), (None, "open")],
)
def test_the_outcome_has_its_colour(outcome: Outcome | None, kind: str) -> None:
    page = story_page(tell(entries(run_events(outcome=outcome))))
    assert f'<p class="outcome {kind}">' in page


def test_what_is_not_there_has_no_section() -> None:
    page = story_page(Story(task="x"))
    assert page.count("<h2>") == 0
    none = story_page(tell(entries([*run_events(0, outcome=None), Checked("before", ())])))
    assert "There is no check." in none


def test_a_call_without_a_result_and_a_turn_that_was_cut_off() -> None:
    events = run_events(1, outcome=None)
    page = story_page(tell(entries([*events[:2], events[2]])))
    assert "has no result" in page


def test_a_run_of_200_turns_with_long_texts_stays_below_two_megabytes(tmp_path: Path) -> None:
    output = "".join(
        f"{number} <&> a line as a compiler prints it, of some length, with ümlauts\n" for number in range(180)
    )
    patch = "".join(
        f"diff --git a/f{number}.py b/f{number}.py\n--- a/f{number}.py\n+++ b/f{number}.py\n@@ -0,0 +1,300 @@\n"
        + "+def function(argument, other=1): return [argument, other, 'text']  # and a word\n" * 300
        for number in range(20)
    )
    run = write_run(tmp_path / "r", run_events(200, output=output, text="&" * 3000), patch)
    page = run_page(run)
    assert len(page.encode()) < 2_000_000
    assert "characters left out" in page
    assert "agent diff 20261122-101500-abcdef prints it" in page
    assert page.count("<article") == 201


def test_a_run_of_few_turns_is_not_cut() -> None:
    page = story_page(tell(entries(run_events(3, output="a line\n" * 2000))))
    assert "left out" not in page


def test_many_tests_are_counted() -> None:
    tests = {f"t.py::test_{number}": "failed" for number in range(500)}
    page = story_page(tell(entries([*run_events(1, outcome=None), Checked("after", (replace(AFTER, tests=tests),))])))
    assert "302 more are not shown." in page
    assert "502 tests that fail or changed" in page


def test_a_batch_counts_links_and_sorts(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", many_records(30), runs=False)
    page = batch_page(out)
    text = held_to_the_rules(page).text
    for each in ("15 of 30 done (50%)", "Tasks by class", "Working time per task", "Output tokens per task", "Attempts per task", "task-000", "Settings"):  # fmt: skip
        assert each in text
    assert page.count("<tr>") == 31 + 2
    assert 'href="tasks/task-001/2/run-2/report.html">task-001</a>' in page
    assert page.count('data-v="') == 30 * 5


def test_grades_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", [record(name, [attempt()]) for name in "abc"], runs=False)
    assert "Graded" not in batch_page(out)
    (out / "grades").mkdir()
    (out / "grades" / "report.json").write_text('{"resolved_ids":["a"],"completed_ids":["a"],"empty_patch_ids":["b"]}')
    text = read(batch_page(out)).text
    assert "1 of 2 resolved" in text
    assert all(word in text for word in ("resolved", "unresolved", "not graded"))


def test_links_lead_from_where_the_page_will_lie(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", [record("a b", [attempt()])])
    for place, link in ((None, "tasks/a%20b/1/run-1/report.html"), (out, "tasks/a%20b/1/run-1/report.html"), (tmp_path / "site", "../out/tasks/a%20b/1/run-1/report.html"), (tmp_path, "out/tasks/a%20b/1/run-1/report.html")):  # fmt: skip
        assert f'href="{link}"' in batch_page(out, place)


def test_attempts_that_never_began_have_no_page(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", [record("a", [attempt(kind=Kind.HARNESS, run="")])])
    assert "<span>a</span>" in batch_page(out)
    assert write_run_pages(out) == []


def test_an_empty_batch_has_a_page(tmp_path: Path) -> None:
    assert "No task has a result yet." in batch_page(write_batch(tmp_path / "out", []))


def test_pages_of_runs_are_written_where_they_are_not_there_or_old(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", [record("a", [attempt(1), attempt(2)]), record("b", [attempt(1)])])
    assert write_run_pages(out) == []
    pages = [out / link for row in read_batch(out).rows for link in row.links]
    assert len(pages) == 3
    assert all("<h1>Fix the price.</h1>" in page.read_text() for page in pages)
    pages[0].write_text("newer than its log")
    os.utime(pages[1], (START, START))
    write_run_pages(out)
    assert pages[0].read_text() == "newer than its log"
    assert pages[1].read_text() == pages[2].read_text()


def test_a_run_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    out = write_batch(tmp_path / "out", [record("a", [attempt()]), record("b", [attempt()])])
    (out / "tasks" / "a" / "1" / "run-1" / LOG_NAME).write_text("{}\n")
    (problem,) = write_run_pages(out)
    assert problem.startswith("no page for a: ")
    assert (out / "tasks" / "b" / "1" / "run-1" / "report.html").exists()


@pytest.mark.parametrize(
    "change", [{"class": "new-class"}, {"attempts": [{"x": 1}]}, {"reason": None, "attempts": None}]
)
def test_results_of_another_version_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    out = write_batch(tmp_path / "out", [record("a", [attempt()]) | change], runs=False)
    with pytest.raises(LogError, match="line 1, is not the result of a task, or comes from another version"):
        read_batch(out)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        batch_page(tmp_path)
    with pytest.raises(LogError):
        run_page(tmp_path)


def test_a_turn_shows_what_ended_it() -> None:
    events = [run_events(0, outcome=None)[0], *turn(1, 2, thought="x", asked="ls", result=ToolResult("y"))]
    page = story_page(tell(entries([*events, Repaired("cut_loop")])))
    assert "2,000 + 41 tokens" in page
    assert "Repaired: cut loop" in page
