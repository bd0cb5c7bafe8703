"""Cancels an answer from another thread, at once, even while it is silent (closing its iterator would have to wait)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.errors import Cancelled


class Cancel:
    """Created by the caller and passed along with the request; only the first ``call`` has an effect.

    Code that waits for a model registers with ``by`` how to end its wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._ways: dict[object, Callable[[], None]] = {}

    @property
    def called(self) -> bool:
        """Whether the answer was cancelled."""
        return self._event.is_set()

    def call(self) -> None:
        """End the current wait and every later one. From any thread; returns at once."""
        with self._lock:
            self._event.set()
            ways = list(self._ways.values())
        for way in ways:
            way()

    @contextmanager
    def by(self, way: Callable[[], None]) -> Iterator[None]:
        """Inside the block, ``way`` ends the wait. It is called from another thread, or at once if this is already cancelled."""
        key = object()
        with self._lock:
            self._ways[key] = way
            late = self._event.is_set()
        try:
            if late:
                way()
            yield
        finally:
            with self._lock:
                del self._ways[key]

    def sleep(self, wait_s: float) -> None:
        """Wait. Raises Cancelled as soon as the answer is cancelled."""
        if self._event.wait(wait_s):
            raise self.error()

    def error(self) -> Cancelled:
        """Return the error that ends a cancelled answer."""
        return Cancelled("the caller cancelled the answer")
