"""The shell tool: one command in the sandbox, each in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.conversation import ToolSpec
from agent.events import ToolResult
from agent.patch.model import EXAMPLE as PATCH_EXAMPLE
from agent.tools.text import CallError, arguments, decoded, refuse, text_argument
from sandbox.base import ExecResult, Sandbox

EXAMPLE = '{"command": ["bash", "-lc", "grep -rn slugify src | head"]}'

DESCRIPTION = (
    "Run one command in the repository's sandbox and get its exit code and output (standard output and error together). "
    "Every call is a fresh process that starts in the repository's root: a cd or a variable does not last. "
    "Commands must not wait for input."
)

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'The program and its arguments; for a command line: ["bash", "-lc", "..."].',
        },
        "workdir": {"type": "string", "description": "Folder to run in, if not the repository's root."},
        "timeout": {"type": "integer", "description": "Seconds after which the command is killed."},
    },
    "required": ["command"],
}

MOST_MS = 1e12  # dividing an integer of hundreds of digits raises OverflowError

# bash if there is one, otherwise sh. Not as a login shell, because /etc/profile would reset PATH and lose a virtual environment.
_SCRIPT = 'cd -- "$1" && if command -v bash >/dev/null 2>&1; then exec bash -c "$0"; else exec sh -c "$0"; fi'
_PROGRAM = 'cd -- "$0" && exec "$@"'
_SHELLS = {"bash", "sh", "/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh", "zsh", "dash"}
_SHELL_FLAGS = {"-c", "-lc", "-cl", "-l -c", "-ec", "-lec", "-exc", "-xc", "-ic", "-lic"}
_PATCH_COMMAND = re.compile(r"(?:^|[;&|\n(])[ \t]*apply_?patch\b(?!\s*[=(:.,])")


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands for at most ``timeout_s`` seconds and shows at most ``max_output_bytes`` of what they print."""

    timeout_s: float
    max_output_bytes: int
    name: str = "shell"
    writes: bool = True

    @property
    def spec(self) -> ToolSpec:
        """The generic declaration."""
        return ToolSpec(self.name, DESCRIPTION, PARAMETERS)

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        """Run ``{"command": […] or "…", "workdir"?, "timeout"?}``. Raises SandboxError when the sandbox is broken."""
        try:
            given = arguments(text, EXAMPLE)
            workdir = text_argument(given, "workdir", EXAMPLE, "") or "."
            argv = _argv(given.get("command"), workdir)
            timeout_s = self._timeout_s(given.get("timeout"))
        except CallError as error:
            return refuse(str(error))
        result = sandbox.exec(argv, timeout_s, max_output_bytes=self.max_output_bytes)
        return observed(result, timeout_s, sandbox.workspace if workdir == "." else workdir)

    def _timeout_s(self, wanted: object) -> float:
        if wanted is None:
            return self.timeout_s
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not wanted > 0:  # also refuses NaN
            raise CallError(
                f"The argument 'timeout' must be a number of seconds, not {wanted!r}. A correct call's body: {EXAMPLE}"
            )
        # Models give seconds or milliseconds. A quarter of an hour is more seconds than any command may take, so more is milliseconds.
        return min(min(wanted, MOST_MS) / 1000 if wanted >= 1000 else wanted, self.timeout_s)


def observed(result: ExecResult, timeout_s: float, cwd: str) -> ToolResult:
    """Return the result of a command in the form that the model reads."""
    if result.exit_code is None:
        status = f"none: the command was killed after {timeout_s:g} s; run less, or in the background with its output in a file"
    else:
        status = str(result.exit_code)
    output = decoded(result.output)
    end = "" if output.endswith("\n") or not output else "\n"
    shown = f"<exit_code>{status}</exit_code>\n<output>\n{output}{end}</output>\n<cwd>{cwd}</cwd>"
    if result.truncated_bytes:
        shown += f"\n<warning>{result.truncated_bytes} bytes from the middle of the output are left out; ask for less at once.</warning>"
    return ToolResult(
        shown,
        ok=result.exit_code is not None,
        exit_code=result.exit_code,
        duration_s=result.duration_s,
        cut_bytes=result.truncated_bytes,
    )


def _argv(command: object, workdir: str) -> Sequence[str]:
    """Return the argument vector to execute. Raises CallError if the command is invalid."""
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        words: list[str] = command
        if len(words) == 3 and words[0] in _SHELLS and words[1] in _SHELL_FLAGS:
            return _script(words[2], workdir) if words[0] != "zsh" else _program(words, workdir)
        if words[0] in {"apply_patch", "applypatch"}:
            raise CallError(_no_patch_command())
        return _program(words, workdir)
    if isinstance(command, str):
        return _script(command, workdir)
    what = "is missing" if command is None else f"must be a list of words or one line, not {command!r}"
    raise CallError(f"The argument 'command' {what}. A correct call's body: {EXAMPLE}")


def _script(script: str, workdir: str) -> Sequence[str]:
    if not script.strip():
        raise CallError(f"The command is empty. A correct call's body: {EXAMPLE}")
    if _PATCH_COMMAND.search(script):
        raise CallError(_no_patch_command())
    _refuse_nul(script)
    return ("/bin/sh", "-c", _SCRIPT, script, workdir)


def _program(words: Sequence[str], workdir: str) -> Sequence[str]:
    for word in words:
        _refuse_nul(word)
    return ("/bin/sh", "-c", _PROGRAM, workdir, *words) if workdir != "." else tuple(words)


def _refuse_nul(text: str) -> None:
    if "\0" in text:
        raise CallError("The command contains a NUL byte, which no program's arguments can hold.")


def _no_patch_command() -> str:
    return (
        "apply_patch is a tool of its own, not a command among others; nothing was run. Call the tool with the patch alone as "
        f"its body, then run the rest. A correct patch:\n{PATCH_EXAMPLE}"
    )
