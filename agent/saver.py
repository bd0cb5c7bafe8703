"""Saves the work on the host while the model answers, so that little is lost with a sandbox."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import DiffRefused, SandboxError, WorktreeError

QUIET_S = 0.25
AT_LATEST_S = 20.0


class Saver:
    """Calls ``save`` in a thread of its own: ``quiet_s`` after the last change, but at the latest ``at_latest_s`` after the first.

    So no call waits for it, and a model that answers at once is not slowed down.
    """

    def __init__(self, save: Callable[[], None], quiet_s: float = QUIET_S, at_latest_s: float = AT_LATEST_S) -> None:
        self._save = save
        self._quiet_s, self._at_latest_s = quiet_s, at_latest_s
        self._state = threading.Condition()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Report that the work has changed."""
        with self._state:
            self._last_s = time.monotonic()
            if self._first_s is None:
                self._first_s = self._last_s
                self._state.notify()

    def close(self) -> None:
        """Stop without saving again. May be called twice."""
        with self._state:
            self._closed = True
            self._state.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait():
            # Saving is only a safety net: if it fails, the run continues, and meets a broken sandbox itself.
            with contextlib.suppress(SandboxError, DiffRefused, WorktreeError, OSError):
                self._save()

    def _wait(self) -> bool:
        """Wait until it is time to save; return False if closed."""
        with self._state:
            self._state.wait_for(lambda: self._first_s is not None or self._closed)
            while not self._closed and self._first_s is not None:
                rest_s = min(self._last_s + self._quiet_s, self._first_s + self._at_latest_s) - time.monotonic()
                if rest_s <= 0:
                    break
                self._state.wait(rest_s)
            self._first_s = None
            return not self._closed


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content atomically: even after a power failure it has the old bytes or the new ones."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
