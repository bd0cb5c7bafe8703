"""A run as Markdown for the comment of a pull request.

Text from a model, a tool or a repository is only in code spans and fences, which it cannot leave, and where nothing is a
mention, a reference, a link or HTML. Three things that are found in raw text are broken up even inside fences:
``<!--`` (by which bots find their own comments), a ``/`` at the start of a line (GitLab's quick actions) and a line that
could be read as a fence.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agent.batch.attempt import Kind
from agent.events import EXIT_CODES, CheckResult, Outcome
from agent.lines import VERDICTS, check_line, clean, one_line, plan_lines, seconds, tail
from agent.report.story import Story, read_story
from agent.report.tasks import read_batch

CLAIM_LINES = 60
CLAIM_COLUMNS = 100
PATCH_CHARS = 16_000
OUTPUT_LINES, OUTPUT_CHARS = 30, 6000
FAILING = 2  # checks whose output is shown
CHECKS = 20
PLAN_LINES = 30
SPAN_CHARS = 300
PATHS = 12
TASKS = 100
COMMENT = re.compile(r"<!(?=--)")
LINE_START = re.compile(r"^(?=[ \t]*(?:/|`{3}|~{3}))", re.MULTILINE)


def run_markdown(run: Path) -> str:
    """Return the run in a folder as Markdown, short enough for a comment on GitHub (65,536 characters).

    Raises LogError if its log is invalid.
    """
    return story_markdown(read_story(run))


def batch_markdown(out: Path) -> str:
    """Return a batch (the folder that `agent tasks run --out` names) as Markdown. Raises UsageError and LogError."""
    batch = read_batch(out)
    kinds = Counter(row.kind for row in batch.rows)
    counts = "\n".join(f"| {kind.value} | {kinds[kind]:,} |" for kind in Kind if kinds[kind])
    spent = f"{sum(row.sampled_tokens for row in batch.rows):,} tokens written"
    head = f"### {kinds[Kind.DONE]:,} of {len(batch.rows):,} tasks done, {spent}"
    rest = [row for row in batch.rows if row.kind is not Kind.DONE]
    lines = [f"- {row.kind.value} {code(row.task)} {code(row.reason)}".rstrip() for row in rest[:TASKS]]
    more = [f"- and {len(rest) - TASKS:,} more"] if len(rest) > TASKS else []
    table = [f"| class | tasks |\n|---|---:|\n{counts}"] if counts else []
    return "\n\n".join([head, *table, *(["\n".join([*lines, *more])] if lines else [])]) + "\n"


def story_markdown(story: Story) -> str:
    """Return a story as Markdown."""
    parts = [f"### {_headline(story)}", f"**Task** {code(story.task)}", _facts(story)]
    if story.ended and story.ended.claimed.strip():
        asked = story.mode == "ask"
        parts += [
            "**Answer**" if asked else "**What the model says** (a claim, not an observation)",
            fence(_prose(story.ended.claimed)),
        ]
    if checks := _checks(story):
        parts += ["**Checks**", checks]
    if story.patch:
        parts.append(_change(story))
    if story.plan:
        parts.append(_details("Plan", fence("\n".join(plan_lines(story.plan[:PLAN_LINES])))))
    return "\n\n".join(parts) + "\n"


def code(text: str) -> str:
    """Return the text on one line in a code span that it cannot leave. Not for tables: a ``|`` would end the cell."""
    text = COMMENT.sub("<\u200b!", one_line(text, SPAN_CHARS))
    if not text:
        return ""
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    # A span may not begin or end with a backtick; Markdown strips one space on both sides.
    pad = " " if "`" in (text[0], text[-1]) else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "") -> str:
    """Return the text in a fence that it cannot leave."""
    text = clean(text).strip("\n")
    text = LINE_START.sub("\u200b", COMMENT.sub("<\u200b!", text))
    ticks = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _headline(story: Story) -> str:
    if story.ended is None:
        return f"⏸ {story.state}"
    mark = "✅" if EXIT_CODES[story.ended.outcome] == 0 else "❌"
    if story.ended.outcome is Outcome.UNVERIFIED:
        mark = "⚠️"
    return f"{mark} {story.ended.outcome.value.replace('_', ' ')}: {VERDICTS[story.ended.outcome]}"


def _facts(story: Story) -> str:
    lines = []
    if story.ended is not None:
        if story.ended.reason:
            lines.append(f"- {code(story.ended.reason)}")
        if story.ended.changed_paths:
            lines.append(f"- changed: {_paths(story.ended.changed_paths)}")
        if story.ended.test_paths:
            lines.append(f"- ⚠️ tests changed: {_paths(story.ended.test_paths)}")
        if story.ended.branch:
            lines.append(f"- branch: {code(story.ended.branch)}")
    turns = "1 turn" if len(story.answers) == 1 else f"{len(story.answers)} turns"
    tokens = f"{story.prompt_tokens:,} tokens read, {story.completion_tokens:,} written"
    cost = "" if story.cost is None else f", cost {story.cost:,.4f}"
    lines.append(f"- run {code(story.run)}: {turns}, {seconds(story.duration_s)}, {tokens}{cost}")
    return "\n".join(lines)


def _paths(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - PATHS} more" if len(paths) > PATHS else ""
    return ", ".join(code(path) for path in paths[:PATHS]) + more


def _prose(text: str) -> str:
    """Return a text wrapped for a fence, where lines are not wrapped automatically."""
    lines = [
        part
        for line in clean(text).strip().split("\n")
        for part in (textwrap.wrap(line, CLAIM_COLUMNS, break_on_hyphens=False) or [""])
    ]
    left_out = len(lines) - CLAIM_LINES
    return "\n".join(lines[:CLAIM_LINES] + ([f"… {left_out} more lines"] if left_out > 0 else []))


def _checks(story: Story) -> str:
    lines = [f"- {when}: {_check(check)}" for when, checks in _when(story) for check in checks]
    lines = lines[:CHECKS] + [f"- and {len(lines) - CHECKS} more"] * (len(lines) > CHECKS)
    failing = [check for check in story.after or () if check.exit_code != 0 and check.output.strip()]
    return "\n\n".join(
        ["\n".join(lines)] * bool(lines)
        + [
            _details(
                f"What fails: {_bare(check.command)}",
                fence("\n".join(tail(check.output, OUTPUT_LINES))[-OUTPUT_CHARS:]),
            )
            for check in failing[:FAILING]
        ]
    )


def _when(story: Story) -> list[tuple[str, tuple[CheckResult, ...]]]:
    return [("before", story.before or ()), ("after", story.after or ())]


def _check(check: CheckResult) -> str:
    mark = "✅" if check.exit_code == 0 else "❌"
    return f"{mark} {code(check_line(check))}"


def _change(story: Story) -> str:
    patch = story.patch.decode("utf-8", "replace")
    lines = patch.split("\n")
    kept, size = 0, 0
    while kept < len(lines) and size + len(lines[kept]) < PATCH_CHARS:
        size += len(lines[kept]) + 1
        kept += 1
    left_out = len(lines) - kept
    shown = "\n".join(lines[:kept] + ([f"… {left_out} more lines"] if left_out else []))
    return _details("Change", fence(shown, "diff"))


def _details(summary: str, body: str) -> str:
    """Return a folded section. The empty lines end the HTML, so that the body is rendered as Markdown."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _bare(text: str) -> str:
    """Return the text for HTML outside of code: letters, digits and little else (``GH-7`` would be a reference)."""
    return " ".join(re.sub(r"[^\w.=+-]+|-(?=\d)", " ", one_line(text, 80)).split())
