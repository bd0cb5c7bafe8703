from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sandbox import local, scratch
from sandbox.errors import SandboxLost
from sandbox.guest.removal import remove_tree
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from tests.sandbox.conftest import sh


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
    assert scratch.abandoned(scratch.temporary()) == []  # too new to be sure
    age(left)
    (own_folder / "gpt-oss-agent-link-x").symlink_to(Path.home())
    (own_folder / "somebody-else").mkdir()
    age(own_folder / "somebody-else")
    with scratch.folder("apply") as held:
        age(held)
        assert scratch.abandoned(scratch.temporary()) == [left]
        with scratch.folder("pack"):
            assert not left.exists(), "the next for the same removes it"
            assert held.exists()


def test_what_a_killed_process_was_staging_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom sandbox import scratch\n"
        "with scratch.staging(Path(sys.argv[1])) as new:\n (new / 'x').mkdir()\n os.kill(os.getpid(), signal.SIGKILL)"
    )
    place = tmp_path / "kept" / "place"
    place.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", code, str(place.parent)], check=False)
    (left,) = place.parent.glob(".new-*")
    with scratch.staging(place.parent) as young:
        assert left.exists()  # too new to be sure
        age(left)
        age(young)
        with scratch.staging(place.parent) as fresh:
            assert sorted(place.parent.iterdir()) == sorted([young, fresh, place])  # the first is held
    assert list(place.parent.iterdir()) == [place]


def test_a_folder_is_removed_however_deep_and_closed_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(1200):  # more levels than Python calls itself, and a longer path than the kernel takes
        os.mkdir("below", dir_fd=at)
        os.symlink(kept, "link", dir_fd=at)
        below = os.open("below", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (top / "closed" / "folder").mkdir(parents=True)
    (top / "closed").chmod(0)
    remove_tree(str(top))
    assert not top.exists()
    assert (kept / "file").exists()
    remove_tree(str(top))  # and one that is not there is no error


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
        assert scratch.abandoned(scratch.temporary()) == []
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


def test_a_reply_that_nobody_reads_does_not_hold_up_the_end(
    snapshot: Snapshot, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = open_sandbox(SandboxOptions(run="x", kind="none"), snapshot)
    box.write("large", bytes(1 << 20))  # more than a pipe holds
    stalled, read = threading.Event(), local.PipeWire.read

    def stall(wire: local.PipeWire, timeout_s: float) -> bytes | None:
        stalled.set()
        while not wire._closed:
            time.sleep(0.01)
        return read(wire, timeout_s)

    def ask() -> None:
        with pytest.raises(SandboxLost):
            box.read("large")

    monkeypatch.setattr(local.PipeWire, "read", stall)
    assert sh(box, "echo") == "\n"  # what is read now; the next time it stalls
    asking = threading.Thread(target=ask)
    asking.start()
    assert stalled.wait(60)
    time.sleep(0.2)  # for the helper to fill the pipe
    began_s = time.monotonic()
    box.close()
    assert time.monotonic() - began_s < 20
    asking.join()
    assert not list(own_folder.iterdir())


def test_a_killed_helper_leaves_a_folder_that_is_found(snapshot: Snapshot, own_folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", KILLED, str(snapshot.git_dir.parent), str(own_folder), "helper too"],
        check=False,
        capture_output=True,
    )
    (left,) = own_folder.iterdir()
    age(left)
    assert scratch.abandoned(scratch.temporary()) == [left]
