"""The remote part of the cluster's engine: an actor that runs attempts, one at a time, on a machine of the cluster.

It runs them as on one machine (agent/batch/processes.py). So if this process is killed, with the batch or by Ray, the worker
ends at once, and its container after its grace period. A started attempt stays in a folder named after the batch, and is
resumed when the same attempt is sent to this machine again.
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
    """Return a hash of this program's source, which must be the same on all machines."""
    digest = hashlib.sha256()
    for folder in (Path(agent.__file__).parent, Path(sandbox.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Seat:
    """Runs attempts, one at a time. ``reports`` is called in parallel with ``run`` until it returns "end", ``grant`` for each "ask"."""

    def __init__(self) -> None:
        self.stopped = ""
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._grants: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._processes = Processes(self)
        drop_relative_path()  # this process has the PATH that Ray was started with

    def place(self) -> tuple[str, str]:
        """Return the hash of the program on this machine, and the machine's id in the cluster."""
        return our_code(), ray.get_runtime_context().get_node_id()

    def run(self, job: Job, checkout: bytes, batch: str) -> tuple[Attempt, bytes] | None:
        """Do the attempt, or the rest of it; return its result and its folder as an archive, or None if it was stopped."""
        try:
            config = load().config  # the configuration of this machine
            folder = _folder(config, batch, job)
            repository = folder.with_name(f"{folder.name}.checkout")
            if not repository.is_dir():
                unpack_checkout(checkout, repository)
            known = load_attempt(folder)
            if known is not None and known.kind in AGAIN:  # such a result is kept so that the attempt can be resumed
                (folder / RESULT_NAME).unlink()
            shown = {**job.config, "cache_dir": str(config.cache_dir)}
            here = replace(job, folder=str(folder), repository=str(repository), config=shown)
            attempt = self._processes.run(here, self._reports.put)
            return None if attempt is None else (attempt, pack_attempt(folder))
        finally:
            self._reports.put("end")

    def reports(self) -> list[Report]:
        """Wait for at least one report; return all pending ones."""
        found = [self._reports.get()]
        while not self._reports.empty():
            found.append(self._reports.get())
        return found

    def permit(self) -> bool:
        """Ask the batch for permission to send a request, and wait for its answer."""
        self._reports.put("ask")
        return self._grants.get()

    def grant(self, allowed: bool) -> None:
        """Answer an "ask". After a refusal no more requests are allowed."""
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
