"""What happens to a run's change after the run: it is applied to the checkout, or discarded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import LogError, UsageError
from agent.events import RunEnded
from agent.log import LOG_NAME, runs
from agent.runs import is_running, summary

if TYPE_CHECKING:
    from sandbox.worktree import Worktree


ATTEMPTS = ".attempts-"  # prefix of folders among the runs with several attempts at one fix, until one is kept
RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")  # a run's id


def bring_in(repository: Path, patch: bytes) -> tuple[str, ...]:
    """Apply a patch to the checkout as uncommitted changes, all or nothing; return the paths.

    It is merged with the current state of the checkout. Raises DiffRefused if a rule forbids it, WorktreeError if it
    does not apply.
    """
    from sandbox import scratch
    from sandbox import snapshot as snapshots
    from sandbox.errors import WorktreeError
    from sandbox.worktree import Worktree

    with scratch.folder("apply") as folder:
        worktree = Worktree(snapshots.take(repository, folder))
        try:
            applied = worktree.apply(patch)
        except WorktreeError as error:
            places = ", ".join(dict.fromkeys(re.findall(r"error: (?:patch failed: )?([^\n]+?):(?: |\d)", str(error))))
            raise WorktreeError(
                f"the change does not apply to the current checkout ({places or error}): nothing was changed there"
            ) from error
        return worktree.bring(applied)


def discard(folder: Path) -> list[str]:
    """Delete a run: its container, its branch unless it has moved, and its folder; return what was deleted.

    Raises UsageError if it is running, and WorktreeError, deleting nothing more, if its branch has moved.
    """
    if is_running(folder / LOG_NAME):
        raise UsageError(f"The run {folder.name} is running. Stop it first (Ctrl-C where it was started).")
    try:
        found = summary(folder)
    except LogError as error:
        raise LogError(f"{error}. So it is not known what the run made; delete {folder} yourself") from error
    gone = remove_containers(folder.name)
    if (folder / "worktree").exists():  # the run was killed while its change was committed
        _worktree(folder).clear()
    if found.ended is not None and found.ended.branch is not None:
        gone += _remove_branch(folder, Path(found.started.repository), found.ended)
    shutil.rmtree(folder)
    return [*gone, str(folder)]


def sweep(runs_dir: Path) -> list[str]:
    """Remove the temporary folders, unstarted runs and incomplete worktrees of killed processes; return what was removed."""
    from sandbox import scratch

    gone = [str(path) for path in scratch.sweep(scratch.temporary())] + sweep_unbegun(runs_dir)
    for folder in runs(runs_dir):
        if (folder / "worktree").exists() and not is_running(folder / LOG_NAME):
            _worktree(folder).clear()
            gone.append(str(folder / "worktree"))
    return gone


def sweep_unbegun(runs_dir: Path) -> list[str]:
    """Remove runs that were killed before their first event, and attempts of which none was kept; return what was removed."""
    from sandbox import scratch

    left = [path for path in runs_dir.glob("*") if path.name.startswith(ATTEMPTS) or _is_unbegun(path)]
    return [str(path) for path in scratch.sweep(left)]


def _is_unbegun(folder: Path) -> bool:
    """Whether a folder belongs to a run whose log is empty or missing and which no process is writing."""
    if not RUN.fullmatch(folder.name):
        return False
    log = folder / LOG_NAME
    try:
        return not log.stat().st_size and not is_running(log)
    except FileNotFoundError:
        return True
    except OSError:  # another user's
        return False


def _remove_branch(folder: Path, repository: Path, ended: RunEnded) -> list[str]:
    if not repository.is_dir() or ended.branch is None or ended.commit is None:
        return []
    return [f"branch {ended.branch}"] if _worktree(folder).discard(ended.branch, ended.commit) else []


def _worktree(folder: Path) -> Worktree:
    from sandbox import snapshot as snapshots
    from sandbox.worktree import Worktree

    return Worktree(snapshots.load(folder))


def remove_containers(run: str) -> list[str]:
    """Remove the containers of a run; return what was removed.

    Only a killed run has one, for a while. If no engine answers, there is nothing to remove.
    """
    from sandbox import docker
    from sandbox.errors import EngineUnavailable

    try:
        client = docker.engine(timeout_s=10)
    except EngineUnavailable:
        return []
    try:
        found = [container for name, container in docker.orphans(client) if name == run]
        for container in found:
            docker.remove(client, container)
    finally:
        client.close()
    return [f"container {container[:12]}" for container in found]
