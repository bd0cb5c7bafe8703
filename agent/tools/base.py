"""The seam to a tool."""

from __future__ import annotations

from typing import Protocol

from agent.conversation import ToolSpec
from agent.events import ToolResult
from sandbox.base import Sandbox


class Tool(Protocol):
    """Something the model can ask for.

    ``name`` is ours (shell, python, apply_patch, plan, open_file, …). How a tool is *declared* (trained or generic
    names) and which spellings of names and arguments reach it is the business of agent/tools/names.py.
    """

    @property
    def name(self) -> str:
        """Our name of the tool."""
        ...

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration: our name, flat JSON parameters."""
        ...

    @property
    def writes(self) -> bool:
        """Whether a call may change the workspace (`agent ask` offers only those that do not)."""
        ...

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Run a call whose body is ``text``. What the model did wrong is a result with ok = False.

        Raises SandboxError only when the sandbox itself is broken, and nothing else.
        """
        ...
