"""The git worktree that a change lands in: made, committed in, and gone again, or kept where the person asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sandbox import snapshot as snapshots
from sandbox.errors import WorktreeError
from sandbox.guest import files
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from sandbox.worktree import START_MESSAGE, Worktree
from tests.sandbox.conftest import commit, git, sh
from tests.sandbox.test_worktree import EVERYTHING, made, state_of

README = ("README", files.FILE, b"new\n")


def registered(repository: Path) -> list[str]:
    lines = git(repository, "worktree", "list", "--porcelain").splitlines()
    return [line.removeprefix("worktree ") for line in lines if line.startswith("worktree ")]


def nothing_to_prune(repository: Path) -> bool:
    return git(repository, "worktree", "prune", "--dry-run", "--verbose") == ""


def test_no_worktree_is_left_when_none_was_wanted(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, *EVERYTHING)), "agent/fix", "Fix")
    assert registered(repository) == [str(repository)]
    assert nothing_to_prune(repository)
    assert not (repository / ".git" / "worktrees").exists()
    assert not worktree.folder.exists()


def test_a_kept_worktree_is_a_clean_checkout_of_the_branch(
    repository: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    folder = tmp_path / "to look at"
    worktree = Worktree(snapshot)
    made_commit = worktree.keep(worktree.apply(made(snapshot, *EVERYTHING)), "agent/fix", "Fix", folder)
    assert registered(repository) == [str(repository), str(folder)]
    assert git(folder, "symbolic-ref", "HEAD").strip() == "refs/heads/agent/fix"
    assert git(folder, "rev-parse", "HEAD").strip() == made_commit
    assert git(folder, "status", "--porcelain") == ""
    found = state_of(folder)
    for path, mode, data in EVERYTHING:
        assert found.get(path) == (None if mode == files.GONE else data)
        assert mode in (files.LINK, files.GONE) or os.access(folder / path, os.X_OK) == (mode == files.PROGRAM)
    assert found[".gitignore"] == (repository / ".gitignore").read_bytes()
    (folder / "README").write_text("the person works on\n")
    with pytest.raises(
        WorktreeError, match=r"(?s)and the run were not deleted: .*modified or untracked.*Commit or remove"
    ):
        worktree.discard("agent/fix", made_commit)
    assert (folder / "README").read_text() == "the person works on\n"
    git(folder, "checkout", "README")
    worktree.discard("agent/fix", made_commit)
    assert not folder.exists()
    assert registered(repository) == [str(repository)]
    assert nothing_to_prune(repository)
    assert git(repository, "branch", "--list", "agent/*") == ""


@pytest.mark.parametrize("by", ["git", "hand"])
def test_a_kept_worktree_that_the_person_removed_is_no_hindrance(
    repository: Path, snapshot: Snapshot, tmp_path: Path, by: str
) -> None:
    worktree = Worktree(snapshot)
    made_commit = worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix", tmp_path / "kept")
    if by == "git":
        git(repository, "worktree", "remove", str(tmp_path / "kept"))
    else:
        shutil.rmtree(tmp_path / "kept")
    assert worktree.discard("agent/fix", made_commit)
    assert nothing_to_prune(repository)
    assert git(repository, "branch", "--list", "agent/*") == ""


def test_a_folder_in_use_is_never_written_into(repository: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, README))
    with pytest.raises(WorktreeError, match="not empty; name another folder with --worktree"):
        worktree.keep(applied, "agent/fix", "Fix", repository)
    (tmp_path / "empty").mkdir()
    worktree.keep(applied, "agent/fix", "Fix", tmp_path / "empty")
    assert (tmp_path / "empty" / "README").read_bytes() == b"new\n"


def test_nothing_of_the_diff_runs_while_files_are_written(repository: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for driver in ("evil", "lfs"):
        for what in ("clean", "smudge", "process"):
            git(repository, "config", f"filter.{driver}.{what}", f"touch {ran}; cat")
        git(repository, "config", f"filter.{driver}.required", "true")
    git(repository, "config", "commit.gpgSign", "true")
    git(repository, "config", "gpg.program", str(tmp_path / "no such program"))
    git(repository, "config", "apply.whitespace", "fix")
    for hook in ("post-checkout", "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-index-change"):
        path = repository / ".git" / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {ran}\n")
        path.chmod(0o755)
    worktree = Worktree(snapshot)
    attributes = (".gitattributes", files.FILE, b"*.x filter=evil\nREADME filter=lfs ident\n")
    changed = (attributes, ("a.x", files.FILE, b"text \n"), README)
    made_commit = worktree.keep(worktree.apply(made(snapshot, *changed)), "agent/fix", "Fix", tmp_path / "kept")
    worktree.discard("agent/fix", made_commit)
    assert not ran.exists()


def test_variables_of_a_surrounding_git_lead_nowhere(
    repository: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the agent is started by a hook: GIT_INDEX_FILE and the like are set."""
    elsewhere = tmp_path / "elsewhere"
    subprocess.run(["git", "init", "-q", str(elsewhere)], check=True)
    for variable, place in (("DIR", ".git"), ("WORK_TREE", ""), ("INDEX_FILE", ".git/index")):
        monkeypatch.setenv(f"GIT_{variable}", str(elsewhere / place))
    worktree = Worktree(snapshot)
    made_commit = worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix", tmp_path / "kept")
    monkeypatch.undo()
    assert git(repository, "rev-parse", "agent/fix").strip() == made_commit
    assert not (elsewhere / ".git" / "index").exists()
    assert (tmp_path / "kept" / "README").read_bytes() == b"new\n"


