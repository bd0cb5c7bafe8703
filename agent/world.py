"""The seam between the loop and everything around it, and the limits of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.conversation import Message
from agent.events import CheckResult, Outcome, RunEnded, State, ToolResult


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run ends at the latest. ``deadline_s`` is a time of the run's own clock; None is no limit.

    ``window_tokens`` is what a prompt and its answer may be together; ``answer_tokens`` what one answer may be.
    """

    turns: int = 200
    tokens: int | None = None
    deadline_s: float | None = None
    window_tokens: int | None = None
    answer_tokens: int = 32768


@dataclass(frozen=True, slots=True)
class Action:
    """A call, resolved: our name of the tool, what runs it, and the kinds of what had to be repaired to understand it.

    ``run`` raises SandboxError only.
    """

    tool: str
    run: Callable[[], ToolResult]
    repairs: tuple[str, ...] = ()


class World(Protocol):
    """What the loop needs of everything around it. The session is the one that is real."""

    def resolve(self, call: Message) -> Action:
        """Return what a call means. An unknown tool is an action whose result says which ones there are."""
        ...

    def check(self, when: str) -> tuple[CheckResult, ...]:
        """Run the checks (``before`` or ``after``) and return what they did."""
        ...

    def verdict(self, state: State) -> tuple[Outcome, str]:
        """Say how the work stands by what was observed: the outcome and its reason.

        NO_CHANGE and REFUSED need no Checked{after}; without it, all else is UNVERIFIED.
        """
        ...

    def digests(self) -> dict[str, str]:
        """Return the changed files of the workspace, each with a short hash of its content ("" where it is gone)."""
        ...

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        """Take the result out of the sandbox and say how the run ended."""
        ...

    def now_s(self) -> float:
        """Return the time of the run's own clock."""
        ...
