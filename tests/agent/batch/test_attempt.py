"""What an attempt came to, read from its log alone."""

from __future__ import annotations

import errno
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent.batch.attempt import (
    KINDS,
    RESULT_NAME,
    Attempt,
    Gated,
    Job,
    Kind,
    Progress,
    from_record,
    load_attempt,
    run_attempt,
    summed_up,
    to_record,
)
from agent.config import RunConfig, public
from agent.conversation import Conversation, Message, Role
from agent.events import Durable, Outcome, Repaired, Resumed, RunEnded, Sampled, ToolFinished, ToolResult
from agent.log import LOG_NAME, read
from agent.model.base import SamplingParams
from agent.record import Entry
from agent.runs import PATCH_NAME
from tests.fakes import FaultyModel, started


def log(*events: Durable, at: tuple[float, ...] = ()) -> list[Entry]:
    times = at or tuple(float(number) for number in range(len(events)))
    return [Entry(number, time, event) for number, (event, time) in enumerate(zip(events, times, strict=True))]


def call(ok: bool) -> ToolFinished:
    return ToolFinished(0, "shell", ToolResult("", ok=ok), Message(Role.TOOL, ""))


SAMPLED = Sampled(100, 10, "stop")
FAILED = RunEnded(Outcome.CHECKS_FAILED, "they fail", changed_paths=("a",))


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ((SAMPLED, FAILED), Kind.MODEL),
        ((SAMPLED, SAMPLED, Repaired("resampled"), FAILED), Kind.PARSER),
        ((SAMPLED, SAMPLED, SAMPLED, Repaired("cut_call"), FAILED), Kind.MODEL),
        ((SAMPLED, Repaired("header_words"), Repaired("channel"), FAILED), Kind.MODEL),
        ((SAMPLED, call(True), call(False), call(False), call(False), FAILED), Kind.TOOL),
        ((SAMPLED, call(False), call(False), call(True), FAILED), Kind.MODEL),
        ((SAMPLED, call(False), call(False), call(False), RunEnded(Outcome.PASSED, "")), Kind.DONE),
        ((SAMPLED, RunEnded(Outcome.LIMIT, "")), Kind.LIMIT),
        ((SAMPLED, RunEnded(Outcome.ENDPOINT, "")), Kind.ENDPOINT),
        ((SAMPLED, RunEnded(Outcome.SANDBOX, "")), Kind.SANDBOX),
        ((SAMPLED, RunEnded(Outcome.REFUSED, "")), Kind.POLICY),
        ((SAMPLED, RunEnded(Outcome.INTERNAL, "")), Kind.HARNESS),
    ],
)
def test_failures_are_told_apart(tmp_path: Path, events: tuple[Durable, ...], kind: Kind) -> None:
    assert summed_up(log(started(), *events), tmp_path, 1).kind is kind


def test_every_outcome_has_a_class() -> None:
    assert set(KINDS) == set(Outcome)


def test_time_between_a_kill_and_the_next_start_is_not_work(tmp_path: Path) -> None:
    head = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n"
    (tmp_path / PATCH_NAME).write_bytes(head + b"--- a\n+b\n+++ c\n d\n")  # lines that look like a header count too
    entries = log(started(), SAMPLED, Resumed(), SAMPLED, RunEnded(Outcome.PASSED, "ok"), at=(10, 12, 1000, 1001, 1003))
    attempt = summed_up(entries, tmp_path, 2)
    assert (attempt.duration_s, attempt.ended_at, attempt.patch_lines) == (5.0, 1003, 3)
    assert (attempt.turns, attempt.sampled_tokens, attempt.total_tokens) == (2, 20, 220)
    assert from_record(to_record(attempt)) == attempt


def test_a_run_without_an_end_was_interrupted(tmp_path: Path) -> None:
    assert summed_up(log(started(), SAMPLED), tmp_path, 1).outcome == Outcome.INTERRUPTED
    assert load_attempt(tmp_path) is None


@pytest.mark.parametrize("data", ["", "{", "[]", "{}", '{"kind": "other"}', '{"kind": "done", "more": 1}', "\x00"])
def test_a_damaged_result_is_none_and_the_attempt_is_read_from_its_log_again(tmp_path: Path, data: str) -> None:
    (tmp_path / RESULT_NAME).write_text(data)
    assert load_attempt(tmp_path) is None


def test_what_a_full_disk_ended_is_gone_on_with_by_the_next_start_but_not_by_a_restarted_worker(tmp_path: Path) -> None:
    repository, script, folder = tmp_path / "repository", tmp_path / "script.json", tmp_path / "out"
    subprocess.run(["git", "init", "-q", repository], check=True)
    look = {"recipient": "container.exec", "arguments": {"command": ["true"]}}
    script.write_text(json.dumps({"turns": [[look], [{"text": "There is nothing to do."}], [{"text": "Nothing."}]]}))
    config = RunConfig(wire="scripted", script=script, sandbox="none", cache_dir=tmp_path / "cache")
    job = Job("a", 1, "fix it", str(repository), str(folder), public(config))

    def tell(progress: Progress) -> None:
        if progress.doing == "ToolFinished":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_attempt(job, lambda: None, tell)
    restarted = run_attempt(replace(job, restarted=True), lambda: None, tell)
    assert restarted is not None
    assert (restarted.kind, "No space left" in restarted.reason) == (Kind.HARNESS, True)
    (folder / RESULT_NAME).unlink()
    again = run_attempt(job, lambda: None, lambda _: None)
    assert again is not None
    assert (again.outcome, again.run) == (Outcome.NO_CHANGE, restarted.run)
    events = [type(entry.event) for entry in read(folder / again.run / LOG_NAME)]
    assert (events.count(Resumed), events.count(ToolFinished)) == (1, 1)


def test_a_model_behind_the_gate_is_asked_only_when_allowed() -> None:
    model = FaultyModel([[SAMPLED]])
    asked: list[int] = []
    gated = Gated(model, lambda: asked.append(len(model.asked)))
    assert (gated.name, gated.context_tokens) == ("faulty", None)
    assert list(gated.sample(Conversation(), SamplingParams())) == [SAMPLED]
    assert asked == [0]

    def refuse() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Gated(model, refuse).sample(Conversation(), SamplingParams()))
    assert len(model.asked) == 1
    gated.close()


def test_records_of_attempts_that_never_began_are_read_back() -> None:
    attempt = Attempt(1, Kind.HARNESS, "", "the worker was killed")
    assert from_record(to_record(attempt)) == attempt
