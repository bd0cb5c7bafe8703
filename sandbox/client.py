"""The Sandbox over a helper process: the same for a container and for a folder of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox import snapshot as snapshots
from sandbox.base import ExecResult
from sandbox.errors import DiffRefused, SandboxError
from sandbox.guest import files
from sandbox.link import Link, Reply
from sandbox.snapshot import Snapshot

REPLY_TIMEOUT_S = 120.0
MAX_DIFF_BYTES = 256 << 20
MAX_DIFF_FILES = 50_000  # git's fast-import takes time quadratic in the files of a folder
MAX_FILE_BYTES = 64 << 20


@dataclass(slots=True)
class Client:
    """The methods of a Sandbox as requests to its helper. ``end`` removes the sandbox, or (given True) only disconnects from it."""

    link: Link
    workspace: str
    snapshot: Snapshot
    end: Callable[[bool], None]
    _diffing: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def exec(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """Run a command; see Sandbox."""
        head = {
            "verb": "exec",
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env or {}),
            "timeout_s": timeout_s,
            "limit_bytes": max_output_bytes,
        }
        reply = self.link.request(head, [stdin], timeout_s + REPLY_TIMEOUT_S)
        status = reply.status
        return ExecResult(status["exit"], reply.data, status["duration_s"], status["cut_bytes"])

    def read(self, path: str) -> bytes:
        """Return a file's bytes; see Sandbox. Files larger than MAX_FILE_BYTES are refused: a sparse file may be endless."""
        return self._ask({"verb": "read", "path": path, "limit_bytes": MAX_FILE_BYTES}, path).data

    def write(self, path: str, data: bytes, executable: bool | None = None) -> None:
        """Write a file whole; see Sandbox."""
        self._ask({"verb": "write", "path": path, "executable": executable}, path, [data])

    def remove(self, path: str) -> None:
        """Remove a file; see Sandbox."""
        self._ask({"verb": "remove", "path": path}, path)

    def diff(self) -> bytes:
        """Return what changed since the copy, compared with the host's own snapshot; see Sandbox.

        Raises DiffRefused if it is more than MAX_DIFF_BYTES or MAX_DIFF_FILES, or touches a submodule.
        """
        with self._diffing:
            changes = self._changes()
            return snapshots.diff(self.snapshot, snapshots.result(self.snapshot, changes)) if changes else b""

    def close(self, keep: bool = False) -> None:
        """Remove it; see Sandbox."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self.link.close()
                self.end(keep)

    def fill(self, parts: Iterable[bytes], excludes: bytes, skip: Sequence[str]) -> None:
        """Copy the snapshot in. Raises SandboxError if it does not fit."""
        self._ask({"verb": "begin", "excludes": excludes.decode("utf-8", "surrogateescape"), "skip": list(skip)}, "")
        self._load(parts, keep=True)

    def settle(self) -> None:
        """Mark the copy as complete: from here on the sandbox can be attached to (sandbox/docker.py)."""
        self._ask({"verb": "whole"}, "")

    def undo(self) -> None:
        """Restore the copied state of the workspace; see Sandbox."""
        with self._diffing:
            changes = self._changes()
            if changes:
                self._bring(snapshots.result(self.snapshot, changes), self.snapshot.tree)

    def restore(self, patch: bytes) -> None:
        """Apply a patch to the workspace, which is in the state of the snapshot."""
        self._bring(self.snapshot.tree, snapshots.apply(self.snapshot, patch))

    def _changes(self) -> bytes:
        try:
            head = {"verb": "changes", "limit_bytes": MAX_DIFF_BYTES, "limit_files": MAX_DIFF_FILES}
            return self._ask(head, self.workspace).data
        except OSError as error:
            raise SandboxError(
                f"what changed in the sandbox cannot be read: {error.strerror}; resume the run"
            ) from error

    def _bring(self, here: str, there: str) -> None:
        """Change the workspace from one tree to another."""
        before = {item.path: item for item in snapshots.items(self.snapshot, here)}
        after = {item.path: item for item in snapshots.items(self.snapshot, there)}
        changed = [item for path, item in after.items() if before.get(path) != item]
        gone = [files.entry(path, files.GONE, b"") for path in before.keys() - after.keys()]
        self._load([*gone, *snapshots.contents(self.snapshot, changed)], keep=False)

    def _load(self, parts: Iterable[bytes], keep: bool) -> None:
        try:
            self._ask({"verb": "load", "keep": keep}, self.workspace, parts)
        except OSError as error:
            raise SandboxError(
                f"the repository could not be copied into the sandbox: {error.strerror}; "
                "if it is full, raise disk_bytes (--disk): a workspace that memory cannot hold is put on a volume"
            ) from error

    def _ask(self, head: Mapping[str, Any], path: str, body: Iterable[bytes] = ()) -> Reply:
        reply = self.link.request(head, body, REPLY_TIMEOUT_S)
        if "errno" in reply.status:
            raise OSError(reply.status["errno"], reply.status["error"], path)
        if "too_large" in reply.status:
            limit = MAX_DIFF_BYTES >> 20
            raise DiffRefused(
                f"{reply.status['too_large']}: the changes are more than {limit} MiB or {MAX_DIFF_FILES} files; "
                "add build output to .gitignore, or remove it"
            )
        return reply
