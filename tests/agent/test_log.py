"""The log on the disk: whole lines, one writer, nothing torn."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.conversation import Message, Role
from agent.errors import LogError
from agent.events import Delta, Durable, MessageAdded, Resumed, Sampled, ToolStarted, fold
from agent.log import LOG_NAME, Log, parse, read, runs
from agent.record import Entry, dump
from tests.fakes import started

EVENTS: list[Durable] = [
    started(),
    MessageAdded(Message(Role.TOOL, "a\u2028b\u0085c\r\nd")),
    Sampled(10, 5, "stop"),
    Resumed("again"),
]


def write(path: Path, events: list[Durable]) -> None:
    with Log(path, new=True) as log:
        for event in events:
            log.append(event)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / LOG_NAME
    write(path, EVENTS)
    assert [entry.event for entry in read(path)] == EVENTS
    assert [entry.seq for entry in read(path)] == [0, 1, 2, 3]
    with Log(path) as log:
        assert [entry.event for entry in log.entries] == EVENTS


def test_a_delta_is_for_the_eye_only(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    with Log(path, new=True) as log:
        log.append(Delta(None, "thinking"))
    assert path.read_bytes() == b""


def test_cut_at_every_byte_it_opens_with_the_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "whole" / LOG_NAME
    write(path, EVENTS)
    data = path.read_bytes()
    cut_path = tmp_path / "cut.jsonl"
    for cut in range(len(data) + 1):
        cut_path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        assert len(read(cut_path)) == whole
        with Log(cut_path) as log:
            assert [entry.event for entry in log.entries] == EVENTS[:whole]
            log.append(Resumed("after the cut"))
        assert [entry.event for entry in read(cut_path)] == [*EVENTS[:whole], Resumed("after the cut")]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run" / LOG_NAME
    with Log(path, new=True), pytest.raises(LogError, match="another process is working on the run run"):
        Log(path)
    Log(path).close()


def test_who_asks_whether_a_run_is_running_does_not_keep_it_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / LOG_NAME
    Log(path, new=True).close()
    with path.open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as is_running does
        monkeypatch.setattr("agent.log.time.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
        Log(path).close()


def test_a_writer_that_died_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "run" / LOG_NAME
    code = (
        "import os, sys; from pathlib import Path; from agent.log import Log; from agent.events import Resumed\n"
        "log = Log(Path(sys.argv[1]), new=True); log.append(Resumed('x')); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    with Log(path) as log:
        assert [entry.event for entry in log.entries] == [Resumed("x")]


def test_a_new_log_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    write(path, EVENTS)
    with pytest.raises(LogError, match="exists already"):
        Log(path, new=True)
    assert len(read(path)) == len(EVENTS)


def test_a_missing_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere.*cannot be read"):
        read(tmp_path / "nowhere")
    with pytest.raises(LogError, match=r"nowhere.*cannot be opened"):
        Log(tmp_path / "nowhere")


def test_a_broken_or_missing_line_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    lines = [dump(Entry(n, 0.0, event)) for n, event in enumerate(EVENTS)]
    with pytest.raises(LogError, match="x, line 2: not a JSON record"):
        parse(lines[0] + b"garbage\n" + lines[1], "x")
    with pytest.raises(LogError, match="x, line 2: its number is 2"):
        parse(lines[0] + lines[2], "x")
    path = tmp_path / LOG_NAME
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(LogError):
        Log(path)
    path.write_bytes(lines[0])
    Log(path).close()  # a log that could not be opened left no lock behind


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_append_that_fails_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / LOG_NAME
    write(path, EVENTS)
    before = path.read_bytes()

    def half(file: int, data: memoryview, offset: int) -> int:
        os.lseek(file, offset, os.SEEK_SET)
        os.write(file, data[: len(data) // 2])
        raise error

    with Log(path) as log:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", half)
            with pytest.raises(LogError if isinstance(error, OSError) else KeyboardInterrupt):
                log.append(Resumed("lost"))
        assert path.read_bytes() == before
        log.append(Resumed("kept"))
    assert [entry.event for entry in read(path)] == [*EVENTS, Resumed("kept")]


def test_what_something_irreversible_follows_is_synchronised_at_once_and_the_rest_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.fstat(file).st_size))
    with Log(tmp_path / LOG_NAME, new=True) as log:
        log.append(Sampled(1, 1, "stop"))
        before = (tmp_path / LOG_NAME).stat().st_size
        log.append(ToolStarted(1, "shell"))
        assert synced[-1] > before
        count = len(synced)
        log.append(Sampled(1, 1, "stop"))
        deadline = time.monotonic() + 60
        while len(synced) == count and time.monotonic() < deadline:
            time.sleep(0.01)
    assert synced[-1] == (tmp_path / LOG_NAME).stat().st_size


def test_a_disk_that_fails_later_is_told_at_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(file: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    def write_on(log: Log) -> None:  # the failure is noted a moment after it happened
        for _ in range(6000):
            log.append(Sampled(1, 1, "stop"))
            time.sleep(0.01)

    monkeypatch.setattr(os, "fdatasync", fail)
    with Log(tmp_path / LOG_NAME, new=True) as log:
        log.append(Sampled(1, 1, "stop"))
        assert failed.wait(60)
        with pytest.raises(LogError, match="Input/output error"):
            write_on(log)


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, data[:7], offset))
    path = tmp_path / LOG_NAME
    write(path, EVENTS)
    assert [entry.event for entry in read(path)] == EVENTS


def test_folding_the_log_is_the_state(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    write(path, EVENTS)
    state = fold(entry.event for entry in read(path))
    assert (state.run, state.turns, len(state.conversation.messages)) == ("r1", 1, 2)


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    assert list(runs(tmp_path / "none")) == []
    for number, name in enumerate(("old", "new")):
        write(tmp_path / name / LOG_NAME, EVENTS)
        os.utime(tmp_path / name / LOG_NAME, (number, number))
    (tmp_path / "empty").mkdir()
    assert [path.name for path in runs(tmp_path)] == ["new", "old"]
