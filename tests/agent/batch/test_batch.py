"""The order of attempts, the ladder, what counts as done, when a batch stops: with an engine that is told what to answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from agent.batch.attempt import Attempt, Job, Kind, Progress, select
from agent.batch.batch import Batch, Plan, spent_tokens
from agent.batch.checkout import Copies
from agent.batch.governor import Governor
from agent.batch.results import Record, Results, read_results
from agent.batch.task import Task
from agent.config import RunConfig


def attempt(number: int = 1, kind: Kind = Kind.DONE, outcome: str = "passed", **keys: object) -> Attempt:
    return Attempt(number, kind, outcome, "because", f"run-{number}", **({"changed_paths": ("a.py",)} | keys))  # type: ignore[arg-type]


class Answers:
    """An engine that answers from a function, and keeps the jobs it was given."""

    def __init__(self, answer: Callable[[Job], Attempt | None]) -> None:
        self.answer, self.jobs, self.stops = answer, list[Job](), 0
        self.running = self.most = 0
        self._lock = threading.Lock()

    def run(self, job: Job, tell: Callable[[Progress], None]) -> Attempt | None:
        with self._lock:
            self.jobs.append(job)
            self.running += 1
            self.most = max(self.most, self.running)
        assert Path(job.repository, ".git").is_dir()
        tell(Progress(1, 10, "Sampled"))
        try:
            return self.answer(job)
        finally:
            with self._lock:
                self.running -= 1

    def stop(self) -> None:
        self.stops += 1


class Lines:
    """A watch that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def began(self, job: Job) -> None:
        self.told.append(f"began {job.name}")

    def progress(self, job: Job, progress: Progress) -> None:
        self.told.append(f"{job.name} {progress.doing}")

    def ended(self, job: Job, attempt: Attempt | None) -> None:
        self.told.append(f"ended {job.name}")

    def finished(self, record: Record) -> None:
        self.told.append(f"finished {record['task']} {record['class']}")


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("")
    return [Task(f"t{number}", "Fix.", str(source), language="python") for number in range(4)]


def copies(folder: Path) -> Copies:
    return Copies(folder / "out/checkouts", folder / "cache")


def go(
    folder: Path, tasks: Sequence[Task], answer: Callable[[Job], Attempt | None], plan: Plan, **keys: object
) -> tuple[Answers, Mapping[str, Record], Lines, Governor]:
    engine, watch, governor = Answers(answer), Lines(), Governor(**keys)  # type: ignore[arg-type]
    with Results(folder / "out") as results:
        config = RunConfig(seed=5, wire="scripted")
        batch = Batch(tasks, lambda *_: config, plan, results, engine, governor, watch, copies(folder))
        batch.run()
        assert batch.unfinished == sum(task.name not in results.records for task in tasks)
    return engine, read_results(folder / "out"), watch, governor


FAST = Plan(stagger_s=0)


def test_every_task_gets_a_line_and_its_checkout_is_removed(tmp_path: Path, tasks: list[Task]) -> None:
    engine, records, watch, governor = go(tmp_path, tasks, lambda job: attempt(), FAST)
    assert sorted(records) == ["t0", "t1", "t2", "t3"]
    assert records["t0"]["folder"] == "tasks/t0/1/run-1"
    assert [job.config["seed"] for job in engine.jobs] == [5] * 4
    assert list((tmp_path / "out/checkouts").iterdir()) == []
    assert watch.told[:4] == ["began t0 #1", "t0 #1 Sampled", "ended t0 #1", "finished t0 done"]
    assert governor.spent_tokens == 40


def test_what_has_a_line_is_not_run_again(tmp_path: Path, tasks: list[Task]) -> None:
    go(tmp_path, tasks[:2], lambda job: attempt(kind=Kind.MODEL, outcome="checks_failed"), FAST)
    engine, records, _, _ = go(tmp_path, tasks, lambda job: attempt(), FAST)
    assert [job.task for job in engine.jobs] == ["t2", "t3"]
    assert records["t0"]["class"] == "model"


def test_tasks_that_an_endpoint_failed_are_run_again(tmp_path: Path, tasks: list[Task]) -> None:
    go(tmp_path, tasks[:2], lambda job: attempt(kind=Kind.ENDPOINT, outcome="endpoint"), FAST)
    engine, records, _, _ = go(tmp_path, tasks[:2], lambda job: attempt(), FAST)
    assert [job.task for job in engine.jobs] == ["t0", "t1"]
    assert [record["class"] for record in records.values()] == ["done", "done"]


def test_attempts_run_side_by_side_with_seeds_of_their_own_and_the_best_is_kept(
    tmp_path: Path, tasks: list[Task]
) -> None:
    together = threading.Barrier(3, timeout=30)

    def answer(job: Job) -> Attempt:
        together.wait()
        return attempt(job.attempt, patch_lines=[9, 2, 5][job.attempt - 1], sampled_tokens=10)

    engine, records, _, _ = go(tmp_path, tasks[:1], answer, Plan(jobs=3, attempts=3, stagger_s=0))
    assert engine.most == 3
    assert {job.attempt: job.config["seed"] for job in engine.jobs} == {1: 5, 2: 6, 3: 7}
    assert len({job.repository for job in engine.jobs}) == 1
    assert records["t0"]["kept"] == 2
    assert len(records["t0"]["attempts"]) == 3
    assert spent_tokens(records) == {("t0", 1): 10, ("t0", 2): 10, ("t0", 3): 10}


