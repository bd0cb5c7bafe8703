"""Pushes a branch to a server with a token: only a branch of ours, only over a commit of ours, and never from the checkout.

git runs on our own bare repository (sandbox/snapshot.py), only with that repository's configuration. The token is passed to git in
its environment, as a header for this one URL: it is in no argument, URL or file, and is not sent to redirects.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sandbox import plumbing
from sandbox.errors import RemoteUnavailable, WorktreeError
from sandbox.snapshot import Snapshot
from sandbox.worktree import BOT, Applied

BASE_TRAILER = "Agent-Base"
_THEIRS = "refs/agent/theirs"
# Messages of git (with libcurl) for errors that may be temporary.
_LATER = re.compile(
    r"returned error: (5\d\d|429)|HTTP (5\d\d|429) curl|Could not resolve|(Failed|Couldn't|couldn't) (to )?connect"
    r"|Connection (reset|refused|timed out)|timed out|early EOF|unexpected disconnect|hung up|empty reply|Empty reply"
)
_REFUSED = re.compile(r"returned error: 40[13]|Authentication failed|could not read Username")
# Messages of git if the branch is not (any more) at the expected commit.
_LOST = re.compile(r"stale info|\[rejected\]|fetch first|non-fast-forward|cannot lock ref|incorrect old value")


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository on a server. ``user`` is the user name for the token."""

    url: str
    user: str
    token: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return git's settings for it, as environment variables."""
        header = base64.b64encode(f"{self.user}:{self.token}".encode()).decode()
        settings = {
            f"http.{self.url}.extraHeader": f"Authorization: Basic {header}",
            "http.followRedirects": "false",
            "credential.helper": "",
        }
        pairs = {f"GIT_CONFIG_KEY_{at}": key for at, key in enumerate(settings)}
        pairs |= {f"GIT_CONFIG_VALUE_{at}": value for at, value in enumerate(settings.values())}
        return {"GIT_CONFIG_COUNT": str(len(settings)), **pairs}


def seal(snapshot: Snapshot, applied: Applied, message: str) -> str:
    """Commit the change on top of the snapshot's commit, in our own repository; return the commit."""
    who = {
        f"GIT_{role}_{what}": BOT[at] for role in ("AUTHOR", "COMMITTER") for at, what in enumerate(("NAME", "EMAIL"))
    }
    text = f"{message.rstrip()}\n\n{BASE_TRAILER}: {snapshot.commit}\n"
    arguments = ["-c", "i18n.commitEncoding=UTF-8", "commit-tree", "-p", snapshot.commit, "-F", "-", applied.tree]
    return plumbing.bare(snapshot.git_dir, arguments, who, text.encode("utf-8", "replace")).decode().strip()


@dataclass(frozen=True, slots=True)
class Tip:
    """The state of a branch on the server. ``ours``: it has exactly one commit of ours on top of ``base``, unchanged."""

    commit: str
    ours: bool
    base: str
    tree: str


def look(snapshot: Snapshot, remote: Remote, branch: str) -> Tip | None:
    """Return the state of a branch on the server, None if it does not exist. Raises WorktreeError or its subclass RemoteUnavailable."""
    commit = _commit(snapshot, remote, branch)
    if commit is None:
        return None
    arguments = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]
    _git(snapshot, remote, [*arguments, remote.url, f"+refs/heads/{branch}:{_THEIRS}"])
    form = f"--format=%T%n%ce%n%P%n%(trailers:key={BASE_TRAILER},valueonly)"
    shown = plumbing.bare(snapshot.git_dir, ["log", "-1", form, commit]).decode("utf-8", "replace")
    tree, committer, parents, *base = shown.split("\n")
    # Anyone who adds, amends or rebases leaves a commit of their own, or one with a different parent.
    return Tip(commit, committer == BOT[1] and [parents] == [line for line in base if line], parents, tree)


def push(snapshot: Snapshot, remote: Remote, branch: str, commit: str, expected: str | None) -> bool:
    """Move a branch from ``expected`` (None: it does not exist) to a commit; return False if it is elsewhere by now.

    Raises WorktreeError with the server's message, RemoteUnavailable if a retry may help: the push may have arrived
    nevertheless.
    """
    ref = f"refs/heads/{branch}"
    lease = f"--force-with-lease={ref}:{expected or ''}"
    arguments = [
        "push",
        "--porcelain",
        "--no-verify",
        "--no-follow-tags",
        "--no-recurse-submodules",
        lease,
        remote.url,
        f"{commit}:{ref}",
    ]
    done = _attempt(snapshot, remote, arguments)
    if not done[0]:
        return True
    if _LOST.search(done[1]) and _commit(snapshot, remote, branch) != expected:
        return False
    raise _error(f"the branch {branch} could not be pushed to {remote.url}", done[1])


def _commit(snapshot: Snapshot, remote: Remote, branch: str) -> str | None:
    ref = f"refs/heads/{branch}"
    listed = _git(snapshot, remote, ["ls-remote", "--quiet", remote.url, ref]).decode("utf-8", "replace")
    found = [line.split("\t") for line in listed.splitlines()]
    return next((oid for oid, name in found if name == ref), None)


def _git(snapshot: Snapshot, remote: Remote, arguments: Sequence[str]) -> bytes:
    code, said, output = _attempt(snapshot, remote, arguments)
    if code:
        raise _error(f"git {arguments[0]} failed at {remote.url}", said)
    return output


def _error(what: str, said: str) -> WorktreeError:
    if _LATER.search(said):
        return RemoteUnavailable(f"{what}: {said}")
    remedy = "; the token lacks a permission: give it write access to contents" if _REFUSED.search(said) else ""
    return WorktreeError(f"{what}: {said}{remedy}")


def _attempt(snapshot: Snapshot, remote: Remote, arguments: Sequence[str]) -> tuple[int, str, bytes]:
    """Run git with the token; return its exit code, its messages (with the token masked) and its output."""
    env: Mapping[str, str] = {**plumbing.ISOLATED, **remote.environment(), "GIT_DIR": str(snapshot.git_dir)}
    done = plumbing.attempt(arguments, snapshot.git_dir, env)
    said = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace").replace(remote.token, "***").strip()
    return done.returncode, said[-2000:], done.stdout
