"""What may land, what may not, and where it lands."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from sandbox import snapshot as snapshots
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.guest import files
from sandbox.snapshot import Snapshot
from sandbox.worktree import BOT, START_MESSAGE, Applied, Worktree, branch_name, identity
from tests.sandbox.conftest import commit, git


def made(snapshot: Snapshot, *changed: tuple[str, int, bytes]) -> bytes:
    """Return the diff that a sandbox with these changed files would give."""
    entries = b"".join(files.entry(os.fsencode(path), mode, data) for path, mode, data in changed)
    return snapshots.diff(snapshot, snapshots.result(snapshot, entries))


def state_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if ".git" not in path.parts and (path.is_symlink() or path.is_file()))
    return {
        str(path.relative_to(folder)): os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in found
    }


EVERYTHING = (
    ("README", files.FILE, b"other\r\nline ends\x85 here\xe2\x80\xa8too"),
    ("run.sh", files.GONE, b""),
    ("moved.sh", files.PROGRAM, b"#!/bin/sh\necho run\n"),
    ("blob.bin", files.FILE, bytes(reversed(range(256)))),
    ("link", files.GONE, b""),
    ("link2", files.LINK, b"src/words.py"),
    ("src/words.py", files.PROGRAM, b"def first(text):\n    return text.split()[0]\n"),
    ('odd/ "name"\n\twith ü b/x', files.FILE, b"odd\n"),
    ("dir b/file", files.FILE, b""),
    (os.fsdecode(b"latin-\xe9"), files.FILE, b"x"),
    ("--- a/looks", files.FILE, b"--- a/like\n+++ b/a diff\n@@ -1 +1 @@\ndiff --git a/x b/x\n"),
)


def test_a_branch_holds_one_commit_on_the_base_and_the_checkout_is_untouched(
    repository: Path, snapshot: Snapshot
) -> None:
    before, status = state_of(repository), git(repository, "status", "--porcelain")
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, *EVERYTHING))
    made_commit = worktree.keep(applied, "agent/fix-1", "Fix it\n\nbecause")
    assert git(repository, "rev-parse", "agent/fix-1").strip() == made_commit
    assert git(repository, "log", "--format=%s", "trunk..agent/fix-1") == "Fix it\n"
    assert git(repository, "rev-parse", "agent/fix-1^{tree}").strip() == applied.tree
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""
    assert state_of(repository) == before
    assert git(repository, "status", "--porcelain") == status
    assert set(applied.paths) == {path for path, _, _ in EVERYTHING}


def test_apply_writes_exactly_what_the_sandbox_had(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    brought = worktree.bring(worktree.apply(made(snapshot, *EVERYTHING)))
    after = state_of(repository)
    for path, mode, data in EVERYTHING:
        assert after.get(path) == (None if mode == files.GONE else data)
        assert mode == files.LINK or os.access(repository / path, os.X_OK) == (mode == files.PROGRAM)
    assert set(brought) == {path for path, _, _ in EVERYTHING}
    assert git(repository, "diff", "--cached", "--name-only") == ""
    assert not list(repository.glob(".gpt-oss-agent-*"))


def test_uncommitted_changes_come_first_as_a_commit_of_their_own(repository: Path, tmp_path: Path) -> None:
    (repository / "README").write_text("mine, uncommitted\n")
    (repository / "new.txt").write_text("mine, untracked\n")
    git(repository, "rm", "-q", "--cached", "run.sh")
    git(repository, "add", "new.txt")
    index = (repository / ".git" / "index").read_bytes()
    snapshot = snapshots.take(repository, tmp_path / "dirty")
    assert (repository / ".git" / "index").read_bytes() == index
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("README", files.FILE, b"mine, uncommitted\nand the agent's\n")))
    worktree.keep(applied, "agent/x", "The fix")
    assert git(repository, "log", "--format=%s", "trunk..agent/x").splitlines() == ["The fix", START_MESSAGE]
    assert git(repository, "diff", "--name-only", "agent/x~", "agent/x") == "README\n"
    assert git(repository, "show", "agent/x~:new.txt") == "mine, untracked\n"
    worktree.bring(applied)
    assert (repository / "README").read_text() == "mine, uncommitted\nand the agent's\n"
    clean = snapshots.take(repository, tmp_path / "clean", include_uncommitted=False)
    assert not clean.dirty


def test_a_checkout_that_moved_on_is_left_as_it_is(repository: Path, snapshot: Snapshot) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(
        made(snapshot, ("README", files.FILE, b"agent\n"), ("src/words.py", files.GONE, b""), ("n", files.FILE, b""))
    )
    (repository / "src" / "words.py").write_text("the person's\n")
    (repository / "n").write_text("the person's\n")
    before = state_of(repository)
    with pytest.raises(
        WorktreeError, match=r"has changed since the run started: n, src/words\.py; nothing was written"
    ):
        worktree.bring(applied)
    assert state_of(repository) == before


def test_apply_never_writes_through_a_link(repository: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("out/file", files.FILE, b"x")))
    (tmp_path / "elsewhere").mkdir()
    (repository / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorktreeError, match="out/file"):
        worktree.bring(applied)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_windows_line_ends_of_the_checkout_are_kept(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitattributes").write_text("*.bat text eol=crlf\n")
    (repository / "a.bat").write_bytes(b"echo a\r\n")
    commit(repository)
    snapshot = snapshots.take(repository, tmp_path / "crlf")
    assert not snapshot.dirty
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("a.bat", files.FILE, b"echo a\necho b\n")))
    worktree.bring(applied)
    assert (repository / "a.bat").read_bytes() == b"echo a\r\necho b\r\n"
    worktree.keep(applied, "agent/crlf", "b")
    assert git(repository, "diff", "agent/crlf") == ""


def test_no_filter_hook_or_external_program_runs_on_the_host(repository: Path, tmp_path: Path) -> None:
    """A filter and a diff driver that the person has configured must not be reached by attributes in the diff."""
    ran = tmp_path / "ran"
    for key in (
        "filter.evil.clean",
        "filter.evil.smudge",
        "diff.evil.command",
        "diff.evil.textconv",
        "diff.external",
        "core.fsmonitor",
    ):
        git(repository, "config", key, f"touch {ran}; cat")
    for hook in (
        "post-checkout",
        "pre-commit",
        "post-commit",
        "reference-transaction",
        "post-index-change",
        "pre-auto-gc",
    ):
        path = repository / ".git" / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {ran}\n")
        path.chmod(0o755)
    snapshot = snapshots.take(repository, tmp_path / "state")
    worktree = Worktree(snapshot)
    applied = worktree.apply(
        made(
            snapshot,
            (".gitattributes", files.FILE, b"* filter=evil diff=evil text eol=crlf\n"),
            ("README", files.FILE, b"new\n"),
        )
    )
    made_commit = worktree.keep(applied, "agent/evil", "m")
    worktree.bring(applied)
    worktree.discard("agent/evil", made_commit)
    assert not ran.exists()
    assert (repository / "README").read_bytes() == b"new\n"


def test_a_branch_is_never_overwritten_and_is_discarded_only_as_we_left_it(
    repository: Path, snapshot: Snapshot
) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("README", files.FILE, b"x\n")))
    first = worktree.keep(applied, "agent/b", "m")
    with pytest.raises(WorktreeError, match="--branch"):
        worktree.keep(Applied(snapshot.tree, ()), "agent/b", "m")
    with pytest.raises(WorktreeError, match="check-ref-format"):
        worktree.keep(applied, "agent/..bad", "m")
    with pytest.raises(WorktreeError, match="has moved"):
        worktree.discard("agent/b", snapshot.commit)
    worktree.discard("agent/b", first)
    worktree.discard("agent/b", first)
    assert git(repository, "branch", "--list", "agent/*") == ""


def test_what_goes_wrong_after_the_branch_was_made_takes_it_back(
    repository: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    worktree = Worktree(snapshot)
    applied = worktree.apply(made(snapshot, ("README", files.FILE, b"x\n")))
    note = snapshot.git_dir.parent / "worktree.path"
    note.mkdir()
    with pytest.raises(IsADirectoryError):
        worktree.keep(applied, "agent/b", "m", tmp_path / "kept")
    assert git(repository, "for-each-ref", "refs/heads/agent") == ""
    assert not (tmp_path / "kept").exists()
    note.rmdir()
    assert worktree.keep(applied, "agent/b", "m", tmp_path / "kept") == git(repository, "rev-parse", "agent/b").strip()


def test_a_repository_without_commits_gets_its_first_ones(tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "a").write_text("a\n")
    snapshot = snapshots.take(folder, tmp_path / "state")
    assert (snapshot.commit, snapshot.dirty) == ("", True)
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, ("b", files.FILE, b"b\n"))), "agent/first", "b")
    assert git(folder, "log", "--format=%s", "agent/first").splitlines() == ["b", START_MESSAGE]


def test_who_commits(repository: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert identity(repository) == BOT
    git(repository, "config", "user.email", "grace@example.org")
    for name in ("", "  ", "<>", "\t.;"):  # git refuses to commit with these
        git(repository, "config", "user.name", name)
        assert identity(repository) == BOT
    git(repository, "config", "user.name", "Grace Hopper")
    worktree = Worktree(snapshot)
    worktree.keep(worktree.apply(made(snapshot, ("README", files.FILE, b"x\n"))), "agent/b", "m")
    who = git(repository, "log", "-1", "--format=%an <%ae> %cn <%ce>", "agent/b").strip()
    assert who == " ".join(["Grace Hopper <grace@example.org>"] * 2)


def test_names_of_branches() -> None:
    assert (
        branch_name("Fix: slugify drops the LAST word!", "20261122-abcdef12")
        == "agent/fix-slugify-drops-the-last-word-abcdef12"
    )
    assert branch_name("日本語", "r1") == "agent/run-r1"
    long = branch_name("word " * 50, "id")
    assert len(long) < 60
    assert "--" not in long


@pytest.mark.parametrize("target", ["/etc/passwd", "../up", "a/../../up", "..", ".git/config", "x/.GIT/hooks"])
def test_a_link_that_leads_out_is_refused(snapshot: Snapshot, target: str) -> None:
    with pytest.raises(DiffRefused, match=r"^'l': a link may not point"):
        Worktree(snapshot).apply(made(snapshot, ("l", files.LINK, target.encode())))


def test_a_link_that_stays_is_taken(snapshot: Snapshot) -> None:
    assert Worktree(snapshot).apply(made(snapshot, ("a/l", files.LINK, b"../README"))).paths == ("a/l",)


@pytest.mark.parametrize("path", [".git/config", "a/.GIT/hooks/x", "git~1/x", "sub/../../x", ".git", "x/.g\u200cit/y"])
def test_what_lies_in_a_git_directory_does_not_leave(snapshot: Snapshot, path: str) -> None:
    with pytest.raises((DiffRefused, WorktreeError)):
        Worktree(snapshot).apply(made(snapshot, (path, files.FILE, b"x\n")))


@pytest.mark.parametrize("name", ["..", ".GIT", "/etc/hostname", "../../dev/zero"])
def test_a_commit_that_git_would_not_check_out_is_refused(repository: Path, tmp_path: Path, name: str) -> None:
    blob = bytes.fromhex(git(repository, "hash-object", "-w", "--stdin", stdin=b"x").strip())
    below = b"100644 file\0" + blob
    mode, oid = b"100644", blob
    if "/" not in name:
        made = git(repository, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=below).strip()
        mode, oid = b"40000", bytes.fromhex(made)
    entry = b"%s %s\0" % (mode, name.encode()) + oid
    tree = git(repository, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=entry).strip()
    git(repository, "update-ref", "HEAD", git(repository, "commit-tree", "-m", "evil", tree).strip())
    evil = snapshots.take(repository, tmp_path / "state", include_uncommitted=False)
    with pytest.raises(WorktreeError, match="git would not check out"):
        snapshots.items(evil)


def test_runs_and_temporary_files_may_be_on_two_file_systems(snapshot: Snapshot) -> None:
    """As where /tmp is memory and the home folder is on a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # a second file system, on every Linux
        snapshots.write_metadata(snapshot, Path(folder))
        (pack,) = Path(folder, "objects", "pack").glob("*.idx")
        assert snapshot.commit in git(Path(folder), "verify-pack", "-v", str(pack))


def test_a_diff_for_another_state_does_not_apply(snapshot: Snapshot) -> None:
    diff = made(snapshot, ("README", files.FILE, b"x\n")).replace(b"-words", b"-swords")
    with pytest.raises(WorktreeError, match="README"):
        Worktree(snapshot).apply(diff)
