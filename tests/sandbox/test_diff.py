"""The grammar of what may leave, against diffs that git made and diffs that somebody twisted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import diff as diffs
from sandbox import snapshot as snapshots
from sandbox.diff import Change, link_refusal, parse, paths, refusal
from sandbox.errors import DiffRefused
from sandbox.guest import files
from sandbox.worktree import Worktree
from tests.sandbox.conftest import commit, git

ZERO, ONE = b"0" * 40, b"1" * 40
TEXT = (
    b"diff --git a/f b/f\nindex "
    + ZERO
    + b".."
    + ONE
    + b" 100644\n--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@ def x\n a\n-b\n+c\n+d\n"
)


def test_an_empty_diff_does_nothing() -> None:
    assert parse(b"") == ()


def test_lines_are_counted() -> None:
    assert parse(TEXT) == (Change("f", "f", 0o100644, False, 2, 1),)
    assert paths(parse(TEXT + TEXT.replace(b"/f", b"/g"))) == ("f", "g")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"+d\n", b"", "cut off"),
        (b"+d\n", b"+d\n+e\n", "begins with 'diff --git'"),
        (b"+d\n", b"d\n", "announces"),
        (b"+d\n", b"+d", "does not end"),
        (b"+++ b/f", b"+++ b/.git/config", "where the header names"),
        (b"--- a/f", b"--- /dev/null", "where the header names"),
        (b"--- a/f\n", b"--- a/f\n\n", "followed by"),
        (b"b/f\nindex", b"b/f\nevil\nindex", "not a line of a git diff's header"),
        (b" 100644\n", b" 160000\n", "submodules"),
        (b" 100644\n", b" 100600\n", "not that of"),
        (b"diff --git a/f b/f\n", b"Subject: hello\ndiff --git a/f b/f\n", "begins with"),
        (b"diff --git a/f b/f\n", b"diff --git c/f d/f\n", "a/ and b/"),
        (b"index", b"new file mode 100644\ndeleted file mode 100644\nindex", "where the header names None"),
        (b"index", b"new file mode 10064\nindex", "not a file mode"),
        (b"index", b"deleted file mode 160000\nindex", "submodules"),
    ],
)
def test_anything_twisted_is_refused(old: bytes, new: bytes, reason: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(DiffRefused, match=reason):
        parse(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "outside"),
        ("../x", "outside"),
        ("a/../../x", "outside"),
        ("..\\x", "outside"),
        ("C:/x", "outside"),
        (".git/hooks/pre-commit", "git directory"),
        ("a/.Git/x", "git directory"),
        ("GIT~1/x", "git directory"),
        (".git./x", "git directory"),
        (".git /x", "git directory"),
        (".git::$INDEX_ALLOCATION/x", "git directory"),
        (".g\u200cit/x", "git directory"),
        ("a\\.git\\x", "git directory"),
        (".gitmodules", "submodules"),
        ("a/.GITMODULES", "submodules"),
        ("a//b", "proper"),
        ("./a", "proper"),
        ("", "proper"),
    ],
)
def test_paths_that_may_not_be_touched(path: str, reason: str) -> None:
    assert reason in (refusal(path, None) or "")
    raw = path.encode()
    with pytest.raises(DiffRefused, match=reason):
        parse(b"diff --git a/f b/f\nsimilarity index 100%\nrename from f\nrename to " + raw + b"\n")
    with pytest.raises(DiffRefused, match=reason):
        parse(b"diff --git a/%s b/%s\nnew file mode 100644\nindex %s..%s\n" % (raw, raw, ZERO, ONE))


@pytest.mark.parametrize(
    "path", [".github/x", ".gitignore", ".gitattributes", "a..b", "git", "x/..y", ".git-blame", "a b/c", "ü\n"]
)
def test_paths_that_may(path: str) -> None:
    assert refusal(path, diffs.FILE) is None


@pytest.mark.parametrize("target", ["x", "../x", "./x", "../../a", "a/../b"])
def test_links_that_may(target: str) -> None:
    assert link_refusal("d/e/l", target) is None


@pytest.mark.parametrize("target", ["/x", "../../../x", "../../..", "..\\x", "../../.git/x", "x\0"])
def test_links_that_may_not(target: str) -> None:
    assert link_refusal("d/e/l", target) is not None


def test_too_large_a_diff_is_refused_with_the_limit() -> None:
    with pytest.raises(DiffRefused, match="limit of 10"):
        parse(TEXT, max_bytes=10)


def test_a_file_both_new_and_deleted_is_refused() -> None:
    with pytest.raises(DiffRefused, match="both new and deleted"):
        parse(b"diff --git a/f b/f\nnew file mode 100644\ndeleted file mode 100644\n")


@given(st.binary(max_size=300))
def test_rubbish_is_refused_or_nothing(data: bytes) -> None:
    try:
        assert parse(data) == ()
    except DiffRefused:
        return
    assert data == b""


@given(st.data())
def test_a_damaged_diff_never_does_what_it_does_not_say(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TEXT) - 1))
    damaged = TEXT[:at] + data.draw(st.binary(max_size=3)) + TEXT[at + data.draw(st.integers(0, 3)) :]
    try:
        changes = parse(damaged)
    except DiffRefused:
        return
    for change in changes:
        assert change.path is None or refusal(change.path, change.mode) is None


NAMES = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: refusal(name, None) is None and not name.startswith(".gpt")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(["a\n", "-- x\n", "\\ No\n", "b\r\n", "\x85\n", "é"])).map("".join).map(str.encode),
)
TREES = st.dictionaries(PATHS, st.tuples(st.sampled_from([files.FILE, files.PROGRAM]), CONTENTS), max_size=5)


def fits(tree: dict[str, tuple[int, bytes]]) -> bool:
    """No path is a folder of another, and none is too long to be one."""
    return not any(other.startswith(path + "/") for path in tree for other in tree) and all(
        len(p.encode()) < 200 for p in tree
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    git(folder, "init", "-q")
    commit(folder)
    return folder


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(before=TREES.filter(fits), after=TREES.filter(fits))
def test_whatever_git_says_between_two_trees_is_read_and_applies_to_the_same_tree(
    empty: Path, tmp_path: Path, before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]
) -> None:
    start = snapshots.take(empty, tmp_path / "state")
    first = snapshots.result(start, entries(before))
    base = snapshots.Snapshot(
        empty, start.git_dir, start.common_dir, start.commit, start.branch, start.head_tree, first
    )
    gone = b"".join(files.entry(os.fsencode(path), files.GONE, b"") for path in before.keys() - after.keys())
    second = snapshots.result(base, gone + entries(after))
    applied = Worktree(base).apply(snapshots.diff(base, second))
    assert applied.tree == second
    assert set(applied.paths) == {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def entries(tree: dict[str, tuple[int, bytes]]) -> bytes:
    return b"".join(files.entry(os.fsencode(path), mode, data) for path, (mode, data) in tree.items())
