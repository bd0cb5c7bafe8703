"""--apply: every file, or none, whatever stands in the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox import checkout
from sandbox import snapshot as snapshots
from sandbox.errors import WorktreeError
from sandbox.guest import files
from sandbox.snapshot import Snapshot
from sandbox.worktree import Worktree
from tests.sandbox.conftest import git
from tests.sandbox.test_worktree import EVERYTHING, made, state_of

CHANGED = (*EVERYTHING, ("deep/er/new", files.FILE, b"n\n"), ("src", files.FILE, b"a folder becomes a file\n"))
CHANGED = (*(change for change in CHANGED if change[0] != "src/words.py"), ("src/words.py", files.GONE, b""))


def look(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a checkout, folders and modes included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if ".git" in path.relative_to(folder).parts:
            continue
        mode = path.lstat().st_mode
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (mode, data)
    return found


class Failing:
    """Lets so many moves through, then has none."""

    def __init__(self, moves: int, error: BaseException) -> None:
        self.left, self.error = moves, error
        self.real = Path.replace

    def __call__(self, path: Path, target: Path) -> Path:
        if path.parent.name == "new":
            self.left -= 1
            if self.left < 0:
                raise self.error
        return self.real(path, target)


@pytest.mark.parametrize(
    ("moves", "error"),
    [*((moves, OSError(28, "No space left on device")) for moves in (0, 1, 4, 8)), (6, KeyboardInterrupt())],
)
def test_a_move_that_fails_takes_all_the_others_back(
    repository: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, moves: int, error: BaseException
) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, *CHANGED))
    before = look(repository)
    failing = Failing(moves, error)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, target: failing(path, target))
        with pytest.raises(WorktreeError if isinstance(error, OSError) else KeyboardInterrupt):
            worktree.bring(applied)
    assert look(repository) == before
    assert git(repository, "status", "--porcelain") == ""
    worktree.bring(applied)  # and nothing is in the way of doing it again
    assert state_of(repository)["src"] == b"a folder becomes a file\n"
    assert not list(repository.glob(".gpt-oss-agent-*"))


def test_a_folder_that_cannot_be_removed_changes_nothing(repository: Path, snapshot: Snapshot) -> None:
    """A file of the person's own in a folder that is to become a file."""
    (repository / "src" / "notes").write_text("mine\n")
    git(repository, "config", "core.excludesFile", "/dev/null")
    before = look(repository)
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, *CHANGED))
    with pytest.raises(WorktreeError, match="has changed since the run started: src;"):
        worktree.bring(applied)
    assert look(repository) == before


def test_what_cannot_be_taken_back_is_named_and_kept(
    repository: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(
        made(snapshot, ("README", files.FILE, b"new\n"), ("run.sh", files.FILE, b"new\n"), ("a", files.FILE, b"a"))
    )

    def broken(path: Path, target: Path) -> Path:
        if target.name in ("run.sh", "README") and path.parent.name == "new" and target.name == "README":
            return real(path, target)
        if path.parent.name == "new" and target.name == "a":
            return real(path, target)
        raise OSError(5, "Input/output error")

    real = Path.replace
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(WorktreeError, match=r"not completely undone \(.*Input/output error.*old: copy them over"):
        worktree.bring(applied)
    (left,) = repository.glob(".gpt-oss-agent-*")
    assert (left / "old" / "README").read_text() == "words\n"
    assert not (repository / "a").exists()  # what can be taken back is


def test_a_file_system_without_hard_links(
    repository: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    worktree = Worktree(snapshot)
    before = look(repository)
    applied = worktree.apply(made(snapshot, *CHANGED))
    failing = Failing(5, OSError(5, "Input/output error"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, target: failing(path, target))
        with pytest.raises(WorktreeError):
            worktree.bring(applied)
    assert {path: found[1] for path, found in look(repository).items()} == {p: f[1] for p, f in before.items()}
    assert stat.S_IMODE((repository / "run.sh").stat().st_mode) & 0o111
    worktree.bring(applied)


CONTENT = st.binary(max_size=20)
NAMES = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e/a", "README", "src/words.py", "src"])


@settings(max_examples=15)
@example(changes={"src": b""}, moves=0)  # a file where a folder was
@given(changes=st.dictionaries(NAMES, st.none() | CONTENT, min_size=1), moves=st.integers(0, 4))
def test_any_change_is_wholly_there_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, bytes | None], moves: int
) -> None:
    folder = tmp_path_factory.mktemp("r")
    repository = folder / "project"
    (repository / "src").mkdir(parents=True)
    (repository / "README").write_text("words\n")
    (repository / "src" / "words.py").write_text("code\n")
    git(repository, "init", "-q", "-b", "trunk")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "one")
    snapshot = snapshots.take(repository, folder / "state")
    wanted = [(p, files.GONE if data is None else files.FILE, data or b"") for p, data in changes.items()]
    tree = snapshots.result(snapshot, b"".join(files.entry(p.encode(), mode, data) for p, mode, data in wanted))
    before = look(repository)
    failing = Failing(moves, OSError(5, "Input/output error"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, target: failing(path, target))
        try:
            checkout.bring(snapshot, tree)
        except WorktreeError:
            assert look(repository) == before
        else:
            git(repository, "add", "-A")
            assert git(repository, "write-tree").strip() == tree
