"""The interface of a tool."""

from __future__ import annotations

from typing import Protocol

from agent.conversation import ToolSpec
from agent.events import ToolResult
from sandbox.base import Sandbox


class Tool(Protocol):
    """Something the model can call.

    ``name`` is ours (shell, python, apply_patch, plan, open_file, …). agent/tools/open.py decides how a tool is *declared*
    (trained or generic names), agent/tools/names.py which spellings of names and arguments reach it.
    """

    @property
    def name(self) -> str:
        """Our name for the tool."""
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
        """Run a call whose body is ``text``. A mistake of the model gives a result with ok = False.

        Raises SandboxError if the sandbox itself is broken, and nothing else.
        """
        ...
