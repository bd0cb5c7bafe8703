"""Parses a git diff into files and lines for display. Tolerant: unexpected lines are shown as they are.

(A diff that leaves the sandbox is parsed by ``sandbox.diff``, which refuses anything unexpected.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

QUOTED = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
LETTERS = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@.*")


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its kind (``+``, ``-``, a space, or ``\\`` for git's own notes), its text without that, and its line numbers."""

    kind: str
    text: str
    old: int | None = None
    new: int | None = None


@dataclass(frozen=True, slots=True)
class Hunk:
    """A hunk: its lines, and its header."""

    head: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """The changes of one file. ``notes`` are the header's lines with more information than the path."""

    path: str
    notes: tuple[str, ...] = ()
    hunks: tuple[Hunk, ...] = field(default=())

    @property
    def added(self) -> int:
        """The number of added lines."""
        return sum(line.kind == "+" for hunk in self.hunks for line in hunk.lines)

    @property
    def removed(self) -> int:
        """The number of removed lines."""
        return sum(line.kind == "-" for hunk in self.hunks for line in hunk.lines)


def read_diff(patch: str) -> tuple[FileDiff, ...]:
    """Return the files of a git diff. Never raises."""
    lines = patch.removesuffix("\n").split("\n") if patch else []
    starts = [at for at, line in enumerate(lines) if line.startswith("diff --git ")]
    # Inside a hunk every line has a prefix, so a line that begins with "diff --git" is a file's header.
    return tuple(_file(lines[start:end]) for start, end in pairwise([*starts, len(lines)]))


def _file(lines: list[str]) -> FileDiff:
    path, notes, at = "", [], 1
    while at < len(lines) and not HUNK.match(lines[at]):
        line = lines[at]
        if line.startswith("GIT binary patch"):
            notes.append(f"binary, {len(lines) - at - 1} lines of base85")
            break
        if line.startswith("+++ ") and line != "+++ /dev/null":
            path = _name(line[4:], "b/")
        elif line.startswith("--- ") and line != "--- /dev/null":
            path = _name(line[4:], "a/")
        elif not line.startswith(("index ", "+++ ", "--- ")):
            notes.append(line)
        at += 1
    else:
        return FileDiff(path or _header_path(lines[0]), tuple(notes), _hunks(lines, at))
    return FileDiff(path or _header_path(lines[0]), tuple(notes))


def _header_path(line: str) -> str:
    """Return the new name in ``diff --git a/X b/X``; both halves are equal, except for a rename, which has lines of its own."""
    rest = line.removeprefix("diff --git ")
    return _name(rest[len(rest) // 2 + 1 :], "b/")


def _name(text: str, prefix: str) -> str:
    """Return a name without its prefix and the quotes that git puts around what is not ASCII."""
    text = text.removesuffix("\t")
    if len(text) > 1 and text[0] == text[-1] == '"':
        unquoted = QUOTED.sub(lambda found: _unquoted(found[1]), text[1:-1].encode("utf-8", "replace"))
        text = unquoted.decode("utf-8", "replace")
    return text.removeprefix(prefix)


def _unquoted(escape: bytes) -> bytes:
    return bytes([int(escape, 8) & 0xFF]) if len(escape) == 3 else LETTERS.get(escape, escape)


def _hunks(lines: list[str], at: int) -> tuple[Hunk, ...]:
    hunks: list[Hunk] = []
    while at < len(lines):
        head = HUNK.match(lines[at])
        if head is None:
            hunks.append(Hunk("", tuple(Line("\\", line) for line in lines[at:])))
            break
        old, new = int(head[1]), int(head[3])
        old_left, new_left = (int(head[group]) if head[group] is not None else 1 for group in (2, 4))
        found: list[Line] = []
        at += 1
        # A hunk ends where its header's counts say, because a removed line may look like a header ("--- a/x").
        while at < len(lines) and (old_left > 0 or new_left > 0 or lines[at].startswith("\\")):
            kind, text = lines[at][:1] or " ", lines[at][1:]
            if kind == "\\":
                found.append(Line(kind, text.strip()))
            else:
                takes_old, takes_new = kind != "+", kind != "-"
                found.append(Line(kind, text, old if takes_old else None, new if takes_new else None))
                old, new = old + takes_old, new + takes_new
                old_left, new_left = old_left - takes_old, new_left - takes_new
            at += 1
        hunks.append(Hunk(head[0].rstrip(), tuple(found)))
    return tuple(hunks)
