"""Runs git on the host so that only the user's own configuration can affect it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox.errors import WorktreeError

# No hooks, no background maintenance, no file monitor: even the user's own have no place in a run.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.addEmbeddedRepo=false",
    "protocol.file.allow=always",
)
PREFIX = ["git", *(part for setting in SETTINGS for part in ("-c", setting))]
QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
# No fsync for what can be made again: with thousands of files it would mean thousands of waits for the disk.
UNSYNCED = ["-c", "core.fsync=none"]
# For our own bare repositories: not even the user's configuration applies.
ISOLATED = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the variables that redirect git."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return {**kept, **QUIET, **extra}


def attempt(
    arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder and return the result. Raises WorktreeError only if git or the folder is missing."""
    try:
        return subprocess.run(
            [*PREFIX, *arguments], cwd=folder, env=environment(env or {}), input=stdin, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        missing = "git" if folder.is_dir() else str(folder)
        raise WorktreeError(
            f"cannot run git: {missing} does not exist; install git, and give an existing folder"
        ) from error


def run(arguments: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> bytes:
    """Run git in a folder and return its output. Raises WorktreeError with git's message."""
    done = attempt(arguments, folder, env, stdin)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        raise WorktreeError(f"git {verb(arguments)} failed in {folder}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def verb(arguments: Sequence[str]) -> str:
    """Return the git command after the options (``-c name=value``)."""
    return next((word for at, word in enumerate(arguments) if word != "-c" and arguments[at - 1] != "-c"), "")


def bare(git_dir: Path, arguments: Sequence[str], env: Mapping[str, str] | None = None, stdin: bytes = b"") -> bytes:
    """Run git on one of our own bare repositories, with no configuration but its own."""
    return run([*UNSYNCED, *arguments], git_dir, {**ISOLATED, "GIT_DIR": str(git_dir), **(env or {})}, stdin)
