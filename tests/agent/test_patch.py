"""The patch format: reading, placing, and what is said when a patch does not fit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.patch.model import Fault, PatchError, Plan
from agent.patch.parse import parse
from agent.patch.plan import plan


def wrap(body: str) -> str:
    return f"*** Begin Patch\n{body}\n*** End Patch\n"


def update(body: str, path: str = "f") -> str:
    return wrap(f"*** Update File: {path}\n{body}")


def apply(text: str, files: dict[str, bytes], root: str | None = None) -> dict[str, bytes]:
    return after(plan(parse(text, root), files), files)


def after(planned: Plan, files: dict[str, bytes]) -> dict[str, bytes]:
    result = dict(files)
    for change in planned.changes:
        assert change.before == files.get(change.path)
        if change.after is None:
            del result[change.path]
        else:
            result[change.path] = change.after
    return result


def notes(text: str, files: dict[str, bytes]) -> str:
    return "\n".join(plan(parse(text), files).notes)


def refusal(text: str, files: dict[str, bytes] | None = None, root: str | None = None) -> PatchError:
    with pytest.raises(PatchError) as caught:
        plan(parse(text, root), files or {})
    return caught.value


FILE = b"def a():\n    x = 1\n    return x\n\ndef b():\n    x = 1\n    return x\n"


@pytest.mark.parametrize(
    ("body", "before", "expected"),
    [
        ("@@\n-b\n+B", b"a\nb\nc\n", b"a\nB\nc\n"),
        ("-b\n+B", b"a\nb\nc\n", b"a\nB\nc\n"),
        ("@@ def b():\n-    x = 1\n+    x = 2", FILE, FILE.replace(b"b():\n    x = 1", b"b():\n    x = 2")),
        ("@@\n-a\n@@\n-c\n+C", b"a\nb\nc\n", b"b\nC\n"),
        ("@@\n+x", b"a\n", b"a\nx\n"),
        ("@@\n a\n+b", b"a", b"a\nb\n"),
        ("@@\n-a\n*** End of File", b"a\nb\na\n", b"a\nb\n"),
        ("@@\n-b\n+B", b"a\r\nb\r\nc", b"a\r\nB\r\nc\r\n"),
        ("@@\n a\n-b\n+B\n c", b"a\nb\r\nc\r\n", b"a\nB\nc\r\n"),
        ("@@\n a\n-b\n+B", b"a  \nb\n", b"a  \nB\n"),
        ("@@\n a\n-b\n+    B", b"    a\n    b\n", b"    a\n    B\n"),
        ('@@\n-s = "x"\n+t', "s = \u201cx\u201d\n".encode(), b"t\n"),
        ("@@\n a\n-b\n+B\n", b"a\nb", b"a\nB\n"),
        ("@@\n-a", b"a\n", b""),
        ("@@\n-a\x0cb\n+c\u2028d", b"a\x0cb\n", "c\u2028d\n".encode()),
    ],
)
def test_updates(body: str, before: bytes, expected: bytes) -> None:
    assert apply(update(body), {"f": before}) == {"f": expected}


def test_add_delete_move_in_one_patch() -> None:
    text = wrap(
        "*** Add File: new/n.py\n+one\n+\n*** Delete File: old\n*** Update File: f\n*** Move to: sub/g\n@@\n-a\n+b"
        "\n*** Update File: sub/g\n@@\n-b\n+c"
    )
    planned = plan(parse(text), {"old": b"x", "f": b"a\n"})
    assert after(planned, {"old": b"x", "f": b"a\n"}) == {"new/n.py": b"one\n\n", "sub/g": b"c\n"}
    assert planned.summary == ("A new/n.py", "D old", "M sub/g", "M sub/g")
    assert {change.path: change.moved_from for change in planned.changes}["sub/g"] == "f"


def test_a_move_onto_itself_keeps_the_file() -> None:
    assert apply(update("*** Move to: ./f\n@@\n-a\n+b"), {"f": b"a\n"}) == {"f": b"b\n"}
    assert "onto itself" in notes(update("*** Move to: f\n@@\n-a\n+b"), {"f": b"a\n"})


def test_a_move_chain_takes_the_bit_of_the_first_file() -> None:
    text = wrap("*** Update File: a\n*** Move to: b\n*** Update File: b\n*** Move to: c")
    (gone, came) = plan(parse(text), {"a": b"1"}).changes
    assert (gone.path, gone.after, came.path, came.after, came.moved_from) == ("a", None, "c", b"1", "a")


def test_bytes_that_are_not_utf8_survive() -> None:
    before = b"caf\xe9 = 1\nb = 2\n"
    assert apply(update("@@\n caf\ufffd = 1\n-b = 2\n+b = 3"), {"f": before}) == {"f": b"caf\xe9 = 1\nb = 3\n"}
    exact = update("@@\n-caf\udce9 = 1\n+caf\udce9 = 2")
    assert apply(exact, {"f": before}) == {"f": b"caf\xe9 = 2\nb = 2\n"}
    error = refusal(update("@@\n-b = 2\n+b = 'é'"), {"f": before})
    assert error.fault is Fault.FILE
    assert "not UTF-8" in str(error)


def test_half_a_character_is_refused_not_crashed_on() -> None:
    assert refusal(wrap("*** Add File: f\n+\ud83d")).fault is Fault.FILE


@pytest.mark.parametrize(
    ("text", "before", "expected", "said"),
    [
        (update("@@ -2,1 +2,1 @@\n-b\n+B"), b"b\nb\n", b"b\nB\n", "line numbers"),
        (
            update("@@ class A:\n@@ def f():\n-x = 1\n+y"),
            b"class B:\ndef f():\nx = 1\nclass A:\ndef f():\nx = 1\n",
            None,
            "narrow",
        ),
        (update("@@ def f\n-x = 1\n+y = 1"), b"x = 1\ndef f():\nx = 1\n", b"x = 1\ndef f():\ny = 1\n", "whole line"),
        ("Sure!\n```\n" + update("@@\n-b\n+B") + "```\n", b"b\n", b"B\n", "text around"),
        ("apply_patch <<'PATCH'\n" + update("@@\n-b\n+B") + "PATCH\n", b"b\n", b"B\n", "text around"),
        ("*** Update File: f\n@@\n-b\n+B\n*** End Patch", b"b\n", b"B\n", "was missing"),
        ("*** begin patch\n***Update file:f\n@@\n-b\n+B\n*** End Patch", b"b\n", b"B\n", "was read as"),
        (update("@@\n-beta\n+B\n@@\n-alpha\n+A"), b"alpha\nbeta\n", b"A\nB\n", "order"),
        (update("@@\nalpha\n-beta\n+B"), b"alpha\nbeta\n", b"alpha\nB\n", "context"),
        (update("@@\n-alpha\n+A\n*** End of File"), b"alpha\nbeta\n", b"A\nbeta\n", "last ones"),
        (update("@@\n-alpha\n+A"), b"\xef\xbb\xbfalpha\n", b"A\n", "byte order mark"),
        (update("@@ x\n+new"), b"x\ny\n", b"x\ny\nnew\n", "end of the file"),
        (update("@@\n-x\n+y"), b"x\nx\n", b"y\nx\n", "also at line 2"),
        (update("*** Move to: f"), b"x\n", b"x\n", "onto itself"),
        (wrap("*** Add File: f\n+x\n\n+y\n"), b"old", b"x\n\ny\n", "replaced whole"),
    ],
)
def test_what_has_one_meaning_is_accepted_and_said(text: str, before: bytes, expected: bytes | None, said: str) -> None:
    files = {"f": before}
    if expected is None:
        expected = before.replace(b"class A:\ndef f():\nx = 1", b"class A:\ndef f():\ny")
    assert apply(text, files) == {"f": expected}
    assert said in notes(text, files)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../x", "outside"),
        ("a/../../x", "outside"),
        ("/etc/passwd", "outside"),
        ("/workspace/../etc/passwd", "outside"),
        (".git/config", "git's own"),
        ("sub/.GIT/hooks/x", "git's own"),
        ("a\0b", "NUL"),
        ("", "names no file"),
        (".", "names no file"),
        ("x/", "folder"),
    ],
)
def test_paths_are_confined(path: str, why: str) -> None:
    for text in (wrap(f"*** Add File: {path}\n+x"), wrap(f"*** Update File: f\n*** Move to: {path}\n@@\n-a\n+b")):
        error = refusal(text, {"f": b"a\n"}, "/workspace")
        assert error.fault is Fault.PATH
        assert error.exit_code == 5
        assert why in str(error)


def test_an_absolute_path_below_the_root_is_relative_to_it() -> None:
    assert parse(wrap("*** Delete File: /workspace/sub/./f"), "/workspace").paths == ("sub/f",)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "first line must be"),
        ("hello", None, "first line must be"),
        ("*** Begin Patch\n*** Update File: f\n-a", 3, "cut off"),
        (wrap(""), None, "changes no file"),
        (wrap("junk"), 2, "not the start of a section"),
        (wrap("*** Add File: f\nx"), 3, "start with '+'"),
        (update("@@"), 3, "no lines"),
        (wrap("*** Update File: f"), 2, "changes nothing"),
        (update("@@\n-a\n*** End of File\n-b"), 6, "comes a new"),
        (update("@@\n-a\n*** Frob: x"), 5, "cannot stand inside"),
    ],
)
def test_what_is_no_patch_is_refused_with_its_line(text: str, line: int | None, said: str) -> None:
    error = refusal(text, {"f": b"a\n"})
    assert (error.fault, error.line, error.exit_code) == (Fault.SYNTAX, line, 2)
    assert said in str(error)


def test_missing_context_shows_line_nearest_match_rule_and_example() -> None:
    text = str(refusal(update("@@\n def b():\n-    y = 1\n+    y = 2"), {"f": FILE}))
    assert "line 5 of the patch" not in text
    assert "line 4 of the patch: the lines to change are not in f." in text
    assert "Nearest match (1 of 2 lines alike)" in text
    assert "  patch, line 5:     y = 1\n  f, line 6:     x = 1" in text
    assert "one blank (stays) or '-' (goes)" in text
    assert "*** Begin Patch" in text


def test_an_ambiguous_place_names_the_candidates() -> None:
    error = refusal(update("@@ nowhere\n-    return x\n+    return y"), {"f": FILE})
    assert error.fault is Fault.CONTEXT
    assert "They are at line 3, 7." in str(error)
    assert "Give more lines of context" in str(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("@@\n-    x = 9\n-    z\n+    return x\n+\n+def b():", "made already"),
        ("@@\n-qqqqqqqqqqqqqqqqqqq\n+x", "Nothing in f is like"),
        ("@@\n-    x = 1\n-    return y\n+q", "f, line 3:     return x"),
        ("@@\n def b():\n-    x = 1\n@@\n     x = 1\n     return x\n \n def b():\n-    x = 1", "earlier hunk"),
        ("@@ def c():\n+x", "is not a line of f"),
        ("@@ def b():\n@@ def a():\n+x", "It is line 1."),
        ("@@\n-    x = 1\n *** Delete File: f", "must not have a blank in front"),
    ],
)
def test_hints(body: str, said: str) -> None:
    assert said in str(refusal(update(body), {"f": FILE}))


def test_file_faults() -> None:
    assert "there is no file g" in str(refusal(wrap("*** Delete File: g")))
    assert "Did you mean src/f?" in str(
        refusal(wrap("*** Update File: lib/f\n@@\n-a\n*** Delete File: src/f"), {"src/f": b""})
    )
    assert "is a file, not a folder" in str(
        refusal(wrap("*** Update File: f\n@@\n+a\n*** Add File: f/g\n+x"), {"f": b""})
    )
    assert "NUL bytes" in str(refusal(update("@@\n-a"), {"f": b"\0\1\n"}))


def test_nothing_is_changed_when_a_later_section_fails() -> None:
    assert refusal(wrap("*** Add File: n\n+x\n*** Delete File: gone")).fault is Fault.FILE


LINE = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=("Cs",)), max_size=12)


@given(st.lists(LINE, min_size=1, max_size=12), st.data())
def test_replacing_any_span_by_any_lines_is_exact(lines: list[str], data: st.DataObject) -> None:
    """For any text: naming all lines up to the end, with some replaced, gives exactly those."""
    start = data.draw(st.integers(0, len(lines) - 1))
    stop = data.draw(st.integers(start + 1, len(lines)))
    new = data.draw(st.lists(LINE, max_size=4))
    body = (
        [f" {line}" for line in lines[:start]]
        + [f"-{line}" for line in lines[start:stop]]
        + [f"+{line}" for line in new]
    )
    body += [f" {line}" for line in lines[stop:]]
    result = apply(update("\n".join(["@@", *body])), {"f": "".join(f"{line}\n" for line in lines).encode()})
    assert result["f"] == "".join(f"{line}\n" for line in [*lines[:start], *new, *lines[stop:]]).encode()


@given(st.text(alphabet=st.sampled_from("*@+- aE\n\rb"), max_size=80), st.binary(max_size=40))
def test_nothing_but_patch_errors_escapes(body: str, content: bytes) -> None:
    for text in (body, wrap(body), update(body), update("@@\n" + body)):
        with contextlib.suppress(PatchError):
            plan(parse(text), {"f": content})
