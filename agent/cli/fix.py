"""`agent fix`, `agent ask` and `agent resume`: a run, from the command line to an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from agent.cli.exits import exit_code, outcome_name
from agent.cli.options import (
    ACKNOWLEDGEMENT,
    Command,
    config_options,
    configured,
    configured_run,
    find_repository,
    may_ask,
    read_ladder,
    read_text,
)
from agent.cli.signals import Interrupts
from agent.config import RunConfig
from agent.errors import UsageError
from agent.events import EXIT_CODES, Event, Outcome, RunEnded
from agent.landing import bring_in
from agent.lines import clean, seconds
from agent.log import LOG_NAME, read
from agent.runs import PATCH_NAME, find_run
from agent.tally import Tally
from agent.view import JsonView, PlainView, View, open_view, write
from sandbox.errors import WorktreeError

if TYPE_CHECKING:
    from agent.batch.attempt import Attempt, Job, Progress
    from agent.batch.results import Record


def run_options(command: Command) -> Command:
    """Add the options that every run has."""
    for option in (
        click.option(ACKNOWLEDGEMENT, "acknowledged", is_flag=True, help="Required by --sandbox none."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print events, then one result, as JSON lines on standard output."
        ),
        config_options(),
        click.option(
            "--repo",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A folder in the repository (default: the current one).",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("text", metavar="TEXT|@FILE|-")
@run_options
@click.option(
    "--apply",
    "to_checkout",
    is_flag=True,
    help="Apply the change to the checkout, uncommitted, instead of making a branch.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the change to a patch file instead of making a branch.",
)
@click.option("--attempts", "-n", type=click.IntRange(1, 16), default=1, show_default=True, metavar="K", help="Number of attempts, run in parallel; the best is kept.")  # fmt: skip
@click.option("--effort-ladder", metavar="E,E,...", help="Efforts to try in order, as long as checks fail: low,medium,high.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask for confirmation (without a terminal, nothing is asked anyway).")
def fix(
    text: str,
    to_checkout: bool,
    output: Path | None,
    attempts: int,
    effort_ladder: str | None,
    yes: bool,
    repo: Path | None,
    as_json: bool,
    acknowledged: bool,
    **flags: object,
) -> int:
    """Fix a bug in a sandbox; get a branch with one commit.

    TEXT says what is wrong; @FILE reads it from a file, - from standard input. Your checkout is not touched, except by
    --apply. The exit code is what was observed, not what the model claims. 0: the checks pass; 4: a limit was reached;
    5: checks fail; 6: no change was made.
    """
    deliver = "apply" if to_checkout else "patch" if output else None
    with _Screen(as_json) as screen:
        _admit(to_checkout, output, flags)
        ladder = read_ladder(effort_ladder)
        repository = find_repository(repo or Path.cwd())
        config = configured_run({**flags, "deliver": deliver}, repository, acknowledged)
        task = read_text(text)
        with screen.view:
            if attempts > 1 or ladder:
                ended = _best_of(config, task, repository, attempts, ladder, screen)
            else:
                ended = _run("fix", config, task, repository, screen)
            patch = _patch(config, screen.tally.run)
            screen.view.diff(patch.decode("utf-8", "replace"))
        if output is not None and patch:
            _write_patch(output, patch, screen)
        if config.deliver == "apply" and patch:
            _bring_in(repository, patch, ended, screen, ask=not yes)
        screen.finish(ended)
    return EXIT_CODES[ended.outcome]


@click.command()
@click.argument("text", metavar="TEXT|@FILE|-")
@run_options
def ask(text: str, repo: Path | None, as_json: bool, acknowledged: bool, **flags: object) -> int:
    """Answer a question about the repository without changing it.

    The answer goes to standard output, everything else to standard error.
    """
    with _Screen(as_json, answer_only=True) as screen:
        repository = find_repository(repo or Path.cwd())
        config = configured_run(flags, repository, acknowledged)
        task = read_text(text)
        with screen.view:
            ended = _run("ask", config, task, repository, screen)
        screen.finish(ended)
    return EXIT_CODES[ended.outcome]


@click.command()
@click.argument("run")
@click.option(
    "--json", "as_json", is_flag=True, help="Print events, then one result, as JSON lines on standard output."
)
@config_options("runs_dir")
def resume(run: str, as_json: bool, runs_dir: Path | None) -> int:
    """Continue a run that was killed or interrupted.

    RUN is a run's id, the beginning of one, or `last`. Finished calls are not repeated. If a call was cut off, the model is
    told that its effect is unknown.
    """
    from agent.session import resume as go_on

    folder = find_run(configured({"runs_dir": runs_dir}, None).config.runs_dir, run)
    past = read(folder / LOG_NAME)
    with _Screen(as_json, first_seq=len(past)) as screen:
        for entry in past:
            screen.tally(entry.event)
        with screen.view, Interrupts():
            ended = go_on(folder, screen, screen.view.say)
        screen.finish(ended)
    return EXIT_CODES[ended.outcome]


def _run(mode: str, config: RunConfig, task: str, repository: Path, screen: _Screen) -> RunEnded:
    from agent.session import fix as begin

    with Interrupts():
        return begin(config, task, repository, mode, screen, screen.view.say)


def _best_of(
    config: RunConfig, task: str, repository: Path, attempts: int, ladder: tuple[str, ...], screen: _Screen
) -> RunEnded:
    """Make several attempts; only a line is shown for each, and everything for the kept one."""
    from agent.batch.batch import Plan
    from agent.batch.best import best_of

    plan = Plan(attempts, attempts, ladder)
    with Interrupts():
        run = best_of(config, task, repository, plan, _Attempts(screen.view.say))
    *events, ended = (entry.event for entry in read(run / LOG_NAME))
    assert isinstance(ended, RunEnded)
    for event in events:
        screen.replay(event)
    screen.replay(ended)
    return ended


class _Attempts:
    """Reports the start and the end of each attempt."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def began(self, job: Job) -> None:
        """Report that an attempt begins."""
        self._say(f"attempt {job.attempt} begins (effort {job.config['effort']})")

    def progress(self, job: Job, progress: Progress) -> None:
        """Do nothing: there is a line at its end."""

    def ended(self, job: Job, attempt: Attempt | None) -> None:
        """Report its result."""
        if attempt is not None:
            told = f"{attempt.outcome or attempt.kind.value}: {attempt.reason}"
            self._say(f"attempt {job.attempt}, {seconds(attempt.duration_s)}: {told}")

    def finished(self, record: Record) -> None:
        """Report which attempt was kept."""
        self._say(f"kept: attempt {record['kept']}")


