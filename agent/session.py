"""One run from start to end: sandbox, model and prompt are prepared in parallel, then the loop, then the result; and resume."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from agent import policy
from agent.background import in_background
from agent.check import MARKER_FILES, find_checks, run_checks, touched_tests
from agent.config import RunConfig, public, restore
from agent.conversation import Conversation, Message, Role
from agent.errors import AgentError, LogError, ModelError, ModelUnfit, PolicyRefused, ScriptEnded, UsageError
from agent.events import (
    CheckResult,
    Event,
    MessageAdded,
    Outcome,
    Resumed,
    RunEnded,
    RunStarted,
    State,
    ToolFinished,
    ToolResult,
    ToolStarted,
    fold,
    step,
)
from agent.landing import remove_containers, sweep_unbegun
from agent.log import LOG_NAME, Log
from agent.loop import run as loop
from agent.model.base import Model, SamplingParams
from agent.position import HARNESS, open_call
from agent.prompt import instructions, task_message
from agent.runs import PATCH_NAME
from agent.telemetry.base import Telemetry
from agent.telemetry.open import open_telemetry
from agent.tools.base import Tool
from agent.tools.open import declare, open_tools
from agent.workshop import SNAPSHOT_NAME, Workshop, last_words
from agent.world import Limits
from sandbox import docker, scratch
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.errors import DiffRefused, SandboxError, WorktreeError
from sandbox.open import SandboxOptions, attach, open_sandbox
from sandbox.snapshot import Snapshot
from sandbox.worktree import branch_problem, folder_problem, identity


class _Closes(Protocol):
    def close(self) -> None: ...


Open = TypeVar("Open", bound=_Closes)
Show = Callable[[Event], None]
Say = Callable[[str], None]
Through = Callable[[Model], Model]

RULES_FILE = "AGENTS.md"
RULES_BYTES = 1 << 16
MARKER_BYTES = 1 << 20
GRACE_S = 900.0
CLOSE_TIMEOUT_S = 5.0
LEFT = f"the sandbox was not removed within {CLOSE_TIMEOUT_S:g} s: `agent sandbox clean` removes what is left of it"

# Errors that end a run in an orderly way, with their outcomes. Any other error is a defect: it is logged and raised. A UsageError
# or ModelUnfit of opening the model (several are served and none was named, say) is raised too: the run could not begin.
ENDS: Mapping[type[BaseException], Outcome] = {
    ScriptEnded: Outcome.LIMIT,
    ModelError: Outcome.ENDPOINT,
    UsageError: Outcome.ENDPOINT,
    SandboxError: Outcome.SANDBOX,
    DiffRefused: Outcome.REFUSED,
    PolicyRefused: Outcome.REFUSED,
    WorktreeError: Outcome.INTERNAL,
    KeyboardInterrupt: Outcome.INTERRUPTED,
}
CAN_GO_ON = frozenset(
    {Outcome.INTERNAL, Outcome.ENDPOINT, Outcome.LIMIT, Outcome.CHECKS_FAILED, Outcome.NO_CHANGE, Outcome.SANDBOX}
    | {Outcome.INTERRUPTED}
)
LOST = (
    "The sandbox was lost before this call came to its end. The workspace is a restored copy of a little earlier: "
    "look at it before you repeat anything. Variables and background processes are gone."
)
RESTORED = (
    f"{HARNESS}The sandbox was lost. The workspace is a restored copy, perhaps of a little earlier: look at it first."
)


def fix(
    config: RunConfig,
    task: str,
    repository: Path,
    mode: str,
    show: Show,
    say: Say = lambda _: None,
    *,
    through: Through = lambda model: model,
) -> RunEnded:
    """Do a run (``mode`` is fix or ask) and return how it ended; the folder ``runs_dir/<run>`` keeps its log and result.

    ``show`` is called with every event once it is on disk, and with the deltas in between; ``say`` with what was chosen where
    the configuration left it open. ``through`` may wrap the model. Raises UsageError, ModelUnfit, PolicyRefused and
    WorktreeError if the run cannot begin.
    """
    config = policy.admit(config, repository)
    run = new_run_id()
    folder = config.runs_dir / run
    telemetry = open_telemetry(config, run, mode, say)
    try:
        held = new_folder(folder)
    except UsageError:
        telemetry.close()
        raise
    model = in_background(lambda: through(_open_model(config, say)))
    try:
        snapshot = snapshots.take(repository, folder, config.include_uncommitted)
        if mode == "fix":
            admit_delivery(config, snapshot)
        log = Log(folder / LOG_NAME, new=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        _close(model)
        telemetry.close()
        raise
    finally:
        os.close(held)  # from here on the log is locked
    with log:
        started = _started(config, run, task, mode, snapshot)
        session = _Session(config, log, show, say, snapshot, model, telemetry)
        try:
            return session.go(
                fold([started]),
                lambda: open_sandbox(sandbox_options(config, run, say), snapshot),
                lambda: session.keep(started),
            )
        except AgentError as error:
            if _is_of(model, error):  # nothing was asked: this run has nothing to show or to resume
                shutil.rmtree(folder, ignore_errors=True)
            raise


def resume(folder: Path, show: Show, say: Say = lambda _: None, *, through: Through = lambda model: model) -> RunEnded:
    """Continue the run in ``folder`` from its log, in the sandbox it left or in a restored copy.

    Raises LogError if the log cannot be read or another process is using it, UsageError if the run has ended for good.
    """
    with Log(folder / LOG_NAME) as log:
        state = fold(entry.event for entry in log.entries)
        if not state.run:
            raise LogError(
                f"{folder / LOG_NAME} holds no RunStarted: the run was killed before it began; start it again"
            )
        if state.ended is not None and state.ended.outcome not in CAN_GO_ON:
            raise UsageError(f"the run {state.run} has ended ({state.ended.outcome}): there is nothing to resume")
        config = policy.admit(restore(state.config), Path(state.repository))
        snapshot = snapshots.load(folder)
        options = sandbox_options(config, state.run, say)
        telemetry = open_telemetry(config, state.run, state.mode, say, resumed=True)
        model = in_background(lambda: through(_open_model(config, say)))
        session = _Session(config, log, show, say, snapshot, model, telemetry)
        # No call was made yet: the checks may have been killed halfway, and the files they left are not the model's work.
        touched = bool(state.calls) or state.pending is not None
        if not touched and config.sandbox == "docker":
            remove_containers(state.run)
        found = attach(options, snapshot) if touched else None
        if found is not None:
            return session.go(state, lambda: found, lambda: session.take_up(False, "in the sandbox it left"))
        saved = folder / SNAPSHOT_NAME
        patch = saved.read_bytes() if saved.exists() else b""
        lost = state.ended is not None or not _was_landing(folder)
        note = "the workspace was restored from the last saved copy"
        return session.go(state, lambda: open_sandbox(options, snapshot, patch), lambda: session.take_up(lost, note))


def _was_landing(folder: Path) -> bool:
    """Whether a run without a RunEnded had already saved its complete change as its last step; then nothing of it is lost.

    The two times may be equal: file systems store them in steps of a few milliseconds.
    """
    patch = folder / PATCH_NAME
    return patch.exists() and patch.stat().st_mtime_ns >= (folder / LOG_NAME).stat().st_mtime_ns


def new_run_id() -> str:
    """Return an id that sorts by time: UTC, then a random part."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


