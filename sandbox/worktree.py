"""The host's side: a checked diff becomes a tree, a branch, or changes in the checkout.

A worktree here has no files. The diff is applied to an index in our own bare repository (sandbox/snapshot.py), where no
configuration, hook, attribute or filter of anybody has a say; a branch is made of the tree by plumbing; and what is to
come into the checkout is written file by file, after a look that each file there still is what the run started from.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox import diff as diffs
from sandbox import plumbing
from sandbox import snapshot as snapshots
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.snapshot import Item, Snapshot

BOT = ("gpt-oss-agent", "agent@gpt-oss-agent.invalid")
START_MESSAGE = "Uncommitted changes that the run started from"
ABSENT = 0


@dataclass(frozen=True, slots=True)
class Applied:
    """A diff that passed every check, as a tree beside the one it started from."""

    tree: str
    changes: tuple[diffs.Change, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that it touches, sorted."""
        return diffs.paths(self.changes)


@dataclass(frozen=True, slots=True)
class _Step:
    """One path from one tree to the other; mode ABSENT where it is not there."""

    path: bytes
    old_mode: int
    new_mode: int
    old_oid: str
    new_oid: str


@dataclass(frozen=True, slots=True)
class Worktree:
    """Where a run's diff lands. The person's checkout is touched by ``bring`` alone."""

    snapshot: Snapshot

    def apply(self, diff: bytes) -> Applied:
        """Check a diff and apply it to the snapshot.

        Raises DiffRefused (which path, which rule) and WorktreeError when it does not fit the snapshot.
        """
        changes = diffs.parse(diff)
        tree = snapshots.apply(self.snapshot, diff) if changes else self.snapshot.tree
        steps = self._steps(tree)
        touched = {os.fsdecode(step.path) for step in steps}
        if surprise := touched.symmetric_difference(diffs.paths(changes)):
            raise DiffRefused(f"{min(surprise)!r}: the diff does not say what git makes of it")
        for step in steps:
            path = os.fsdecode(step.path)
            problem = diffs.refusal(path, step.new_mode or None) or diffs.refusal(path, step.old_mode or None)
            if problem is None and step.new_mode == diffs.LINK:
                problem = diffs.link_refusal(path, os.fsdecode(self._blob(step)))
            if problem:
                raise DiffRefused(f"{path!r}: {problem}")
        return Applied(tree, changes)

    def keep(self, applied: Applied, branch: str, message: str) -> str:
        """Commit on a new branch of the person's repository; return the commit.

        One commit on the base; when the run included uncommitted changes, these come first as a commit of their own, so
        that the branch holds exactly what was checked and its last commit exactly what the agent did.
        Raises WorktreeError when the branch exists or cannot be made.
        """
        plumbing.bare(self.snapshot.git_dir, ["check-ref-format", f"refs/heads/{branch}"])
        parent = self.snapshot.commit
        if self.snapshot.dirty:
            parent = self._commit(self.snapshot.tree, parent, START_MESSAGE)
        commit = self._commit(applied.tree, parent, message)
        base = f"^{self.snapshot.commit}\n" if self.snapshot.commit else ""
        pack = plumbing.bare(
            self.snapshot.git_dir, ["pack-objects", "--revs", "--stdout", "-q"], stdin=f"{commit}\n{base}".encode()
        )
        repository = self.snapshot.repository
        plumbing.run(["unpack-objects", "-q", "--strict"], repository, stdin=pack)
        none = "0" * len(commit)
        done = plumbing.attempt(["update-ref", f"refs/heads/{branch}", commit, none], repository)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise WorktreeError(f"the branch {branch} could not be made ({said}); give another name with --branch")
        return commit

    def bring(self, applied: Applied) -> tuple[str, ...]:
        """Write the changes into the person's checkout, uncommitted: all of them or none; return the paths.

        Raises WorktreeError when a file there is no longer what the run started from.
        """
        steps = self._steps(applied.tree)
        root = self.snapshot.repository
        renderings = {}
        moved = []
        for step in steps:
            found = _found(root, step, self._blob(step) if step.new_mode else b"")
            if found is None:
                moved.append(os.fsdecode(step.path))
            else:
                renderings[step] = found
        if moved:
            raise WorktreeError(
                f"the checkout has changed since the run started: {', '.join(moved[:10])}; nothing was written. "
                "Take the branch or the patch of the run and merge it yourself"
            )
        _write(root, renderings)
        return tuple(sorted(os.fsdecode(step.path) for step in steps))

    def discard(self, branch: str, commit: str) -> None:
        """Delete a branch of ours, if it still is where we left it. Raises WorktreeError if not."""
        from git import Repo

        with Repo(self.snapshot.repository) as repository:
            names = {head.name: head for head in repository.heads}
            if branch not in names:
                return
            if names[branch].commit.hexsha != commit:
                raise WorktreeError(
                    f"the branch {branch} has moved since the run; delete it with: git branch -D {branch}"
                )
        plumbing.run(["branch", "-q", "-D", "--", branch], self.snapshot.repository)

    def _steps(self, tree: str) -> list[_Step]:
        raw = plumbing.bare(
            self.snapshot.git_dir, ["diff-tree", "-r", "-z", "--raw", "--no-renames", self.snapshot.tree, tree]
        )
        fields = raw.split(b"\0")[:-1]
        steps = []
        for meta, path in zip(fields[::2], fields[1::2], strict=True):
            old_mode, new_mode, old_oid, new_oid, _ = meta.decode().lstrip(":").split()
            steps.append(_Step(path, int(old_mode, 8), int(new_mode, 8), old_oid, new_oid))
        return steps

    def _blob(self, step: _Step) -> bytes:
        return plumbing.bare(self.snapshot.git_dir, ["cat-file", "blob", step.new_oid])

    def _commit(self, tree: str, parent: str, message: str) -> str:
        name, email = identity(self.snapshot.repository)
        env = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", name), ("EMAIL", email))
        }
        parents = ["-p", parent] if parent else []
        made = plumbing.bare(
            self.snapshot.git_dir, ["commit-tree", tree, *parents], env, message.encode("utf-8", "replace")
        )
        return made.decode().strip()


