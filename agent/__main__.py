"""`python -m agent` and the console script."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading


def main() -> None:
    """Load the command line and run it. The imports are inside, so that Ctrl-C during them ends quietly too."""
    # Registered first, so run last: after it Python gives SIGINT its default action back, and while the modules are
    # torn down (50 ms and more) a second Ctrl-C would change the exit code to that of a killed process.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        from agent.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        _leave(130)
    except SystemExit as done:
        if isinstance(done.code, int):
            _leave(done.code)
        raise
    finally:
        # The process is about to end: a last garbage collection over all loaded modules would take up to 0.2 s for nothing.
        gc.freeze()


def _leave(code: int) -> None:
    """Exit with ``code``; at once if a daemon thread is still busy (loading a model, say).

    Finalizing the interpreter would abort the process while such a thread is in C++ code (torch's).
    """
    signal.setitimer(signal.ITIMER_REAL, 0)  # a dropped request to stop (agent/interrupts.py): this is the stop
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a second Ctrl-C, which nothing would catch any more
    if any(thread.daemon for thread in threading.enumerate()):
        atexit._run_exitfuncs()  # undocumented, but the only way to run them before os._exit
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