class _Session:
    """What is open during a run: log, screen, sandbox, model, telemetry."""

    def __init__(
        self, config: RunConfig, log: Log, show: Show, say: Say, snapshot: Snapshot, model: Future[Model],
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._config, self._log, self._show, self._say = config, log, show, say
        self._snapshot, self._model, self._telemetry = snapshot, model, telemetry
        self._state = State()
        self._over = False  # the last event in the log is RunEnded
        self._unsaved = False  # the work exists in the sandbox only: it could not be saved on this machine
        self._more = False  # a run that reached a limit and is resumed by the user may use as much again

    def keep(self, event: Event) -> None:
        """Write an event to disk, then apply it to the state, then show it."""
        self._log.append(event)
        self._state = step(self._state, event)
        self._over = isinstance(event, RunEnded)
        self._telemetry(event)
        self._show(event)

    def take_up(self, lost: bool, note: str) -> None:
        """Record the resume, tell the model what was lost, and answer the calls that were open in a lost sandbox."""
        state = self._state
        before = state.ended
        self._more = before is not None and before.outcome is Outcome.LIMIT
        touched = bool(state.calls) or state.pending is not None
        self.keep(Resumed(note))
        while lost and touched and (call := open_call(self._state.conversation)) is not None:
            self._answer_lost(call)
        if lost and touched and open_call(state.conversation) is None:
            self.keep(MessageAdded(Message(Role.USER, RESTORED)))
        ended = before is not None and before.outcome in {Outcome.LIMIT, Outcome.CHECKS_FAILED, Outcome.NO_CHANGE}
        if before is not None and ended and open_call(self._state.conversation) is None:
            said = f"{HARNESS}The run had ended ({before.reason}). The person asks you to go on."
            self.keep(MessageAdded(Message(Role.USER, said)))

    def _answer_lost(self, call: int) -> None:
        asked = self._state.conversation.messages[call]
        name = self._state.pending.tool if self._state.pending is not None else (asked.recipient or "unknown")
        message = Message(Role.TOOL, LOST, asked.channel, "assistant", name=asked.recipient)
        if self._state.pending is None:
            self.keep(ToolStarted(call, name))
        self.keep(ToolFinished(call, name, ToolResult(LOST, ok=False), message))

    def go(self, state: State, start: Callable[[], Sandbox], begin: Callable[[], None]) -> RunEnded:
        """Start the sandbox, call ``begin``, and run the loop to its end.

        Whatever ends the run is in the log before this returns or raises.
        """
        self._state = state
        checks = tuple(state.config["checks"])
        sandbox = in_background(start)
        before = in_background(lambda: _check_before(self._config, checks, sandbox, state))
        tools = _tools(self._config, state.mode)
        branches = sum(isinstance(e.event, RunEnded) and e.event.branch is not None for e in self._log.entries)
        suffix = f"-{branches + 1}" if branches else ""
        shop = Workshop(self._config, self._log.folder, self._snapshot, checks, tools, sandbox, before, suffix)
        try:
            begin()
            self._loop(shop)
        except BaseException as error:
            if not self._over:  # otherwise the result is on disk already and stays as it is
                self._end(error, shop)
            unusable = isinstance(error, UsageError | ModelUnfit) and _is_of(self._model, error)
            if unusable or not isinstance(error, tuple(ENDS)):
                raise
        finally:
            shop.saver.close()
            if self._unsaved:
                sandbox.result().close(keep=True)
            if not _close(sandbox):
                self._say(LEFT)
            _close(self._model)
            self._telemetry.close()
        assert self._state.ended is not None
        return self._state.ended

    def _loop(self, shop: Workshop) -> None:
        opened = self._model.result()
        config = self._config
        params = SamplingParams(config.temperature, config.top_p, config.max_answer_tokens, config.seed)
        granted = self._state.turns if self._more else 0
        limits = Limits(
            config.max_turns + granted,
            config.max_tokens and config.max_tokens + (self._state.completion_tokens if self._more else 0),
            shop.now_s() + config.timeout_s,
            config.context_tokens or opened.context_tokens,
            config.max_answer_tokens,
        )
        lands = self._state.mode == "fix" and config.deliver == "branch"
        for event in loop(self._state, opened, params, shop, limits):
            self.keep(event)
            if lands:  # the model is answering: load GitPython now, which is needed at the end of the run
                in_background(lambda: identity(self._snapshot.repository))
                lands = False

    def _end(self, error: BaseException, shop: Workshop) -> None:
        """Record the error that ended the run; first save the work, if the sandbox still works."""
        paths: tuple[str, ...] = ()
        with contextlib.suppress(SandboxError, DiffRefused, WorktreeError, OSError):
            shop.withdraw()
            if shop.sandbox.done() and shop.sandbox.exception() is None and self._state.mode == "fix":
                self._save(shop)
                paths = shop.salvage().paths
        outcome = next((end for kind, end in ENDS.items() if isinstance(error, kind)), Outcome.INTERNAL)
        said = "stopped by Ctrl-C or a signal" if isinstance(error, KeyboardInterrupt) else str(error) or repr(error)
        if self._unsaved:
            said += f". The sandbox with the work waits {GRACE_S / 60:g} minutes for `agent resume {self._state.run}`"
        self.keep(RunEnded(outcome, said, last_words(self._state), paths, touched_tests(paths)))

    def _save(self, shop: Workshop) -> None:
        """Save the work. If that fails here (the disk is full, say), the work stays in the container, which outlives this process."""
        try:
            shop.save()
        except (WorktreeError, OSError):
            self._unsaved = self._config.sandbox == "docker"
            raise


def new_folder(folder: Path) -> int:
    """Make a run's folder and lock it (see sandbox/scratch.py); leftovers of killed processes are removed.

    It will contain the repository's content, so no other user of the machine may read it. Raises UsageError.
    """
    sweep_unbegun(folder.parent)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"the run cannot be kept in {folder.parent}: {error.strerror}; name another folder with --runs-dir"
        ) from error
    return scratch.hold(folder)


