"""One run for an event, under `--policy ci`, from the request to the folder of artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.ci.request import Request
from agent.config import RunConfig
from agent.errors import UsageError
from agent.events import Event, RunEnded
from agent.session import fix
from sandbox import plumbing


def run_request(
    asked: Request, config: RunConfig, repository: Path, show: Callable[[Event], None], say: Callable[[str], None]
) -> RunEnded:
    """Do the run that an event asks for; return how it ended.

    Raises as agent.session.fix does, and UsageError if another commit is checked out.
    """
    head = plumbing.run(["rev-parse", "HEAD"], repository).decode().strip()
    if asked.commit is not None and head != asked.commit:
        raise UsageError(
            f"the event is about the commit {asked.commit}, and {head} is checked out. "
            f"Before the agent starts: git checkout --detach {asked.commit} (`agent ci commit` prints it)"
        )
    return fix(config, asked.task, repository, "fix", show, say)
