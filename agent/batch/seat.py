"""The far end of the cluster's engine: attempts, one at a time, on a machine that shares no disk with the batch.

What runs the attempt there is what runs it here (agent/batch/processes.py), so a worker hangs on a leash there too: when
this process is killed, because the batch was or its machine's keeper wants its place, the worker ends at once, and its
container after its grace period. What was begun stays in a folder named after the batch, and is gone on with when the same
attempt comes to this machine again.
"""

from __future__ import annotations

import hashlib
import queue
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray

import agent
import sandbox
from agent.batch.attempt import RESULT_NAME, Attempt, Job, Progress, load_attempt
from agent.batch.batch import AGAIN
from agent.batch.cargo import pack_attempt, unpack_checkout
from agent.batch.processes import Processes
from agent.config import RunConfig, drop_relative_path, load
from sandbox.guest.removal import remove_tree

STOPS = "the batch stops"
Report = Progress | Literal["ask", "end"]


def our_code() -> str:
    """Return a hash of this program's source: both ends must be of the same."""
    digest = hashlib.sha256()
    for folder in (Path(agent.__file__).parent, Path(sandbox.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Seat:
    """Runs attempts, one at a time. ``reports`` is called in parallel with ``run`` until it says "end", ``grant`` for each "ask"."""

    def __init__(self) -> None:
        self.stopped = ""
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._grants: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._processes = Processes(self)
        drop_relative_path()  # this process has the PATH that Ray was started with

    def place(self) -> tuple[str, str]:
        """Return which program is on this machine, and the machine's id in the cluster."""
        return our_code(), ray.get_runtime_context().get_node_id()

    def run(self, job: Job, checkout: bytes, batch: str) -> tuple[Attempt, bytes] | None:
        """Do the attempt, or what is left of it here; return it and its folder as an archive, None when it was stopped."""
        try:
            config = load().config  # this machine's
            folder = _folder(config, batch, job)
            repository = folder.with_name(f"{folder.name}.checkout")
            if not repository.is_dir():
                unpack_checkout(checkout, repository)
            known = load_attempt(folder)
            if known is not None and known.kind in AGAIN:  # it was kept for this: to be gone on with
                (folder / RESULT_NAME).unlink()
            shown = {**job.config, "cache_dir": str(config.cache_dir)}
            here = replace(job, folder=str(folder), repository=str(repository), config=shown)
            attempt = self._processes.run(here, self._reports.put)
            return None if attempt is None else (attempt, pack_attempt(folder))
        finally:
            self._reports.put("end")

    def reports(self) -> list[Report]:
        """Wait for something to happen; return all that has."""
        found = [self._reports.get()]
        while not self._reports.empty():
            found.append(self._reports.get())
        return found

    def permit(self) -> bool:
        """Ask the batch for a request, and wait for its answer."""
        self._reports.put("ask")
        return self._grants.get()

    def grant(self, allowed: bool) -> None:
        """Answer an "ask". A request that is not granted is the end: none will be."""
        if not allowed:
            self.stopped = STOPS
        self._grants.put(allowed)

    def stop(self) -> None:
        """Ask the worker to stop cleanly."""
        self.stopped = STOPS
        self._processes.stop()

    def forget(self, job: Job, batch: str) -> None:
        """Remove the attempt from this machine: its result has arrived."""
        folder = _folder(load().config, batch, job)
        remove_tree(str(folder))
        remove_tree(str(folder.with_name(f"{folder.name}.checkout")))


def _folder(config: RunConfig, batch: str, job: Job) -> Path:
    return config.runs_dir / ".cluster" / batch / job.task / str(job.attempt)
