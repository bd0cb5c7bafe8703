"""The helper must run on whatever Python an image has: 3.6 and later."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox import guest, local
from sandbox.errors import SandboxLost
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from tests.sandbox.conftest import sh

SOURCES = sorted(Path(next(iter(guest.__path__))).glob("*.py"))


def pythons() -> list[str]:
    """The one of these tests, and what else starts on this machine."""
    named = filter(None, (shutil.which(f"python3.{minor}") for minor in range(6, 15)))
    start = [path for path in named if not subprocess.run([path, "-V"], capture_output=True, check=False).returncode]
    return sorted({sys.executable, *start})


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_syntax_is_that_of_3_6(source: Path) -> None:
    tree = ast.parse(source.read_text("utf-8"), feature_version=(3, 6))
    newer = {"removeprefix", "removesuffix", "is_relative_to", "walrus", "cached_property", "to_thread", "pidfd_open"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


@pytest.mark.parametrize("python", pythons())
def test_it_serves_on_every_python_here(python: str, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "sys", SimpleNamespace(executable=python))
    box = open_sandbox(SandboxOptions("versions", kind="none"), snapshot)
    try:
        assert sh(box, "cat README") == "words\n"
        assert box.exec(["sleep", "30"], 0.3).exit_code is None
        box.write("README", b"other\n")
        assert b"+other" in box.diff()
    finally:
        box.close()


def test_a_python_that_does_not_start_leaves_nothing(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "sys", SimpleNamespace(executable="/bin/false"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SandboxLost, match="the sandbox is gone"):
        open_sandbox(SandboxOptions("versions", kind="none"), snapshot)
    assert not list(tmp_path.glob("gpt-oss-agent-*"))
