"""Real repositories, real helpers, a real engine."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.docker import Limits
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot

KINDS = [pytest.param("none", id="local"), pytest.param("docker", id="docker", marks=pytest.mark.docker)]
SMALL = Limits(memory_bytes=256 << 20, disk_bytes=64 << 20, pids=64)


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Run git as a person with a name would."""
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run([*command, *arguments], cwd=folder, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape")


def commit(folder: Path, message: str = "a change") -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a little history and one of everything."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / ".gitignore").write_text("*.pyc\n/build/\n")
    (folder / "src").mkdir()
    (folder / "src" / "words.py").write_text("def first(text):\n    return text.split()[0]\n")
    (folder / "run.sh").write_text("#!/bin/sh\necho run\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "blob.bin").write_bytes(bytes(range(256)))
    (folder / "link").symlink_to("src/words.py")
    commit(folder, "one")
    (folder / "README").write_text("words\n")
    commit(folder, "two")
    git(folder, "tag", "-a", "-m", "first", "v1.0")
    return folder


@pytest.fixture
def snapshot(repository: Path, tmp_path: Path) -> Snapshot:
    return snapshots.take(repository, tmp_path / "state")


@pytest.fixture
def run_name() -> str:
    """No other sandbox on the engine has it: other tests, and other runs of these, use the same one at the same time."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def opened(run_name: str) -> Iterator[Callable[..., Sandbox]]:
    """Opens sandboxes, and closes what it opened."""
    made: list[Sandbox] = []

    def opener(
        kind: str, snapshot: Snapshot, limits: Limits = SMALL, image: str = "host", patch: bytes = b""
    ) -> Sandbox:
        options = SandboxOptions(run_name, kind=kind, image=image, limits=limits)
        made.append(open_sandbox(options, snapshot, patch))
        return made[-1]

    yield opener
    for sandbox in made:
        sandbox.close()


@pytest.fixture(params=KINDS)
def sandbox(request: pytest.FixtureRequest, snapshot: Snapshot, opened: Callable[..., Sandbox]) -> Sandbox:
    """The contract suite runs over every kind."""
    return opened(request.param, snapshot)


def sh(sandbox: Sandbox, script: str, timeout_s: float = 20.0) -> str:
    """Run a script that must succeed; return its output."""
    done = sandbox.exec(["sh", "-c", script], timeout_s)
    assert done.exit_code == 0, (done.exit_code, done.output)
    return done.output.decode("utf-8", "surrogateescape")
