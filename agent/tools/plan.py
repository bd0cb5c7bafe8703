"""The plan tool: the model's plan, shown to the user and preserved by compaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.conversation import ToolSpec
from agent.events import PlanStep, StepState, ToolResult
from agent.tools.text import CallError, arguments, refuse
from sandbox.base import Sandbox

EXAMPLE = '{"steps": ["Reproduce the bug with a script", "Fix it", "Run the tests"], "current": 1}'

DESCRIPTION = (
    "State your plan before you act, and call again when a step is done or the plan changes: a few short steps, "
    "and which of them you are at."
)

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "items": {"type": "string"}, "description": "All steps, in order."},
        "current": {
            "type": "integer",
            "description": "Number of the step you are at, from 1; those before it are done. One more than there are steps: all are done.",
        },
    },
    "required": ["steps"],
}

MAX_STEPS = 40
MAX_STEP_CHARACTERS = 400
_MARKS = {StepState.COMPLETED: "[x]", StepState.IN_PROGRESS: "[>]", StepState.PENDING: "[ ]"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Each call sets the whole plan."""

    name: str = "plan"
    writes: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        return ToolSpec(self.name, DESCRIPTION, PARAMETERS)

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:  # noqa: ARG002 - the protocol's signature
        """Take ``{"steps": ["…" or {"text", "state"}], "current"?}`` and return the plan."""
        try:
            steps = _steps(arguments(text, EXAMPLE))
        except CallError as error:
            return refuse(str(error))
        lines = [f"{_MARKS[step.state]} {step.text}" for step in steps]
        return ToolResult("\n".join(["The plan now:", *lines]), plan=steps)


def _steps(given: dict[str, Any]) -> tuple[PlanStep, ...]:
    entries = given.get("steps")
    if not isinstance(entries, list) or not entries:
        raise CallError(f"The argument 'steps' must be a list of steps. A correct call's body: {EXAMPLE}")
    if len(entries) > MAX_STEPS:
        raise CallError(
            f"The plan has {len(entries)} steps; at most {MAX_STEPS} are taken. Say it in fewer, larger ones."
        )
    current = given.get("current")
    if current is not None and (isinstance(current, bool) or not isinstance(current, int) or current < 0):
        raise CallError(
            f"The argument 'current' must be the number of a step, not {current!r}. A correct call's body: {EXAMPLE}"
        )
    return tuple(_step(entry, number, current) for number, entry in enumerate(entries, 1))


def _step(entry: object, number: int, current: int | None) -> PlanStep:
    match entry:
        case str():
            text, state = entry, StepState.PENDING
        case {"text": str(text), **rest}:
            try:
                state = StepState(str(rest.get("state", StepState.PENDING)))
            except ValueError:
                known = ", ".join(StepState)
                raise CallError(f"Step {number} has the state {rest['state']!r}; it must be one of {known}.") from None
        case _:
            raise CallError(f"Step {number} is not text: {entry!r}. A correct call's body: {EXAMPLE}")
    if current is not None:
        state = (
            StepState.COMPLETED
            if number < current
            else StepState.IN_PROGRESS
            if number == current
            else StepState.PENDING
        )
    if not text.strip():
        raise CallError(f"Step {number} is empty. A correct call's body: {EXAMPLE}")
    return PlanStep(" ".join(text.split())[:MAX_STEP_CHARACTERS], state)
