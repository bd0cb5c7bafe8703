"""`agent report`: a run or a batch as a page, as Markdown and as JUnit XML."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.batch.results import RESULTS_NAME
from agent.cli.options import config_options, configured
from agent.errors import UsageError
from agent.lines import clean
from agent.log import LOG_NAME
from agent.runs import find_run
from agent.saver import write_whole
from agent.view import write

OUTPUT = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
DASH = Path("-")


@click.command()
@click.argument("what", metavar="RUN|DIR")
@click.option("--html", type=OUTPUT, metavar="FILE", help="One self-contained page (default: report.html in the run's folder or DIR).")  # fmt: skip
@click.option(
    "--markdown", type=OUTPUT, metavar="FILE", help="Markdown for a comment on a pull request, or for a job's summary."
)
@click.option("--junit", type=OUTPUT, metavar="FILE", help="JUnit XML for tools that show test results.")
@config_options("runs_dir")
def report(what: str, html: Path | None, markdown: Path | None, junit: Path | None, runs_dir: Path | None) -> None:
    """Report on a run or a batch, as HTML, Markdown or JUnit XML.

    RUN is a run's id, the beginning of one, `last`, or its folder; DIR is the --out folder of `agent tasks run`. FILE may be -
    for standard output. Without an option, the HTML page is written and its path printed. The page of a batch links to a page
    for each run; those that do not exist yet are written beside the runs' logs.
    """
    if [html, markdown, junit].count(DASH) > 1:
        raise UsageError("Only one report can go to standard output: name files for the others.")
    folder = Path(what)
    if (folder / RESULTS_NAME).is_file():
        _batch(folder, html, markdown, junit)
    elif (folder / LOG_NAME).is_file():
        _run(folder, html, markdown, junit)
    elif folder.is_dir() and folder.name != what:
        raise UsageError(f"{folder} contains neither a run's {LOG_NAME} nor a batch's {RESULTS_NAME}.")
    else:
        _run(find_run(configured({"runs_dir": runs_dir}, None).config.runs_dir, what), html, markdown, junit)


def _run(folder: Path, html: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from agent.report.junit import story_junit
    from agent.report.markdown import story_markdown
    from agent.report.page import story_page
    from agent.report.story import read_story
    from agent.report.tasks import PAGE_NAME

    story = read_story(folder)
    if html or not (markdown or junit):
        _put(html or folder / PAGE_NAME, story_page(story))
    if markdown:
        _put(markdown, story_markdown(story))
    if junit:
        _put(junit, story_junit(story))


def _batch(folder: Path, html: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from agent.report.junit import batch_junit
    from agent.report.markdown import batch_markdown
    from agent.report.page import batch_page, write_run_pages
    from agent.report.tasks import PAGE_NAME

    if html or not (markdown or junit):
        for problem in write_run_pages(folder):
            click.echo(f"agent: {clean(problem)}", err=True)
        place = html or folder / PAGE_NAME
        _put(place, batch_page(folder, folder if place == DASH else place.parent))
    if markdown:
        _put(markdown, batch_markdown(folder))
    if junit:
        _put(junit, batch_junit(folder))


def _put(place: Path, text: str) -> None:
    """Write a report and print its path. Raises UsageError."""
    if place == DASH:
        write(sys.stdout, text)
        return
    try:
        write_whole(place, text.encode())
    except OSError as error:
        raise UsageError(f"{place} cannot be written: {error.strerror}.") from error
    click.echo(clean(str(place)))
