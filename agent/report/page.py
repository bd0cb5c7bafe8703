"""Runs and batches as HTML pages: self-contained files that load nothing and run only their own script."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from agent.errors import LogError
from agent.lines import one_line
from agent.log import LOG_NAME
from agent.report.batch_body import batch_body
from agent.report.html import Markup, document
from agent.report.run_body import run_body
from agent.report.story import Story, read_story
from agent.report.tasks import Batch, read_batch
from agent.saver import write_whole


def run_page(run: Path) -> str:
    """Return the page of the run in a folder. Raises LogError if its log is invalid."""
    return story_page(read_story(run))


def batch_page(out: Path, place: Path | None = None) -> str:
    """Return the page of a batch (the folder that `agent tasks run --out` names), which links to its runs' pages.

    ``place`` is the folder of the page, if it is not ``out``. Raises UsageError if there are no results, LogError if they are
    damaged.
    """
    batch = read_batch(out)
    base = "" if place is None else os.path.relpath(out, place) + "/"
    return tasks_page(replace(batch, base=base.removeprefix("./")))


def story_page(story: Story) -> str:
    """Return the page of a run's story."""
    return _page(f"{story.state.replace('_', ' ')}: {one_line(story.task, 80)}", run_body(story))


def tasks_page(batch: Batch) -> str:
    """Return the page of a batch."""
    return _page(f"{batch.name}: {len(batch.rows)} tasks", batch_body(batch))


def write_run_pages(out: Path) -> list[str]:
    """Write the page of every attempt of a batch beside its log, unless it is up to date; return the problems."""
    problems = []
    for row in read_batch(out).rows:
        for page in (out / link for link in row.links if link):
            log = page.with_name(LOG_NAME)
            try:
                if not page.exists() or page.stat().st_mtime < log.stat().st_mtime:
                    write_whole(page, run_page(page.parent).encode())
            except (LogError, OSError) as error:
                problems.append(f"no page for {row.task}: {error}")
    return problems


def _page(title: str, body: Markup) -> str:
    folder = files("agent.report")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return document(title, style, script, body)
