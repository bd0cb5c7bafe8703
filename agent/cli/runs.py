"""`agent runs`, `show`, `diff`, `apply`, `discard`: list and show runs, and apply or discard their changes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from agent.cli.options import config_options, configured, find_repository, may_ask
from agent.errors import LogError
from agent.landing import bring_in
from agent.landing import discard as delete
from agent.lines import clean, one_line, path_line, seconds, transcript
from agent.log import LOG_NAME, read
from agent.log import runs as run_folders
from agent.runs import Summary, find_run, patch_of, summary
from agent.view import open_view


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=20, metavar="N", help="Number of runs to list (default: 20)."
)
@config_options("runs_dir")
def runs(as_json: bool, count: int, runs_dir: Path | None) -> None:
    """List the runs, newest first."""
    folders = list(run_folders(_runs_dir(runs_dir)))
    for folder in folders[:count]:
        try:
            found = summary(folder)
        except LogError as error:
            click.echo(f"agent: {clean(str(error))}", err=True)
            continue
        click.echo(json.dumps(_record(found)) if as_json else _row(found))
    if len(folders) > count:
        click.echo(f"{len(folders) - count} more: agent runs -n {len(folders)}", err=True)


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the log, one JSON event per line.")
@config_options("runs_dir")
def show(run: str, as_json: bool, runs_dir: Path | None) -> None:
    """Show what happened in a run.

    RUN is a run's id, the beginning of one, or `last`.
    """
    log = find_run(_runs_dir(runs_dir), run) / LOG_NAME
    if as_json:
        for line in log.read_bytes().split(b"\n")[:-1]:
            click.echo(line)
        return
    for text in transcript((entry.at, entry.event) for entry in read(log)):
        click.echo(text)


@click.command()
@click.argument("run")
@config_options("runs_dir")
def diff(run: str, runs_dir: Path | None) -> None:
    """Print a run's change as a patch.

    In colour on a terminal; byte for byte into a file or a pipe, ready for `git apply`.
    """
    patch = patch_of(find_run(_runs_dir(runs_dir), run))
    if sys.stdout.isatty():
        open_view(sys.stdout).diff(patch.decode("utf-8", "replace"), max_lines=None)
    else:
        click.echo(patch, nl=False)


def _runs_dir(given: Path | None) -> Path:
    return configured({"runs_dir": given}, None).config.runs_dir


def _row(found: Summary) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.started_at))
    return f"{found.name}  {when}  {found.state:<13} {seconds(found.duration_s):>9}  {one_line(found.started.task, 60)}"


def _record(found: Summary) -> dict[str, object]:
    return {
        "run": found.name,
        "started_at": found.started_at,
        "duration_s": round(found.duration_s, 3),
        "state": found.state,
        "mode": found.started.mode,
        "repository": found.started.repository,
        "task": found.started.task,
        "branch": found.ended.branch if found.ended else None,
    }


@click.command()
@click.argument("run")
@click.option(
    "--repo",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Checkout to apply it to (default: the one the run was started in).",
)
@config_options("runs_dir")
def apply(run: str, repo: Path | None, runs_dir: Path | None) -> None:
    """Apply a run's change to the checkout, uncommitted.

    All or nothing: if the change does not apply to the current checkout, no file is touched.
    """
    folder = find_run(_runs_dir(runs_dir), run)
    repository = find_repository(repo or Path(summary(folder).started.repository))
    for path in bring_in(repository, patch_of(folder)):
        click.echo(path_line(path))


@click.command()
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation (without a terminal, nothing is asked anyway).")
@config_options("runs_dir")
def discard(run: str, yes: bool, runs_dir: Path | None) -> None:
    """Delete a run, its branch and its container.

    If the branch has moved since the run, neither is deleted.
    """
    folder = find_run(_runs_dir(runs_dir), run)
    if not yes and may_ask():
        click.confirm(f"Delete {folder.name} ({one_line(summary(folder).started.task, 60)})?", abort=True, err=True)
    for gone in delete(folder):
        click.echo(f"deleted {clean(gone)}")
