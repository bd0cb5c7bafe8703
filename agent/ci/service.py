"""The interface to the service that hosts a repository, as far as publishing needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull or merge request: its source branch, that branch's commit, and whether it is in the same project."""

    branch: str
    commit: str
    in_project: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pull or merge request of ours. ``link`` is its short reference for text; ``new``: it was opened just now."""

    link: str
    url: str
    new: bool


class Service(Protocol):
    """One project at one service. Every method is idempotent: what exists already is found, not created twice.

    Raises ServiceError; its subclass ``Again`` (agent/ci/rest.py) is temporary.
    """

    git_user: str  # the name that git sends with the token

    def may_write(self, actor: str) -> bool:
        """Whether the requester (see Request) has write access to the repository."""
        ...

    def pull(self, number: int) -> Pull:
        """Return the current state of a pull request."""
        ...

    def propose(self, branch: str, target: str, title: str, body: str) -> Proposal:
        """Open a pull request from ``branch`` into ``target``, or update the open one."""
        ...

    def comment(self, kind: str, number: int, marker: str, body: str) -> None:
        """Write a comment that begins with ``marker``, or update our own comment that does."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
