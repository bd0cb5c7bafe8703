"""The host's side: a checked diff becomes a tree, then a commit on a branch, or changes in the checkout.

A diff is checked in an index of our own bare repository (sandbox/snapshot.py), where no configuration, hook, attribute or
filter has an effect. It is then committed in a git worktree at the base commit: applied to the worktree's index, with hooks,
filters and signing off. The worktree gets files only if the user wants to keep it; otherwise it is removed, and only the
branch remains in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sandbox import checkout, plumbing
from sandbox import diff as diffs
from sandbox import snapshot as snapshots
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.snapshot import Snapshot

if TYPE_CHECKING:
    from git import Git

BOT = ("gpt-oss-agent", "agent@gpt-oss-agent.invalid")
# git strips these characters from both ends of a name, and refuses a name that is then empty.
CRUD = " .,:;<>\"\\'" + "".join(map(chr, range(32)))
START_MESSAGE = "Uncommitted changes that the run started from"
UNPACK_LIMIT = 100  # up to so many objects are transferred as loose objects; more stay a pack, as in git fetch
# Settings for our commits: no signing key, no template, no background work, and the message in UTF-8.
COMMIT_SETTINGS = ("commit.gpgSign=false", "commit.status=false", "i18n.commitEncoding=UTF-8")


@dataclass(frozen=True, slots=True)
class Applied:
    """A diff that passed every check: the resulting tree, and the tree it started from."""

    tree: str
    changes: tuple[diffs.Change, ...]
    diff: bytes = b""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that it touches, sorted."""
        return diffs.paths(self.changes)


