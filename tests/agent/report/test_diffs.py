from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.lines import LINE_END, clean
from agent.report.diffs import FileDiff, Hunk, Line, read_diff
from agent.report.highlight import LANGUAGES, NAMES, colour_hunk, colour_lines, language_of
from tests.agent.report.hostile import texts
from tests.agent.report.stories import PATCH
from tests.agent.report.test_html import read

LANGUAGE_NAMES = sorted({*LANGUAGES.values(), *NAMES.values()})


def test_files_with_their_lines_and_numbers() -> None:
    first, second = read_diff(PATCH)
    assert (first.path, first.added, first.removed) == ("shop/price.py", 3, 1)
    assert first.hunks[0].head == "@@ -3,7 +3,9 @@ class Price:"
    assert first.hunks[0].lines[3] == Line("-", "        return self.each * count  # of each", 6, None)
    assert first.hunks[0].lines[4] == Line("+", "        if count < 0:", None, 6)
    assert first.hunks[0].lines[-1] == Line(" ", '        return "Price"', 9, 11)
    assert (second.path, second.notes) == ("tests/test_price.py", ("new file mode 100644",))


LINES = st.lists(
    st.sampled_from(["a", "-- x", "++ y", "", " ", "@@ -1 +1 @@", "diff --git a/x b/x", "\\ No", "é"]), max_size=12
)


@settings(max_examples=25)
@given(LINES, LINES, st.booleans())
def test_what_git_says_of_two_files_is_read_back(tmp_path_factory: pytest.TempPathFactory, old: list[str], new: list[str], ended: bool) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("diff")
    texts = ["\n".join(lines) + "\n" * ended for lines in (old, new)]
    for name, text in zip("ab", texts, strict=True):
        (folder / name).write_text(text)
    done = subprocess.run(["git", "diff", "--no-index", "a", "b"], cwd=folder, capture_output=True, check=False)
    files = read_diff(done.stdout.decode())
    assert len(files) == (texts[0] != texts[1])
    for file in files:
        kept = [(line.kind, line.text) for hunk in file.hunks for line in hunk.lines]
        seen_old = [text for kind, text in kept if kind in " -"]
        seen_new = [text for kind, text in kept if kind in " +"]
        # git shows three lines around a change; what it shows stands in the files, in that order.
        assert _within(seen_old, texts[0].split("\n"))
        assert _within(seen_new, texts[1].split("\n"))
        assert file.added - file.removed == len(texts[1].splitlines()) - len(texts[0].splitlines())


