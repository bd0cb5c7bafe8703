"""`agent patch apply`: a patch on this machine's files, confined and all or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def patch(*lines: str) -> bytes:
    return "\n".join(["*** Begin Patch", *lines, "*** End Patch", ""]).encode()


CHANGE = patch("*** Update File: a.txt", "@@", "-one", "+two")


def agent(root: Path, text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "agent", "patch", "apply", "--root", str(root), *arguments]
    return subprocess.run(command, input=text, cwd=ROOT, capture_output=True, check=False)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_bytes(b"[core]\n")
    (folder / "a.txt").write_bytes(b"one\n")
    (folder / "run").write_bytes(b"one\n")
    (folder / "run").chmod(0o755)
    (folder / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "outside").mkdir()
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "gitlink").symlink_to(".git")
    (folder / "inner").symlink_to("a.txt")
    return folder


def test_applied_from_standard_input_and_from_a_file(root: Path, tmp_path: Path) -> None:
    done = agent(root, CHANGE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"M a.txt\n", b"")
    assert (root / "a.txt").read_bytes() == b"two\n"
    (tmp_path / "p").write_bytes(patch("*** Delete File: a.txt", "*** Add File: new/b", "+x"))
    assert agent(root, b"", str(tmp_path / "p")).stdout == b"D a.txt\nA new/b\n"
    assert (root / "new" / "b").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_notes_go_to_standard_error(root: Path) -> None:
    done = agent(root, b"Look:\n" + CHANGE, "-")
    assert (done.returncode, done.stdout) == (0, b"M a.txt\n")
    assert done.stderr == b"note: text around the patch was left out\n"


def test_exit_codes_of_what_is_no_patch_and_of_what_does_not_fit(root: Path) -> None:
    before = tree(root)
    nothing, wrong = agent(root, b"hello"), agent(root, CHANGE.replace(b"-one", b"-nine"))
    assert (nothing.returncode, wrong.returncode) == (2, 5)
    assert b"first line must be" in nothing.stderr
    assert b"line 4 of the patch" in wrong.stderr
    assert b"Traceback" not in nothing.stderr + wrong.stderr
    assert tree(root) == before


def test_bits_and_bytes_stay(root: Path) -> None:
    moved = patch("*** Update File: run", "*** Move to: bin/run", "@@", "-one", "+two")
    assert agent(root, moved).returncode == 0
    assert (root / "bin" / "run").stat().st_mode & 0o777 == 0o755
    assert (
        agent(root, b"*** Begin Patch\n*** Update File: latin\n@@\n caf\xe9\n+caf\xe9 2\n*** End Patch").returncode == 0
    )
    assert (root / "latin").read_bytes() == b"caf\xe9\ncaf\xe9 2\n"
    assert agent(root, CHANGE.replace(b"a.txt", b"inner")).returncode == 0
    assert (root / "inner").is_symlink()
    assert (root / "a.txt").read_bytes() == b"two\n"


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "out/x",
        "out/new/x",
        ".git/config",
        "gitlink/config",
        "gitlink/hooks/x",
        "new",
        "a.txt/x",
        "inner",
    ],
)
def test_what_leaves_or_fails_changes_nothing(root: Path, path: str) -> None:
    (root / "new").mkdir()
    before = tree(root)
    done = agent(
        root,
        patch(
            "*** Add File: made/ok", "+x", "*** Update File: a.txt", "@@", "-one", "+two", f"*** Add File: {path}", "+x"
        ),
    )
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    assert tree(root) == before
    assert not (root / "made").exists()
    assert not list((root.parent / "outside").iterdir())
