"""Passes items from a model's thread to the event loop: bounded, batched, and closable from both sides.

The synchronous model runs in a thread of its own. The loop takes its items in batches, so that under load many tokens cost one
wake-up. A full bridge makes the thread wait (back-pressure reaches the backend), and a closed one ends it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Generic, TypeVar

from agent.errors import Cancelled
from agent.model.cancel import Cancel
from agent.model.client import closing_iterator

Item = TypeVar("Item")

MOST_WAITING = 256


class Bridge(Generic[Item]):
    """Runs ``work`` in a thread and passes on its items. Created and used in the loop's thread, except for ``_run``.

    ``work`` gets a Cancel, which ends it even while it waits for a silent backend.
    """

    def __init__(
        self, work: Callable[[Cancel], Iterator[Item]], executor: Executor, on_end: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None
        self._asleep = False
        self._closed = False
        self._over = False
        self._ends_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._cancel = Cancel()
        self._future: Future[None] = executor.submit(self._run, work)
        self._future.add_done_callback(lambda _: self._call(on_end))

    @property
    def done(self) -> bool:
        """Whether the thread is free again, ``on_end`` was called, and all its items were taken."""
        return self._over and not self._items

    @property
    def error(self) -> BaseException | None:
        """The error that ended the work, or None. Valid only once the bridge is done."""
        return self._future.exception()

    async def take(self, timeout_s: float) -> list[Item]:
        """Return the items that have arrived; empty if the work ended, was closed, or if nothing came for ``timeout_s``."""
        with self._lock:
            self._asleep = not self._items and not self._closed and not self._over
            if self._asleep:
                self._waiter = self._loop.create_future()
        if self._waiter is not None:
            self._wake_within(timeout_s)
            await self._waiter
            self._waiter = None
        with self._lock:
            self._asleep = False
            items, self._items = self._items, []
            if len(items) >= MOST_WAITING:
                self._room.notify()
        return items

    def close(self) -> None:
        """End the work at once, whether it waits for the loop or for the backend."""
        with self._lock:
            self._closed = True
            self._items = []
            self._room.notify()
        self._cancel.call()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _run(self, work: Callable[[Cancel], Iterator[Item]]) -> None:
        # Cancelled is not an error: it comes from close(), and its caller knows the reason.
        with suppress(Cancelled), closing_iterator(work(self._cancel)) as items:
            for item in items:
                if not self._give(item):
                    return

    def _give(self, item: Item) -> bool:
        with self._lock:
            while len(self._items) >= MOST_WAITING and not self._closed:
                self._room.wait()
            if self._closed:
                return False
            self._items.append(item)
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._loop.call_soon_threadsafe(self._wake)
        return True

    def _call(self, on_end: Callable[[], None]) -> None:
        """Tell the loop that the thread is free again, unless the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, on_end)

    def _end(self, on_end: Callable[[], None]) -> None:
        self._over = True
        on_end()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_within(self, timeout_s: float) -> None:
        """Set the time at which the current wait ends. One timer serves all waits, because there is a wait for nearly every token."""
        self._ends_s = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._ends_s:
            self._wind()

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._ends_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._ends_s:
            self._wind()
        else:
            self._wake()
