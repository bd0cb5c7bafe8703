"""Ending an answer from another thread, at once: also one that is silent, where closing its iterator has to wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.errors import Cancelled


class Cancel:
    """Made by whoever asks, handed along with the question, and called at most once to any effect.

    Whatever waits for a model says, with ``by``, what ends its wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._ways: dict[object, Callable[[], None]] = {}

    @property
    def called(self) -> bool:
        """Whether the answer is not wanted any more."""
        return self._event.is_set()

    def call(self) -> None:
        """End whatever waits, now and from now on. From any thread; returns at once."""
        with self._lock:
            self._event.set()
            ways = list(self._ways.values())
        for way in ways:
            way()

    @contextmanager
    def by(self, way: Callable[[], None]) -> Iterator[None]:
        """Within the block, ``way`` is what ends the wait: called from another thread, or at once where it is too late."""
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
        """Wait. Raises Cancelled as soon as that is no use any more."""
        if self._event.wait(wait_s):
            raise self.error()

    def error(self) -> Cancelled:
        """Return what an answer ends with that nobody wants any more."""
        return Cancelled("whoever asked does not want the answer any more")
