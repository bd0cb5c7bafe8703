"""The sandboxes of the code interpreter: one per conversation, one started in advance, closed when idle. Sync, thread-safe.

A conversation holds its sandbox only during an answer. Between two answers the sandbox is idle: the next answer finds it by its
id, with all variables, unless it was idle for too long or another conversation needed the place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from agent.server.responses import new_id
from sandbox.base import Sandbox
from sandbox.errors import SandboxError, SandboxLost, WorktreeError

log = logging.getLogger(__name__)

IDLE_S = 1200.0
RETRY_S = 30.0  # wait after starting a warm sandbox failed
Start = Callable[[], Sandbox]


@dataclass(slots=True)
class Interpreter:
    """A sandbox that the first call starts. ``lost``: its conversation had another one before."""

    start: Start
    id: str = field(default_factory=lambda: new_id("cntr"))
    lost: bool = False
    idle_since_s: float = 0.0
    _sandbox: Sandbox | None = None
    _closed: bool = False
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def opened(self) -> Sandbox:
        """Return the sandbox; one call at a time. Raises SandboxError; SandboxLost after it was closed."""
        if self._sandbox is not None:
            return self._sandbox
        sandbox = self.start()
        with self._changing:
            if not self._closed:
                self._sandbox = sandbox
                return sandbox
        sandbox.close()
        raise SandboxLost("this sandbox was closed while it started")

    def close(self) -> None:
        """Close the sandbox; one that is still starting is closed as soon as it has started."""
        with self._changing:
            self._closed = True
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()


class Interpreters:
    """At most ``most`` sandboxes, the warm one included, except while one is being started in advance. ``start`` opens one."""

    def __init__(self, start: Start, most: int = 8, idle_s: float = IDLE_S) -> None:
        self._start = start
        self._most = most
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._taken: dict[str, Interpreter] = {}
        self._idle: OrderedDict[str, Interpreter] = OrderedDict()  # the longest idle one first
        self._warm: Interpreter | None = None
        self._trash: list[Interpreter] = []
        self._retry_s = 0.0
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name="interpreters", daemon=True)

    def open(self) -> None:
        """Start the first sandbox, so that problems with Docker show now, and the thread that maintains all sandboxes.

        Raises EngineUnavailable, ImageUnavailable, SandboxError.
        """
        warm = Interpreter(self._start)
        warm.opened()
        self._warm = warm
        self._keeper.start()

    def __contains__(self, ident: str) -> bool:
        with self._changed:
            return ident in self._taken or ident in self._idle

    def take(self, wanted: str | None) -> Interpreter | None:
        """Return the interpreter ``wanted``, or a new one if it is gone or in use; None if all places are taken."""
        with self._changed:
            found = self._idle.pop(wanted, None) if wanted is not None else None
            if found is None:
                found = self._new()
            if found is None:
                return None
            found.lost = wanted is not None and found.id != wanted
            self._taken[found.id] = found
            self._changed.notify()
            return found

    def give(self, interpreter: Interpreter) -> None:
        """Return an interpreter to the pool, for the next answer of its conversation."""
        with self._changed:
            if self._taken.pop(interpreter.id, None) is not None:
                interpreter.idle_since_s = time.monotonic()
                self._idle[interpreter.id] = interpreter
                self._changed.notify()

    def discard(self, interpreter: Interpreter) -> None:
        """Have an interpreter closed, even if it is running a call. Returns at once."""
        with self._changed:
            if self._taken.pop(interpreter.id, None) is not None:
                self._trash.append(interpreter)
                self._changed.notify()

    def close(self) -> None:
        """Close everything. May be called twice."""
        with self._changed:
            self._closed = True
            every = [*self._taken.values(), *self._idle.values(), *self._trash, *([self._warm] if self._warm else [])]
            self._taken.clear()
            self._idle.clear()
            self._trash.clear()
            self._warm = None
            self._changed.notify()
        if every:
            with ThreadPoolExecutor(len(every)) as beside:
                list(beside.map(_close, every))
        if self._keeper.is_alive():
            self._keeper.join()

    def _new(self) -> Interpreter | None:
        """Return the warm one, or one that starts with its first call; if no place is free, the longest idle one is closed."""
        if self._warm is not None:
            warm, self._warm = self._warm, None
            return warm
        if not self._has_room():
            if not self._idle:
                return None
            self._trash.append(self._idle.popitem(last=False)[1])
        return Interpreter(self._start)

    def _keep(self) -> None:
        """Close sandboxes that were idle for too long or discarded, and keep one warm if there is a place for it."""
        while True:
            with self._changed:
                doomed = self._doomed()
                cold = not doomed and self._is_cold()
                if self._closed:
                    return
                if not doomed and not cold:
                    self._changed.wait(self._pause_s())
                    continue
            for interpreter in doomed:
                _close(interpreter)
            if cold:
                self._heat()

    def _doomed(self) -> list[Interpreter]:
        doomed, self._trash = self._trash, []
        ended_s = time.monotonic() - self._idle_s
        while self._idle and next(iter(self._idle.values())).idle_since_s <= ended_s:
            doomed.append(self._idle.popitem(last=False)[1])
        return doomed

    def _is_cold(self) -> bool:
        return self._warm is None and self._has_room() and time.monotonic() >= self._retry_s

    def _has_room(self) -> bool:
        return len(self._taken) + len(self._idle) < self._most

    def _pause_s(self) -> float | None:
        """Return the time until the next thing to do; None if there is nothing to do until something changes."""
        now_s = time.monotonic()
        oldest = next(iter(self._idle.values()), None)
        ends = [] if oldest is None else [oldest.idle_since_s + self._idle_s]
        if self._retry_s > now_s:
            ends.append(self._retry_s)
        return max(min(ends) - now_s, 0.01) if ends else None

    def _heat(self) -> None:
        interpreter = Interpreter(self._start)
        try:
            interpreter.opened()
        except (SandboxError, WorktreeError, OSError) as error:
            log.warning("no sandbox could be started in advance; --verbose says why")
            log.info("no sandbox could be started: %s", error)
            self._retry_s = time.monotonic() + RETRY_S
            return
        with self._changed:
            if not self._closed and self._has_room():  # it may have been taken meanwhile
                self._warm = interpreter
                return
        _close(interpreter)


def _close(interpreter: Interpreter) -> None:
    try:
        interpreter.close()
    except SandboxError as error:
        log.warning("a sandbox could not be closed; --verbose says why")
        log.info("a sandbox could not be closed: %s", error)
