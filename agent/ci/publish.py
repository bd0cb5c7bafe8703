"""The job with the token: it trusts the service and its own checkout, and nothing from the other job.

It reads the request from the event again, asks the service whether the requester has write access, checks the patch and
applies it to this checkout's commit, and renders all texts anew. Only then it writes, in idempotent steps: the branch (only
over a commit of ours), the pull request, and one comment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.ci import artifacts, words
from agent.ci.artifacts import Found
from agent.ci.request import Request
from agent.ci.rest import Again, persist
from agent.ci.service import Proposal, Service
from agent.errors import PolicyRefused
from agent.events import Outcome
from agent.model.client import Clock
from sandbox import protected, remote, scratch
from sandbox import snapshot as snapshots
from sandbox.errors import DiffRefused, RemoteUnavailable, WorktreeError
from sandbox.remote import Remote
from sandbox.snapshot import Snapshot
from sandbox.worktree import Applied, Worktree

T = TypeVar("T")
Say = Callable[[str], None]
# The outcomes that are proposed; all others are answered with a comment, and their patch stays in the artifact.
PROPOSED = (Outcome.PASSED, Outcome.UNVERIFIED)


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes a result: needs the service, the repository there, and a checkout of the commit that was fixed."""

    service: Service
    remote: Remote
    repository: Path
    say: Say
    clock: Clock

    def publish(self, asked: Request, folder: Path) -> Proposal | None:
        """Publish the artifacts in ``folder``; return the pull request, None if there is none.

        Raises PolicyRefused and DiffRefused if a rule forbids it, ServiceError and WorktreeError if it fails.
        """
        self._admit(asked)
        try:
            found = artifacts.read(folder)
            if found is not None and found.outcome == artifacts.IGNORED:
                self.say(f"nothing to publish: {found.reason}")
                return None
            proposed = None
            if found is not None and found.outcome in PROPOSED:
                proposed = self._propose(asked, found)
        except (PolicyRefused, DiffRefused) as error:
            self._answer(asked, words.answer(asked, None, None, refused=str(error)))
            raise
        self._answer(asked, words.answer(asked, found, proposed.link if proposed else None))
        return proposed

    def _admit(self, asked: Request) -> None:
        if asked.actor and not self._persist(lambda: self.service.may_write(asked.actor)):
            raise PolicyRefused(f"{asked.actor} has no write access to {asked.project}, so nothing is published")

    def _propose(self, asked: Request, found: Found) -> Proposal:
        if not found.patch or not found.base_commit:
            raise PolicyRefused(f"the artifact says {found.outcome}, but contains no patch")
        with scratch.folder("publish") as folder:
            snapshot = snapshots.take(self.repository, folder, include_uncommitted=False)
            if found.base_commit != snapshot.commit:
                raise PolicyRefused(
                    f"the change is for the commit {found.base_commit[:40]!r}, and {snapshot.commit} is checked out here"
                )
            target = self._target(asked, snapshot)
            self._push(asked, found, snapshot)
        title, body = words.title(asked), words.proposal(asked, found)
        proposed = self._persist(lambda: self.service.propose(asked.branch, target, title, body))
        self.say(f"{'opened' if proposed.new else 'brought up to date'}: {proposed.url or proposed.link}")
        return proposed

    def _target(self, asked: Request, snapshot: Snapshot) -> str:
        """Return the target branch: a pull request's own branch only if it has not moved since the fix."""
        if asked.target is not None:
            return asked.target
        assert asked.number is not None
        number = asked.number
        pull = self._persist(lambda: self.service.pull(number))
        if not pull.in_project:
            raise PolicyRefused("the pull request comes from a fork, where nothing can be published")
        if pull.commit != snapshot.commit:
            raise PolicyRefused(
                f"the pull request has moved to {pull.commit[:12]} since {snapshot.commit[:12]} was fixed; ask again"
            )
        return pull.branch

    def _push(self, asked: Request, found: Found, snapshot: Snapshot) -> None:
        """Check the patch, and update the branch to it unless somebody else has worked there."""
        try:
            applied = Worktree(snapshot).apply(found.patch)
        except WorktreeError as error:
            raise PolicyRefused(f"the patch does not apply to the commit that it claims to be for: {error}") from error
        protected.admit(applied.paths)
        if not applied.changes:
            raise PolicyRefused("the patch changes nothing")
        message = f"{words.title(asked)}\n\n{words.about(asked, fixed=False)}"
        commit = remote.seal(snapshot, applied, message)
        self._persist(lambda: self._set(asked.branch, commit, applied, snapshot))

    def _set(self, branch: str, commit: str, applied: Applied, snapshot: Snapshot) -> None:
        """Set the branch to the commit; idempotent."""
        try:
            at = remote.look(snapshot, self.remote, branch)
            if at is not None and (at.ours, at.tree, at.base) == (True, applied.tree, snapshot.commit):
                self.say(f"{branch} holds this change")
                return
            if (at is not None and not at.ours) or not remote.push(
                snapshot, self.remote, branch, commit, at.commit if at else None
            ):
                raise PolicyRefused(
                    f"somebody else has changed the branch {branch}, so it is not overwritten. Delete or rename it to get a new change"
                )
        except RemoteUnavailable as error:
            raise Again(str(error)) from error
        self.say(f"pushed {commit[:12]} to {branch}")

    def _answer(self, asked: Request, body: str) -> None:
        number = asked.number
        if number is not None:
            self._persist(lambda: self.service.comment(asked.kind, number, asked.marker, body))

    def _persist(self, work: Callable[[], T]) -> T:
        return persist(work, self.clock, self.say)
