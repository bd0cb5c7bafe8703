"""The command line: a table of commands, each imported when it is used, and the only place where errors become exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import TracebackType

import click

from agent.cli.exits import EXPECTED, INTERRUPTED, PIPE_CLOSED, exit_code
from agent.interrupts import keep_interrupts
from agent.outcome import EXIT_CODES, Outcome

FULL = (errno.ENOSPC, errno.EDQUOT)  # any write may meet them

# name: (module, its click command, one line of help). The help is here so that `agent --help` loads no command.
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "fix": ("agent.cli.fix", "fix", "Fix a bug in a sandbox; get a branch with one commit."),
    "ask": ("agent.cli.fix", "ask", "Answer a question about the repository without changing it."),
    "chat": ("agent.cli.chat", "chat", "Chat with a model in the terminal, with optional tools."),
    "generate": ("agent.cli.chat", "generate", "Continue a plain text, without chat or tools."),
    "resume": ("agent.cli.fix", "resume", "Continue a run that was killed or interrupted."),
    "runs": ("agent.cli.runs", "runs", "List the runs, newest first."),
    "show": ("agent.cli.runs", "show", "Show what happened in a run."),
    "diff": ("agent.cli.runs", "diff", "Print a run's change as a patch."),
    "report": ("agent.cli.report", "report", "Report on a run or a batch, as HTML, Markdown or JUnit XML."),
    "apply": ("agent.cli.runs", "apply", "Apply a run's change to the checkout, uncommitted."),
    "discard": ("agent.cli.runs", "discard", "Delete a run, its branch and its container."),
    "serve": (
        "agent.cli.serve",
        "serve",
        "Serve a model through OpenAI's APIs.",
    ),
    "tasks": ("agent.cli.tasks", "tasks", "Run many tasks, and grade the results."),
    "ci": (
        "agent.cli.ci",
        "ci",
        "Handle an event of GitHub or GitLab as a bot in CI.",
    ),
    "patch": ("agent.cli.patch", "patch", "Apply patches in the model's format."),
    "doctor": ("agent.cli.doctor", "doctor", "Check what works on this machine, and how to fix the rest."),
    "models": ("agent.cli.models", "models", "Download, list and verify checkpoints for this machine."),
    "config": ("agent.cli.config", "config", "Show the configuration and where each value comes from."),
    "sandbox": ("agent.cli.sandbox", "sandbox", "Build images, and clean up after killed runs."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the command; return None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the table from its own lines of help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, suggest the most similar name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else 'To fix a bug: agent fix "what is wrong".'
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the reader of our output may close the pipe before its end (`agent runs | head -1`)."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # So that the interpreter does not hit the closed pipe again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        return result


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gpt-oss-agent", prog_name="agent", message="%(prog)s %(version)s")
def cli() -> None:
    """The coding agent for open-weight models: it fixes bugs in a sandbox and hands back a checked branch."""
    from agent.config import drop_relative_path

    drop_relative_path()


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Expected errors become one message."""
    try:
        result = cli.main(list(arguments), prog_name="agent", standalone_mode=False)
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except EXPECTED as error:
        if not _told(f"agent: {error}"):
            raise
        return exit_code(error)
    except OSError as error:
        found = _circumstance(error)
        if found is None or not _told(f"agent: {found}"):
            raise
        return EXIT_CODES[Outcome.INTERNAL]
    return result if isinstance(result, int) else 0


def _circumstance(error: OSError) -> str | None:
    """Return the message for an error that any command may meet on any machine, with a remedy; None for other errors."""
    if error.errno in FULL:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}. Free some space, then try again."
    try:
        os.getcwd()  # noqa: PTH109 - to hear whether it can be told
    except OSError:
        return "The current folder does not exist any more. Change to another one."
    return None


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an unexpected error: one line, and how to get the traceback. The interpreter then exits with 1."""
    if not _told(f"agent: internal error: {kind.__name__}: {error}\nAGENT_DEBUG=1 shows where."):
        sys.__excepthook__(kind, error, trace)


def _told(message: str) -> bool:
    """Print an error, unless the user wants the traceback instead; return whether it was printed."""
    from agent.config import debug_wanted  # needed only after an error, and half of the time that --help takes
    from agent.lines import clean

    if debug_wanted():
        return False
    click.echo(clean(message), err=True)
    return True


def _fill_closed_descriptors() -> None:
    """Open /dev/null for a closed standard input, output or error: otherwise the next opened file would get its number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(handle)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def main() -> None:
    """Entry point of the console script."""
    _fill_closed_descriptors()
    sys.excepthook = _unforeseen
    keep_interrupts()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 must not end the run.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))
