"""Tasks: a repository with a bug, its description, and a check from outside whether it was fixed.

A task is a folder::

    task.toml        name, title, language, difficulty, tags, checks, files, repository, base_commit, image, [limits]
    prompt.md        the task for the agent
    repo/            the repository's files (or ``repository`` names a git repository: a path, or a URL)
    check.sh         run in the repository: exit code 0 means that the bug is fixed
    reference.patch  one way to fix it

or a row of a JSON or JSONL file (agent/batch/rows.py). agent/batch/read.py reads them all.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.check import PYTEST
from agent.config import load
from agent.errors import ConfigError, UsageError

TASK_FILE = "task.toml"
TEXTS = ("title", "language", "difficulty", "repository", "base_commit", "image")
LISTS = ("tags", "checks", "files")
# The settings that a task may change. Endpoint, network, sandbox and folders are up to the user.
LIMITS = (
    "max_turns", "max_tokens", "max_answer_tokens", "timeout_s", "command_timeout_s", "check_timeout_s", "memory_bytes",
    "disk_bytes", "pids", "cpus",
)  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Suite:
    """Grading as in SWE-bench: ``patch`` adds the tests, ``command`` plus test files runs them, and the listed ones must pass."""

    patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...] = ()
    command: str = PYTEST


@dataclass(frozen=True, slots=True)
class Task:
    """One task. ``repository`` is a folder of files, a git repository or a URL; ``settings`` are keys of RunConfig.

    It is graded by ``script`` (a shell script), by ``tests``, or not at all if both are None.
    """

    name: str
    prompt: str
    repository: str
    base_commit: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    script: str | None = None
    tests: Suite | None = None
    title: str = ""
    language: str = ""
    difficulty: str = ""
    tags: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def read_folder(folder: Path) -> Task:
    """Read one task folder. Raises UsageError, which names the file and the key."""
    path = folder / TASK_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        prompt = (folder / "prompt.md").read_text(encoding="utf-8").strip()
        check = folder / "check.sh"
        script = check.read_text(encoding="utf-8") if check.exists() else None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    if "repository" not in data and not (folder / "repo").is_dir():
        raise UsageError(f"{path}: a task has files in {folder / 'repo'}, or names a git repository as `repository`")
    return make_task(data, str(path), prompt, script, folder)


def make_task(data: Mapping[str, Any], place: str, prompt: str, script: str | None, folder: Path) -> Task:
    """Make a task from its keys; a relative ``repository`` is relative to ``folder``. Raises UsageError, which names the key."""
    if unknown := sorted(data.keys() - {"name", "limits", *TEXTS, *LISTS}):
        raise UsageError(
            f"{place}: unknown key {unknown[0]!r}; a task has {', '.join(('name', *TEXTS, *LISTS, 'limits'))}"
        )
    for key in ("name", *TEXTS):
        if key in data and (not isinstance(data[key], str) or not data[key].strip()):
            raise UsageError(f"{place}: {key!r} must be a text")
    for key in LISTS:
        if not _texts(data.get(key, [])):
            raise UsageError(f"{place}: {key!r} must be a list of texts")
    name = data.get("name", folder.name)
    if not NAME.fullmatch(name):
        raise UsageError(f"{place}: the name {name!r} must be made of letters, digits, dots, dashes and underscores")
    if not prompt.strip():
        raise UsageError(f"{place}: the task {name} has an empty prompt")
    return Task(
        name,
        prompt.strip(),
        _repository(data.get("repository", "repo"), folder, place),
        data.get("base_commit"),
        _settings(data, place),
        script,
        title=data.get("title", ""),
        language=data.get("language", ""),
        difficulty=data.get("difficulty", ""),
        tags=tuple(data.get("tags", ())),
        files=tuple(data.get("files", ())),
    )


def is_url(repository: str) -> bool:
    """Whether a repository is remote."""
    return bool(re.match(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:", repository))


def _repository(named: str, folder: Path, place: str) -> str:
    try:
        return named if is_url(named) else str((folder / Path(named).expanduser()).absolute())
    except RuntimeError as error:
        raise UsageError(f"{place}: the repository {named}: there is no such user on this machine") from error


def _settings(data: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the keys of RunConfig that a task sets, each checked like one in a configuration file."""
    limits = data.get("limits", {})
    if not isinstance(limits, Mapping) or (unknown := sorted(limits.keys() - set(LIMITS))):
        what = (
            f"unknown key {unknown[0]!r}; there are {', '.join(LIMITS)}" if isinstance(limits, Mapping) else "no table"
        )
        raise UsageError(f"{place}, [limits]: {what}")
    settings = {**{key: data[key] for key in ("image", "checks") if key in data}, **limits}
    try:
        load(settings, environ={"AGENT_CONFIG": "/dev/null/none", "HOME": "/"}, names={key: key for key in settings})
    except ConfigError as error:
        raise UsageError(f"{place}: {str(error).removeprefix('flag ')}") from error
    return settings


def _texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) and item.strip() for item in value)