def test_the_ladder_climbs_only_while_checks_fail(tmp_path: Path, tasks: list[Task]) -> None:
    def answer(job: Job) -> Attempt:
        good = job.task == "t0" or (job.task == "t1" and job.config["effort"] == "high")
        return attempt(job.attempt) if good else attempt(job.attempt, Kind.MODEL, "checks_failed")

    plan = Plan(ladder=("low", "medium", "high"), stagger_s=0)
    engine, records, _, _ = go(tmp_path, tasks[:3], answer, plan)
    tried = [(job.task, job.config["effort"]) for job in engine.jobs]
    efforts = ("low", "medium", "high")
    assert tried == [("t0", "low"), *(("t1", each) for each in efforts), *(("t2", each) for each in efforts)]
    assert [records[name]["kept"] for name in ("t0", "t1", "t2")] == [1, 3, 1]


def test_a_budget_stops_the_batch_and_a_greater_one_goes_on(tmp_path: Path, tasks: list[Task]) -> None:
    def answer(job: Job) -> Attempt:
        return attempt(sampled_tokens=10)

    _, records, _, governor = go(tmp_path, tasks, answer, FAST, budget_tokens=20)
    assert sorted(records) == ["t0", "t1"]
    assert governor.stopped.startswith("the budget")
    engine, records, _, _ = go(tmp_path, tasks, answer, FAST, budget_tokens=100, spent=spent_tokens(records))
    assert [job.task for job in engine.jobs] == ["t2", "t3"]


def test_an_attempt_that_was_stopped_leaves_its_task_open(tmp_path: Path, tasks: list[Task]) -> None:
    engine, watch, governor = Answers(lambda job: governor.stop("enough")), Lines(), Governor()
    with Results(tmp_path / "out") as results:
        batch = Batch(tasks, lambda *_: RunConfig(), FAST, results, engine, governor, watch, copies(tmp_path))
        batch.run()
        assert batch.unfinished == 4
        assert results.records == {}
    assert watch.told[-1] == "ended t0 #1"
    assert (tmp_path / "out/checkouts/t0").is_dir()


def test_an_endpoint_that_is_gone_stops_the_batch(tmp_path: Path, tasks: list[Task]) -> None:
    many = [Task(f"m{number}", "Fix.", tasks[0].repository) for number in range(9)]
    engine, records, _, governor = go(tmp_path, many, lambda job: attempt(kind=Kind.ENDPOINT, outcome="endpoint"), FAST)
    assert len(engine.jobs) == len(records) == 5
    assert governor.stopped.startswith("the endpoint failed 5 attempts in a row")


def test_a_task_that_cannot_be_laid_out_harms_no_other(tmp_path: Path, tasks: list[Task]) -> None:
    lost = Task("lost", "Fix.", str(tmp_path / "none"))
    _, records, _, _ = go(tmp_path, [lost, tasks[0]], lambda job: attempt(), FAST)
    assert (records["lost"]["class"], records["t0"]["class"]) == ("harness", "done")
    assert "there is no repository" in records["lost"]["reason"]


def test_a_defect_of_the_engine_ends_the_batch_with_it(tmp_path: Path, tasks: list[Task]) -> None:
    with pytest.raises(ZeroDivisionError):
        go(tmp_path, tasks, lambda job: 1 // 0, Plan(jobs=2, stagger_s=0))  # type: ignore[arg-type,return-value]


def test_checks_decide_then_tests_left_alone_then_the_smaller_change() -> None:
    edits = attempt(1, test_paths=("test_a.py",), patch_lines=1)
    long, short = attempt(2, patch_lines=50), attempt(3, patch_lines=5)
    failing = attempt(4, Kind.MODEL, "checks_failed", patch_lines=1)
    unsure = attempt(5, outcome="unverified", patch_lines=1)
    nothing = attempt(6, Kind.MODEL, "no_change", changed_paths=())
    odd = attempt(7, Kind.HARNESS, "", changed_paths=())
    order = [short, long, edits, unsure, failing, nothing, odd]
    for number, best in enumerate(order):
        assert select(order[number:]) == select(order[number:][::-1]) == best


def test_an_interrupt_asks_the_workers_to_stop_and_waits_for_them(tmp_path: Path, tasks: list[Task]) -> None:
    """A signal in the main thread, as Ctrl-C is; the attempt that runs comes to its end first."""
    governor = Governor()
    began, stopped = threading.Event(), threading.Event()

    class Slow(Answers):
        def stop(self) -> None:
            super().stop()
            stopped.set()

    def answer(job: Job) -> None:
        began.set()
        assert stopped.wait(30)

    engine = Slow(answer)
    interrupt = threading.Thread(target=lambda: began.wait(30) and os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with Results(tmp_path / "out") as results:
        plan = Plan(jobs=2, stagger_s=0)
        batch = Batch(tasks, lambda *_: RunConfig(), plan, results, engine, governor, Lines(), copies(tmp_path))
        with pytest.raises(KeyboardInterrupt):
            batch.run()
        assert (engine.stops, engine.running, batch.unfinished) == (1, 0, 4)
    interrupt.join()
