"""One attempt at one task: started, resumed, or read from its log; its result, and which attempt of several to keep."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent.config import restore
from agent.conversation import Conversation
from agent.errors import AgentError, LogError, ModelError
from agent.events import Delta, Event, Outcome, Resumed, RunEnded, State, ToolStarted, fold, step
from agent.harmony.repair import Kind as Repair
from agent.landing import remove_containers
from agent.log import LOG_NAME, read
from agent.model.base import Model, ModelEvent, SamplingParams
from agent.model.capabilities import Capabilities
from agent.record import Entry
from agent.runs import PATCH_NAME, is_running
from agent.saver import write_whole
from agent.session import fix, resume
from sandbox import diff as diffs
from sandbox.errors import DiffRefused, SandboxError, WorktreeError

RESULT_NAME = "result.json"
LOCK_WAIT_S = 20.0
FAILED_CALLS = 3
# Kinds of repair of answers that could not be used as they were.
UNUSABLE = (Repair.RESAMPLED, Repair.CUT_CALL, Repair.CUT_LOOP, Repair.CUT_THINKING)


class Kind(StrEnum):
    """The result of an attempt, by where the cause of a failure is."""

    DONE = "done"  # a change was made and no check failed because of it
    MODEL = "model"  # the model failed: a wrong change, or none
    PARSER = "parser"  # as model, and at least half of the answers could not be used as they were
    TOOL = "tool"  # as model, and the last calls all failed
    LIMIT = "limit"  # turns, tokens or time
    POLICY = "policy"  # the change may not leave the sandbox
    ENDPOINT = "endpoint"
    SANDBOX = "sandbox"
    HARNESS = "harness"  # a full disk, a worker that died, or a defect here


KINDS: Mapping[Outcome, Kind] = {
    Outcome.PASSED: Kind.DONE,
    Outcome.ANSWERED: Kind.DONE,
    Outcome.UNVERIFIED: Kind.DONE,
    Outcome.CHECKS_FAILED: Kind.MODEL,
    Outcome.NO_CHANGE: Kind.MODEL,
    Outcome.LIMIT: Kind.LIMIT,
    Outcome.REFUSED: Kind.POLICY,
    Outcome.ENDPOINT: Kind.ENDPOINT,
    Outcome.SANDBOX: Kind.SANDBOX,
    Outcome.INTERNAL: Kind.HARNESS,
    Outcome.INTERRUPTED: Kind.HARNESS,
}
# An attempt that ended like this had no fair chance: it is resumed when the batch is run again.
UNLUCKY = frozenset({Outcome.INTERRUPTED, Outcome.ENDPOINT, Outcome.SANDBOX, Outcome.INTERNAL})
# From best to worst, for choosing among attempts.
RANKS = (Outcome.PASSED, Outcome.UNVERIFIED, Outcome.CHECKS_FAILED, Outcome.LIMIT, Outcome.ENDPOINT, Outcome.SANDBOX)


@dataclass(frozen=True, slots=True)
class Job:
    """A worker's job. ``config`` is ``agent.config.public`` of the run's configuration; the API key comes from the environment."""

    task: str
    attempt: int  # from 1
    prompt: str
    repository: str
    folder: str  # of this attempt alone
    config: Mapping[str, Any]
    restarted: bool = False  # its worker died a moment ago: a defect that it met would be met again

    @property
    def name(self) -> str:
        """Task and attempt, for display."""
        return f"{self.task} #{self.attempt}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of an attempt: what was observed, what the model claimed, and what it cost. ``run`` is the name of its folder."""

    attempt: int
    kind: Kind
    outcome: str
    reason: str
    run: str = ""
    effort: str = ""
    model: str = ""
    claimed: str = ""
    changed_paths: tuple[str, ...] = ()
    test_paths: tuple[str, ...] = ()
    patch_lines: int = 0  # added and removed
    turns: int = 0
    calls: int = 0
    repairs: int = 0
    total_tokens: int = 0  # of prompts and answers
    sampled_tokens: int = 0
    duration_s: float = 0.0  # working time, over all its starts
    ended_at: float = 0.0  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is."""

    turns: int
    sampled_tokens: int
    doing: str


def run_attempt(job: Job, may_ask: Callable[[], None], tell: Callable[[Progress], None]) -> Attempt | None:
    """Do an attempt, or the rest of one, and return its result; None if it was interrupted.

    ``may_ask`` is called before every request to the model: it waits until the request is allowed, and raises KeyboardInterrupt
    if no more are. ``tell`` is called as the attempt proceeds. Unexpected errors are raised.
    """
    folder = Path(job.folder)
    known = load_attempt(folder)
    if known is not None:
        return known
    run, entries = _begun(folder)
    state = fold(entry.event for entry in entries)
    met_a_defect = job.restarted and state.ended is not None and state.ended.outcome is Outcome.INTERNAL
    if state.ended is None or (state.ended.outcome in UNLUCKY and not met_a_defect):
        follow = _follower(state, tell)
        try:
            if run is None:
                config = replace(restore(job.config), runs_dir=folder, deliver="patch")
                fix(config, job.prompt, Path(job.repository), "fix", follow, through=lambda m: Gated(m, may_ask))
            else:
                resume(run, follow, through=lambda m: Gated(m, may_ask))
        except (AgentError, SandboxError, DiffRefused, WorktreeError) as error:
            return _keep(folder, Attempt(job.attempt, _kind_of(error), "", str(error), ended_at=time.time()))
        run, entries = _begun(folder)
    assert run is not None
    attempt = summed_up(entries, run, job.attempt)
    return None if attempt.outcome == Outcome.INTERRUPTED else _keep(folder, attempt)


def load_attempt(folder: Path) -> Attempt | None:
    """Return the result of the attempt in a folder; None if it has not ended or the result file is damaged.

    A damaged result loses nothing, because the attempt is read from its log again.
    """
    try:
        return from_record(dict(json.loads((folder / RESULT_NAME).read_bytes())))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def from_record(data: Mapping[str, Any]) -> Attempt:
    """Return the attempt in a record that ``to_record`` made."""
    paths = {key: tuple(data.get(key, ())) for key in ("changed_paths", "test_paths")}
    return Attempt(**{**data, **paths, "kind": Kind(data["kind"])})


def to_record(attempt: Attempt) -> dict[str, Any]:
    """Return the attempt as JSON values."""
    return asdict(attempt)


def select(attempts: Sequence[Attempt]) -> Attempt:
    """Return the attempt to keep: the best by observed checks, then one without edits of tests, then the smallest change. Pure."""

    def rank(attempt: Attempt) -> tuple[int, int, bool, int, int]:
        place = RANKS.index(Outcome(attempt.outcome)) if attempt.outcome in RANKS else len(RANKS)
        return place, not attempt.changed_paths, bool(attempt.test_paths), attempt.patch_lines, attempt.attempt

    return min(attempts, key=rank)


def summed_up(entries: Sequence[Entry], run: Path, number: int) -> Attempt:
    """Return the result of a run, from its log and patch."""
    state = fold(entry.event for entry in entries)
    ended = state.ended or RunEnded(Outcome.INTERRUPTED, "it was killed")
    steps = (pair for pair in pairwise(entries) if not isinstance(pair[1].event, Resumed))
    patch = run / PATCH_NAME
    changes = diffs.parse(patch.read_bytes()) if patch.exists() else ()
    return Attempt(
        number,
        _kind(state, ended),
        ended.outcome.value,
        ended.reason,
        run.name,
        effort=str(state.config.get("effort", "")),
        model=str(state.config.get("model") or state.config.get("wire", "")),
        claimed=ended.claimed,
        changed_paths=ended.changed_paths,
        test_paths=ended.test_paths,
        patch_lines=sum(each.added_lines + each.removed_lines for each in changes),
        turns=state.turns,
        calls=len(state.calls),
        repairs=sum(state.repairs.values()),
        total_tokens=state.total_tokens,
        sampled_tokens=state.completion_tokens,
        duration_s=round(sum(after.at - before.at for before, after in steps), 3),
        ended_at=entries[-1].at,
    )


def _kind(state: State, ended: RunEnded) -> Kind:
    kind = KINDS[ended.outcome]
    if kind is not Kind.MODEL:
        return kind
    if state.turns and 2 * sum(state.repairs.get(each.value, 0) for each in UNUSABLE) >= state.turns:
        return Kind.PARSER
    last = state.calls[-FAILED_CALLS:]
    return Kind.TOOL if len(last) == FAILED_CALLS and not any(call.ok for call in last) else Kind.MODEL


def _kind_of(error: Exception) -> Kind:
    match error:
        case ModelError():
            return Kind.ENDPOINT
        case SandboxError():
            return Kind.SANDBOX
        case _:
            return Kind.HARNESS


def _keep(folder: Path, attempt: Attempt) -> Attempt:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULT_NAME, json.dumps(to_record(attempt), indent=1).encode())
    return attempt


def _begun(folder: Path) -> tuple[Path | None, list[Entry]]:
    """Return the run that was started in a folder and its log; runs that were killed before their first event are removed."""
    begun: tuple[Path | None, list[Entry]] = None, []
    for run in sorted(path for path in folder.glob("*") if path.is_dir()):
        log = run / LOG_NAME
        if log.exists():
            _wait_for(log)
            if entries := read(log):
                begun = run, entries
                continue
        remove_containers(run.name)
        shutil.rmtree(run)
    return begun


def _wait_for(log: Path) -> None:
    """Wait for a worker that is still exiting. Raises LogError if it does not exit."""
    give_up_s = time.monotonic() + LOCK_WAIT_S
    while is_running(log):
        if time.monotonic() > give_up_s:
            raise LogError(f"another process is working on {log.parent}: stop it first")
        time.sleep(0.05)


def _follower(state: State, tell: Callable[[Progress], None]) -> Callable[[Event], None]:
    """Return an event listener that folds the events and calls ``tell`` when there is progress."""

    def show(event: Event) -> None:
        nonlocal state
        state = step(state, event)
        if not isinstance(event, Delta):
            doing = event.tool if isinstance(event, ToolStarted) else type(event).__name__
            tell(Progress(state.turns, state.completion_tokens, doing))

    return show


class Gated:
    """A model that waits for permission before each request."""

    def __init__(self, model: Model, may_ask: Callable[[], None]) -> None:
        self._model, self._may_ask = model, may_ask

    @property
    def name(self) -> str:
        """The model's own."""
        return self._model.name

    @property
    def context_tokens(self) -> int | None:
        """The model's own."""
        return self._model.context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """The model's own."""
        return self._model.capabilities

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Wait until a request is allowed, then sample."""
        self._may_ask()
        yield from self._model.sample(conversation, params)

    def close(self) -> None:
        """Close the model."""
        self._model.close()
