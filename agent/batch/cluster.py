"""The engine for many machines: each attempt runs in an actor of a Ray cluster, with the same worker as on one machine.

The batch process keeps what must exist once: the results, the token budget and the request rate. A worker asks it for permission
before every request, by the same protocol as on one machine. No shared disk is needed: checkouts and results are sent
through Ray. An attempt whose worker or machine is lost is started again, if possible on the same machine, where it
resumes from its log.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agent.batch.attempt import Attempt, Job, Kind, Progress, load_attempt
from agent.batch.batch import AGAIN
from agent.batch.cargo import pack_checkout, unpack_attempt
from agent.batch.governor import Governor
from agent.batch.seat import Seat, our_code
from agent.errors import AgentError, UsageError
from agent.saver import write_whole
from sandbox.errors import WorktreeError

LOSSES = 5  # lost actors per attempt, because machines come and go; a dying worker process is counted on its machine
POLL_S = 0.5
REST_S = 10.0  # how long an idle actor keeps its place
CONNECT_S = 10.0
MACHINE_NAME = "machine"
BATCH_NAME = "cluster-batch"
Handle: TypeAlias = Any  # an actor handle: Ray creates its methods at runtime
THREADS = 4  # per actor: for the attempt, its reports, and commands to it


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """An actor on its machine."""

    seat: Handle
    machine: str
    cpus: float


class Cluster:
    """Runs attempts on a Ray cluster. Thread-safe; a context manager that connects and disconnects.

    ``address`` is the head's host:port, or auto; this machine must be part of the cluster in both cases.
    ``folder`` is the batch's folder, from which the batch's name on the machines is derived.
    """

    def __init__(self, address: str, folder: Path, governor: Governor) -> None:
        self._address, self._governor = address, governor
        self._batch = _batch_name(folder)
        self._lock = threading.Lock()
        self._seats: set[Handle] = set()
        self._resting: list[_Place] = []
        self._wanted: list[str] = []  # machines on which an attempt that was started there waits for a CPU

    def __enter__(self) -> Cluster:
        """Connect. Raises UsageError if there is no cluster."""
        try:
            _reach(self._address)
            ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RayError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"there is no Ray cluster at {self._address}: {error}. Start one with `ray start --head`, or give "
                "--address; without --engine ray the batch runs on this machine"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def run(self, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        """Do an attempt and return its result; None if it was stopped before its end.

        Raises AgentError if the cluster's machines do not have this version of the program.
        """
        known = load_attempt(Path(job.folder))
        if known is not None:  # the batch was killed after the result arrived and before it was recorded
            return known
        lost, tell = "", adding_up(tell)
        for loss in range(LOSSES):
            if not self._governor.wait(min(loss, 1)):  # wait a second after a loss
                return None
            try:
                return self._start(job, tell)
            except RayError as error:
                lost = _told(error)
        return Attempt(job.attempt, Kind.HARNESS, "", f"the cluster lost its worker {LOSSES} times: {lost}")

    def stop(self) -> None:
        """Ask every worker to stop cleanly."""
        with self._lock:
            for seat in self._seats:
                seat.stop.remote()

    def _start(self, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        place = self._place(job)
        if place is None:
            return None
        with ExitStack() as stack:
            stack.callback(self._end, place.seat)
            attempt = self._follow(place, job, tell)
            if attempt is not None:
                stack.pop_all()
                self._rest(place)
        return attempt

    def _follow(self, place: _Place, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        folder, seat = Path(job.folder), place.seat
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MACHINE_NAME).write_text(place.machine)
        try:
            checkout = pack_checkout(Path(job.repository))
        except (AgentError, WorktreeError) as error:
            return Attempt(job.attempt, Kind.HARNESS, "", str(error))
        done = seat.run.remote(job, checkout, self._batch)
        if self._governor.stopped:
            seat.stop.remote()
        ended = False
        while not ended:
            for report in ray.get(seat.reports.remote()):
                match report:
                    case "ask":
                        seat.grant.remote(self._governor.permit())
                    case "end":
                        ended = True
                    case _:
                        tell(report)
        result: tuple[Attempt, bytes] | None = ray.get(done)
        if result is None:
            return None
        attempt, archive = result
        unpack_attempt(archive, folder)
        if attempt.kind not in AGAIN:
            ray.get(seat.forget.remote(job, self._batch))
        return attempt

    def _place(self, job: Job) -> _Place | None:
        """Return a place, if possible on the machine where the attempt was started. None: stopped before there was one."""
        began = Path(job.folder, MACHINE_NAME)
        machine = began.read_text() if began.exists() else None
        cpus = float(job.config.get("cpus") or 1.0)
        if machine is None and (resting := self._take(cpus)):
            return resting
        near = NodeAffinitySchedulingStrategy(machine, soft=True) if machine else "DEFAULT"
        options = {"num_cpus": cpus, "max_concurrency": THREADS, "scheduling_strategy": near}
        with ExitStack() as stack:
            if machine is not None:
                stack.enter_context(self._wanting(machine))
            with ExitStack() as undo:
                seat: Handle = ray.remote(Seat).options(**options).remote()
                with self._lock:
                    self._seats.add(seat)
                undo.callback(self._end, seat)
                said = seat.place.remote()
                while not ray.wait([said], timeout=POLL_S)[0]:
                    if self._governor.stopped:
                        return None
                    if machine is None and (resting := self._take(cpus)):
                        return resting
                place = _Place(seat, _admitted(said), cpus)
                undo.pop_all()
        return place

    @contextmanager
    def _wanting(self, machine: str) -> Iterator[None]:
        """Inside this context no actor stays idle on the machine, because it would hold the CPU that is needed."""
        with self._lock:
            self._wanted.append(machine)
            there = [each for each in self._resting if each.machine == machine]
        for each in there:
            self._wake(each)
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(machine)

    def _take(self, cpus: float) -> _Place | None:
        """Return an idle place, or None."""
        with self._lock:
            found = next((each for each in self._resting if each.cpus == cpus), None)
            if found is not None:
                self._resting.remove(found)
            return found

    def _rest(self, place: _Place) -> None:
        """Keep a place for the next attempt: starting an actor takes a second, and attempts run in processes of their own anyway."""
        with self._lock:
            self._resting.append(place)
            wanted = place.machine in self._wanted
        timer = threading.Timer(0 if wanted else REST_S, self._wake, (place,))
        timer.daemon = True
        timer.start()

    def _wake(self, place: _Place) -> None:
        """End a place if it is still idle."""
        with self._lock:
            if place not in self._resting:
                return
            self._resting.remove(place)
        self._end(place.seat)

    def _end(self, seat: Handle) -> None:
        with self._lock:
            self._seats.discard(seat)
        ray.kill(seat)


def _admitted(said: Handle) -> str:
    """Return the id of an actor's machine. Raises AgentError if the machine has another version of this program."""
    try:
        theirs, machine = ray.get(said)
    except RayError as error:
        if not _is_ours(error):
            raise
        raise AgentError(
            f"a machine of the cluster cannot run gpt-oss-agent: {_told(error)}; install the same version there"
        ) from error
    if theirs != our_code():
        raise AgentError(
            "a machine of the cluster has another version of gpt-oss-agent than this one: install the same on all"
        )
    return str(machine)


def adding_up(tell: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Return ``tell`` with the tokens of lost starts added: an attempt that had to start again has spent both."""
    before = last = 0

    def told(progress: Progress) -> None:
        nonlocal before, last
        if progress.sampled_tokens < last:
            before += last
        last = progress.sampled_tokens
        tell(replace(progress, sampled_tokens=before + last))

    return told


def _reach(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at host:port: Ray itself would try for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _is_ours(error: RayError) -> bool:
    """Whether our own code raised the error on the other machine; otherwise Ray did, because of the cluster."""
    return isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)


def _told(error: RayError) -> str:
    """Return an error in one line: the last line of a traceback of our code, the first line of an error of Ray."""
    lines = str(error).strip().splitlines()
    return lines[-1 if _is_ours(error) else 0].strip()


def _batch_name(folder: Path) -> str:
    """Return the name of a batch's folder on the machines: stable between runs of the batch, and unique to it."""
    path = folder / BATCH_NAME
    if not path.exists():
        write_whole(path, secrets.token_hex(8).encode())
    return path.read_text()
