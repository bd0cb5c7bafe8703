"""`agent ci` and `agent ci publish`: from an event to artifacts without write access, and from artifacts to a pull request with it."""

from __future__ import annotations

import atexit
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from agent.ci.event import Site, request, site
from agent.ci.request import Ignored, Request, Rules
from agent.cli.exits import exit_code, outcome_name
from agent.cli.options import FLAGS, Command, config_options, configured_run, find_repository
from agent.cli.signals import Interrupts
from agent.config import RunConfig, process_environment
from agent.errors import UsageError
from agent.events import EXIT_CODES, Event, Outcome, RunEnded
from agent.lines import one_line
from agent.tally import Tally
from agent.view import open_view, write

# Keys that the policy or the CI job decides have no flag here.
OWN = ("branch", "worktree", "policy", "include_uncommitted", "sandbox", "network", "browser", "browser_url")
TOKENS = {"github": "GITHUB_TOKEN", "gitlab": "GITLAB_TOKEN"}


def event_options(command: Command) -> Command:
    """Add the options that name the event and choose which events count."""
    command = click.option("--allow", multiple=True, metavar="USER", help="User whose comments count even if the service does not vouch for them; repeatable.")(command)  # fmt: skip
    command = click.option("--word", default="/agent", show_default=True, help="First word of a comment that starts a run.")(command)  # fmt: skip
    command = click.option(
        "--label", default="agent", show_default=True, help="Label that starts a run when it is put on an issue."
    )(command)
    command = click.option("--repo", type=click.Path(path_type=Path), metavar="DIR", help="A folder in the repository (default: the current one).")(command)  # fmt: skip
    command = click.option("--service", type=click.Choice(["auto", "github", "gitlab"]), default="auto", show_default=True, help="Service that sent the event.")(command)  # fmt: skip
    return click.option("--event", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="JSON of the event (default: the file named by the job's variables).")(command)  # fmt: skip


@click.group(invoke_without_command=True)
@event_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("agent-artifacts"), show_default=True, metavar="DIR", help="Folder for the artifacts.")  # fmt: skip
@config_options(*(key for key in FLAGS if key not in OWN))
@click.pass_context
def ci(
    context: click.Context, /, event: Path | None, service: str, repo: Path | None, label: str, word: str,
    allow: tuple[str, ...], out: Path, **flags: object,
) -> int:  # fmt: skip
    """Handle an event of GitHub or GitLab as a bot in CI.

    It runs under --policy ci and writes artifacts. An event is an issue that gets the label, a comment that begins with the word, or a check that fails. DIR gets
    result.json, events.jsonl, patch.diff, report.html, summary.md and junit.xml. Nothing else is written and no token is
    needed: `agent ci publish DIR` is for a second job that has one. The exit code is that of `agent fix`, and 0 if nothing
    was asked.
    """
    if context.invoked_subcommand is not None:
        misplaced = (key for key in context.params if context.get_parameter_source(key) is ParameterSource.COMMANDLINE)
        if key := next(misplaced, None):
            raise UsageError(f"--{key.replace('_', '-')} belongs after `agent ci {context.invoked_subcommand}`")
        return 0
    from agent.ci import artifacts

    place, asked = _asked(event, service, label, word, allow)
    _mute(place)
    artifacts.prepare(out)
    tally = Tally()
    if isinstance(asked, Ignored):
        record = tally.result(RunEnded(Outcome.NO_CHANGE, asked.reason))
        artifacts.write(out, record | {"outcome": artifacts.IGNORED, "exit_code": 0}, None, None)
        click.echo(f"agent: nothing to do: {one_line(asked.reason)}", err=True)
        return 0
    with _recording(out, asked, tally) as done:
        repository = find_repository(repo or Path.cwd())
        given = {**flags, "policy": "ci", "deliver": "patch"}
        given["trusted_commit"] = flags["trusted_commit"] or place.commit
        config = configured_run(given, repository, acknowledged=False)
        ended = _fix(asked, config, repository, tally, done)
    return EXIT_CODES[ended.outcome]


