"""Runs and batches as pages: one file each, complete in itself, that loads nothing and runs no script but its own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from agent.lines import one_line
from agent.log import LOG_NAME
from agent.report.batch_body import batch_body
from agent.report.html import Markup, document
from agent.report.run_body import run_body
from agent.report.story import Story, read_story
from agent.report.tasks import Batch, read_batch
from agent.saver import write_whole


def run_page(run: Path) -> str:
    """Return the page of the run in a folder. Raises LogError where its log is no log."""
    return story_page(read_story(run))


def batch_page(out: Path) -> str:
    """Return the page of a batch (the folder that `agent tasks run --out` names), which links to its runs' pages.

    Raises UsageError where there are no results, LogError where they are broken.
    """
    return tasks_page(read_batch(out))


def story_page(story: Story) -> str:
    """Return the page of a run's story."""
    return _page(f"{story.state.replace('_', ' ')}: {one_line(story.task, 80)}", run_body(story))


def tasks_page(batch: Batch) -> str:
    """Return the page of a batch."""
    return _page(f"{batch.name}: {len(batch.rows)} tasks", batch_body(batch))


def write_run_pages(out: Path) -> int:
    """Write the page of every attempt of a batch beside its log, where the batch's page links to; return how many."""
    pages = 0
    for row in read_batch(out).rows:
        for link in row.links:
            if link and (out / link).with_name(LOG_NAME).is_file():
                write_whole(out / link, run_page((out / link).parent).encode())
                pages += 1
    return pages


def _page(title: str, body: Markup) -> str:
    folder = files("agent.report")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return document(title, style, script, body)
