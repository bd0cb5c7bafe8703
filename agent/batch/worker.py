"""A worker process: runs one attempt, under the control of its parent.

The first line of standard input is the job as JSON; then comes a line ``go`` for each permitted request, or ``stop``. When standard
input ends, the parent is gone and the worker exits at once; nothing is lost, because the run resumes from its log.
On standard output it writes one JSON line per report. The result of the attempt is in its folder.
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
    """The connection to the parent process."""

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
                # Interrupt only once: a second signal could stop the run from recording its end.
                stopped = True
                self._granted.put(False)
                if not self._asking:
                    os.kill(os.getpid(), signal.SIGINT)  # a real signal also wakes a waiting main thread
        os._exit(ORPHANED)

    def may_ask(self) -> None:
        """Wait until a request is permitted. Raises KeyboardInterrupt if no more are."""
        self._asking = True
        self._report({"ask": True})
        if not self._granted.get():
            raise KeyboardInterrupt

    def tell(self, progress: Progress) -> None:
        """Report the progress of the attempt."""
        self._report(asdict(progress))

    def _report(self, data: dict[str, object]) -> None:
        self._reports.write(json.dumps(data) + "\n")
        self._reports.flush()


def main() -> int:
    """Do the job. Standard output is only for reports: everything else that is printed goes to standard error, which is a file."""
    # ``stop`` is delivered as this signal (see Leash). Ray's workers block it and shells ignore it in background jobs; both are inherited.
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
    os._exit(code)  # a normal exit would wait for threads that are stuck on a dead endpoint
