"""What travels between machines: a checkout arrives as the same commit, an attempt's folder with its result last."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from agent.batch.attempt import RESULT_NAME
from agent.batch.cargo import LEFT_OUT_NAME, pack_attempt, pack_checkout, unpack_attempt, unpack_checkout
from agent.batch.checkout import lay_out
from agent.batch.task import Task
from agent.errors import AgentError
from sandbox.errors import WorktreeError


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A task's checkout of an older commit: detached, its objects borrowed, as a batch lays it out."""
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "a.py").write_text("x = 1\n")
    (source / "bin/run").write_text("#!/bin/sh\n")
    (source / "bin/run").chmod(0o755)
    (source / "link").symlink_to("a.py")
    (source / "naïve\n.txt").write_text("odd name\n")
    git(source, "init", "-q", "-b", "main")
    git(source, "add", "-A")
    git(source, "commit", "-qm", "one")
    git(source, "tag", "v1")
    base = git(source, "rev-parse", "HEAD")
    (source / "a.py").write_text("x = 2\n")
    git(source, "commit", "-qam", "two")
    return lay_out(Task("t", "Fix.", str(source), base), tmp_path / "checkout", tmp_path / "cache")


def test_a_checkout_arrives_as_it_was_and_needs_nothing_more(tmp_path: Path, checkout: Path) -> None:
    data = pack_checkout(checkout)
    (tmp_path / "source").rename(tmp_path / "elsewhere")  # what it borrowed from is not there on another machine
    place = tmp_path / "far/away"
    unpack_checkout(data, place)
    assert git(place, "status", "--porcelain") == ""
    assert git(place, "log", "--format=%s") == "one"
    assert git(place, "tag") == "v1"
    assert (place / "bin/run").stat().st_mode & 0o111
    assert (place / "link").readlink() == Path("a.py")
    assert (place / "naïve\n.txt").read_text() == "odd name\n"
    assert sorted(path.name for path in place.iterdir()) == [".git", "a.py", "bin", "link", "naïve\n.txt"]
    assert list(place.parent.iterdir()) == [place]
    git(place, "fsck", "--strict")


def test_a_file_called_checkout_is_a_file_like_any_other(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "checkout").write_text("a file\n")
    place = tmp_path / "far"
    unpack_checkout(pack_checkout(lay_out(Task("t", "Fix.", str(source)), tmp_path / "one", tmp_path)), place)
    assert (place / "checkout").read_text() == "a file\n"


def test_a_checkout_that_is_too_large_is_refused_with_what_to_do(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"more than the 0 MiB that can be sent .* run this task without --engine ray"):
        pack_checkout(checkout, max_bytes=1000)
    with pytest.raises(WorktreeError, match="not a git working tree"):
        pack_checkout(tmp_path)


def attempt(folder: Path) -> Path:
    (folder / "run-1/base.git/objects").mkdir(parents=True)
    for name in (RESULT_NAME, "worker.log", "run-1/events.jsonl", "run-1/patch.diff", "run-1/base.git/HEAD"):
        (folder / name).write_text(f"{name}\n" * 1000)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_attempt_comes_back_without_what_can_be_made_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    data = pack_attempt(attempt(tmp_path / "far"))
    for _ in range(2):  # a second time, after a batch was killed in the middle of the first
        unpack_attempt(data, home)
        assert names(home) == [RESULT_NAME, "run-1/events.jsonl", "run-1/patch.diff", "worker.log"]
    assert (home / "run-1/patch.diff").read_text() == "run-1/patch.diff\n" * 1000


def test_a_log_that_is_too_large_stays_and_the_result_comes(tmp_path: Path) -> None:
    unpack_attempt(pack_attempt(attempt(tmp_path / "far"), max_bytes=100), tmp_path / "home")
    assert names(tmp_path / "home") == [LEFT_OUT_NAME, RESULT_NAME, "run-1/patch.diff"]
    assert "at most 0 MiB come back" in (tmp_path / "home" / LEFT_OUT_NAME).read_text()


def test_an_attempt_that_never_began_has_nothing_to_bring(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    unpack_attempt(pack_attempt(tmp_path / "far"), tmp_path / "home")
    assert names(tmp_path / "home") == []


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack_attempt(buffer.getvalue(), tmp_path / "home")
    assert not (tmp_path / "outside").exists()
