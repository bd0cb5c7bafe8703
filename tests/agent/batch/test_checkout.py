"""A task's checkout: of plain files, of a repository here, of one elsewhere. Real git throughout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.batch.checkout import forget, lay_out
from agent.batch.task import Task
from agent.errors import UsageError
from sandbox.errors import WorktreeError


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def project(folder: Path) -> tuple[Path, str, str]:
    """A repository with two commits: the folder, and both."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commits = []
    for text in ("bug", "fixed"):
        (folder / "a.txt").write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", text)
        commits.append(git(folder, "rev-parse", "HEAD"))
    return folder, commits[0], commits[1]


def test_a_folder_of_files_becomes_the_same_commit_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "__pycache__").mkdir(parents=True)
    (source / "a.sh").write_text("#!/bin/sh\n")
    (source / "a.sh").chmod(0o755)
    (source / ".gitignore").write_text("ignored\n")
    (source / "ignored").write_text("part of the task all the same")
    task = Task("one", "Fix.", str(source))
    heads = set()
    for name in ("x", "y"):
        checkout = lay_out(task, tmp_path / name, tmp_path / "cache")
        assert git(checkout, "status", "--porcelain") == ""
        assert git(checkout, "ls-files").split() == [".gitignore", "a.sh", "ignored"]
        heads.add(git(checkout, "rev-parse", "HEAD"))
    assert len(heads) == 1


def test_a_checkout_that_is_there_is_kept(tmp_path: Path) -> None:
    source, first, _ = project(tmp_path / "source")
    task = Task("one", "Fix.", str(source), first)
    checkout = lay_out(task, tmp_path / "x", tmp_path / "cache")
    (checkout / "mark").write_text("")
    assert (lay_out(task, tmp_path / "x", tmp_path / "cache") / "mark").exists()
    forget(checkout)
    forget(checkout)
    assert not (lay_out(task, tmp_path / "x", tmp_path / "cache") / "mark").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "x"]


def test_a_repository_is_taken_at_its_commit(tmp_path: Path) -> None:
    source, first, second = project(tmp_path / "source")
    checkout = lay_out(Task("one", "Fix.", str(source), first), tmp_path / "x", tmp_path / "cache")
    assert (checkout / "a.txt").read_text() == "bug"
    assert git(checkout, "log", "--format=%H") == first
    newest = lay_out(Task("two", "Fix.", str(source)), tmp_path / "y", tmp_path / "cache")
    assert git(newest, "rev-parse", "HEAD") == second


def test_what_is_elsewhere_is_mirrored_once_and_fetched_when_a_commit_is_missing(tmp_path: Path) -> None:
    source, first, _ = project(tmp_path / "source")
    url = f"file://{source}"
    lay_out(Task("one", "Fix.", url, first), tmp_path / "x", tmp_path / "cache")
    (source / "a.txt").write_text("newer")
    git(source, "commit", "-qam", "newer")
    newer = git(source, "rev-parse", "HEAD")
    checkout = lay_out(Task("two", "Fix.", url, newer), tmp_path / "y", tmp_path / "cache")
    assert (checkout / "a.txt").read_text() == "newer"
    assert len(list((tmp_path / "cache/mirrors").glob("*.git"))) == 1
    source.rename(tmp_path / "offline")
    lay_out(Task("three", "Fix.", url, newer), tmp_path / "z", tmp_path / "cache")


def test_what_cannot_be_laid_out_leaves_nothing(tmp_path: Path) -> None:
    source, _, _ = project(tmp_path / "source")
    (tmp_path / "files").mkdir()
    for task, error, said in [
        (Task("one", "Fix.", str(source), "0" * 40), WorktreeError, "checkout failed"),
        (Task("one", "Fix.", str(source), "--orphan"), UsageError, "is not a commit"),
        (Task("one", "Fix.", str(tmp_path / "none")), UsageError, "there is no repository"),
        (Task("one", "Fix.", str(tmp_path / "files"), "0" * 40), UsageError, "is not a git repository"),
        (Task("one", "Fix.", f"file://{tmp_path}/none"), WorktreeError, "clone failed"),
    ]:
        with pytest.raises(error, match=said):
            lay_out(task, tmp_path / "place/x", tmp_path / "cache")
    assert list((tmp_path / "place").iterdir()) == []
