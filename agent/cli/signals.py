"""Ctrl-C, SIGTERM and SIGHUP: the first one stops the run cleanly, the second kills it."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from agent.cli.exits import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STANDARD_ERROR = 2


class Interrupts:
    """Inside this context, the first signal raises KeyboardInterrupt in the main thread and the second ends the process.

    A container that is left behind ends on its own, after its helper's grace period.
    """

    def __init__(self) -> None:
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Under nohup, the end of the terminal must not stop the run.
        heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._count += 1
        if self._count > 1:
            os._exit(INTERRUPTED)
        # Not print, because the signal may have interrupted one.
        os.write(STANDARD_ERROR, b"\nstopping; once more to kill\n")
        raise KeyboardInterrupt
