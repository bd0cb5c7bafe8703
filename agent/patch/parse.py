"""Parses patch text. Everything that the published Codex ``apply_patch`` accepts is read in the same way; other text is
repaired if it has only one possible meaning.

The format: ``*** Begin Patch``, then for each file ``*** Add File: P`` (every line with ``+``), ``*** Delete File: P`` or
``*** Update File: P`` (an optional ``*** Move to: Q``, then hunks), then ``*** End Patch``. A hunk is ``@@`` or ``@@ a line
of the file``, then lines that start with blank, ``-`` or ``+``, and perhaps ``*** End of File``.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.patch.model import (
    EXAMPLE,
    AddFile,
    DeleteFile,
    Fault,
    Hunk,
    HunkLine,
    Operation,
    Patch,
    PatchError,
    Tag,
    UpdateFile,
)

# Unicode's White_Space, which is what Codex trims; str.strip() would also take U+001C to U+001F.
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

_BEGIN, _END, _EOF = "*** Begin Patch", "*** End Patch", "*** End of File"
_ADD, _DELETE, _UPDATE, _MOVE = "*** Add File: ", "*** Delete File: ", "*** Update File: ", "*** Move to: "
_ENVIRONMENT = re.compile(r"\*\*\* Environment ID:\s*\S.*")
_LOOSE_MARKER = re.compile(
    r"\*{2,}\s*(begin patch|end patch|end of file|(?:add|delete|update) file\s*:|move to\s*:)\s*(.*?)\s*\**",
    re.IGNORECASE,
)
_HEREDOC = re.compile(r"<<(['\"]?)EOF\1")


def parse(text: str, root: str | None = None) -> Patch:
    """Read a patch. ``root`` is the folder its paths are in: an absolute path below it counts as relative to it.

    Bytes that are not UTF-8 may be in ``text`` as surrogate escapes. Raises PatchError (SYNTAX; or PATH for a path
    that is absolute, leaves the root, or is inside ``.git``).
    """
    reader = _Reader(root)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    first, last = _envelope(lines, reader)
    for number in range(first, last):
        reader.line(lines[number], number + 1)
    reader.close()
    if not reader.operations:
        raise PatchError(
            Fault.SYNTAX, "the patch changes no file: there is nothing between its first and last line", None, _hint()
        )
    return Patch(tuple(reader.operations), tuple(dict.fromkeys(reader.notes)))


def confined(path: str, root: str | None, line: int | None = None) -> str:
    """Return ``path`` normalised and relative to the root. Raises PatchError (PATH) when it is not inside, or in ``.git``."""
    relative = path
    if root is not None and posixpath.isabs(path):
        relative = posixpath.relpath(posixpath.normpath(path), posixpath.normpath(root))
    relative = posixpath.normpath(relative)
    parts = relative.split("/")
    why = ""
    if not path.strip(BLANKS) or relative == ".":
        why = "names no file"
    elif "\0" in path:
        why = "contains a NUL byte"
    elif posixpath.isabs(relative) or parts[0] == "..":
        why = "is outside the repository"
    elif any(part.casefold() == ".git" for part in parts):
        why = "is inside git's own folder"
    elif path.endswith("/"):
        why = "names a folder"
    if why:
        raise PatchError(
            Fault.PATH, f"the path {path!r} {why}.", line, "Name a file by its path relative to the repository's root."
        )
    return relative


def _hint() -> str:
    return f"A correct patch looks like this:\n{EXAMPLE}"


def _envelope(lines: list[str], reader: _Reader) -> tuple[int, int]:
    """Return the range of lines between the markers; text around them is noted and left out."""
    begins = [index for index, line in enumerate(lines) if _marker(line).name == _BEGIN]
    ends = [index for index, line in enumerate(lines) if _marker(line).name == _END]
    if begins:
        first = begins[0]
    else:
        headers = (index for index, line in enumerate(lines) if _marker(line).name in {_ADD, _DELETE, _UPDATE})
        first = next(headers, 0) - 1
        if first < 0 and (not ends or _marker(lines[0]).name not in {_ADD, _DELETE, _UPDATE}):
            raise PatchError(Fault.SYNTAX, f"this is not a patch: its first line must be '{_BEGIN}'.", None, _hint())
        reader.notes.append(f"'{_BEGIN}' was missing")
    if not ends or ends[-1] <= first:
        shown = next((line for line in reversed(lines) if line.strip(BLANKS)), "")[:200]
        raise PatchError(
            Fault.SYNTAX,
            f"the patch is cut off: its last line must be '{_END}', not {shown!r}.",
            len(lines),
            "Send the whole patch again, or a smaller one.",
        )
    before = [line for line in lines[: max(first, 0)] if line.strip(BLANKS)]
    after = [line for line in lines[ends[-1] + 1 :] if line.strip(BLANKS)]
    if (before or after) and not (
        len(before) == len(after) == 1 and _HEREDOC.fullmatch(before[0]) and after[0].endswith("EOF")
    ):
        reader.notes.append("text around the patch was left out")
    for edge in (first, ends[-1]):
        if edge >= 0 and _marker(lines[edge]).repaired:
            reader.notes.append(f"markers are written '{_BEGIN}' and '{_END}'")
    return first + 1, ends[-1]


class _Marker(NamedTuple):
    """A marker line: which one, the text after it, and whether Codex would not have recognized it."""

    name: str
    rest: str = ""
    repaired: bool = False


def _marker(line: str) -> _Marker:
    """Return the marker in a line; its name is "" if the line is not a marker."""
    trimmed = line.strip(BLANKS)
    for marker in (_ADD, _DELETE, _UPDATE, _MOVE):
        if trimmed.startswith(marker):
            return _Marker(marker, trimmed[len(marker) :])
    if trimmed in {_BEGIN, _END, _EOF}:
        return _Marker(trimmed)
    match = _LOOSE_MARKER.fullmatch(trimmed)
    if match is None:
        return _Marker("")
    word = re.sub(r"\s*:", ": ", match[1]).casefold()
    found = next(m for m in (_BEGIN, _END, _EOF, _ADD, _DELETE, _UPDATE, _MOVE) if m[4:].casefold() == word)
    if found in {_BEGIN, _END, _EOF} and match[2]:
        return _Marker("")
    return _Marker(found, match[2], repaired=True)


@dataclass(slots=True)
class _Section:
    """An operation while it is parsed."""

    kind: str
    path: str
    number: int
    lines: list[str] = field(default_factory=list)
    blanks: int = 0
    move_to: str | None = None
    hunks: list[Hunk] = field(default_factory=list)
    hunk: _OpenHunk | None = None


@dataclass(slots=True)
class _OpenHunk:
    """A hunk while it is parsed."""

    number: int
    anchors: list[str] = field(default_factory=list)
    lines: list[HunkLine] = field(default_factory=list)
    at_end: bool = False


class _Reader:
    """The parser's state: the operations so far and the open one."""

    def __init__(self, root: str | None) -> None:
        self.operations: list[Operation] = []
        self.notes: list[str] = []
        self._root = root
        self._section: _Section | None = None

    def line(self, line: str, number: int) -> None:
        """Parse one line between the outer markers."""
        # A line of a hunk that starts with a space is context, even if it reads like a marker.
        context = self._section is not None and self._section.kind == _UPDATE and line.startswith(" ")
        marker, rest, repaired = _Marker("") if context else _marker(line)
        padded = self._section is not None and self._section.kind == _UPDATE and line[:1] in BLANKS
        if repaired or (marker and padded):
            self.notes.append(f"{line.strip(BLANKS)[:200]!r} was read as {marker.strip()!r}")
        if marker in {_BEGIN, _END}:
            self.close()
            self.notes.append("several patches in one text were applied as one")
        elif marker in {_ADD, _DELETE, _UPDATE}:
            self.close()
            self._section = _Section(marker, confined(rest, self._root, number), number)
        elif self._section is None or self._section.kind == _DELETE:
            self._between(line, number)
        elif self._section.kind == _ADD:
            self._added(self._section, line, number)
        elif (
            marker == _MOVE and self._section.move_to is None and not self._section.hunks and self._section.hunk is None
        ):
            self._section.move_to = confined(rest, self._root, number)
        else:
            self._updated(self._section, line, number, marker)

    def close(self) -> None:
        """End the open section."""
        section, self._section = self._section, None
        if section is None:
            return
        match section.kind:
            case "*** Add File: ":
                self.operations.append(AddFile(section.path, tuple(section.lines), section.number))
            case "*** Delete File: ":
                self.operations.append(DeleteFile(section.path, section.number))
            case _:
                self._close_hunk(section)
                if not section.hunks and section.move_to is None:
                    raise PatchError(
                        Fault.SYNTAX, f"the section '{_UPDATE}{section.path}' changes nothing.", section.number, _hint()
                    )
                if not section.hunks:
                    self.notes.append(f"{section.path} was moved as it is")
                self.operations.append(UpdateFile(section.path, tuple(section.hunks), section.number, section.move_to))

    def _between(self, line: str, number: int) -> None:
        trimmed = line.strip(BLANKS)
        if not trimmed:
            self.notes.append("blank lines between the sections were left out")
        elif self._section is None and not self.operations and _ENVIRONMENT.fullmatch(trimmed):
            return
        else:
            raise PatchError(
                Fault.SYNTAX,
                f"{line[:200]!r} is not the start of a section.",
                number,
                f"A section starts with '{_ADD}PATH', '{_DELETE}PATH' or '{_UPDATE}PATH'.\n{_hint()}",
            )

    def _added(self, section: _Section, line: str, number: int) -> None:
        if not line.strip(BLANKS):
            section.blanks += 1
        elif line.startswith("+"):
            section.lines.extend([""] * section.blanks)
            section.blanks = 0
            section.lines.append(line[1:])
        else:
            raise PatchError(
                Fault.SYNTAX,
                f"in '{_ADD}{section.path}' every line must start with '+', and this one does not: {line[:200]!r}",
                number,
                _hint(),
            )
        if section.blanks:
            self.notes.append(
                f"blank lines without '+' in '{_ADD}{section.path}': inside it they are empty lines, after it nothing"
            )

    def _updated(self, section: _Section, line: str, number: int, marker: str) -> None:
        trimmed = line.strip(BLANKS)
        hunk = section.hunk
        if not line.startswith(" ") and (trimmed == "@@" or trimmed.startswith("@@ ")):
            if hunk is None or hunk.lines or hunk.at_end:
                self._close_hunk(section)
                section.hunk = hunk = _OpenHunk(number)
            else:
                self.notes.append("several '@@' lines in a row narrow down together")
            if trimmed[3:].strip(BLANKS):
                hunk.anchors.append(trimmed[3:])
            return
        if hunk is None and marker == _EOF:
            self.notes.append(f"'{_EOF}' before a hunk says nothing")
            return
        if hunk is None:
            section.hunk = hunk = _OpenHunk(number)
        if marker == _EOF:
            hunk.at_end = True
        elif hunk.at_end and line.strip(BLANKS):
            raise PatchError(
                Fault.SYNTAX, f"after '{_EOF}' comes a new '@@' or section, not {line[:200]!r}.", number, _hint()
            )
        elif hunk.at_end:
            return
        elif line[:1] in {" ", "+", "-"}:
            hunk.lines.append(HunkLine(Tag(line[0]), line[1:], number))
        elif not line:
            hunk.lines.append(HunkLine(Tag.KEEP, "", number))
        elif marker or line.startswith("***"):
            raise PatchError(
                Fault.SYNTAX, f"{line[:200]!r} cannot stand inside '{_UPDATE}{section.path}'.", number, _hint()
            )
        else:
            self.notes.append("lines without a blank, '-' or '+' in front were taken as context")
            hunk.lines.append(HunkLine(Tag.KEEP, line, number))

    def _close_hunk(self, section: _Section) -> None:
        hunk, section.hunk = section.hunk, None
        if hunk is None:
            return
        if not hunk.lines:
            raise PatchError(
                Fault.SYNTAX,
                "the hunk has no lines: after '@@' come the lines that stay, go ('-') and come ('+').",
                hunk.number,
                _hint(),
            )
        section.hunks.append(Hunk(hunk.number, tuple(hunk.anchors), tuple(hunk.lines), hunk.at_end))
