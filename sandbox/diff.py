"""Parses and checks the diff, the only thing that leaves the sandbox.

``parse`` reads a git diff by a strict grammar (anything unexpected is refused), lets unidiff check each text hunk, and
checks every path and mode against the rules. sandbox/worktree.py then checks what git makes of the diff, on trees. Pure.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sandbox.errors import DiffRefused

MAX_BYTES = 64 << 20
FILE, PROGRAM, LINK, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o160000
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_INDEX = re.compile(rb"index [0-9a-f]+\.\.[0-9a-f]+(?: ([0-7]{6}))?\Z")
_ESCAPES = {b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13, b'"': 34, b"\\": 92}
# Characters that HFS+ ignores in names: ".g\u200cit" is ".git" there.
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


@dataclass(frozen=True, slots=True)
class Change:
    """What a diff does to one file. ``old_path`` is None for a new file, ``path`` is None for a deleted one."""

    old_path: str | None
    path: str | None
    mode: int | None = None  # git's new mode, if the diff names one
    binary: bool = False
    added_lines: int = 0
    removed_lines: int = 0


def parse(diff: bytes, max_bytes: int = MAX_BYTES) -> tuple[Change, ...]:
    """Return the changes of a diff. Paths that are not UTF-8 have surrogate escapes.

    Raises DiffRefused, which names the path and the rule, or the line that does not belong in a git diff.
    """
    if len(diff) > max_bytes:
        raise DiffRefused(
            f"the diff has {len(diff)} bytes, more than the limit of {max_bytes}; add what was built or downloaded to .gitignore, "
            "or remove it"
        )
    lines = diff.split(b"\n")
    if lines.pop() and diff:
        raise DiffRefused("the diff is cut off: its last line does not end")
    changes = []
    at = 0
    while at < len(lines):
        change, at = _section(lines, at)
        for path, mode in ((change.old_path, None), (change.path, change.mode)):
            if path is not None and (problem := refusal(path, mode)):
                raise DiffRefused(f"{path!r}: {problem}")
        changes.append(change)
    return tuple(changes)


def paths(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """Return every path that a diff touches, sorted."""
    return tuple(sorted({path for change in changes for path in (change.old_path, change.path) if path is not None}))


def refusal(path: str, mode: int | None) -> str | None:
    """Return the rule that a path (with its new mode, if known) violates, or None."""
    parts = path.split("/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in parts or ".." in path.split("\\"):
        return "a path outside the repository may not be changed"
    if not path or "\0" in path or any(part in ("", ".") for part in parts):
        return "this is not a proper path"
    if any(_is_git_folder(part) for part in re.split(r"[/\\]", path)):
        return "nothing in a git directory may be changed"
    if mode == SUBMODULE or parts[-1].casefold() == ".gitmodules":
        return "submodules may not be changed"
    if mode not in (None, FILE, PROGRAM, LINK):
        return f"the mode {mode:o} is not that of a file, an executable or a symbolic link"
    return None


def link_refusal(path: str, target: str) -> str | None:
    """Return the rule that a symbolic link violates, or None."""
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith("/") or "\\" in target or "\0" in target or resolved.split("/")[0] == "..":
        return f"a link may not point outside the repository (it points to {target!r})"
    if any(_is_git_folder(part) for part in target.split("/")):
        return f"a link may not point into a git directory (it points to {target!r})"
    return None


def _is_git_folder(part: str) -> bool:
    """Whether some file system treats this name as ``.git`` (case, Windows' short and stream names, characters that HFS+ ignores)."""
    name = _HFS_IGNORED.sub("", part).split(":")[0].rstrip(". ").casefold()
    return name in (".git", "git~1")


def _section(lines: list[bytes], at: int) -> tuple[Change, int]:
    """Read one file's section; return its change and where the next section begins."""
    start = at
    if not lines[at].startswith(b"diff --git "):
        raise _odd(lines, at, "a file's part begins with 'diff --git'")
    old: str | None
    new: str | None
    mode: int | None = None
    old, new = _header_names(lines, at)
    binary = False
    at += 1
    while at < len(lines) and not lines[at].startswith((b"diff --git ", b"--- ", b"GIT binary patch")):
        line = lines[at]
        word, _, rest = line.partition(b" ")
        match word:
            case b"new" if rest.startswith(b"file mode "):
                old, mode = None, _mode(lines, at, rest[10:])
            case b"new" if rest.startswith(b"mode "):
                mode = _mode(lines, at, rest[5:])
            case b"old" if rest.startswith(b"mode "):
                _mode(lines, at, rest[5:])
            case b"deleted" if rest.startswith(b"file mode "):
                new = None
                if _mode(lines, at, rest[10:]) == SUBMODULE:
                    raise DiffRefused(f"{old!r}: submodules may not be changed")
            case b"rename" if rest.startswith(b"from "):
                old = _name(rest[5:])
            case b"rename" if rest.startswith(b"to "):
                new = _name(rest[3:])
            case b"similarity" | b"dissimilarity" if rest.startswith(b"index "):
                pass
            case b"index" if found := _INDEX.match(line):
                mode = int(found[1], 8) if found[1] else mode
            case _:
                raise _odd(lines, at, "this is not a line of a git diff's header")
        at += 1
    change = Change(old, new, mode)
    if at < len(lines) and lines[at] == b"GIT binary patch":
        binary, at = True, _binary(lines, at + 1)
    elif at < len(lines) and lines[at].startswith(b"--- "):
        change, at = _text(lines, at, change)
    if change.old_path is None and change.path is None:
        raise _odd(lines, start, "a file that is both new and deleted")
    return replace(change, binary=binary), at


def _header_names(lines: list[bytes], at: int) -> tuple[str, str]:
    """Return both names of ``diff --git a/X b/Y``.

    Without quotes they can be separated only if they are equal; renames have lines of their own.
    """
    rest = lines[at][len(b"diff --git ") :]
    if rest.startswith(b'"'):
        end = _quote_end(rest)
        first, second = rest[:end], rest[end + 1 :]
    elif rest.endswith(b'"'):
        first, _, second = rest.partition(b' "')
        second = b'"' + second
    else:
        middle = len(rest) // 2
        first, second = rest[:middle], rest[middle + 1 :]
        if first[2:] != second[2:]:
            first, _, second = rest.partition(b" b/")
            second = b"b/" + second
    old, new = _name(first), _name(second)
    if not old.startswith("a/") or not new.startswith("b/"):
        raise _odd(lines, at, "the names do not begin with a/ and b/")
    return old[2:], new[2:]


def _text(lines: list[bytes], at: int, change: Change) -> tuple[Change, int]:
    """Read ``---``, ``+++`` and the hunks; the names there must be those of the header."""
    start = at
    if at + 1 >= len(lines) or not lines[at + 1].startswith(b"+++ "):
        raise _odd(lines, at, "'---' is followed by '+++'")
    for line, prefix, known in ((lines[at], "a/", change.old_path), (lines[at + 1], "b/", change.path)):
        name = _name(line[4:].removesuffix(b"\t"))
        if name != ("/dev/null" if known is None else prefix + known):
            raise _odd(lines, at, f"it names {name!r} where the header names {known!r}")
    at += 2
    while at < len(lines) and (hunk := _HUNK.match(lines[at])):
        old, new = (int(hunk[group]) if hunk[group] is not None else 1 for group in (2, 4))
        at += 1
        while old or new or (at < len(lines) and lines[at].startswith(b"\\")):
            if at >= len(lines):
                raise DiffRefused("the diff is cut off inside a hunk")
            kind = lines[at][:1]
            old -= kind in b" -" and kind != b""
            new -= kind in b" +" and kind != b""
            if kind not in (b" ", b"-", b"+", b"\\") or old < 0 or new < 0:
                raise _odd(lines, at, "the hunk does not have the lines that its header announces")
            at += 1
    added, removed = _counted(b"\n".join(lines[start:at]) + b"\n", start)
    return replace(change, added_lines=added, removed_lines=removed), at


def _counted(text: bytes, start: int) -> tuple[int, int]:
    """Let unidiff read one file's hunks; return the lines added and removed."""
    from unidiff.errors import UnidiffParseError
    from unidiff.patch import PatchSet

    try:
        (file,) = PatchSet(io.StringIO(text.decode("utf-8", "surrogateescape"), newline="\n"))
    except (UnidiffParseError, ValueError) as error:
        raise DiffRefused(f"line {start + 1} of the diff: unidiff cannot read the hunks there ({error})") from error
    return file.added, file.removed


def _binary(lines: list[bytes], at: int) -> int:
    """Skip a binary patch: forward and, usually, backward data, each ended by an empty line."""
    begin = at
    while at < len(lines) and lines[at].startswith((b"literal ", b"delta ")):
        while at < len(lines) and lines[at]:
            at += 1
        at += 1
    if at == begin:
        raise _odd(lines, min(at, len(lines) - 1), "a binary patch has 'literal' or 'delta' data")
    return at


def _mode(lines: list[bytes], at: int, text: bytes) -> int:
    if not re.fullmatch(rb"[0-7]{6}", text):
        raise _odd(lines, at, "this is not a file mode")
    return int(text, 8)


def _odd(lines: list[bytes], at: int, rule: str) -> DiffRefused:
    return DiffRefused(f"line {at + 1} of the diff ({lines[at][:100]!r}): {rule}")


def _name(raw: bytes) -> str:
    """Return a name without git's C-style quotes."""
    if not raw.startswith(b'"'):
        return raw.decode("utf-8", "surrogateescape")
    if len(raw) < 2 or _quote_end(raw) != len(raw):
        raise DiffRefused(f"{raw[:100]!r}: the quotes of this name do not match")
    return bytes(_unquoted(raw[1:-1])).decode("utf-8", "surrogateescape")


def _quote_end(raw: bytes) -> int:
    """Return where a quoted name ends (one past its last quote)."""
    at = 1
    while at < len(raw) and raw[at : at + 1] != b'"':
        at += 2 if raw[at : at + 1] == b"\\" else 1
    return at + 1


def _unquoted(raw: bytes) -> Iterator[int]:
    at = 0
    while at < len(raw):
        if raw[at : at + 1] != b"\\":
            yield raw[at]
            at += 1
        elif octal := re.match(rb"[0-3][0-7]{2}", raw[at + 1 : at + 4]):
            yield int(octal[0], 8)
            at += 4
        elif raw[at + 1 : at + 2] in _ESCAPES:
            yield _ESCAPES[raw[at + 1 : at + 2]]
            at += 2
        else:
            raise DiffRefused(f"{raw[:100]!r}: an escape that git does not write")