@dataclass(frozen=True, slots=True)
class Worktree:
    """Delivers a run's diff to the user's repository. Only ``bring`` touches the checkout."""

    snapshot: Snapshot

    @property
    def folder(self) -> Path:
        """The place of a temporary worktree: beside the snapshot."""
        return self.snapshot.git_dir.parent / "worktree"

    def apply(self, diff: bytes) -> Applied:
        """Check a diff and apply it to the snapshot.

        Raises DiffRefused (naming path and rule), and WorktreeError if it does not apply to the snapshot.
        """
        changes = diffs.parse(diff)
        tree = snapshots.apply(self.snapshot, diff) if changes else self.snapshot.tree
        steps = snapshots.steps(self.snapshot, tree)
        touched = {os.fsdecode(step.path) for step in steps}
        if surprise := touched.symmetric_difference(diffs.paths(changes)):
            raise DiffRefused(f"{min(surprise)!r}: the diff does not say what git makes of it")
        links = [step for step in steps if step.new_mode == diffs.LINK]
        targets = dict(zip(links, snapshots.blobs(self.snapshot, (step.new_oid for step in links)), strict=True))
        for step in steps:
            path = os.fsdecode(step.path)
            problem = diffs.refusal(path, step.new_mode or None) or diffs.refusal(path, step.old_mode or None)
            if problem is None and step in targets:
                problem = diffs.link_refusal(path, os.fsdecode(targets[step] or b""))
            if problem:
                raise DiffRefused(f"{path!r}: {problem}")
        return Applied(tree, changes, diff if changes else b"")

    def keep(self, applied: Applied, branch: str, message: str, folder: Path | None = None) -> str:
        """Commit on a new branch of the user's repository; return the commit.

        The branch has one commit on top of the base. If the run included uncommitted changes (or there is no commit yet), the
        state that the run started from is committed first, so that the branch contains exactly what was checked, and its last
        commit exactly what the agent did. With ``folder`` (new or empty) the worktree stays there, with its files.
        The branch appears with its commit or not at all; the same change gives the same commit every time.
        Raises WorktreeError if the branch or the folder is taken, or git fails.
        """
        plumbing.bare(self.snapshot.git_dir, ["check-ref-format", f"refs/heads/{branch}"])
        if folder is not None and (problem := folder_problem(folder)):
            raise WorktreeError(f"{problem}; name another folder with --worktree")
        self.clear()
        start = self._start()
        place = folder or self.folder
        with _quiet(self.snapshot.common_dir, self.snapshot.repository) as git:
            git.worktree("add", "--quiet", "--no-checkout", "--detach", str(place), start)
            commit, ours = "", False
            try:
                commit = self._commit(applied, message, place)
                ours = self._branch(git, branch, commit)
                if not ours:
                    commit = self._same(branch, applied, message)
                if folder is None:
                    git.worktree("remove", "--force", str(place))
                else:
                    self._fill(place, branch)
                    self._note.write_bytes(os.fsencode(place))
            except BaseException:
                plumbing.attempt(["worktree", "remove", "--force", str(place)], self.snapshot.repository)
                if ours:  # otherwise a branch that no run knows about would stay
                    plumbing.attempt(["update-ref", "-d", f"refs/heads/{branch}", commit], self.snapshot.repository)
                raise
        return commit

    def bring(self, applied: Applied) -> tuple[str, ...]:
        """Apply the changes to the user's checkout, uncommitted, all or nothing; return the paths.

        Raises WorktreeError if a file there is no longer what the run started from.
        """
        return checkout.bring(self.snapshot, applied.tree)

    def discard(self, branch: str, commit: str) -> bool:
        """Delete a branch of ours, unless it has moved, and its worktree.

        Return whether it existed. Raises WorktreeError if the branch has moved, or the worktree has uncommitted work.
        """
        found = plumbing.attempt(["rev-parse", "-q", "--verify", f"refs/heads/{branch}"], self.snapshot.repository)
        if found.returncode:
            return False
        if found.stdout.decode().strip() != commit:
            raise WorktreeError(f"the branch {branch} has moved since the run; delete it with: git branch -D {branch}")
        if self._note.exists():
            kept = Path(os.fsdecode(self._note.read_bytes()))
            # If the folder was removed by hand, git still has its record, and considers the branch checked out.
            arguments = [*self._without_filters(), "worktree", "remove", str(kept)]
            removed = plumbing.attempt(arguments, self.snapshot.repository)
            if removed.returncode and kept.exists():
                said = removed.stderr.decode("utf-8", "replace").strip()
                raise WorktreeError(
                    f"the worktree {kept} and the run were not deleted: {said}. Commit or remove what is in the worktree first"
                )
            self._note.unlink()
        plumbing.run(["branch", "-q", "-D", "--", branch], self.snapshot.repository)
        return True

    def clear(self) -> None:
        """Remove the incomplete worktree of a killed run, and git's record of it."""
        if self.folder.exists():
            plumbing.attempt(["worktree", "remove", "--force", str(self.folder)], self.snapshot.repository)
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _note(self) -> Path:
        return self.snapshot.git_dir.parent / "worktree.path"

    def _start(self) -> str:
        """Return the commit at which the worktree begins. For uncommitted changes, it is created and transferred first."""
        if self.snapshot.commit and not self.snapshot.dirty:
            return self.snapshot.commit
        parents = ["-p", self.snapshot.commit] if self.snapshot.commit else []
        arguments = ["commit-tree", "-m", START_MESSAGE, *parents, self.snapshot.tree]
        start = plumbing.bare(self.snapshot.git_dir, arguments, self._who()).decode().strip()
        wanted = f"{start}\n" + (f"^{self.snapshot.commit}\n" if self.snapshot.commit else "")
        # Uncommitted files may be large: search no deltas, and use zlib's fastest level.
        arguments = ["pack-objects", "--revs", "--stdout", "--window=0", "--compression=1", "-q"]
        pack = plumbing.bare(self.snapshot.git_dir, arguments, stdin=wanted.encode())
        few = int.from_bytes(pack[8:12], "big") < UNPACK_LIMIT
        take = ["unpack-objects", "-q", "--strict"] if few else ["index-pack", "--stdin", "--fix-thin", "--strict"]
        plumbing.run(take, self.snapshot.repository, stdin=pack)
        return start

    def _commit(self, applied: Applied, message: str, place: Path) -> str:
        """Apply the diff in a worktree's index and commit it there, on a detached HEAD; return the commit."""
        with _quiet(_git_dir(place), place, self._who()) as git:
            git.read_tree("HEAD")
            if applied.diff:
                with _file(applied.diff) as text:
                    git.apply(
                        "--cached", "--binary", "--whitespace=nowarn", "--no-ignore-whitespace", "-", istream=text
                    )
            with _file(message.encode("utf-8", "replace")) as text:
                options = ("--quiet", "--no-verify", "--allow-empty", "--allow-empty-message", "--cleanup=verbatim")
                git.commit(*options, "-F", "-", istream=text)
            commit, tree = str(git.rev_parse("HEAD", "HEAD^{tree}")).split()
        if tree != applied.tree:
            raise WorktreeError(f"the worktree's tree is {tree}, but {applied.tree} was checked; nothing was committed")
        return commit

    def _branch(self, git: Git, branch: str, commit: str) -> bool:
        """Make the branch; return False if there is already one of that name."""
        from git.exc import GitCommandError

        try:
            git.update_ref(f"refs/heads/{branch}", commit, "0" * len(commit))
        except GitCommandError as error:
            if not plumbing.attempt(
                ["rev-parse", "-q", "--verify", f"refs/heads/{branch}"], self.snapshot.repository
            ).returncode:
                return False
            raise WorktreeError(
                f"the branch {branch} could not be made ({_said(error.stderr)}); give another name with --branch"
            ) from error
        return True

    def _same(self, branch: str, applied: Applied, message: str) -> str:
        """Return a branch's commit if it is exactly this change (made before the run was killed)."""
        names = [f"refs/heads/{branch}{at}" for at in ("", "^{tree}", "^1^{tree}")]
        found = plumbing.attempt(["rev-parse", "-q", "--verify", *names[:1]], self.snapshot.repository)
        commit = found.stdout.decode().strip()
        trees = plumbing.attempt(["rev-parse", *names[1:]], self.snapshot.repository).stdout.decode().split()
        said = plumbing.run(["log", "-1", "--format=%B", commit], self.snapshot.repository).decode("utf-8", "replace")
        if trees != [applied.tree, self.snapshot.tree] or said.strip() != message.strip():
            raise WorktreeError(f"the branch {branch} already exists; give another name with --branch")
        return commit

    def _fill(self, place: Path, branch: str) -> None:
        """Put a worktree on its branch and write its files without filters: a file under LFS is its pointer."""
        with _quiet(_git_dir(place), place, settings=self._without_filters()[1::2]) as git:
            git.symbolic_ref("HEAD", f"refs/heads/{branch}")
            git.checkout_index("--all", "--index", "--quiet")

    def _without_filters(self) -> list[str]:
        """Return git options that turn off every filter that the user has configured, because attributes may come from the diff."""
        asked = ["config", "--name-only", "-z", "--get-regexp", r"^filter\."]
        found = plumbing.attempt(asked, self.snapshot.repository).stdout.decode("utf-8", "surrogateescape").split("\0")
        drivers = sorted({key.rpartition(".")[0] for key in found if key})
        empty = [f"{name}.{what}=" for name in drivers for what in ("clean", "smudge", "process")]
        return [part for setting in [*empty, *(f"{n}.required=false" for n in drivers)] for part in ("-c", setting)]

    def _who(self) -> dict[str, str]:
        name, email = identity(self.snapshot.repository)
        values = (("NAME", name), ("EMAIL", email))
        return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in values}


