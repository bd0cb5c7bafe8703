"""A worker process: one attempt, on a leash.

Standard input begins with one line, the job as JSON; then a line ``go`` for each request that is granted, or ``stop``. When
it ends, whoever started this process is gone, and it ends at once: nothing is lost, because the run's log goes on from
there. Standard output carries one JSON line for each thing that happens. What the attempt came to is in its folder.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from typing import IO

from agent.batch.attempt import Job, Progress, run_attempt
from agent.events import EXIT_CODES, Outcome
from agent.interrupts import keep_interrupts

INTERRUPTED = EXIT_CODES[Outcome.INTERRUPTED]
ORPHANED = 3


class Leash:
    """The line to whoever started this process."""

    def __init__(self, orders: IO[str], reports: IO[str]) -> None:
        self._orders, self._reports = orders, reports
        self._granted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._asking = False
        self.job = Job(**json.loads(orders.readline()))
        threading.Thread(target=self._listen, name="leash", daemon=True).start()

    def _listen(self) -> None:
        stopped = False
        for line in self._orders:
            if line.strip() == "go":
                self._asking = False
                self._granted.put(True)
            elif not stopped:
                # Interrupted once only: a second time would take the run's last words from it.
                stopped = True
                self._granted.put(False)
                if not self._asking:
                    os.kill(os.getpid(), signal.SIGINT)  # a real signal: it also wakes a main thread that waits
        os._exit(ORPHANED)

    def may_ask(self) -> None:
        """Wait until a request is granted. Raises KeyboardInterrupt when none is any more."""
        self._asking = True
        self._report({"ask": True})
        if not self._granted.get():
            raise KeyboardInterrupt

    def tell(self, progress: Progress) -> None:
        """Say how far the attempt is."""
        self._report(asdict(progress))

    def _report(self, data: dict[str, object]) -> None:
        self._reports.write(json.dumps(data) + "\n")
        self._reports.flush()


def main() -> int:
    """Do the one job. Standard output is ours alone: what anything else prints goes to standard error, which is a file."""
    # An order to stop is this signal (see Leash). Ray's workers block it, a shell's background ignores it, and both are inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    keep_interrupts()
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    leash = Leash(sys.stdin, reports)
    try:
        attempt = run_attempt(leash.job, leash.may_ask, leash.tell)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return ORPHANED
    return 0 if attempt is not None else INTERRUPTED


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stderr.flush()
    os._exit(code)  # not by way of the interpreter's end, which would wait for threads of an endpoint that is dead
