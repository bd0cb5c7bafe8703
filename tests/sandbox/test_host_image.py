"""`--image host` mounts what is installed in a checkout: never what a repository only says is installed there."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sandbox import snapshot as snapshots
from sandbox.open import SandboxOptions, open_sandbox
from tests.sandbox.conftest import SMALL, commit

pytestmark = pytest.mark.docker


def read_inside(repository: Path, state: Path, *paths: Path | str) -> bytes:
    options = SandboxOptions(f"host-{uuid.uuid4().hex}", image="host", limits=SMALL)
    sandbox = open_sandbox(options, snapshots.take(repository, state))
    try:
        return sandbox.exec(("sh", "-c", 'for path; do cat "$path"; done', "cat", *map(str, paths)), 30).output
    finally:
        sandbox.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret"
    (path.parent / "bin").mkdir(parents=True)
    path.write_text("of the machine")
    (path.parent / "bin" / "plain").write_text("")
    return path


def test_a_link_for_installed_modules_is_not_followed(repository: Path, tmp_path: Path, secret: Path) -> None:
    (repository / "node_modules").symlink_to(secret.parent)
    commit(repository)
    seen = read_inside(repository, tmp_path / "state", secret, "node_modules/secret", "src/words.py")
    assert b"of the machine" not in seen
    assert b"def first" in seen


def test_an_environment_that_came_with_the_repository_is_none(repository: Path, tmp_path: Path, secret: Path) -> None:
    """What its python links to would be mounted, two folders further up."""
    environment = repository / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (environment / "bin" / "python3").symlink_to(secret.parent / "bin" / "plain")
    commit(repository)
    seen = read_inside(repository, tmp_path / "state", secret, "src/words.py")
    assert b"of the machine" not in seen
    assert b"def first" in seen


def test_what_is_installed_and_not_tracked_is_there(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text("node_modules/\n")
    commit(repository)
    (repository / "node_modules" / "left-pad").mkdir(parents=True)
    (repository / "node_modules" / "left-pad" / "index.js").write_text("pad")
    assert read_inside(repository, tmp_path / "state", "node_modules/left-pad/index.js") == b"pad"