def admit_delivery(config: RunConfig, snapshot: Snapshot) -> None:
    """Raise UsageError if the change cannot be delivered where the user wants it. Checked before the run, not after it."""
    if config.deliver == "apply" and not os.access(snapshot.repository, os.W_OK | os.X_OK):
        raise UsageError(f"--apply: {snapshot.repository} cannot be written; take the change as a patch: --output FILE")
    if config.deliver != "branch":
        return
    if not all(os.access(snapshot.common_dir / name, os.W_OK | os.X_OK) for name in ("objects", "refs")):
        raise UsageError(
            f"no branch can be made, because {snapshot.common_dir} cannot be written; "
            "take the change as a patch: --output FILE"
        )
    if config.branch and (problem := branch_problem(snapshot, config.branch)):
        raise UsageError(f"{problem}; give another name with --branch")
    if config.worktree and (problem := folder_problem(config.worktree)):
        raise UsageError(f"{problem}; name another folder with --worktree")


def _started(config: RunConfig, run: str, task: str, mode: str, snapshot: Snapshot) -> RunStarted:
    """Return the first event. The prompt is built here, and never again."""
    checks = () if mode == "ask" else config.checks or _found_checks(snapshot)
    conversation = Conversation(
        instructions(mode, checks, _rules(config, snapshot), from_outside=config.policy == "ci"),
        declare(_tools(config, mode), config.tools),
        (Message(Role.USER, task_message(mode, task)),),
        config.effort,
    )
    recorded = public(replace(config, checks=checks))
    return RunStarted(run, task, mode, conversation, str(snapshot.repository), snapshot.commit, recorded)


