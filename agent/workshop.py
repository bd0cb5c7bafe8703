"""The real World of a run: its sandbox, its tools, its checks, and the delivery of its result."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from agent.background import in_background
from agent.check import run_checks, touched_tests, verdict
from agent.config import RunConfig
from agent.conversation import Message
from agent.events import CheckResult, Outcome, RunEnded, State, ToolResult
from agent.lines import clean, one_line
from agent.runs import PATCH_NAME
from agent.saver import Saver, write_whole
from agent.tools.base import Tool
from agent.tools.names import Unknown, resolve
from agent.world import Action
from sandbox import protected
from sandbox.base import Sandbox
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.snapshot import Snapshot
from sandbox.worktree import Applied, Worktree, branch_name

SNAPSHOT_NAME = "snapshot.diff"
HASHED_FILES = 200
SUBJECT_CHARS = 72
OBSERVED_CHARS = 4000


@dataclass(slots=True)
class Workshop:
    """See World. ``sandbox`` and ``before`` (the checks before any change) are futures: both may still be starting."""

    config: RunConfig
    folder: Path
    snapshot: Snapshot
    checks: Sequence[str]
    tools: Mapping[str, Tool]
    sandbox: Future[Sandbox]
    before: Future[tuple[CheckResult, ...]]
    branch_suffix: str = ""  # for a resumed run that has already made a branch
    saver: Saver = field(init=False)
    _work: tuple[bytes, Applied] | None = None  # the change so far, cached until the next call
    _saved: bytes | None = None  # the diff that the run's folder holds
    _delivered: tuple[str, str] | None = None  # branch and commit
    _saving: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Start the saver's thread."""
        self.saver = Saver(self.save)

    def resolve(self, call: Message) -> Action:
        """Return the action for a call; see World."""
        meant = resolve(call.recipient or "", call.text, self.tools, self.config.tools)
        if isinstance(meant, Unknown):
            said = meant.answer
            return Action("unknown", lambda: ToolResult(said, ok=False))
        tool, body = self.tools[meant.tool], meant.text
        return Action(tool.name, lambda: self._run(tool, body), meant.repairs)

    def _run(self, tool: Tool, body: str) -> ToolResult:
        self._work = None
        result = tool.run(body, self.sandbox.result())
        if tool.writes:
            self.saver.changed()
        return result

    def check(self, when: str) -> tuple[CheckResult, ...]:
        """Run the checks; see World."""
        if when == "before":
            return self.before.result()
        return run_checks(self.checks, self.sandbox.result(), self.config.check_timeout_s)

    def work(self) -> tuple[bytes, Applied]:
        """Return the change so far: the diff, which passed every rule for leaving the sandbox, and the same diff applied.

        Computed once after each call, before the checks run: files they leave behind are not the model's work. Raises DiffRefused.
        """
        if self._work is None:
            diff = self.sandbox.result().diff()
            applied = Worktree(self.snapshot).apply(diff)
            if self.config.policy == "ci":
                protected.admit(applied.paths)
            self._work = diff, applied
        return self._work

    def verdict(self, state: State) -> tuple[Outcome, str]:
        """Judge the work; see World."""
        try:
            paths = self.work()[1].paths
        except DiffRefused as error:
            return Outcome.REFUSED, str(error)
        return verdict(state.checks_before or (), state.checks_after, paths)

    def digests(self) -> dict[str, str]:
        """Return the changed files with a hash each; see World."""
        found: dict[str, str] = {}
        try:
            paths = self.work()[1].paths[:HASHED_FILES]
        except DiffRefused:  # reported at the end of the run; until then the model may still undo it
            return found
        for path in paths:
            try:
                found[path] = "sha256 " + hashlib.sha256(self.sandbox.result().read(path)).hexdigest()[:12]
            except OSError:
                found[path] = ""
        return found

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        """Write the patch into the run's folder, make the branch if one is wanted, and return how the run ended; see World."""
        claimed = last_words(state)
        if state.mode == "ask" or outcome is Outcome.REFUSED:
            return RunEnded(outcome, reason, claimed)
        applied = self.salvage()
        branch = commit = None
        if applied.changes and self.config.deliver == "branch":
            in_background(self.sandbox.result().close)  # it is not needed any more, and its removal takes 0.1 s
            self._delivered = branch, commit = deliver(
                self.config, self.snapshot, applied, state, claimed, reason, self.branch_suffix
            )
        return RunEnded(outcome, reason, claimed, applied.paths, touched_tests(applied.paths), branch, commit)

    def withdraw(self) -> None:
        """Delete a branch that no RunEnded in the log names, because `agent discard` could not find it. Raises WorktreeError."""
        if self._delivered is not None:
            Worktree(self.snapshot).discard(*self._delivered)

    def salvage(self) -> Applied:
        """Write the change into the run's folder, for `agent diff`, `agent apply` and resume. Raises DiffRefused."""
        diff, applied = self.work()
        self.save()
        if diff:
            write_whole(self.folder / PATCH_NAME, diff)
        else:
            (self.folder / PATCH_NAME).unlink(missing_ok=True)
        return applied

    def now_s(self) -> float:
        """Return a monotonic time; see World."""
        return time.monotonic()

    def save(self) -> None:
        """Save the diff (if it has changed) in the run's folder, so that the run can continue if the sandbox is lost."""
        with self._saving:  # the saver's thread saves too, and must not write what it saw before us over what we saw
            known = self._work
            diff = self.sandbox.result().diff() if known is None else known[0]
            if diff != self._saved:
                write_whole(self.folder / SNAPSHOT_NAME, diff)
                self._saved = diff


def deliver(
    config: RunConfig, snapshot: Snapshot, applied: Applied, state: State, claimed: str, reason: str, suffix: str = ""
) -> tuple[str, str]:
    """Commit a change on the branch that the configuration asks for; return the branch and the commit.

    Raises WorktreeError, whose message says how to get the change anyway.
    """
    branch = (config.branch or branch_name(state.task, state.run)) + suffix
    folder = config.worktree.with_name(config.worktree.name + suffix) if config.worktree else None
    try:
        return branch, Worktree(snapshot).keep(applied, branch, commit_message(state.task, claimed, reason), folder)
    except WorktreeError as error:
        raise WorktreeError(
            f"{error}. The change is kept: `agent apply {state.run}` applies it to the checkout, "
            f"`agent diff {state.run}` prints it"
        ) from error


def last_words(state: State) -> str:
    """Return the model's final message, "" if the last message is not one."""
    last = state.conversation.last
    return last.text if last is not None and last.is_final else ""


def commit_message(task: str, claimed: str, observed: str) -> str:
    """Return the commit message: the task, what the model claims, and what was observed.

    The text is cleaned because a terminal may show it and git accepts no NUL. What was observed is kept in one paragraph, the
    last, so that a test's name cannot add a trailer that git or a hosting service obeys.
    """
    lines = [line.strip() for line in clean(task).split("\n") if line.strip()]
    subject = lines[0] if lines else "Change by gpt-oss-agent"
    if len(subject) > SUBJECT_CHARS:
        subject = subject[: SUBJECT_CHARS - 1].rsplit(" ", 1)[0] + "…"
    observed = f"Observed: {one_line(observed, OBSERVED_CHARS)}"
    return "\n\n".join(part for part in (subject, clean(claimed).strip(), observed) if part) + "\n"
