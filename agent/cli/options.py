"""The flags of a run, generated from the configuration's rules, and their conversion to a configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from agent.config import REPOSITORY_FILE, RULES, Loaded, RunConfig, load
from agent.errors import UsageError
from agent.rules import Rule

Command = TypeVar("Command", bound=Callable[..., Any])

# Configuration key: its flag, and the name of its value in the help.
FLAGS: Mapping[str, tuple[str, str | None]] = {
    "endpoint": ("--endpoint", "URL"),
    "model": ("--model", "NAME"),
    "wire": ("--wire", None),
    "script": ("--script", "FILE"),
    "checks": ("--check", "CMD"),
    "check_timeout_s": ("--check-timeout", "S"),
    "effort": ("--effort", None),
    "temperature": ("--temperature", "T"),
    "top_p": ("--top-p", "P"),
    "seed": ("--seed", "N"),
    "context_tokens": ("--context", "N"),
    "tools": ("--tools", None),
    "python": ("--python", None),
    "constrain": ("--constrain", None),
    "browser": ("--browser", None),
    "browser_url": ("--browser-url", "URL"),
    "sandbox": ("--sandbox", None),
    "image": ("--image", "REF"),
    "network": ("--network", None),
    "memory_bytes": ("--memory", "SIZE"),
    "pids": ("--pids", "N"),
    "cpus": ("--cpus", "N"),
    "disk_bytes": ("--disk", "SIZE"),
    "policy": ("--policy", None),
    "trusted_commit": ("--trusted", "COMMIT"),
    "include_uncommitted": ("--uncommitted/--no-uncommitted", None),
    "max_turns": ("--max-turns", "N"),
    "max_tokens": ("--max-tokens", "N"),
    "max_answer_tokens": ("--max-answer-tokens", "N"),
    "timeout_s": ("--timeout", "S"),
    "command_timeout_s": ("--command-timeout", "S"),
    "silence_timeout_s": ("--silence-timeout", "S"),
    "endpoint_timeout_s": ("--endpoint-timeout", "S"),
    "max_output_bytes": ("--max-output", "SIZE"),
    "otel": ("--otel/--no-otel", None),
    "branch": ("--branch", "NAME"),
    "worktree": ("--worktree", "DIR"),
    "runs_dir": ("--runs-dir", "DIR"),
}
ALIASES: Mapping[str, str] = {"wire": "--backend"}
ACKNOWLEDGEMENT = "--i-know-this-runs-on-my-machine"


def _type(rule: Rule) -> click.Choice[str] | click.Path | type[Any] | None:
    match rule.kind:
        case "choice":
            return click.Choice(rule.choices)
        case "integer":
            return int
        case "number":
            return float
        case "path":
            return click.Path(path_type=Path)
        case "flag":
            return None
        case _:
            return str


def config_options(*keys: str) -> Callable[[Command], Command]:
    """Add the flags of these keys (by default all) to a command."""

    def decorate(command: Command) -> Command:
        for key in reversed(keys or tuple(FLAGS)):
            rule, (flag, metavar) = RULES[key], FLAGS[key]
            if rule.kind == "flag":
                command = click.option(flag, key, default=None, help=rule.help)(command)
            else:
                command = click.option(
                    flag,
                    *filter(None, [ALIASES.get(key)]),
                    key,
                    type=_type(rule),
                    metavar=metavar,
                    multiple=rule.kind == "list",
                    default=None,
                    help=rule.help,
                )(command)
        return command

    return decorate


def configured(flags: Mapping[str, object], repository: Path | None) -> Loaded:
    """Merge the given flags with all other sources. Raises ConfigError, and UsageError if the trusted commit is missing.

    Under ``--policy ci`` the repository's file is read from the trusted commit, not from the checkout.
    """
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    names = {key: FLAGS[key][0].partition("/")[0] for key in given if key in FLAGS}
    if repository is not None:
        own = load(given, names=names).config
        if own.policy == "ci":
            from agent.policy import trusted_text

            text = trusted_text(repository, own.trusted_commit or "HEAD", REPOSITORY_FILE)
            return load(given, repository, names=names, repository_text=text)
    return load(given, repository, names=names)


def configured_run(flags: Mapping[str, object], repository: Path | None, acknowledged: bool) -> RunConfig:
    """Return the configuration of a command that runs the model's commands.

    Raises ConfigError, and UsageError for an unconfirmed ``--sandbox none``.
    """
    config = configured(flags, repository).config
    if config.sandbox == "none" and not acknowledged:
        raise UsageError(
            "--sandbox none lets the model's commands run on this machine, as you, with your files and your network. "
            f"If that is what you want, add {ACKNOWLEDGEMENT}."
        )
    return config


def find_repository(start: Path) -> Path:
    """Return the root of the git repository that contains ``start``. Raises UsageError."""
    if not start.is_dir():
        raise UsageError(f"{start} is not a folder. --repo names a folder inside a git repository.")
    top = start.resolve()
    for folder in (top, *top.parents):
        if (folder / ".git").exists():
            return folder
    for folder in (top, *top.parents):
        if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
            raise UsageError(
                f"{folder} is a bare repository, without files to work on. Clone it, and run this in the clone."
            )
    raise UsageError(
        f"{top} is not in a git repository, but the result is a branch. "
        "Change to one, name one with --repo, or make one: git init && git add -A && git commit -m start."
    )


def read_text(argument: str) -> str:
    """Return the text itself, the content of ``@FILE``, or standard input for ``-``. Raises UsageError."""
    try:
        if argument == "-":
            text = sys.stdin.buffer.read().decode()
        elif argument.startswith("@"):
            text = Path(argument[1:]).read_bytes().decode()
        else:
            text = argument
    except OSError as error:
        raise UsageError(f"{argument} cannot be read: {error.strerror}. @FILE names a file with the text.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The text is not UTF-8: {error}.") from error
    if not text.strip():
        raise UsageError('The text is empty. Describe what is wrong: agent fix "slugify drops the last word".')
    return text.strip()


def read_ladder(text: str | None) -> tuple[str, ...]:
    """Return the efforts of ``low,medium,high``, () for None. Raises UsageError."""
    efforts = tuple(part.strip() for part in text.split(",")) if text is not None else ()
    known = RULES["effort"].choices
    if wrong := [effort for effort in efforts if effort not in known]:
        raise UsageError(f"--effort-ladder: {wrong[0]!r} is not one of {', '.join(known)}")
    return efforts


def may_ask() -> bool:
    """Whether the user can be asked. A run without a terminal never waits for an answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()
