"""The real World of a run: its sandbox, its tools, its checks, and where the result goes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

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
    """See World. ``sandbox`` and ``before`` (the checks before any change) may still be on their way."""

    config: RunConfig
    folder: Path
    snapshot: Snapshot
    checks: Sequence[str]
    tools: Mapping[str, Tool]
    sandbox: Future[Sandbox]
    before: Future[tuple[CheckResult, ...]]
    branch_suffix: str = ""  # for a resumed run that made a branch already
    saver: Saver = field(init=False)
    _work: tuple[bytes, Applied] | None = None  # what has changed, until the next call
    _saved: bytes | None = None  # what the run's folder holds of it
    _delivered: tuple[str, str] | None = None  # branch and commit

    def __post_init__(self) -> None:
        """Start the thread that saves."""
        self.saver = Saver(self.save)

    def resolve(self, call: Message) -> Action:
        """Return what a call means; see World."""
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
        """Return the change that was made, as a diff that passed every rule for what may leave, and what it touches.

        Looked at once after each call: what the checks leave behind is not the model's work. Raises DiffRefused.
        """
        if self._work is None:
            diff = self.sandbox.result().diff()
            applied = Worktree(self.snapshot).apply(diff)
            if self.config.policy == "ci":
                protected.admit(applied.paths)
            self._work = diff, applied
        return self._work

    def verdict(self, state: State) -> tuple[Outcome, str]:
        """Say how the work stands; see World."""
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
        except DiffRefused:  # said when the run is to end; until then the model may still undo it
            return found
        for path in paths:
            try:
                found[path] = "sha256 " + hashlib.sha256(self.sandbox.result().read(path)).hexdigest()[:12]
            except OSError:
                found[path] = ""
        return found

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        """Take the result out of the sandbox: the patch into the run's folder, and the branch if one is wanted; see World."""
        claimed = last_words(state)
        if state.mode == "ask" or outcome is Outcome.REFUSED:
            return RunEnded(outcome, reason, claimed)
        applied = self.salvage()
        branch = commit = None
        if applied.changes and self.config.deliver == "branch":
            with ThreadPoolExecutor(1) as beside:
                beside.submit(self.sandbox.result().close)  # nothing more is asked of it, and its removal takes 0.1 s
                self._delivered = branch, commit = deliver(
                    self.config, self.snapshot, applied, state, claimed, reason, self.branch_suffix
                )
        return RunEnded(outcome, reason, claimed, applied.paths, touched_tests(applied.paths), branch, commit)

    def withdraw(self) -> None:
        """Take a branch back that no end in the log tells of: `agent discard` would leave it. Raises WorktreeError."""
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
        """Return a time that only goes forward; see World."""
        return time.monotonic()

    def save(self) -> None:
        """Save the work in the run's folder, so that it can continue if the sandbox is lost. What is saved is not written again."""
        known = self._work
        diff = self.sandbox.result().diff() if known is None else known[0]
        if diff != self._saved:
            write_whole(self.folder / SNAPSHOT_NAME, diff)
            self._saved = diff


def deliver(
    config: RunConfig, snapshot: Snapshot, applied: Applied, state: State, claimed: str, reason: str, suffix: str = ""
) -> tuple[str, str]:
    """Commit a change on the branch that the configuration asks for; return the branch and the commit.

    Raises WorktreeError, which says where the change is all the same.
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
    """Return the model's final message, "" when the last thing said is something else."""
    last = state.conversation.last
    return last.text if last is not None and last.is_final else ""


def commit_message(task: str, claimed: str, observed: str) -> str:
    """Return the commit's message: what was asked, what the model says of it, and what was observed.

    Whoever reads the log may read it on a terminal, and git takes no NUL. What was observed stays one paragraph, the last:
    a test's name cannot add a line that git or a service obeys.
    """
    lines = [line.strip() for line in clean(task).split("\n") if line.strip()]
    subject = lines[0] if lines else "Change by gpt-oss-agent"
    if len(subject) > SUBJECT_CHARS:
        subject = subject[: SUBJECT_CHARS - 1].rsplit(" ", 1)[0] + "…"
    observed = f"Observed: {one_line(observed, OBSERVED_CHARS)}"
    return "\n\n".join(part for part in (subject, clean(claimed).strip(), observed) if part) + "\n"