def test_what_a_killed_run_left_half_made_is_taken_away(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    git(repository, "worktree", "add", "-q", "--no-checkout", "--detach", str(worktree.folder), snapshot.commit)
    worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix")
    assert registered(repository) == [str(repository)]
    git(repository, "worktree", "add", "-q", "--no-checkout", "--detach", str(worktree.folder), snapshot.commit)
    worktree.clear()
    assert registered(repository) == [str(repository)]
    assert nothing_to_prune(repository)


def test_a_run_killed_after_its_commit_finds_its_branch_again(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, README))
    first = worktree.keep(applied, "agent/fix", "Fix\n\nbecause\n")
    assert worktree.keep(applied, "agent/fix", "Fix\n\nbecause\n") == first
    with pytest.raises(WorktreeError, match="already exists; give another name with --branch"):
        worktree.keep(applied, "agent/fix", "Something else")


def test_a_failure_on_the_way_leaves_no_worktree_and_no_branch(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, README))
    git(repository, "branch", "agent")  # so refs/heads/agent/fix cannot be
    with pytest.raises(WorktreeError, match="could not be made"):
        worktree.keep(applied, "agent/fix", "Fix")
    assert registered(repository) == [str(repository)]
    assert nothing_to_prune(repository)


def test_a_linked_worktree_as_the_source(repository: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(repository, "worktree", "add", "-q", "-b", "side", str(linked))
    (linked / "README").write_text("uncommitted in the linked one\n")
    snapshot = snapshots.take(linked, tmp_path / "state")
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("n", files.FILE, b"n\n")))
    worktree.keep(applied, "agent/fix", "Fix")
    assert git(linked, "log", "--format=%s", "side..agent/fix").splitlines() == ["Fix", START_MESSAGE]
    worktree.bring(applied)
    assert (linked / "n").read_bytes() == b"n\n"
    assert not (repository / "n").exists()
    assert registered(repository) == [str(repository), str(linked)]


