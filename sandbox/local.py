"""``--sandbox none``: the same helper and protocol with a private copy in a temporary folder, directly on this machine.

It protects nothing: commands run as the user. It exists for ``--i-know-this-runs-on-my-machine`` and for fast tests.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sandbox import scratch
from sandbox.client import Client
from sandbox.guest.removal import remove_tree
from sandbox.link import Link, program
from sandbox.snapshot import Snapshot

GRACE_S = 3600.0
LAST_WORDS_BYTES = 4096


class PipeWire:
    """A helper process on this machine, over pipes."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._errors = process, errors
        self._in, self._out = process.stdin, process.stdout
        self._woken_fd, self._waker_fd = os.pipe()
        self._closed = False

    def read(self, timeout_s: float) -> bytes | None:
        """Return what arrived; see Wire."""
        ready, _, _ = select.select([self._out.fileno(), self._woken_fd], [], [], timeout_s)
        if not ready:
            return None
        return b"" if self._closed else os.read(self._out.fileno(), 1 << 18)

    def write(self, data: bytes) -> None:
        """Write everything; see Wire."""
        try:
            self._in.write(data)
            self._in.flush()
        except ValueError as error:  # closed by another thread
            raise BrokenPipeError("the sandbox was closed") from error

    def close(self) -> None:
        """Disconnect: at the end of its input the helper kills what runs, removes the copy and exits."""
        if not self._closed:
            self._closed = True
            os.write(self._waker_fd, b"x")
            try:
                self._in.close()
            except BrokenPipeError:
                return

    def last_words(self) -> str:
        """Return the end of its standard error; see Wire."""
        try:
            return self._errors.read_bytes()[-LAST_WORDS_BYTES:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def end(self) -> None:
        """Wait until it has exited."""
        self._out.close()  # first: the helper may be writing a reply that nobody reads any more
        try:
            self._process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._woken_fd)
        os.close(self._waker_fd)


def start(snapshot: Snapshot, env: Mapping[str, str]) -> Client:
    """Start a helper for a new temporary folder. sandbox/open.py copies the files in."""
    folder, held = scratch.make("local")
    workspace, home, errors = folder / "workspace", folder / "home", folder / "helper.log"
    workspace.mkdir()
    settings = {
        "workspace": str(workspace),
        "env": {**env, "HOME": str(home)},
        "grace_s": GRACE_S,
        "remove": str(folder),
        "held_fd": held,
        "links": {},
    }
    with errors.open("wb") as log:
        process = subprocess.Popen(
            program(sys.executable, settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            pass_fds=[held],
        )
    os.close(held)  # from here on only the helper holds the lock: it may outlive this process
    wire = PipeWire(process, errors)
    link = Link(wire)
    try:
        link.hello(GRACE_S, timeout_s=30.0)
    except BaseException:
        link.close()
        wire.end()
        remove_tree(str(folder))
        raise
    return Client(link, str(workspace), snapshot, lambda _: wire.end())
