"""Reads tasks from rows of a JSON, JSONL or Parquet file, with our own keys or in SWE-bench's format.

A row of our own has the keys of task.toml, ``prompt`` and, for grading, ``check`` (a shell script). A row in SWE-bench's
format has ``instance_id, repo, base_commit, problem_statement, test_patch, FAIL_TO_PASS, PASS_TO_PASS``; ``image`` and
``test_cmd`` may be added, and all other keys are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from agent.batch.task import Suite, Task, is_url, make_task
from agent.check import PYTEST
from agent.errors import UsageError

SWE_KEYS = ("instance_id", "repo", "base_commit", "problem_statement")
SWE_MAY = ("test_patch", "image", "test_cmd")
REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
HOME_OF_REPOSITORIES = "https://github.com"


def read_rows(path: Path, repositories: Path | None = None, *, foreign: str | None = None) -> list[Task]:
    """Read every row of a file: JSON lines, one JSON array, or Parquet.

    ``foreign`` is the name of the downloaded data set that the file belongs to: its rows may not name paths on this
    machine, except for clones in ``repositories``. Raises UsageError, which names file, line (or row) and key.
    """
    place = foreign or str(path)
    match path.suffix:
        case ".json":
            rows = _array(path, place)
        case ".parquet":
            rows = _table(path, place)
        case _:
            rows = _lines(path, place)
    folder = path.absolute().parent
    return [_task(row, at, folder, repositories, foreign is not None) for at, row in rows]


def _lines(path: Path, name: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        place = f"{name}, line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}, is not JSON: {error}") from error
            yield place, row


def _array(path: Path, name: str) -> Iterator[tuple[str, object]]:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, list):
        raise UsageError(f"{path} must be a list of tasks")
    return ((f"{name}, row {number}", row) for number, row in enumerate(data, 1))


def _table(path: Path, name: str) -> Iterator[tuple[str, object]]:
    return ((f"{name}, row {number}", row) for number, row in enumerate(open_hub().read_parquet(path), 1))


def open_hub() -> ModuleType:
    """Import the reader of data sets. Raises UsageError if its packages are not installed."""
    try:
        from agent.batch import hub
    except ModuleNotFoundError as missing:
        raise UsageError(
            f'data sets and .parquet files need {missing.name}, which is not installed: pip install "gpt-oss-agent[datasets]"'
        ) from missing
    return hub


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error


def _task(row: object, place: str, folder: Path, repositories: Path | None, foreign: bool) -> Task:
    if not isinstance(row, Mapping):
        raise UsageError(f"{place}: a task is an object, not {row!r:.60}")
    if foreign:
        _refuse_here(row, place)
    if "instance_id" in row:
        return _from_swe_bench(row, place, folder, repositories)
    own = dict(row)
    prompt, check = own.pop("prompt", ""), own.pop("check", None)
    if missing := [key for key in ("name", "repository") if key not in own]:
        raise UsageError(
            f"{place}: {missing[0]!r} is missing; a row has name, repository and prompt, "
            f"or SWE-bench's keys ({', '.join(SWE_KEYS)})"
        )
    if not isinstance(prompt, str) or not isinstance(check, str | None):
        raise UsageError(f"{place}: prompt and check are texts")
    return make_task(own, place, prompt, check, folder)


def _from_swe_bench(row: Mapping[str, Any], place: str, folder: Path, repositories: Path | None) -> Task:
    for key in (*SWE_KEYS, *SWE_MAY):
        if row.get(key) is None and key in SWE_KEYS:
            raise UsageError(f"{place}: {key!r} is missing; a row in SWE-bench's format has {', '.join(SWE_KEYS)}")
        if not isinstance(row.get(key) or "", str):
            raise UsageError(f"{place}: {key!r} must be a text")
    data = {
        "name": row["instance_id"],
        "repository": _find(row["repo"], folder, repositories, place),
        "base_commit": row["base_commit"],
    }
    task = make_task(
        data | ({"image": row["image"]} if row.get("image") else {}), place, row["problem_statement"], None, folder
    )
    if not row.get("FAIL_TO_PASS"):
        return task
    fail, kept = (_names(row.get(key) or [], f"{place}: {key!r}") for key in ("FAIL_TO_PASS", "PASS_TO_PASS"))
    tests = Suite(row.get("test_patch") or "", fail, kept, row.get("test_cmd") or PYTEST)
    return Task(task.name, task.prompt, task.repository, task.base_commit, task.settings, tests=tests)


def _refuse_here(row: Mapping[str, Any], place: str) -> None:
    """Raise UsageError if a downloaded row names a path on this machine, whose files the model would then see."""
    for key in ("repo", "repository"):
        value = row.get(key)
        elsewhere = isinstance(value, str) and is_url(value) and not value.startswith("file:")
        if isinstance(value, str) and not elsewhere and not (key == "repo" and REPOSITORY.fullmatch(value)):
            raise UsageError(
                f"{place}: {key!r} is {value!r}, a place on this machine, which a downloaded data set may not name"
            )


def _names(value: object, place: str) -> tuple[str, ...]:
    """Return test ids, which data sets contain as a list or as its JSON text."""
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not a JSON list: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{place} must be a list of test ids")
    return tuple(names)


def _find(repo: str, folder: Path, repositories: Path | None, place: str) -> str:
    """Return the location of ``owner/name``: in the folder of clones, otherwise on GitHub; a path or URL is returned unchanged."""
    if is_url(repo) or repo.startswith(("/", ".")):
        return repo if is_url(repo) else str((folder / repo).absolute())
    if not REPOSITORY.fullmatch(repo) or ".." in repo:
        raise UsageError(f"{place}: repo is owner/name, a path or a URL, not {repo!r}")
    if repositories is None:
        return f"{HOME_OF_REPOSITORIES}/{repo}.git"
    names = (repo, f"{repo}.git", repo.replace("/", "__"), repo.rpartition("/")[2])
    found = next((repositories / name for name in names if (repositories / name).is_dir()), None)
    if found is None:
        raise UsageError(f"{place}: {repositories} contains no clone of {repo} (as {names[0]} or {names[2]})")
    return str(found.absolute())