def test_submodules_stay_as_they_are(repository: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "trunk")
    (inner / "file").write_text("inner\n")
    commit(inner)
    git(repository, "submodule", "add", "-q", str(inner), "vendor/inner")
    commit(repository)
    snapshot = snapshots.take(repository, tmp_path / "state")
    assert not snapshot.dirty
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix", tmp_path / "kept")
    assert git(repository, "diff", "--name-only", "trunk", "agent/fix") == "README\n"
    assert git(tmp_path / "kept", "status", "--porcelain") == ""
    inside = snapshots.take(repository / "vendor" / "inner", tmp_path / "state2")  # a submodule is a repository too
    landed = Worktree(inside)
    landed.keep(landed.apply(made(inside, ("file", files.FILE, b"x\n"))), "agent/in", "In", tmp_path / "kept2")
    assert (tmp_path / "kept2" / "file").read_bytes() == b"x\n"
    assert git(repository / "vendor" / "inner", "log", "-1", "--format=%s", "agent/in") == "In\n"


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_every_kind_of_repository(tmp_path: Path, object_format: str) -> None:
    folder = tmp_path / "project"
    subprocess.run(["git", "init", "-q", f"--object-format={object_format}", str(folder)], check=True)
    (folder / "a").write_text("a\n")
    commit(folder)
    (folder / "b").write_text("uncommitted\n")
    snapshot = snapshots.take(folder, tmp_path / "state")
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, ("a", files.FILE, b"A\n"))), "agent/fix", "Fix", tmp_path / "kept")
    assert state_of(tmp_path / "kept") == {"a": b"A\n", "b": b"uncommitted\n"}
    assert git(folder, "fsck", "--strict", "--no-dangling") == ""


def test_a_shallow_clone(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(clone))
    snapshot = snapshots.take(clone, tmp_path / "state")
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix")
    assert git(clone, "log", "--format=%s", "agent/fix").splitlines() == ["Fix", "two"]


@pytest.mark.parametrize("name", [b"new\nline", b"co:lon", b'"quo ted\\', b"#\xff"])
def test_folders_may_be_called_anything(repository: Path, tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    moved = repository.rename(folder / "repository")
    (moved / "README").write_text("uncommitted\n")
    snapshot = snapshots.take(moved, folder / "state")
    assert (snapshot.repository, snapshot.dirty) == (moved, True)
    box = open_sandbox(SandboxOptions("named", kind="none"), snapshot)
    try:
        box.write("README", b"new\n")
        worktree = Worktree(snapshots.load(folder / "state"))
        applied = worktree.apply(box.diff())
        worktree.keep(applied, "agent/fix", "Fix", folder / "kept")
        worktree.bring(applied)
    finally:
        box.close()
    assert (moved / "README").read_text() == (folder / "kept" / "README").read_text() == "new\n"


def test_a_partial_clone(repository: Path, tmp_path: Path) -> None:
    """What was never fetched is in no copy, and nothing is fetched for it."""
    git(repository, "config", "uploadpack.allowFilter", "true")
    (repository / "README").write_text("three\n")
    git(repository, "commit", "-qam", "three")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{repository}", str(clone))
    git(clone, "remote", "set-url", "origin", "file:///nowhere")
    snapshot = snapshots.take(clone, tmp_path / "state")
    box = open_sandbox(SandboxOptions("partial", kind="none"), snapshot)
    try:
        assert sh(box, "git status --porcelain; git log --format=%s").splitlines()[0] == "three"
        box.write("README", b"four\n")
        assert git(clone, "rev-parse", "HEAD:README").strip() in box.diff().decode()
    finally:
        box.close()


def test_many_files_cost_no_seconds_when_none_is_wanted(tmp_path: Path) -> None:
    """10 000 files: the worktree that is thrown away has none of them."""
    folder = tmp_path / "large"
    for number in range(10_000):
        path = folder / f"d{number % 50}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    git(folder, "init", "-q", "-b", "trunk")
    commit(folder)
    snapshot = snapshots.take(folder, tmp_path / "state")
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("d1/f1", files.FILE, b"x\n")))
    spent_s = time.process_time() + sum(os.times()[2:4])
    worktree.keep(applied, "agent/fix", "Fix")
    assert time.process_time() + sum(os.times()[2:4]) - spent_s < 1.5  # CPU: the clock would measure the neighbours


def test_many_uncommitted_files_come_over_as_one_pack(repository: Path, tmp_path: Path) -> None:
    for number in range(150):
        (repository / f"new-{number}").write_text(f"{number}\n")
    snapshot = snapshots.take(repository, tmp_path / "state")
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, README)), "agent/fix", "Fix")
    assert git(repository, "show", "agent/fix~:new-149") == "149\n"
    assert len(list((repository / ".git" / "objects" / "pack").glob("*.pack"))) == 1
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""