def identity(repository: Path) -> tuple[str, str]:
    """Return the name and address that the person commits with here, or the agent's own where none is set."""
    from git import Repo

    with Repo(repository) as opened, opened.config_reader() as reader:
        name, email = (str(reader.get_value("user", key, default="")) for key in ("name", "email"))
    return (name, email) if name and email else BOT


def branch_name(task: str, run: str) -> str:
    """Return ``agent/<slug>-<id>`` for a run."""
    words = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
    slug = words[:40].rsplit("-", 1)[0] if len(words) > 40 else words
    return f"agent/{slug or 'run'}-{re.sub(r'[^A-Za-z0-9]', '', run)[-8:]}"


def _found(root: Path, step: _Step, new: bytes) -> bytes | None:
    """Return what to write for a path, in the line ends that the checkout has; None if it is not as the run found it."""
    full = root / os.fsdecode(step.path)
    for parent in full.relative_to(root).parents:
        above = root / parent
        if above.is_symlink() or (above.exists() and not above.is_dir()):
            return None
    if step.old_mode == ABSENT:
        return None if os.path.lexists(full) else new
    if snapshots.from_checkout(root, Item(step.old_mode, step.old_oid, step.path)) is not None:
        return new
    if step.old_mode != diffs.LINK and snapshots.from_checkout(
        root, Item(step.old_mode, step.old_oid, step.path), crlf=True
    ):
        return new.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return None


def _write(root: Path, renderings: dict[_Step, bytes]) -> None:
    """Write everything beside its place first, so that a full disk changes nothing; then move it there."""
    with tempfile.TemporaryDirectory(prefix=".gpt-oss-agent-", dir=root) as folder:
        ready: list[tuple[Path, Path]] = []
        for number, (step, data) in enumerate(renderings.items()):
            beside = Path(folder, str(number))
            if step.new_mode == diffs.LINK:
                beside.symlink_to(os.fsdecode(data))
            elif step.new_mode:
                beside.write_bytes(data)
                beside.chmod(0o755 if step.new_mode == diffs.PROGRAM else 0o644)
            else:
                continue
            ready.append((beside, root / os.fsdecode(step.path)))
        for step in renderings:
            if not step.new_mode:
                _remove(root, root / os.fsdecode(step.path))
        for beside, full in ready:
            full.parent.mkdir(parents=True, exist_ok=True)
            beside.replace(full)


def _remove(root: Path, full: Path) -> None:
    """Remove a file, and the folders that are empty without it."""
    full.unlink()
    for parent in full.parents:
        if parent == root or any(parent.iterdir()):
            return
        parent.rmdir()
