"""The engine for one machine: a process for each attempt, so that a crash of one does not affect the others."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import agent
from agent.batch.attempt import Attempt, Job, Kind, Progress, load_attempt
from agent.batch.governor import Grants

LOG_NAME = "worker.log"
STARTS = 3  # at most so many starts per attempt: after a crash it resumes from its log
LAST_WORDS_BYTES = 2000
# Not `-m`, which would import modules from the working directory, that is, from the repository. So -P, and this program's own path.
PROGRAM = (
    "import sys; root = sys.argv.pop(); root in sys.path or sys.path.insert(0, root); "
    "import runpy; runpy.run_module('agent.batch.worker', run_name='__main__')"
)


class Processes:
    """Runs attempts in processes of this machine. Thread-safe."""

    def __init__(self, governor: Grants) -> None:
        self._governor = governor
        self._lock = threading.Lock()
        self._workers: set[subprocess.Popen[str]] = set()

    def run(self, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        """Do an attempt and return its result; None if it was stopped before its end."""
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        code = 0
        for start in range(STARTS):
            code = self._start(replace(job, restarted=start > 0), folder, tell)
            attempt = load_attempt(folder)
            if attempt is not None:
                return attempt
            if self._governor.stopped:
                return None
        said = (folder / LOG_NAME).read_bytes()[-LAST_WORDS_BYTES:].decode("utf-8", "replace").strip()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = f": {said.splitlines()[-1]}" if said else ""
        return Attempt(job.attempt, Kind.HARNESS, "", f"the worker {how}, {STARTS} times{last} ({folder / LOG_NAME})")

    def stop(self) -> None:
        """Ask every worker to stop cleanly."""
        for worker in self._running():
            _order(worker, "stop")

    def _running(self) -> list[subprocess.Popen[str]]:
        with self._lock:
            return list(self._workers)

    def _start(self, job: Job, folder: Path, tell: Callable[[Progress], None]) -> int:
        """Run one worker to its end and return its exit code."""
        with (folder / LOG_NAME).open("ab") as errors:
            # A session of its own, so that Ctrl-C on the terminal reaches only the batch process, which then stops the workers.
            worker = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(Path(agent.__file__).parents[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        with worker, self._listed(worker):
            assert worker.stdout is not None
            _order(worker, json.dumps(asdict(job)))
            if self._governor.stopped:
                _order(worker, "stop")
            for line in worker.stdout:
                self._answer(worker, json.loads(line), tell)
            return worker.wait()

    def _answer(
        self, worker: subprocess.Popen[str], report: dict[str, object], tell: Callable[[Progress], None]
    ) -> None:
        if "ask" in report:
            _order(worker, "go" if self._governor.permit() else "stop")
        else:
            tell(Progress(**report))  # type: ignore[arg-type]  # written by our own worker from a Progress

    @contextmanager
    def _listed(self, worker: subprocess.Popen[str]) -> Iterator[None]:
        with self._lock:
            self._workers.add(worker)
        try:
            yield
        finally:
            with self._lock:
                self._workers.discard(worker)


def _order(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except (BrokenPipeError, ValueError):  # the worker is gone: its exit code is handled elsewhere
        with suppress(BrokenPipeError):  # because of the line that is still in the buffer
            worker.stdin.close()
