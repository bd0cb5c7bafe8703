"""The interface of a sandbox, where all work of a run happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a command. A failing command is a value, not an error.

    ``exit_code`` is None if the command timed out and was killed; death by signal N is 128 + N.
    ``output`` is standard output and standard error, interleaved as they arrived. Of a long output the head and the tail are
    kept: ``truncated_bytes`` were left out of the middle, and a line there says so.
    """

    exit_code: int | None
    output: bytes
    duration_s: float
    truncated_bytes: int = 0


class Sandbox(Protocol):
    """A private copy of a repository, and commands that run in it.

    Paths are relative to the workspace (or absolute inside the sandbox). Every method raises SandboxError only if the
    sandbox itself is broken; ``read`` raises FileNotFoundError for a missing path and IsADirectoryError for a folder, as
    the builtin open would.
    """

    @property
    def workspace(self) -> str:
        """The path of the copy inside the sandbox (``/workspace``)."""
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

        The exit code is 127 for a program that does not exist and 126 for one that may not be executed. ``cwd`` is the
        workspace by default; ``env`` is added to the sandbox's own small environment.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        ...

    def write(self, path: str, data: bytes, executable: bool | None = None) -> None:
        """Write a whole file. Missing parent folders are created; mode bits are kept unless ``executable`` says otherwise."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file."""
        ...

    def diff(self) -> bytes:
        """Return one unified diff from the copied state to now, with binary files, modes and renames.

        It includes untracked files, but not ignored ones.
        """
        ...

    def undo(self) -> None:
        """Restore the copied state of the workspace, so that ``diff`` is empty; ignored files stay."""
        ...

    def close(self, keep: bool = False) -> None:
        """Remove the sandbox; with ``keep``, leave a container running for a while, for ``attach``.

        May be called twice: the second call waits for the first.
        """
        ...