def identity(repository: Path) -> tuple[str, str]:
    """Return the name and address with which the user commits here, or the agent's own if none is set."""
    from git import Repo

    with Repo(repository) as opened, opened.config_reader() as reader:
        name, email = (str(reader.get_value("user", key, default="")) for key in ("name", "email"))
    return (name, email) if name.strip(CRUD) and email.strip(CRUD) else BOT


def branch_problem(snapshot: Snapshot, branch: str) -> str | None:
    """Return why a branch of that name cannot be made, or None."""
    checked = plumbing.attempt(["check-ref-format", "--branch", branch], snapshot.git_dir)
    if os.fsdecode(checked.stdout.rstrip(b"\n")) != branch:  # @{-1} stands for another
        return f"{branch!r} is not a valid branch name for git"
    if not plumbing.attempt(["rev-parse", "-q", "--verify", f"refs/heads/{branch}"], snapshot.repository).returncode:
        return f"the branch {branch} already exists"
    # Branch names are paths: a/b and a cannot both exist.
    listed = plumbing.attempt(["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads"], snapshot.repository)
    for other in map(os.fsdecode, listed.stdout.splitlines()):
        if other.startswith(f"{branch}/") or branch.startswith(f"{other}/"):
            return f"there is a branch {other}, and git does not allow {branch} beside it"
    return None


def folder_problem(folder: Path) -> str | None:
    """Return why a worktree cannot be made in a new (or empty) folder, or None. Missing parent folders would be created."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            return f"{folder} exists and is not empty"
        above = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror}"
    if not above.is_dir():
        return f"{folder} cannot be made: {above} is not a folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"{folder} cannot be made: {above} cannot be written"


def branch_name(task: str, run: str) -> str:
    """Return ``agent/<slug>-<id>`` for a run."""
    words = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")
    slug = words[:40].rsplit("-", 1)[0] if len(words) > 40 else words
    return f"agent/{slug or 'run'}-{re.sub(r'[^A-Za-z0-9]', '', run)[-8:]}"


@contextmanager
def _quiet(
    git_dir: Path, work_tree: Path, env: dict[str, str] | None = None, settings: Sequence[str] = ()
) -> Iterator[Git]:
    """Yield GitPython's git for exactly one repository, independent of this process's GIT_* variables; no hook runs.

    Raises WorktreeError with git's message.
    """
    from git import Repo
    from git.exc import GitCommandError

    with Repo(work_tree) as repository:
        git = repository.git
        git.set_persistent_git_options(c=[*plumbing.SETTINGS, *COMMIT_SETTINGS, *settings])
        places = {"GIT_DIR": git_dir, "GIT_WORK_TREE": work_tree, "GIT_INDEX_FILE": git_dir / "index"}
        git.update_environment(**plumbing.QUIET, **{key: str(path) for key, path in places.items()}, **(env or {}))
        try:
            yield git
        except GitCommandError as error:
            verb = plumbing.verb([str(word) for word in error.command][1:])
            raise WorktreeError(f"git {verb} failed in {work_tree}: {_said(error.stderr)}") from error


def _git_dir(place: Path) -> Path:
    """Return a linked worktree's own git directory."""
    return Path((place / ".git").read_text("utf-8", "surrogateescape").removeprefix("gitdir:").strip())


@contextmanager
def _file(data: bytes) -> Iterator[IO[bytes]]:
    """Yield a file with these bytes that a process can read."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file


def _said(stderr: str) -> str:
    """Return git's own message, without GitPython's text around it."""
    return stderr.strip().removeprefix("stderr: ").strip("'\n ")[-2000:]
