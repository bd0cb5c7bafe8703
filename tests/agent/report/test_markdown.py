"""Read back with markdown-it, as GitHub and GitLab read it: what is not ours stands in code, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from agent.batch.attempt import Kind
from agent.events import Checked, CheckResult, Outcome, PlanChanged, PlanStep, RunEnded
from agent.report.markdown import batch_markdown, code, fence, run_markdown, story_markdown
from agent.report.story import tell
from tests.agent.report.hostile import texts
from tests.agent.report.stories import PATCH, attempt, entries, record, run_events, write_batch, write_run

MARK = "Qx7"  # put into what is not ours: wherever it turns up, that text was not ours
GITHUB = MarkdownIt("gfm-like", {"linkify": False})  # linkify would want a library more; nothing of ours is a link


def tokens(markdown: str) -> list[Token]:
    return [leaf for token in GITHUB.parse(markdown) for leaf in (token.children or [token])]


def outside(markdown: str) -> str:
    """Everything that is not in code: words, HTML, the fence's info, links."""
    kept = []
    for token in tokens(markdown):
        if token.type in ("code_inline", "fence"):
            kept.append(token.info)
        elif token.type != "inline":
            kept += [token.content, *map(str, token.attrs.values())]
    return "\n".join(kept)


@given(texts)
def test_nothing_leaves_a_fence(text: str) -> None:
    found = [
        token for token in tokens(f"before\n\n{fence(MARK + text + MARK, 'diff')}\n\nafter") if token.type != "inline"
    ]
    assert [token.type for token in found if token.type not in ("paragraph_open", "paragraph_close")] == [
        "text",
        "fence",
        "text",
    ]
    assert found[-2].content == "after"


@given(texts)
def test_nothing_leaves_a_span(text: str) -> None:
    found = tokens(f"- before {code(MARK + text + MARK)} after")
    leaves = [token for token in found if token.type in ("text", "code_inline") or token.type.startswith("html")]
    assert [token.type for token in leaves] == ["text", "code_inline", "text"]
    assert leaves[1].content.startswith(MARK)


def test_an_empty_span_is_nothing() -> None:
    assert code(" \n ") == ""


@settings(max_examples=60)
@given(texts, st.sampled_from([*Outcome, None]), st.integers(0, 5))
def test_nothing_that_is_not_ours_is_outside_of_code(text: str, outcome: Outcome | None, turns: int) -> None:
    story = tell(entries(run_events(turns, text=f"\n{MARK}{text}{MARK}\n", outcome=outcome)))
    shown = story_markdown(story)
    assert MARK not in outside(shown)
    assert not re.search(r"@|#\d|javascript:|https?:|<script|<img", outside(shown))
    assert {token.content for token in tokens(shown) if token.type.startswith("html")} <= {
        "<details><summary>Change</summary>\n", "<details><summary>Plan</summary>\n", "</details>\n", "</details>",
        "<details><summary>What fails python -m pytest -q</summary>\n",
    }  # fmt: skip


@settings(max_examples=60)
@given(texts)
def test_bots_that_read_the_raw_text_find_no_comment_and_no_command(text: str) -> None:
    shown = story_markdown(tell(entries(run_events(4, text="\n" + text))))
    assert "<!--" not in shown
    assert not re.search(r"^\s*/", shown, re.MULTILINE)


def test_a_check_that_fails_is_quoted_under_a_bare_name() -> None:
    failing = CheckResult("make -j <b>@team</b> #1 | `x` GH-7", 1, 1.0, "</details>\nno rule\n```")
    events = [
        Checked("after", (failing,)) if isinstance(event, Checked) and event.when == "after" else event
        for event in run_events()
    ]
    shown = story_markdown(tell(entries(events)))
    assert (
        "<details><summary>What fails: make -j b team b 1 x GH 7</summary>\n\n````\n</details>\nno rule\n\u200b```\n````"
        in shown
    )


def test_a_run_as_a_person_reads_it(tmp_path: Path) -> None:
    shown = run_markdown(write_run(tmp_path / "r", run_events()))
    assert shown.startswith("### ✅ passed: fixed, and the checks confirm it\n\n**Task** `Fix the price.`\n")
    assert "- before: ❌ `python -m pytest -q: fails (exit 1): 1 failed, 1 passed (1.2 s)`" in shown
    assert "- after: ✅ `python -m pytest -q: passes: 2 passed, 1 skipped (1.5 s)`" in shown
    assert "- ⚠️ tests changed: `tests/test_price.py`" in shown
    assert "- branch: `agent/price-1`" in shown
    assert "```diff\n" + PATCH.rstrip("\n") in shown
    assert "[x] Look\n[>] Fix\n[ ] Test" in shown


@pytest.mark.parametrize(
    ("outcome", "head"),
    [
        (Outcome.CHECKS_FAILED, "### ❌ checks failed: "),
        (Outcome.UNVERIFIED, "### ⚠️ unverified: "),
        (None, "### ⏸ stopped"),
    ],
)
def test_the_outcome_is_the_headline(outcome: Outcome | None, head: str) -> None:
    assert story_markdown(tell(entries(run_events(outcome=outcome)))).startswith(head)


def test_long_changes_and_claims_are_cut_with_their_count(tmp_path: Path) -> None:
    patch = PATCH + "".join(f"+line {number}\n" for number in range(20_000))
    shown = run_markdown(write_run(tmp_path / "r", run_events(text="\nword" * 500), patch))
    assert re.search(r"… 1[0-9]{4} more lines", shown)
    assert "… 441 more lines" in shown


def test_the_longest_run_still_fits_a_comment() -> None:
    long = "word@ " * 20_000
    failing = CheckResult("make" + long, 1, 1.0, (long[:3000] + "\n") * 500)
    events = [
        replace(event, results=(failing,) * 50)
        if isinstance(event, Checked)
        else replace(event, steps=(PlanStep(long),) * 200)
        if isinstance(event, PlanChanged)
        else replace(event, claimed=(long + "\n") * 9, changed_paths=(long,) * 90, test_paths=(long,) * 90)
        if isinstance(event, RunEnded)
        else event
        for event in run_events(1, text=long)
    ]
    story = replace(tell(entries(events)), patch=("+" + "`" * 900 + "\n").encode() * 900)
    assert 40_000 < len(story_markdown(story)) < 60_000


def test_a_batch(tmp_path: Path) -> None:
    evil = f"{MARK} `</td>` @team"
    out = write_batch(
        tmp_path / "out", [record("a", [attempt()]), record("b", [attempt(kind=Kind.TOOL, reason=evil)])], runs=False
    )
    shown = batch_markdown(out)
    assert shown.startswith(
        "### 1 of 2 tasks done, 0 tokens written\n\n| class | tasks |\n|---|---:|\n| done | 1 |\n| tool | 1 |\n"
    )
    assert "- tool `b` ``Qx7 `</td>` @team``" in shown
    assert MARK not in outside(shown)


def test_a_batch_without_results_yet(tmp_path: Path) -> None:
    assert batch_markdown(write_batch(tmp_path / "out", [])) == "### 0 of 0 tasks done, 0 tokens written\n"
