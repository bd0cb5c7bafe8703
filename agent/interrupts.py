"""A request to stop that Python drops is made again."""

from __future__ import annotations

import signal
import sys
import threading

AGAIN_S = 0.01


def keep_interrupts() -> None:
    """Raise a dropped KeyboardInterrupt or SystemExit again, for the rest of this process.

    A signal handler raises wherever the main thread is. In a destructor or in the callback of a weak reference, Python passes what
    is raised to ``sys.unraisablehook`` and goes on: the program would never hear that it should stop.
    """
    report = sys.unraisablehook

    def look(dropped: sys.UnraisableHookArgs) -> None:
        error = dropped.exc_value
        of_main = threading.current_thread() is threading.main_thread()
        if not of_main or not isinstance(error, KeyboardInterrupt | SystemExit):
            report(dropped)
            return

        def again(*_: object) -> None:
            signal.signal(signal.SIGALRM, before)
            raise error

        before = signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)  # not here, where it would be dropped again

    sys.unraisablehook = look
