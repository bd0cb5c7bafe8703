"""A real repository in a real sandbox, for tests of tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import RunConfig
from agent.events import ToolResult
from agent.tools.open import open_tools
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.open import SandboxOptions, open_sandbox

KINDS = [pytest.param("none", id="local"), pytest.param("docker", id="docker", marks=pytest.mark.docker)]

FILES: dict[str, bytes] = {
    ".gitignore": b"build/\n",
    "src/words.py": b"def first(text):\n    return text.split()[0]\n\n\ndef last(text):\n    return text.split()[-1]\n",
    "src/deep/er/x.txt": b"needle 1\n",
    "latin.txt": b"caf\xe9\nplain\n",
    "crlf.txt": b"a\r\nb\r\n",
    "long.txt": b"".join(b"line %d\n" % number for number in range(1, 5001)),
    "wide.txt": b"x" * 50_000 + b"\nend",
    "-dash": b"needle 2\n",
    "empty": b"",
    "run.sh": b"#!/bin/sh\necho ran\n",
}


def make(folder: Path) -> Path:
    """A repository with FILES, one link that leaves it and one that does not."""
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "run.sh").chmod(0o755)
    (folder / "out").symlink_to("/tmp")
    (folder / "inner.py").symlink_to("src/words.py")
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=folder, check=True, capture_output=True)
    return folder


class Workshop:
    """Tools by name over one sandbox, called with arguments as a dictionary or a body as text."""

    def __init__(self, sandbox: Sandbox, config: RunConfig) -> None:
        self.sandbox = sandbox
        self.tools = open_tools(config)

    def __call__(self, name: str, body: str | None = None, **arguments: object) -> ToolResult:
        return self.tools[name].run(json.dumps(arguments) if body is None else body, self.sandbox)


def open_workshop(kind: str, folder: Path) -> Iterator[Workshop]:
    """A workshop in a fresh sandbox, closed in the end."""
    repository = folder / "project"
    repository.mkdir()
    taken = snapshots.take(make(repository), folder / "state")
    image = "host" if kind == "docker" else None
    sandbox = open_sandbox(SandboxOptions(run=f"tools-{folder.name}-{kind}", kind=kind, image=image), taken)
    try:
        yield Workshop(sandbox, RunConfig(command_timeout_s=20.0, max_output_bytes=4000, sandbox=kind))
    finally:
        sandbox.close()
