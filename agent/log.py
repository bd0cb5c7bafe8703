"""A run's log: one JSON line per durable event, written before anything acts on the event.

When ``append`` returns, the operating system has the line, so it survives a crash of the process. It survives a power failure
after fsync: that happens at once for events before something irreversible (a call that is about to have an effect, the
end), and within SYNC_WITHIN_S for the others. So a power failure can only lose an answer that was not acted on yet, or the end
of a call whose start is known: resume treats the effect of that call as unknown.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.errors import LogError
from agent.events import Delta, Event, Resumed, RunEnded, RunStarted, ToolStarted
from agent.record import Entry, dump, load

LOG_NAME = "events.jsonl"
SYNC_WITHIN_S = 0.05
LOCK_TRIES, LOCK_PAUSE_S = 20, 0.05
SYNC_AT_ONCE = (RunStarted, Resumed, ToolStarted, RunEnded)


def read(path: Path) -> list[Entry]:
    """Return every complete entry of a log. An incomplete last line is dropped.

    Raises LogError if the file is missing, a line is not an event record, or a number is missing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"the log {path} cannot be read: {error.strerror}") from error
    return parse(data, str(path))[0]


def parse(data: bytes, name: str) -> tuple[list[Entry], int]:
    """Return the entries of a log's bytes and the byte offset of the end of the last complete line.

    Lines end at the newline *byte* and nothing else: tool output may contain U+2028 and the like. What follows the last
    newline was being written when the process died, and nothing has acted on it.
    """
    end = data.rfind(b"\n") + 1
    entries: list[Entry] = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1]):
        try:
            entry = load(line)
        except LogError as error:
            raise LogError(f"{name}, line {number + 1}: {error}") from error
        if entry.seq != number:
            raise LogError(
                f"{name}, line {number + 1}: its number is {entry.seq}: the log was cut or mixed with another"
            )
        entries.append(entry)
    return entries, end


class Log:
    """The only writer of a run's log. Holds an exclusive lock until closed; a context manager.

    Raises LogError if the file cannot be opened or written, another process is working on the run, or (with ``new``) the
    run exists already.
    """

    def __init__(self, path: Path, *, new: bool = False, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        try:
            if new:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if new else 0)
            self._file = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise LogError(f"{path} exists already: choose another run id, or resume it") from error
        except OSError as error:
            raise LogError(f"the log {path} cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            data = path.read_bytes()
            self.entries, self._end = parse(data, str(path))
            if self._end != len(data):
                self._truncate()
            if new:
                _sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise
        self._seq = len(self.entries)
        self._open = True
        self._unsynced = threading.Event()
        self._closing = threading.Event()
        self._failed: OSError | None = None
        self._syncer = threading.Thread(target=self._sync_later, name="log", daemon=True)
        self._syncer.start()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._path.parent

    def _lock(self) -> None:
        for _ in range(LOCK_TRIES):  # a check whether the run is running (agent/runs.py) holds the lock for a moment
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
        raise LogError(f"another process is working on the run {self._path.parent.name}: wait for it, or stop it first")

    def _truncate(self) -> None:
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)

    def append(self, event: Event) -> None:
        """Write an event. A Delta is only for display and is not written.

        If this is interrupted or fails, the log is as it was before. Raises LogError if writing fails.
        """
        if isinstance(event, Delta):
            return
        if self._failed is not None:
            raise self._refused(self._failed)
        line = dump(Entry(self._seq, round(self._clock(), 3), event))
        try:
            rest = memoryview(line)
            offset = self._end
            while rest:
                written = os.pwrite(self._file, rest, offset)
                offset, rest = offset + written, rest[written:]
            if isinstance(event, SYNC_AT_ONCE):
                os.fdatasync(self._file)
            else:
                self._unsynced.set()
        except BaseException as error:
            self._truncate()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        self._end = offset
        self._seq += 1

    def _refused(self, error: OSError) -> LogError:
        return LogError(
            f"the log {self._path} cannot be written: {error.strerror}; free some space or repair the disk, then resume"
        )

    def _sync_later(self) -> None:
        """Call fsync a moment after a line, once for all lines of that moment."""
        while not self._closing.is_set():
            self._unsynced.wait()
            self._closing.wait(SYNC_WITHIN_S)
            self._unsynced.clear()
            try:
                os.fdatasync(self._file)
            except OSError as error:
                self._failed = error

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._open:
            self._open = False
            self._closing.set()
            self._unsynced.set()
            self._syncer.join()
            os.close(self._file)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Make a new file's directory entry durable, not only its bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders below ``folder`` that contain a log, newest first."""
    if folder.is_dir():
        logs = sorted(folder.glob(f"*/{LOG_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
        yield from (path.parent for path in logs)
