"""The folder of runs: finds a run by the beginning of its id, and summarizes runs without reading whole logs."""

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
    """One run's task and result. ``state`` is its outcome's name, or running, or stopped (it can be resumed)."""

    name: str
    started_at: float  # seconds since the epoch
    duration_s: float
    state: str
    started: RunStarted
    ended: RunEnded | None


def find_run(runs_dir: Path, name: str) -> Path:
    """Return the folder of the run ``name``: an id, a unique beginning of one, or ``last``. Raises UsageError."""
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
            raise UsageError(f"There is no run {name!r}. `agent runs` lists all; `last` is the latest.")
        case _:
            raise UsageError(
                f"{name!r} matches several runs: {', '.join(folder.name for folder in fitting[:5])}. Give more characters of it."
            )


def summary(folder: Path) -> Summary:
    """Return a run's summary. Raises LogError if its log is empty or damaged."""
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
    """Return the change that a run made, as a patch. Raises UsageError if there is none."""
    try:
        patch = (folder / PATCH_NAME).read_bytes()
    except FileNotFoundError:
        patch = b""
    if not patch:
        raise UsageError(f"The run {folder.name} made no change. `agent show {folder.name}` says what happened.")
    return patch


def _ends(path: Path) -> tuple[Entry, Entry]:
    """Return the first and the last complete entry of a log; reads only its two ends. Raises LogError."""
    try:
        with path.open("rb") as file:
            head = file.readline()
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is incomplete
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
