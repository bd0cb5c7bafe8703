"""Reads tasks from paths and data sets, in every supported format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from agent.batch.rows import open_hub, read_rows
from agent.batch.task import TASK_FILE, Task, read_folder
from agent.errors import UsageError

DATA_SET = re.compile(r"(?P<hub>hf:)?(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w./-]+))?")
SPLIT = "test"
ENDINGS = (".json", ".jsonl", ".parquet")


def read_tasks(
    places: Sequence[str | Path],
    pattern: str | None = None,
    repositories: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Task]:
    """Read all tasks in ``places``: task folders, folders of them, files of rows, data sets by name. Sorted by name.

    ``pattern`` is searched for in the names; ``repositories`` is a folder of clones for rows that name ``owner/name``; ``say``
    is told what is downloaded. Raises UsageError, which names the place.
    """
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--filter {pattern!r} is not a regular expression: {error}") from error
    found: dict[str, Task] = {}
    for place in places:
        for task in _read(str(place), repositories, say):
            if found.setdefault(task.name, task) != task:
                raise UsageError(f"{place}: there is another task called {task.name!r}; names must be unique")
    tasks = [found[name] for name in sorted(found) if wanted.search(name)]
    if not tasks:
        what = f"whose name matches {pattern!r}" if found else "in " + ", ".join(map(str, places))
        raise UsageError(f"There is no task {what}. A task is a folder with {TASK_FILE}, or a row of a .jsonl file.")
    return tasks


def _read(place: str, repositories: Path | None, say: Callable[[str], None]) -> Iterable[Task]:
    path = Path(place)
    if (path / TASK_FILE).is_file():
        return [read_folder(path)]
    if path.is_dir():
        return [read_folder(found.parent) for found in sorted(path.glob(f"*/{TASK_FILE}"))]
    if path.is_file() and path.suffix in ENDINGS:
        return read_rows(path, repositories)
    named = DATA_SET.fullmatch(place)
    # A plain name counts as a data set only if it cannot be a mistyped file or folder.
    slip = path.exists() or path.parent.is_dir() or path.suffix in ENDINGS
    if named and (named["hub"] or not slip):
        return _fetch(named, repositories, say)
    raise UsageError(
        f"{place} is not a task: give a folder with {TASK_FILE}, a folder of such folders, a .jsonl, .json or .parquet file, "
        "or a data set as hf:OWNER/NAME"
    )


def _fetch(named: re.Match[str], repositories: Path | None, say: Callable[[str], None]) -> Iterable[Task]:
    name, split = named["name"], named["split"] or SPLIT
    why = "" if named["hub"] else f"there is no {named[0]} here, so "
    say(f"{why}the split {split} of the data set {name} is loaded from Hugging Face")
    files = open_hub().fetch(name, named["revision"], split)
    return [task for file in files for task in read_rows(file, repositories, foreign=f"{name}, {file.name}")]
