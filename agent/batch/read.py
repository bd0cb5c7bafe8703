"""Every task of some paths, whatever shape they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.batch.rows import read_rows
from agent.batch.task import TASK_FILE, Task, read_folder
from agent.errors import UsageError


def read_tasks(paths: Sequence[Path], pattern: str | None = None, repositories: Path | None = None) -> list[Task]:
    """Read every task of the paths: task folders, folders of them, JSON and JSONL files. Sorted by name.

    ``pattern`` is searched for in the names; ``repositories`` is a folder of clones for rows that say ``owner/name``.
    Raises UsageError, naming the place.
    """
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--filter {pattern!r} is not a regular expression: {error}") from error
    found: dict[str, Task] = {}
    for path in paths:
        for task in _read(path, repositories):
            if found.setdefault(task.name, task) != task:
                raise UsageError(f"{path}: there is another task called {task.name!r}; names are what results go by")
    tasks = [found[name] for name in sorted(found) if wanted.search(name)]
    if not tasks:
        what = f"whose name fits {pattern!r}" if found else "in " + ", ".join(map(str, paths))
        raise UsageError(f"There is no task {what}. A task is a folder with {TASK_FILE}, or a row of a .jsonl file.")
    return tasks


def _read(path: Path, repositories: Path | None) -> Iterable[Task]:
    if (path / TASK_FILE).is_file():
        return [read_folder(path)]
    if path.is_dir():
        return [read_folder(found.parent) for found in sorted(path.glob(f"*/{TASK_FILE}"))]
    if path.suffix in (".json", ".jsonl"):
        return read_rows(path, repositories)
    raise UsageError(f"{path} is no task: give a folder with {TASK_FILE}, a folder of such folders, or a .jsonl file.")
