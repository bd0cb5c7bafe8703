"""What publishing needs of the service that hosts a repository: the seam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull or merge request: the branch it brings, where that branch is, and whether it lies in the same project."""

    branch: str
    commit: str
    in_project: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pull or merge request of ours. ``link`` is how text refers to it; ``new`` whether it was opened just now."""

    link: str
    url: str
    new: bool


class Service(Protocol):
    """One project at one service. Every method may be called again: what is there already is found, not made twice.

    Raises ServiceError; ``Again`` (agent/ci/rest.py) among them may pass.
    """

    git_user: str  # the name that git sends with the token

    def may_write(self, actor: str) -> bool:
        """Whether the one who asked (see Request) may write to the repository."""
        ...

    def pull(self, number: int) -> Pull:
        """Return a pull request as it is now."""
        ...

    def propose(self, branch: str, target: str, title: str, body: str) -> Proposal:
        """Open a pull request from ``branch`` into ``target``, or bring the one that is open up to date."""
        ...

    def comment(self, kind: str, number: int, marker: str, body: str) -> None:
        """Write a comment that begins with ``marker``, or bring our own one that does up to date."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
