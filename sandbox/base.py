"""The seam to the place where the work happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command did. A failing command is a value, not an error.

    ``exit_code`` is None when the command ran out of time and was killed; a death by signal N is 128 + N.
    ``output`` is standard output and standard error as they came, head and tail kept; ``truncated_bytes`` were left out
    of the middle, where a line of its own states the cut.
    """

    exit_code: int | None
    output: bytes
    duration_s: float
    truncated_bytes: int = 0


class Sandbox(Protocol):
    """A private copy of a repository, and commands that run in it.

    Paths are relative to the workspace (or absolute inside the sandbox). Every verb raises SandboxError only when the
    sandbox itself is broken; ``read`` of a path that is not there raises FileNotFoundError, of a folder
    IsADirectoryError, as the builtin open would.
    """

    @property
    def workspace(self) -> str:
        """Where the copy lives, seen from inside (``/workspace``)."""
        ...

    def exec(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """Run a command in a process group of its own; at the timeout the whole group is killed.

        A program that is not there is exit code 127, one that may not be executed 126. ``cwd`` is the workspace by
        default; ``env`` adds to the sandbox's own small environment.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        ...

    def write(self, path: str, data: bytes, executable: bool | None = None) -> None:
        """Write a file whole (parents made, bits kept unless ``executable`` says otherwise)."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file."""
        ...

    def diff(self) -> bytes:
        """One unified diff (binary, modes, renames) from the copied state to now: untracked files in, ignored ones out."""
        ...

    def undo(self) -> None:
        """Restore the workspace to the copied state, so that ``diff`` is empty; ignored files stay."""
        ...

    def close(self, keep: bool = False) -> None:
        """Remove the sandbox; with ``keep``, leave a container alone for a while, for ``attach``. May be called twice."""
        ...
