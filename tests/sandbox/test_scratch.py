from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sandbox import scratch
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def age(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def test_a_folder_is_gone_after_its_block(own_folder: Path) -> None:
    with scratch.folder("pack") as path:
        (path / "file").write_text("x")
        assert path.parent == own_folder
    assert not list(own_folder.iterdir())


def test_only_what_nobody_holds_is_abandoned(own_folder: Path) -> None:
    code = (
        "import os, signal, sys, tempfile\ntempfile.tempdir = sys.argv[1]\nfrom sandbox import scratch\n"
        "scratch.make('pack')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(own_folder)], check=False).returncode == -9
    (left,) = own_folder.iterdir()
    assert scratch.abandoned() == []  # too new to be sure
    age(left)
    (own_folder / "gpt-oss-agent-link-x").symlink_to(Path.home())
    (own_folder / "somebody-else").mkdir()
    age(own_folder / "somebody-else")
    with scratch.folder("apply") as held:
        age(held)
        assert scratch.abandoned() == [left]


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[2]
from sandbox import snapshot
from sandbox.open import SandboxOptions, open_sandbox
box = open_sandbox(SandboxOptions(run="x", kind="none"), snapshot.load(Path(sys.argv[1])))
box.exec(["sh", "-c", "(setsid sleep 9 >/dev/null 2>&1 &)"], 10)
if sys.argv[3] == "helper too":
    box.exec(["sh", "-c", f"kill -9 {box.exec(['sh', '-c', 'echo $PPID'], 5).output.decode()}"], 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_local_sandbox_is_its_helper_s(snapshot: Snapshot, own_folder: Path) -> None:
    """Held while it serves, closed to its commands, and removed by it when the agent is killed."""
    box = open_sandbox(SandboxOptions(run="x", kind="none"), snapshot)
    try:
        (folder,) = own_folder.iterdir()
        age(folder)
        assert scratch.abandoned() == []
        box.exec(["sh", "-c", "sleep 9 >/dev/null 2>&1 &"], 5)
    finally:
        box.close()
    assert not list(own_folder.iterdir())
    subprocess.run([sys.executable, "-c", KILLED, str(snapshot.git_dir.parent), str(own_folder), ""], check=False)
    for _ in range(100):
        if not list(own_folder.iterdir()):
            break
        time.sleep(0.1)
    assert not list(own_folder.iterdir())


def test_a_killed_helper_leaves_a_folder_that_is_found(snapshot: Snapshot, own_folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", KILLED, str(snapshot.git_dir.parent), str(own_folder), "helper too"],
        check=False,
        capture_output=True,
    )
    (left,) = own_folder.iterdir()
    age(left)
    assert scratch.abandoned() == [left]