@ci.command()
@event_options
def commit(event: Path | None, service: str, repo: Path | None, label: str, word: str, allow: tuple[str, ...]) -> None:
    """Print the commit that the event is about, for the job to check out."""
    del repo
    _, asked = _asked(event, service, label, word, allow)
    if isinstance(asked, Request) and asked.commit:
        click.echo(asked.commit)


@ci.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@event_options
@click.option(
    "--token-env", metavar="NAME", help="Variable that holds the token (default: GITHUB_TOKEN or GITLAB_TOKEN)."
)
@click.option("--author", metavar="LOGIN", help="Account that writes the bot's comments, if the token cannot find out.")
def publish(
    folder: Path, event: Path | None, service: str, repo: Path | None, label: str, word: str, allow: tuple[str, ...],
    token_env: str | None, author: str | None,
) -> int:  # fmt: skip
    """Check the artifacts in DIR, push the branch, and open or update the pull request and its comment.

    Run it in a job of its own, with a token that may write and a checkout of the same commit: it does not trust the job that
    wrote the artifacts. Running it again is harmless. Exit code 3: the service cannot be reached or refuses;
    7: a policy forbids it.
    """
    from agent.ci.open import open_service
    from agent.ci.publish import Publisher
    from agent.model.client import Clock
    from sandbox.remote import Remote

    place, asked = _asked(event, service, label, word, allow)
    _mute(place)
    if isinstance(asked, Ignored):
        click.echo(f"agent: nothing to publish: {one_line(asked.reason)}", err=True)
        return 0
    repository = find_repository(repo or Path.cwd())
    name = token_env or TOKENS[place.service]
    token = process_environment().get(name, "").strip()
    if not token:
        raise UsageError(
            f"{name} is not set: it must hold a token that may push and comment (--token-env names another variable)"
        )
    clock = Clock()
    opened = open_service(place, token, author, clock)
    try:
        remote = Remote(place.clone_url, opened.git_user, token)
        Publisher(opened, remote, repository, _say, clock).publish(asked, folder)
    finally:
        opened.close()
    return 0


def _asked(
    event: Path | None, service: str, label: str, word: str, allow: tuple[str, ...]
) -> tuple[Site, Request | Ignored]:
    environ = process_environment()
    place = site(service, environ)
    return place, request(place, event, environ, Rules(label, word, allow))


def _fix(
    asked: Request, config: RunConfig, repository: Path, tally: Tally, done: Callable[[RunEnded, Path], None]
) -> RunEnded:
    from agent.ci.run import run_request

    view = open_view(sys.stderr)

    def show(event: Event) -> None:
        tally(event)
        view(event)

    with view, Interrupts():
        ended = run_request(asked, config, repository, show, view.say)
        view.summary(ended)
    done(ended, config.runs_dir / (tally.run or ""))
    return ended


@contextmanager
def _recording(out: Path, asked: Request, tally: Tally) -> Iterator[Callable[[RunEnded, Path], None]]:
    """Write the artifacts when the run has ended, or a record of the error if there was no run."""
    from agent.ci import artifacts

    def done(ended: RunEnded, run: Path) -> None:
        artifacts.write(out, tally.result(ended), asked, run)

    def failed(ended: RunEnded, changes: dict[str, Any]) -> None:
        artifacts.write(out, tally.result(ended) | changes, asked, None)

    try:
        yield done
    except KeyboardInterrupt:
        failed(RunEnded(Outcome.INTERRUPTED, "stopped by Ctrl-C or a signal"), {})
        raise
    except Exception as error:  # whatever it was: the artifacts say so, and it is raised on
        changes = {"outcome": outcome_name(error), "exit_code": exit_code(error)}
        failed(RunEnded(Outcome.INTERNAL, str(error) or repr(error)), changes)
        raise


def _mute(place: Site) -> None:
    """Keep GitHub's runner from obeying lines such as ``::add-path::`` in the output of a model, a test or an artifact.

    It lasts to the end of the process, because error messages come last.
    """
    if place.service == "github":
        word = secrets.token_hex(16)
        write(sys.stderr, f"::stop-commands::{word}\n")
        atexit.register(write, sys.stderr, f"::{word}::\n")


def _say(text: str) -> None:
    click.echo(f"agent: {one_line(text, 1000)}", err=True)