def _rules(config: RunConfig, snapshot: Snapshot) -> str:
    """Return the repository's own instructions: from the checkout or, under the policy ``ci``, from the trusted commit."""
    if config.policy == "ci":
        commit = config.trusted_commit or snapshot.commit
        return policy.trusted_text(snapshot.repository, commit, RULES_FILE)[:RULES_BYTES]
    return _read(snapshot.repository, RULES_FILE, RULES_BYTES)


def _open_model(config: RunConfig, say: Say) -> Model:
    """Open the model (called in a thread of its own: its imports are a third of the time to the first request)."""
    from agent.model.open import open_model

    return open_model(config, say)


def _tools(config: RunConfig, mode: str) -> dict[str, Tool]:
    """Return the tools of a run; for ``ask``, only those that do not write."""
    return {name: tool for name, tool in open_tools(config).items() if mode != "ask" or not tool.writes}


def _found_checks(snapshot: Snapshot) -> tuple[str, ...]:
    paths = [item.path.decode("utf-8", "surrogateescape") for item in snapshots.items(snapshot)]
    texts = {name: _read(snapshot.repository, name, MARKER_BYTES) for name in MARKER_FILES if name in paths}
    return find_checks(paths, texts)


def _read(repository: Path, name: str, most_bytes: int) -> str:
    """Return the beginning of a file in the repository's root as text, "" if it is missing or not a regular file."""
    path = repository / name
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(most_bytes).decode("utf-8", "replace")


def sandbox_options(config: RunConfig, run: str, say: Say) -> SandboxOptions:
    """Return the options of a run's sandbox; ``say`` is told what was chosen where the configuration left it open."""
    limits = docker.Limits(
        config.memory_bytes,
        config.disk_bytes,
        config.pids,
        config.cpus,
        network=config.network == "on",
        grace_s=GRACE_S,
    )
    return SandboxOptions(run, config.sandbox, config.image, limits, say=say)


def _check_before(
    config: RunConfig, checks: Sequence[str], sandbox: Future[Sandbox], state: State
) -> tuple[CheckResult, ...]:
    """Run the checks on the untouched workspace while the model answers for the first time; do nothing once a call was made.

    Files that the checks leave behind (unless git ignores them) are removed: they are not the model's work.
    """
    if not checks or state.checks_before is not None or state.calls or state.pending is not None:
        return state.checks_before or ()
    opened = sandbox.result()
    results = run_checks(checks, opened, config.check_timeout_s)
    with contextlib.suppress(DiffRefused, OSError):  # what could not be removed shows up in the resulting diff
        opened.undo()
    return results


def _is_of(opening: Future[Model], error: BaseException) -> bool:
    """Whether opening the model raised this error."""
    return opening.done() and opening.exception() is error


def _close(opening: Future[Open]) -> bool:
    """Close what was opened, or is still opening. Return whether that was done in time; if not, it continues in its thread.

    A container whose agent has exited by then ends on its own.
    """
    closing = in_background(lambda: opening.result().close())
    try:
        closing.result(CLOSE_TIMEOUT_S)
    except TimeoutError:
        return False
    except (SandboxError, AgentError, WorktreeError):
        return True  # it failed to open, and that error has ended the run
    return True
