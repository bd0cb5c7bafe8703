"""The folder of runs: finding one by a part of its name, and what each came to, without reading whole logs."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from agent.errors import LogError, UsageError
from agent.events import RunEnded, RunStarted
from agent.log import LOG_NAME, read, runs
from agent.record import Entry, load

PATCH_NAME = "patch.diff"
TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Summary:
    """What one run was asked and came to. ``state`` is its outcome's name, or running, or stopped (it can be resumed)."""

    name: str
    started_at: float  # seconds since the epoch
    duration_s: float
    state: str
    started: RunStarted
    ended: RunEnded | None


def find_run(runs_dir: Path, name: str) -> Path:
    """The folder of the run called ``name``: its id, a beginning that fits one run only, or ``last``. Raises UsageError."""
    folders = list(runs(runs_dir))
    if not folders:
        raise UsageError(f'There are no runs in {runs_dir} yet: agent fix "what is wrong" makes one.')
    if name == "last":
        return folders[0]
    fitting = [folder for folder in folders if folder.name == name] or [
        folder for folder in folders if name and folder.name.startswith(name)
    ]
    match fitting:
        case [folder]:
            return folder
        case []:
            raise UsageError(f"No run is called {name!r}. `agent runs` lists them; `last` is the newest.")
        case _:
            raise UsageError(
                f"{name!r} matches several runs: {', '.join(folder.name for folder in fitting[:5])}. Give more characters of it."
            )


def summary(folder: Path) -> Summary:
    """Sum one run up. Raises LogError where its log says nothing."""
    path = folder / LOG_NAME
    first, last = _ends(path)
    started = first.event
    if not isinstance(started, RunStarted):
        raise LogError(f"{path} does not begin with RunStarted: it is not the log of a run")
    ended = last.event if isinstance(last.event, RunEnded) else None
    state = ended.outcome.value if ended else "running" if is_running(path) else "stopped"
    return Summary(folder.name, first.at, last.at - first.at, state, started, ended)


def is_running(log: Path) -> bool:
    """Whether a process holds the run's log open for writing."""
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def patch_of(folder: Path) -> bytes:
    """The change that a run made, as a patch. Raises UsageError where there is none."""
    try:
        patch = (folder / PATCH_NAME).read_bytes()
    except FileNotFoundError:
        patch = b""
    if not patch:
        raise UsageError(f"The run {folder.name} made no change. `agent show {folder.name}` says what happened.")
    return patch


def _ends(path: Path) -> tuple[Entry, Entry]:
    """The first and the last whole entry of a log, reading its ends only. Raises LogError."""
    try:
        with path.open("rb") as file:
            head = file.readline()
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline was never whole
    except OSError as error:
        raise LogError(f"the log {path} cannot be read: {error.strerror}") from error
    if not head.endswith(b"\n"):
        raise LogError(f"the log {path} is empty: its run was killed before it began")
    if len(lines) < 2:  # the last entry is longer than the tail, or the only one
        entries = read(path)
        return entries[0], entries[-1]
    try:
        return load(head), load(lines[-1])
    except LogError as error:
        raise LogError(f"{path}: {error}") from error
