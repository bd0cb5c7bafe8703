"""Checkouts of tasks' repositories, at the commit at which the task begins."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.batch.task import Task, is_url
from agent.errors import UsageError
from sandbox import plumbing, scratch
from sandbox.errors import WorktreeError
from sandbox.guest.removal import remove_tree

# Fixed author and date: a folder of files gives the same commit everywhere and every time.
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "tasks"), ("EMAIL", "tasks@gpt-oss-agent.invalid"), ("DATE", "1700000000 +0000"))
}
LEFTOVERS = ("__pycache__", "*.pyc", ".pytest_cache", "node_modules")


@dataclass(frozen=True, slots=True)
class Copies:
    """A checkout below ``folder`` for each task, removed when the task is done."""

    folder: Path
    cache: Path

    def take(self, task: Task) -> Path:
        """Return the task's checkout; create it if necessary. Raises as ``lay_out`` does."""
        return lay_out(task, self.folder / task.name, self.cache)

    def give_back(self, task: Task) -> None:
        """Remove the task's checkout."""
        forget(self.folder / task.name)


@dataclass(frozen=True, slots=True)
class InPlace:
    """One existing repository for every task; it is only read."""

    repository: Path

    def take(self, task: Task) -> Path:
        """Return the repository."""
        del task
        return self.repository

    def give_back(self, task: Task) -> None:
        """Leave the repository alone."""


def lay_out(task: Task, place: Path, cache: Path) -> Path:
    """Create the checkout at ``place`` atomically, unless it exists; return it.

    A remote repository is kept as a mirror below ``cache``, one for all its tasks.
    Raises WorktreeError if git fails, UsageError if there is no such repository.
    """
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch.staging(place.parent) as folder:
        fresh = folder / "checkout"
        source = _mirror(task.repository, task.base_commit, cache) if is_url(task.repository) else Path(task.repository)
        if not source.is_dir():
            raise UsageError(f"the task {task.name}: there is no repository at {source}")
        if (source / ".git").exists() or (source / "HEAD").is_file():
            _clone(source, fresh, task)
        elif task.base_commit:
            raise UsageError(f"the task {task.name} names a commit, but {source} is not a git repository")
        else:
            _commit(source, fresh)
        fresh.rename(place)
    return place


def _commit(source: Path, fresh: Path) -> None:
    try:
        shutil.copytree(source, fresh, symlinks=True, ignore=shutil.ignore_patterns(*LEFTOVERS))
    except shutil.Error as error:  # it lists all files; the first one is enough
        raise WorktreeError(f"{source} cannot be copied to {fresh}: {error.args[0][0][2]}") from error
    env = {**plumbing.ISOLATED, **IDENTITY}
    plumbing.run(["init", "-q", "--initial-branch=main"], fresh, env)
    plumbing.run(["add", "-A", "--force"], fresh, env)
    plumbing.run(["commit", "-q", "--no-gpg-sign", "-m", "The task's repository"], fresh, env)


def _clone(source: Path, fresh: Path, task: Task) -> None:
    plumbing.run(["clone", "-q", "--shared", "--no-checkout", "--", str(source), str(fresh)], source)
    commit = task.base_commit or "HEAD"
    if commit.startswith("-"):
        raise UsageError(f"the task {task.name}: {commit!r} is not a commit")
    plumbing.run(["checkout", "-q", "--detach", commit], fresh)


def _mirror(url: str, commit: str | None, cache: Path) -> Path:
    """Return a bare clone of a remote repository; it is fetched again only if it lacks the commit."""
    mirror = cache / "mirrors" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.git"
    mirror.parent.mkdir(parents=True, exist_ok=True)
    with _locked(mirror.with_suffix(".lock")):
        if not mirror.is_dir():
            with scratch.staging(mirror.parent) as folder:
                plumbing.run(["clone", "-q", "--mirror", "--", url, f"{folder}/mirror"], mirror.parent)
                (folder / "mirror").rename(mirror)
        elif commit is None or plumbing.attempt(["cat-file", "-e", f"{commit}^{{commit}}"], mirror).returncode:
            plumbing.run(["fetch", "-q", "--prune", "origin"], mirror)
    return mirror


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def forget(place: Path) -> None:
    """Remove a checkout that is no longer needed. Raises WorktreeError if it cannot be removed completely."""
    remove_tree(str(place))
    if place.exists():
        raise WorktreeError(f"the checkout {place} cannot be removed; remove it yourself")
