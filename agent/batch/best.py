"""Best of several attempts at one task: `agent fix -n K`."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path

from agent.batch.attempt import Kind
from agent.batch.batch import Batch, Plan, Watch
from agent.batch.checkout import InPlace
from agent.batch.governor import Governor
from agent.batch.processes import Processes
from agent.batch.results import Results
from agent.batch.task import Task
from agent.config import RunConfig
from agent.errors import AgentError, ModelError
from agent.events import fold
from agent.landing import ATTEMPTS
from agent.log import LOG_NAME, Log
from agent.runs import PATCH_NAME
from agent.session import admit_delivery, new_folder
from agent.workshop import deliver
from sandbox import scratch
from sandbox import snapshot as snapshots
from sandbox.guest.removal import remove_tree
from sandbox.worktree import Worktree

NAME = "fix"


def best_of(config: RunConfig, prompt: str, repository: Path, plan: Plan, watch: Watch) -> Path:
    """Make the attempts, keep the best as a run in ``runs_dir`` and deliver its change; return that run's folder.

    Each attempt works on its own copy of the current repository. The other runs are deleted; if this is interrupted, all
    are. Raises ModelError if the endpoint was lost, AgentError if no attempt could begin.
    """
    with scratch.folder("attempts") as state:
        admit_delivery(config, snapshots.take(repository, state, config.include_uncommitted))
    folder = config.runs_dir / f"{ATTEMPTS}{secrets.token_hex(4)}"
    held = new_folder(folder)
    try:
        with Results(folder) as results:
            governor = Governor()
            task = Task(NAME, prompt, str(repository))
            Batch(
                [task], lambda *_: config, plan, results, Processes(governor), governor, watch, InPlace(repository)
            ).run()
            record = results.records.get(NAME)
        if record is None:
            raise ModelError(governor.stopped)
        if not record["folder"]:
            lost = record["class"] == Kind.ENDPOINT
            raise (ModelError if lost else AgentError)(record["reason"])
        kept = folder / record["folder"]
        run: Path = kept.rename(config.runs_dir / kept.name)
    finally:
        remove_tree(str(folder))
        os.close(held)
    _deliver(config, run)
    return run


def _deliver(config: RunConfig, run: Path) -> None:
    """Make the branch for a run that has only a patch, if one is wanted, and record it in the run's log."""
    with Log(run / LOG_NAME) as log:
        state = fold(entry.event for entry in log.entries)
        assert state.ended is not None
        patch = run / PATCH_NAME
        if config.deliver != "branch" or not patch.exists():
            return
        snapshot = snapshots.load(run)
        applied = Worktree(snapshot).apply(patch.read_bytes())
        branch, commit = deliver(config, snapshot, applied, state, state.ended.claimed, state.ended.reason)
        log.append(replace(state.ended, branch=branch, commit=commit))
