"""Our gitignore(5) against git's own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.guest import ignore
from tests.sandbox.conftest import git

PATHS = [
    *("a", "b", "ab", "abc", "a.c", "a.pyc", ".a", "a b", "a]", "#a", "!a", "\\a", "a*", "a-c", "A", "é", "a ", "[a]"),
    *(
        "d/a",
        "d/b",
        "d/e/a",
        "d/e/f/a",
        "d/a.c",
        "d/a.pyc",
        "build/a",
        "d/build/a",
        "e/d/a",
        "a1/b2/c3",
        "d/e/b",
        "d/é",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ignore")
    git(made, "init", "-q")
    (made / ".git" / "info" / "exclude").write_text("")
    for path in PATHS:
        if path in ("d", "e"):
            continue
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text("")
    return made


def by_git(folder: Path) -> set[str]:
    """Return the untracked paths that git lists: those that are not ignored."""
    command = [
        "git",
        "-c",
        "core.excludesFile=/dev/null",
        "-c",
        "core.quotePath=false",
        "ls-files",
        "-o",
        "-z",
        "--exclude-standard",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return {path.decode() for path in done.stdout.split(b"\0")[:-1]} & set(PATHS)


def by_us(texts: dict[str, str]) -> set[str]:
    """Walk as sandbox/guest/files.py does: a folder that is ignored hides all below it."""
    kept = set()
    for path in PATHS:
        parts = path.encode().split(b"/")
        rules: list[ignore.Rule] = []
        hidden = False
        for depth in range(len(parts)):
            base = b"".join(part + b"/" for part in parts[:depth])
            rules = rules + ignore.parse(texts.get(base.decode(), "").encode(), base)
            if ignore.ignored(rules, b"/".join(parts[: depth + 1]), folder=depth + 1 < len(parts)):
                hidden = True
                break
        if not hidden:
            kept.add(path)
    return kept


ATOMS = [
    *"abcde./",
    "*",
    "**",
    "**/",
    "/**",
    "/**/",
    "?",
    "!",
    "#",
    " ",
    "\\",
    "\\ ",
    "[a-c]",
    "[!a]",
    "[^b]",
    "[]a]",
    "[a",
    "a]",
]
ATOMS += [
    "[[:alpha:]]",
    "[[:digit:]]",
    "[c-a]",
    "[\\]]",
    "é",
    "build",
    "pyc",
    "\\*",
    "\\/",
    "\r",
    "\t",
    "[--c]",
    "[a-]",
    "[[:bad:]]",
    "[[:print:]]",
    "[[:graph:]a]",
    "[^[:cntrl:]]",
    "[[:a]",
    "[[:",
    "[[:]",
    "[/]",
    "[*]",
]
LINES = st.lists(st.sampled_from(ATOMS), max_size=6).map("".join)
TEXTS = st.lists(LINES, max_size=4).map("\n".join)


@given(glob=LINES, paths=st.lists(st.text("ab/.", min_size=1, max_size=12), max_size=20))
@example(glob="**/a/**/*b*a/**/b*", paths=["a/b/ba/a/bba/b", "a/ba/b", "a/b/b"])
@example(glob="*a*b*a?b*", paths=["aabab", "abaab", "bbabaabb", "abab/b"])
def test_the_careful_expression_means_what_the_plain_one_does(glob: str, paths: list[str]) -> None:
    plain, careful = (ignore.translate(glob.encode(), careful=careful) for careful in (False, True))
    assert (plain is None) == (careful is None)
    if plain is not None and careful is not None:
        for path in PATHS + [path for path in paths if not path.startswith("/") and "//" not in path]:
            found = [re.fullmatch(each, path.encode(), re.DOTALL) is not None for each in (plain, careful)]
            assert found[0] == found[1], path


@pytest.mark.parametrize("line", ["*a" * 50 + "*b", "**/a/" * 50 + "b", "**/*a*a/" * 50 + "*b*b"])
def test_many_stars_take_no_time(line: str) -> None:
    rules = ignore.parse(line.encode(), b"")
    assert not ignore.ignored(rules, b"a" * 250, folder=False)
    assert not ignore.ignored(rules, b"aaa/" * 500 + b"aaa", folder=False)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(root=TEXTS, below=TEXTS)
@example(root="*\n!*/\n!*.c", below="")
@example(root="/d/**/a", below="!a")
@example(root="**/e/**\n!d/e/", below="/a\n")
@example(root="d/*\n!d/e", below="")
@example(root="", below="**\\/**a")
@example(root="[c-a][!a]", below="")  # a set has the start of a range that ends before it
def test_what_git_ignores_we_ignore(folder: Path, root: str, below: str) -> None:
    (folder / ".gitignore").write_bytes(root.encode())
    (folder / "d" / ".gitignore").write_bytes(below.encode())
    assert by_us({"": root, "d/": below}) == by_git(folder)
