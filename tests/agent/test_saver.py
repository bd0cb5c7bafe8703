"""The saver: soon after a change, once for many, and never in the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.saver import Saver, write_whole
from sandbox.errors import DiffRefused, SandboxLost, WorktreeError


def wait_for(condition: threading.Event) -> None:
    assert condition.wait(60)


def test_a_change_is_saved_once_it_is_quiet() -> None:
    saved = threading.Event()
    saver = Saver(saved.set, quiet_s=0.01)
    assert not saved.wait(0.1), "nothing changed, nothing is saved"
    saver.changed()
    wait_for(saved)
    saver.close()


def test_many_changes_are_saved_together_and_not_while_they_go_on() -> None:
    saves = []
    done = threading.Event()

    def save() -> None:
        saves.append(time.monotonic())
        done.set()

    saver = Saver(save, quiet_s=1.0)
    for _ in range(20):
        last = time.monotonic()
        saver.changed()
        time.sleep(0.005)
    wait_for(done)
    saver.close()
    assert len(saves) == 1
    assert saves[0] - last >= 1.0


def test_a_run_that_is_never_quiet_is_saved_all_the_same() -> None:
    saved = threading.Event()
    saver = Saver(saved.set, quiet_s=60, at_latest_s=0.05)
    saver.changed()
    wait_for(saved)
    saver.close()


@pytest.mark.parametrize(
    "error", [SandboxLost("gone"), WorktreeError("git: the disk is full"), DiffRefused("too large")]
)
def test_a_save_that_fails_does_not_end_the_saver(error: Exception) -> None:
    lost, saved = threading.Event(), threading.Event()

    def save() -> None:
        if not lost.is_set():
            lost.set()
            raise error
        saved.set()

    saver = Saver(save, quiet_s=0.01)
    saver.changed()
    wait_for(lost)
    saver.changed()
    wait_for(saved)
    saver.close()


def test_closing_waits_for_no_quiet_and_may_be_done_twice() -> None:
    calls: list[int] = []
    saver = Saver(lambda: calls.append(1), quiet_s=60)
    saver.changed()
    before = time.monotonic()
    saver.close()
    saver.close()
    assert time.monotonic() - before < 30
    assert calls == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.diff"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "x", b"")
