"""Runs many tasks: decides which attempt comes next, records the result of each task, and stops when told to."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.batch.attempt import (
    RESULT_NAME,
    Attempt,
    Job,
    Kind,
    Progress,
    from_record,
    load_attempt,
    select,
    to_record,
)
from agent.batch.governor import Governor
from agent.batch.results import Record, Results
from agent.batch.task import Task
from agent.config import RunConfig, public
from agent.errors import AgentError
from agent.model.base import later_seed
from sandbox.errors import WorktreeError

ENDPOINT_FAILURES = 5  # after so many failed attempts in a row, the endpoint counts as gone
AGAIN = (Kind.ENDPOINT, Kind.SANDBOX, Kind.HARNESS)  # no fault of the task or the model


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a batch. ``ladder`` are the efforts to try one after another while checks fail; () means the task's own."""

    jobs: int = 1
    attempts: int = 1  # per effort, in parallel
    ladder: tuple[str, ...] = ()
    stagger_s: float = 0.3  # between the first starts, so that they do not all start containers at once
    again: tuple[Kind, ...] = AGAIN  # tasks with these results are run again


class Engine(Protocol):
    """Runs attempts."""

    def run(self, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        """Do an attempt and return its result; None if it was stopped before its end. Thread-safe."""
        ...

    def stop(self) -> None:
        """Ask all running attempts to stop cleanly."""
        ...


class Checkouts(Protocol):
    """Provides the checkouts of tasks."""

    def take(self, task: Task) -> Path:
        """Return the task's checkout, the same for all its attempts."""
        ...

    def give_back(self, task: Task) -> None:
        """Release the checkout: the task is done."""
        ...


class Watch(Protocol):
    """An observer. Called from several threads, one at a time."""

    def began(self, job: Job) -> None:
        """An attempt begins."""
        ...

    def progress(self, job: Job, progress: Progress) -> None:
        """An attempt made progress."""
        ...

    def ended(self, job: Job, attempt: Attempt | None) -> None:
        """An attempt has ended (None: it was stopped)."""
        ...

    def finished(self, record: Record) -> None:
        """A task is done: its result is on disk."""
        ...


@dataclass(slots=True)
class _Entry:
    """A task in progress."""

    task: Task
    rung: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    open: int = 0  # attempts with the current effort that have not ended


Configure = Callable[[Task, Path], RunConfig]


class Batch:
    """Runs the tasks that have no result yet. ``configure`` returns the configuration for a task and its checkout."""

    def __init__(
        self, tasks: Sequence[Task], configure: Configure, plan: Plan, results: Results, engine: Engine, governor: Governor,
        watch: Watch, checkouts: Checkouts,
    ) -> None:  # fmt: skip
        self._configure, self._plan, self._results = configure, plan, results
        self._engine, self._governor, self._watch, self._checkouts = engine, governor, watch, checkouts
        self._state = threading.Condition()
        self._waiting: deque[tuple[_Entry, int]] = deque()
        self._working = 0  # threads
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._unfinished = 0
        self._lost = 0  # attempts in a row that failed because of the endpoint
        self._failure: BaseException | None = None
        for task in tasks:
            self._enter(task)

    @property
    def unfinished(self) -> int:
        """How many tasks have no result yet."""
        return self._unfinished

    def run(self) -> None:
        """Run until every task has a result or the governor is stopped. Raises KeyboardInterrupt after a clean stop.

        Whatever ends it, the next run continues from there.
        """
        threads = [
            threading.Thread(target=self._work, args=(number,), name=f"worker {number}", daemon=True)
            for number in range(min(self._plan.jobs, len(self._waiting)))
        ]
        self._working = len(threads)
        for thread in threads:
            thread.start()
        try:
            self._wait()
        except KeyboardInterrupt:
            self._governor.stop("interrupted by the user")
            with self._state:
                self._state.notify_all()
            self._engine.stop()
            self._wait()
            raise
        if self._failure is not None:
            raise self._failure

    def _enter(self, task: Task) -> None:
        known = self._results.records.get(task.name)
        if known is not None and known["class"] not in self._plan.again:
            return
        if known is not None:
            for number in range(1, len(known["attempts"]) + 1):
                self._forget(task, number)
        self._unfinished += 1
        self._queue(_Entry(task))

    def _forget(self, task: Task, number: int) -> None:
        folder = self._folder(task) / str(number)
        attempt = load_attempt(folder)
        if attempt is not None and attempt.kind in self._plan.again:
            (folder / RESULT_NAME).unlink()

    def _queue(self, entry: _Entry, *, first: bool = False) -> None:
        numbers = range(entry.rung * self._plan.attempts + 1, (entry.rung + 1) * self._plan.attempts + 1)
        entry.open = len(numbers)
        pairs = [(entry, number) for number in numbers]
        if first:  # finish a started task before starting another
            self._waiting.extendleft(reversed(pairs))
        else:
            self._waiting.extend(pairs)

    def _work(self, number: int) -> None:
        try:
            if self._governor.wait(number * self._plan.stagger_s):
                while (taken := self._take()) is not None:
                    self._attempt(*taken)
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            self._failure = error
            self._governor.stop(f"an internal error: {error}")
            with self._state:
                self._state.notify_all()
        finally:
            with self._state:
                self._working -= 1
            self._ended.put(None)

    def _wait(self) -> None:
        """Wait for the threads. Not with join: after a Ctrl-C in it, Python up to 3.12 treats a running thread as ended."""
        while self._working:
            with suppress(queue.Empty):
                self._ended.get(timeout=0.5)  # with a timeout, so that Ctrl-C is handled

    def _take(self) -> tuple[_Entry, int] | None:
        """Return the next attempt; wait while one may still come. None: there are no more, or the batch is stopped."""
        with self._state:
            self._state.wait_for(lambda: bool(self._waiting or not self._unfinished or self._governor.stopped))
            return None if self._governor.stopped or not self._waiting else self._waiting.popleft()

    def _attempt(self, entry: _Entry, number: int) -> None:
        try:
            job = self._job(entry, number)
        except (AgentError, WorktreeError) as error:
            self._settle(entry, Attempt(number, Kind.HARNESS, "", str(error), ended_at=time.time()))
            return
        with self._state:
            self._watch.began(job)

        def tell(progress: Progress) -> None:
            self._governor.spend((job.task, job.attempt), progress.sampled_tokens)
            with self._state:
                self._watch.progress(job, progress)

        attempt = self._engine.run(job, tell)
        with self._state:
            self._watch.ended(job, attempt)
        if attempt is not None:
            self._governor.spend((job.task, job.attempt), attempt.sampled_tokens)
            self._settle(entry, attempt)

    def _job(self, entry: _Entry, number: int) -> Job:
        task, plan = entry.task, self._plan
        with (
            self._state
        ):  # attempts of a task share its checkout; git is fast, and one checkout at a time is easier on the disk
            checkout = self._checkouts.take(task)
        shown = public(self._configure(task, checkout))
        if plan.ladder:
            shown["effort"] = plan.ladder[entry.rung]
        shown["seed"] = later_seed(shown["seed"], number - 1)
        return Job(task.name, number, task.prompt, str(checkout), str(self._folder(task) / str(number)), shown)

    def _settle(self, entry: _Entry, attempt: Attempt) -> None:
        with self._state:
            self._lost = self._lost + 1 if attempt.kind is Kind.ENDPOINT else 0
            if self._lost >= ENDPOINT_FAILURES:
                self._governor.stop(f"the endpoint failed {self._lost} attempts in a row: {attempt.reason}")
            entry.attempts.append(attempt)
            entry.open -= 1
            if not entry.open:
                climb = entry.rung + 1 < len(self._plan.ladder) and not any(a.kind is Kind.DONE for a in entry.attempts)
                if climb:
                    entry.rung += 1
                    self._queue(entry, first=True)
                else:
                    self._finish(entry)
            self._state.notify_all()

    def _finish(self, entry: _Entry) -> None:
        record = _record(entry.task, entry.attempts)
        self._results.append(record)
        self._unfinished -= 1
        self._checkouts.give_back(entry.task)
        self._watch.finished(record)

    def _folder(self, task: Task) -> Path:
        return self._results.folder.absolute() / "tasks" / task.name


def _record(task: Task, attempts: Sequence[Attempt]) -> Record:
    """Return a task's result record. ``folder`` is the kept run's folder, relative to the batch's."""
    kept = select(attempts)
    return {
        "task": task.name,
        "class": kept.kind.value,
        "outcome": kept.outcome,
        "reason": kept.reason,
        "kept": kept.attempt,
        "folder": f"tasks/{task.name}/{kept.attempt}/{kept.run}" if kept.run else "",
        "model": f"gpt-oss-agent/{next((each.model for each in attempts if each.model), 'none')}",
        "language": task.language,
        "difficulty": task.difficulty,
        "tags": list(task.tags),
        "sampled_tokens": sum(each.sampled_tokens for each in attempts),
        "total_tokens": sum(each.total_tokens for each in attempts),
        "duration_s": round(sum(each.duration_s for each in attempts), 3),
        "attempts": [to_record(each) for each in sorted(attempts, key=lambda each: each.attempt)],
    }


def spent_tokens(records: Mapping[str, Record]) -> dict[tuple[str, int], int]:
    """Return how many tokens each attempt of earlier batch runs has sampled, for the budget."""
    return {
        (name, attempt.attempt): attempt.sampled_tokens
        for name, record in records.items()
        for attempt in map(from_record, record["attempts"])
    }
