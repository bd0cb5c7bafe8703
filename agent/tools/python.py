"""The python tool: an interpreter in the sandbox that keeps its variables between calls, or a new one for each call."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from agent.conversation import ToolSpec
from agent.events import ToolResult
from agent.tools.text import decoded, refuse
from sandbox.base import ExecResult, Sandbox

STATEFUL = (
    "Execute Python in the repository's sandbox. Variables and imports live across calls, as in a notebook: what is printed "
    "comes back, and the value of the last expression. After {timeout_s:g} s the interpreter is killed and its variables are lost."
)
STATELESS = (
    "Execute a Python script in the repository's sandbox. Each call is a fresh interpreter: only what the script prints comes "
    "back. It is killed after {timeout_s:g} s."
)

TRAINED_TIMEOUT_S = 120.0  # the description of python in gpt-oss's training states this limit, and a writable /mnt/data

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Python source."}},
    "required": ["code"],
}

NO_PYTHON = 127
# Exit codes of the client in the sandbox (see agent/tools/client.py).
TIMED_OUT, DIED = 124, 125
_GRACE_S = 10.0  # time for the client to kill an interpreter that timed out, before the sandbox kills the client


@dataclass(frozen=True, slots=True)
class Python:
    """Runs Python source for at most ``timeout_s`` seconds and shows at most ``max_output_bytes`` of what it prints.

    ``has_data_folder``: the sandbox has the /mnt/data that the trained description mentions.
    """

    timeout_s: float
    max_output_bytes: int
    stateful: bool = True
    has_data_folder: bool = False
    name: str = "python"
    writes: bool = True

    @property
    def description(self) -> str:
        """The description for the model."""
        return (STATEFUL if self.stateful else STATELESS).format(timeout_s=self.timeout_s)

    @property
    def is_as_trained(self) -> bool:
        """Whether the description that gpt-oss was trained on is accurate."""
        return self.stateful and self.has_data_folder and self.timeout_s == TRAINED_TIMEOUT_S

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        return ToolSpec(self.name, self.description, PARAMETERS)

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Execute the source ``text``. Raises SandboxError if the sandbox is broken."""
        if not text.strip():
            return refuse("The call has no source. A correct call's body: print(1 + 1)")
        source = text.encode("utf-8", "replace")
        if self.stateful:
            # The folder's name comes from the workspace, so a resumed run finds its interpreter again.
            key = hashlib.sha256(sandbox.workspace.encode()).hexdigest()[:16]
            argv = ["python3", "-I", "-S", "-c", program("client"), key, str(self.timeout_s), program("driver")]
            result = sandbox.exec(argv, self.timeout_s + _GRACE_S, source, max_output_bytes=self.max_output_bytes)
        else:
            result = sandbox.exec(["python3", "-"], self.timeout_s, source, max_output_bytes=self.max_output_bytes)
        return self._observed(result)

    def _observed(self, result: ExecResult) -> ToolResult:
        output = decoded(result.output)
        ok = True
        lost = " All variables are lost; the next call starts a fresh interpreter." if self.stateful else ""
        if result.exit_code == NO_PYTHON and not output.strip().startswith("Traceback"):
            return ToolResult("There is no python3 in this sandbox; use the shell.", ok=False, exit_code=NO_PYTHON)
        if result.exit_code is None or (self.stateful and result.exit_code == TIMED_OUT):
            ok = False
            output = f"{output.rstrip()}\n[Killed after {self.timeout_s:g} s.{lost}]"
        elif self.stateful and result.exit_code == DIED:
            ok = False
            output = f"{output.rstrip()}\n[The interpreter died.{lost}]"
        elif not output:
            output = "[no output: print what you want to see]"
        if result.truncated_bytes:
            cut = result.truncated_bytes
            output = f"{output.rstrip()}\n[{cut} bytes from the middle of the output are left out; print less at once.]"
        return ToolResult(
            output.lstrip("\n"),
            ok=ok,
            exit_code=result.exit_code,
            duration_s=result.duration_s,
            cut_bytes=result.truncated_bytes,
        )


@cache
def program(name: str) -> str:
    """Return the source of a program that runs in the sandbox."""
    return files("agent.tools").joinpath(f"{name}.py").read_text(encoding="utf-8")