def _within(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(any(line == other for other in rest) for line in part)


def test_renames_modes_binaries_and_odd_names() -> None:
    moved = "diff --git a/old.py b/new.py\nsimilarity index 90%\nrename from old.py\nrename to new.py\n"
    mode = "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
    binary = "diff --git a/x.png b/x.png\nindex 1..2 100644\nGIT binary patch\nliteral 3\nKcmZ\n\nliteral 0\nHc\n\n"
    gone = "diff --git a/d d b/d d\ndeleted file mode 100644\n--- a/d d\t\n+++ /dev/null\n@@ -1 +0,0 @@\n--- a/x\n\\ No newline at end of file\n"
    found = read_diff(moved + mode + binary + gone)
    assert [file.path for file in found] == ["new.py", "run.sh", "x.png", "d d"]
    assert "rename from old.py" in found[0].notes
    assert found[1].notes == ("old mode 100644", "new mode 100755")
    assert found[2].notes == ("binary, 6 lines of base85",)
    assert found[3].hunks[0].lines == (Line("-", "-- a/x", 1, None), Line("\\", "No newline at end of file"))


@given(texts)
def test_any_text_is_read(text: str) -> None:
    for patch in (
        text,
        f"diff --git a/x b/x\n{text}",
        f"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n{text}",
    ):
        assert all(isinstance(file, FileDiff) for file in read_diff(patch))


@given(st.sampled_from(LANGUAGE_NAMES), texts)
def test_colours_change_no_text(language: str, text: str) -> None:
    lines = text.split("\n")
    shown = colour_lines(lines, language)
    assert len(shown) == len(lines)
    for line, html in zip(lines, shown, strict=True):
        found = read(html)
        # A colour sequence can be cut in two by a token's end, and is then shown instead of dropped.
        assert found.text.replace("\\x1b[31m", "") == clean(LINE_END.sub("\u240d", line)).replace("\\x1b[31m", "")
        assert {tag for tag, _ in found.tags} <= {"i"}


def test_python_is_coloured() -> None:
    (shown,) = colour_lines(['def total(self):  # "sum"'], "python")
    assert shown == '<i class="k">def</i> <i class="f">total</i>(self):  <i class="c"># "sum"</i>'


@pytest.mark.parametrize(
    ("name", "path"), [('"b/\\303\\274\\tx"', "ü\tx"), ('"b/\\8\\"\\\\"', '8"\\'), ('"', '"'), ("b/x\t", "x")]
)
def test_names_in_quotes(name: str, path: str) -> None:
    (file,) = read_diff(f"diff --git a/- b/-\n--- /dev/null\n+++ {name}\n@@ -0,0 +1 @@\n+x\n")
    assert file.path == path


@pytest.mark.parametrize(
    ("language", "lines"),
    [
        ("python", ["    of a docstring.", '    """', "    return 1"]),
        ("python", ['    that ends here."""', "    return 1"]),
        ("go", [" in a comment */", "return 1"]),
    ],
)
def test_a_hunk_that_begins_within_a_text_of_many_lines(language: str, lines: list[str]) -> None:
    shown = colour_lines(lines, language)
    assert 'class="s"' in shown[0] or 'class="c"' in shown[0]
    assert '<i class="k">return</i>' in shown[-1]


@pytest.mark.parametrize("lines", [['"""A whole one."""', "return 1"], ['"""Begins.', "goes on"], ["/* x */ return 1"]])
def test_a_hunk_that_begins_outside_is_left_alone(lines: list[str]) -> None:
    assert colour_lines(lines, "python" if '"' in lines[0] else "c")[0].count("<i") >= 1


def test_long_texts_are_left_plain() -> None:
    assert colour_lines(["return 1" + " " * 2000], "python")[0].startswith("return")
    assert colour_lines(["return 1"] * 10_000, "python")[0] == "return 1"


def test_old_lines_are_coloured_as_the_old_file_and_new_ones_as_the_new() -> None:
    lines = (
        Line("-", '"""old', 1),
        Line("-", 'return"""', 2),
        Line("+", "return 1", None, 1),
        Line("\\", "No newline"),
    )
    assert colour_hunk(Hunk("@@", lines), "python")[1:] == ['<i class="s">return"""</i>', '<i class="k">return</i> <i class="n">1</i>', "No newline"]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "language"),
    [("a/b.py", "python"), ("Makefile", "make"), ("x.RS", "rust"), ("a.unknown", None), ("", None), (".py", None)],
)
def test_the_language_of_a_file(path: str, language: str | None) -> None:
    assert language_of(path) == language


def test_pygments_knows_every_language() -> None:
    from pygments.lexers import get_lexer_by_name

    assert all(get_lexer_by_name(name) for name in LANGUAGE_NAMES)


def test_a_patch_of_a_real_repository(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout  # fmt: skip

    git("init", "-q")
    (tmp_path / "sp ace.py").write_text("a = 1\n")
    (tmp_path / "ümlaut.md").write_text("x\n")
    git("add", ".")
    git("commit", "-qm", "x")
    (tmp_path / "sp ace.py").write_text("a = 2\n")
    (tmp_path / "ümlaut.md").unlink()
    files = read_diff(git("diff"))
    assert [file.path for file in files] == ["sp ace.py", "ümlaut.md"]
