"""The interface between the loop and everything around it, and the limits of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.conversation import Message
from agent.events import CheckResult, Outcome, RunEnded, State, ToolResult


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a run; None means no limit. ``deadline_s`` is a time of the clock ``World.now_s``.

    ``window_tokens`` bounds a prompt and its answer together; ``answer_tokens`` bounds one answer.
    """

    turns: int = 200
    tokens: int | None = None
    deadline_s: float | None = None
    window_tokens: int | None = None
    answer_tokens: int = 32768


@dataclass(frozen=True, slots=True)
class Action:
    """A resolved call: our name of the tool, the function that runs it, and the kinds of repair that were needed to understand it.

    ``run`` raises only SandboxError.
    """

    tool: str
    run: Callable[[], ToolResult]
    repairs: tuple[str, ...] = ()


class World(Protocol):
    """Everything the loop needs from the outside. The real one is agent/workshop.py."""

    def resolve(self, call: Message) -> Action:
        """Return the action for a call. For an unknown tool, it is an action whose result lists the tools there are."""
        ...

    def check(self, when: str) -> tuple[CheckResult, ...]:
        """Run the checks (``when`` is ``before`` or ``after``) and return their results."""
        ...

    def verdict(self, state: State) -> tuple[Outcome, str]:
        """Judge the work by what was observed: return the outcome and its reason.

        NO_CHANGE and REFUSED need no Checked{after}; without one, everything else is UNVERIFIED.
        """
        ...

    def digests(self) -> dict[str, str]:
        """Return the changed files of the workspace, each with a short hash of its content ("" if it was deleted)."""
        ...

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        """Take the result out of the sandbox and return how the run ended."""
        ...

    def now_s(self) -> float:
        """Return the time of the run's own clock."""
        ...
