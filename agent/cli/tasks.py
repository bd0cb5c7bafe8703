"""`agent tasks run` and `agent tasks grade`: many tasks, from the command line to their results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.exits import INTERRUPTED
from agent.cli.options import ACKNOWLEDGEMENT, FLAGS, config_options, configured, configured_run, read_ladder
from agent.cli.signals import Interrupts
from agent.config import RunConfig
from agent.errors import UsageError
from agent.events import EXIT_CODES, Outcome
from agent.lines import clean
from agent.openfiles import allow_files
from agent.view import write

if TYPE_CHECKING:
    from agent.batch.attempt import Kind
    from agent.batch.batch import Engine
    from agent.batch.governor import Governor
    from agent.batch.task import Task

AGAIN = "endpoint,sandbox,harness"
# The settings that affect results: a batch can be continued only with the same ones. The endpoint's address is not among them.
HELD = (
    "model", "effort", "temperature", "top_p", "seed", "context_tokens", "tools", "python", "constrain", "browser", "sandbox", "image", "network",
    "policy", "trusted_commit", "checks",
    "max_turns", "max_tokens", "max_answer_tokens", "timeout_s", "command_timeout_s", "check_timeout_s", "max_output_bytes",
)  # fmt: skip
# Open files of this process: per job, pipes or sockets, a log and a lock; plus a fixed number.
FILES_PER_JOB, FILES = 8, 100
GRADING = ("check_timeout_s", "sandbox", "image", "network", "memory_bytes", "pids", "cpus", "disk_bytes")


@click.group()
def tasks() -> None:
    """Run many tasks, and grade the results."""


@tasks.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("agent-results"), show_default=True, metavar="DIR", help="Folder for results; running the command again continues from it.")  # fmt: skip
@click.option("--jobs", "-j", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Attempts to run in parallel.")  # fmt: skip
@click.option("--attempts", "-n", type=click.IntRange(1, 64), default=1, show_default=True, metavar="K", help="Attempts at each task; the best is kept.")  # fmt: skip
@click.option(
    "--effort-ladder", metavar="E,E,...", help="Efforts to try in order, as long as checks fail: low,medium,high."
)
@click.option("--filter", "pattern", metavar="RE", help="Only tasks whose name matches this regular expression.")
@click.option(
    "--budget-tokens", type=click.IntRange(1), metavar="N", help="Maximum number of sampled tokens for the whole batch."
)
@click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True), metavar="N", help="Maximum request rate to the model, over all attempts.")  # fmt: skip
@click.option("--again", default=AGAIN, show_default=True, metavar="CLASS,...", help="Run tasks again whose result is in one of these classes (or: none).")  # fmt: skip
@click.option("--repositories", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", help="Folder with clones, for rows that name a repository as owner/name.")  # fmt: skip
@click.option("--engine", type=click.Choice(["processes", "ray"]), default="processes", show_default=True, help="Run attempts on this machine, or on a Ray cluster (extra [ray]).")  # fmt: skip
@click.option("--address", metavar="ADDR", help="host:port of the Ray cluster's head (default: the cluster of this machine).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print each task's result as a JSON line on standard output.")
@click.option(ACKNOWLEDGEMENT, "acknowledged", is_flag=True, help="Required by --sandbox none.")
@config_options(*(key for key in FLAGS if key not in ("branch", "worktree", "runs_dir", "include_uncommitted")))
def run(
    paths: tuple[str, ...], out: Path, jobs: int, attempts: int, effort_ladder: str | None, pattern: str | None,
    budget_tokens: int | None, requests_per_minute: float | None, again: str, repositories: Path | None, engine: str,
    address: str | None, as_json: bool, acknowledged: bool, **flags: object,
) -> int:  # fmt: skip
    """Run tasks. After a kill, an interrupt or a used-up budget, the same command continues.

    PATH is the folder of a task, a folder of such folders, a .jsonl, .json or .parquet file of tasks (our keys or
    SWE-bench's), or a data set on Hugging Face's hub: hf:OWNER/NAME[@REVISION][:SPLIT] (default split: test; needs the extra
    [datasets]). Results go to DIR: results.jsonl, a folder for each task, and preds.json for SWE-bench's tools.

    Exit code 0: every task has a result, good or bad; 3: the endpoint went away; 4: the budget is used up;
    130: interrupted.
    """
    from agent.batch.batch import Batch, Plan, spent_tokens
    from agent.batch.checkout import Copies
    from agent.batch.governor import Governor
    from agent.batch.read import read_tasks
    from agent.batch.results import Results, derive, hold_to
    from agent.cli.tasks_view import open_watch

    flags = {key: value for key, value in flags.items() if value is not None and value != ()}
    base = configured_run(flags, None, acknowledged)
    plan = Plan(jobs, attempts, read_ladder(effort_ladder), again=_kinds(again))
    found = read_tasks(paths, pattern, repositories, _say)
    with Results(out) as results:
        hold_to(out, _held(base) | {"attempts": attempts, "effort_ladder": list(plan.ladder)})
        governor = Governor(budget_tokens, requests_per_minute, spent_tokens(results.records))
        done = sum(
            results.records[task.name]["class"] not in plan.again for task in found if task.name in results.records
        )
        watch = open_watch(sys.stderr, len(found), done, governor, _print if as_json else _silent)
        checkouts = Copies(out.absolute() / "checkouts", base.cache_dir)
        with _engine(engine, address, out, governor, min(jobs, len(found) * attempts)) as workers:
            batch = Batch(found, _configure(flags), plan, results, workers, governor, watch, checkouts)
            try:
                with watch, Interrupts():
                    batch.run()
            except KeyboardInterrupt:
                pass  # said below, with what to do
            finally:
                derive(out, results.records)
        watch.summary({task.name: results.records[task.name] for task in found if task.name in results.records}, out)
        if not batch.unfinished:
            return 0
        click.echo(
            f"{batch.unfinished} tasks are left: {governor.stopped}. The same command continues from here.", err=True
        )
        return _exit_code(governor.stopped)


@tasks.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--jobs", "-j", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Tasks to grade in parallel.")  # fmt: skip
@click.option("--filter", "pattern", metavar="RE", help="Only tasks whose name matches this regular expression.")
@click.option("--repositories", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", help="Folder with clones, for rows that name a repository as owner/name.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder for reports (default: grades, in or beside RESULTS).")  # fmt: skip
@click.option(ACKNOWLEDGEMENT, "acknowledged", is_flag=True, help="Required by --sandbox none.")
@config_options(*GRADING)
def grade(
    results: Path, paths: tuple[str, ...], jobs: int, pattern: str | None, repositories: Path | None, out: Path | None,
    acknowledged: bool, **flags: object,
) -> int:  # fmt: skip
    """Run the tasks' checks on the patches alone, in fresh sandboxes.

    RESULTS is the folder of `agent tasks run`, or a file of predictions in SWE-bench's format; PATH names the tasks as it does
    there. Rows in SWE-bench's format are graded if their tests are pytest ids; for others, use the swebench package. DIR
    gets report.json in the format of that package, and a folder for each task. Exit code 0: all tasks were graded; 1: some
    could not be.
    """
    from concurrent.futures import ThreadPoolExecutor

    from agent.batch import grade as grading
    from agent.batch.read import read_tasks
    from agent.saver import write_whole

    configured_run(flags, None, acknowledged)
    found = read_tasks(paths, pattern, repositories, _say)
    patches = grading.read_patches(results)
    folder = (out or (results if results.is_dir() else results.parent) / "grades").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"reports cannot be written to {folder}: {error.strerror}; name another folder with --out"
        ) from error
    wanted = [task for task in found if task.name in patches]
    _allow_jobs(min(jobs, len(wanted)))

    def one(task: Task) -> grading.Grade:
        config = configured({**task.settings, **flags}, None).config
        return grading.grade(task, patches[task.name], config, folder / task.name)

    grades = {}
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(one, wanted):
            grades[result.task] = result
            told = (
                "resolved"
                if result.resolved
                else "empty"
                if result.empty
                else "error"
                if result.error
                else "unresolved"
            )
            why = clean(result.error or result.doubt)
            click.echo(f"{told:<10} {result.task}" + (f"  {why}" if why else ""))
    report = grading.summary(found, grades)
    write_whole(folder / grading.REPORT_NAME, json.dumps(report, indent=1).encode())
    click.echo(
        f"{report['resolved_instances']} of {report['total_instances']} resolved; {folder / grading.REPORT_NAME}",
        err=True,
    )
    return 1 if report["error_instances"] else 0


def _say(text: str) -> None:
    click.echo(clean(text), err=True)


def _configure(flags: Mapping[str, Any]) -> Callable[[Task, Path], RunConfig]:
    def configure(task: Task, checkout: Path) -> RunConfig:
        """Merge the sources: flags, then the task, then environment, repository and the user's file."""
        return configured({**task.settings, **flags}, checkout).config

    return configure


@contextmanager
def _engine(name: str, address: str | None, out: Path, governor: Governor, jobs: int) -> Iterator[Engine]:
    """Open the engine for attempts. Raises UsageError if it is not available."""
    if name == "ray":
        try:
            from agent.batch.cluster import Cluster
        except ModuleNotFoundError as missing:
            raise UsageError(
                f'--engine ray: {missing.name} is not installed: pip install "gpt-oss-agent[ray]"'
            ) from missing
        with Cluster(address or "auto", out, governor) as cluster:
            yield cluster
        return
    if address is not None:
        raise UsageError("--address is for the Ray cluster: add --engine ray")
    from agent.batch.processes import Processes

    _allow_jobs(jobs)
    yield Processes(governor)


def _allow_jobs(jobs: int) -> None:
    """Raise UsageError if the limit on open files is too low for so many jobs: all of them could then fail."""
    wanted = FILES + FILES_PER_JOB * jobs
    if (most := allow_files(wanted)) < wanted:
        raise UsageError(
            f"{jobs} jobs at a time need {wanted} open files, and this process may have {most}: "
            f"use --jobs {max((most - FILES) // FILES_PER_JOB, 1)}, or raise the hard limit (ulimit -Hn)"
        )


def _held(base: RunConfig) -> dict[str, Any]:
    return {key: getattr(base, key) for key in HELD}


def _kinds(text: str) -> tuple[Kind, ...]:
    from agent.batch.attempt import Kind

    named = [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]
    if wrong := [name for name in named if name not in list(Kind)]:
        raise UsageError(f"--again: {wrong[0]!r} is not one of {', '.join(Kind)}, none")
    return tuple(Kind(name) for name in named)


def _silent(record: Mapping[str, Any]) -> None:
    del record  # its line is in results.jsonl


def _print(record: Mapping[str, Any]) -> None:
    write(sys.stdout, json.dumps(record) + "\n")


def _exit_code(why: str) -> int:
    if why.startswith("the budget"):
        return EXIT_CODES[Outcome.LIMIT]
    return EXIT_CODES[Outcome.ENDPOINT] if why.startswith("the endpoint") else INTERRUPTED