def _admit(to_checkout: bool, output: Path | None, flags: Mapping[str, object]) -> None:
    """Raise UsageError if flags contradict each other or the patch cannot be written. Checked before the run, not after it."""
    if to_checkout + (output is not None) + (flags["branch"] is not None) > 1:
        raise UsageError("--apply, --branch and --output exclude each other: choose one place for the change.")
    if flags["worktree"] is not None and (to_checkout or output is not None):
        raise UsageError("--worktree checks out the branch, but --apply and --output make none: leave one of them out.")
    if output is None:
        return
    folder = output.absolute().parent
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
        raise UsageError(f"--output {output}: the folder {folder} does not exist. Create it, or name another file.")
    if not os.access(output if os.access(output, os.F_OK) else folder, os.W_OK):
        raise UsageError(f"--output {output}: it cannot be written. Fix the permissions, or name another file.")


def _patch(config: RunConfig, run: str | None) -> bytes:
    path = config.runs_dir / (run or "") / PATCH_NAME
    return path.read_bytes() if path.is_file() else b""


def _write_patch(output: Path, patch: bytes, screen: _Screen) -> None:
    try:
        output.write_bytes(patch)
    except OSError as error:
        raise UsageError(
            f"--output {output} cannot be written: {error.strerror}. The change is kept: `agent diff {screen.tally.run}` prints "
            f"it, `agent apply {screen.tally.run}` applies it to the checkout"
        ) from error


def _bring_in(repository: Path, patch: bytes, ended: RunEnded, screen: _Screen, *, ask: bool) -> None:
    """Apply the change to the checkout, if the run succeeded and, on a terminal, the user agrees."""
    later = f"agent apply {screen.tally.run}"
    if EXIT_CODES[ended.outcome] != 0:
        screen.view.say(
            f"not applied to the checkout, because the run ended as {ended.outcome}; {later} applies it anyway"
        )
    elif ask and may_ask() and not click.confirm("Apply this change to your checkout?", default=True, err=True):
        screen.view.say(f"not applied to the checkout; {later} applies it later")
    else:
        try:
            bring_in(repository, patch)
        except WorktreeError as error:
            raise WorktreeError(
                f"{error}. The change is kept: {later} applies it, agent diff {screen.tally.run} prints it"
            ) from error


class _Screen:
    """Receives events: the view for people, JSON lines for programs, and the tally for the last line."""

    def __init__(self, as_json: bool, *, answer_only: bool = False, first_seq: int = 0) -> None:
        self._as_json = as_json
        self._answer_only = answer_only
        self.tally = Tally()
        person = open_view(sys.stderr)
        self.view: View = JsonView(sys.stdout, person, first_seq) if as_json else person

    def __call__(self, event: Event) -> None:
        """Count the event and show it."""
        self.tally(event)
        self.view(event)

    def replay(self, event: Event) -> None:
        """Count an event of a run that has ended; it is shown only as JSON."""
        self.tally(event)
        if self._as_json:
            self.view(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # The last line is also written for a run that could not begin, or that an internal error ended.
        if self._as_json and isinstance(error, KeyboardInterrupt):
            self._result(self.tally.result(RunEnded(Outcome.INTERRUPTED, "stopped by Ctrl-C or a signal")))
        elif self._as_json and isinstance(error, Exception):
            record = self.tally.result(RunEnded(Outcome.INTERNAL, str(error) or repr(error)))
            self._result(record | {"outcome": outcome_name(error), "exit_code": exit_code(error)})

    def finish(self, ended: RunEnded) -> None:
        """Show how the run ended: the model's final message and the outcome, each on its own stream."""
        if self._as_json:
            self.view.summary(ended)
            self._result(self.tally.result(ended))
        elif self._answer_only and ended.outcome is not Outcome.ANSWERED:
            self.view.summary(ended)  # standard output is for answers alone
        elif self._answer_only:
            write(sys.stdout, clean(ended.claimed).strip() + "\n")
        elif sys.stdout.isatty() and not isinstance(self.view, PlainView):
            self.view.summary(ended)
        else:
            PlainView(sys.stdout).summary(ended)

    def _result(self, record: Mapping[str, Any]) -> None:
        write(sys.stdout, json.dumps(record) + "\n")
