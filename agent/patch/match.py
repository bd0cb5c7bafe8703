"""Finds lines in a file: exactly or approximately (naming the difference); if they are not there, finds the most similar place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent.patch.parse import BLANKS


class Closeness(StrEnum):
    """How a match differs from the patch's lines: the levels that Codex tries in order, then one for files that are not UTF-8."""

    EXACT = "exactly"
    TRAILING = "when blanks at the ends of lines are ignored"
    OUTER = "when indentation and blanks at the ends of lines are ignored"
    PUNCTUATION = "when typographic dashes, quotes and spaces are read as plain ones"
    BYTES = "when bytes that are not UTF-8, or the byte order mark, are read kindly"


CODEX_LADDER = (Closeness.EXACT, Closeness.TRAILING, Closeness.OUTER, Closeness.PUNCTUATION)

_PLAIN = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    | dict.fromkeys("\xa0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " ")
)


def _plain(line: str) -> str:
    return line.strip(BLANKS).translate(_PLAIN)


def _readable(line: str) -> str:
    """Return the line as open_file and the shell show it: U+FFFD for invalid UTF-8, no byte order mark."""
    return _plain(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix("\ufeff"))


_FORMS: dict[Closeness, Callable[[str], str]] = {
    Closeness.EXACT: str,
    Closeness.TRAILING: lambda line: line.rstrip(BLANKS),
    Closeness.OUTER: lambda line: line.strip(BLANKS),
    Closeness.PUNCTUATION: _plain,
    Closeness.BYTES: _readable,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A match: the index of its first line and how it differs."""

    index: int
    closeness: Closeness


@dataclass(frozen=True, slots=True)
class Haystack:
    """The lines of a file, and their normalized forms for each level, computed at first use."""

    lines: tuple[str, ...]
    _forms: dict[Closeness, list[str]] = field(default_factory=dict)

    def find(self, needle: Sequence[str], start: int = 0, at_end: bool = False) -> Found | None:
        """Return the first match at or after ``start`` on the strictest level that has one; an empty needle matches there.

        With ``at_end``, only the file's last lines are compared.
        """
        if not needle:
            return Found(start, Closeness.EXACT)
        if at_end:
            start = max(len(self.lines) - len(needle), start)
        for closeness in CODEX_LADDER:
            index = next(self.every(needle, closeness, start), None)
            if index is not None:
                return Found(index, closeness)
        return None

    def every(self, needle: Sequence[str], closeness: Closeness, start: int = 0) -> Iterator[int]:
        """Yield every index at or after ``start`` where the lines match on one level; none for an empty needle."""
        if not needle:
            return
        form = _FORMS[closeness]
        wanted = [form(line) for line in needle]
        lines = self.form(closeness)
        index = start
        while index + len(wanted) <= len(lines):
            try:
                index = lines.index(wanted[0], index, len(lines) - len(wanted) + 1)
            except ValueError:
                return
            if lines[index : index + len(wanted)] == wanted:
                yield index
            index += 1

    def everywhere(self, needle: Sequence[str]) -> tuple[list[int], Closeness]:
        """Return every match in the whole file on the strictest level that has any, including the one for invalid UTF-8."""
        for closeness in Closeness:
            indices = list(self.every(needle, closeness))
            if indices:
                return indices, closeness
        return [], Closeness.EXACT

    def form(self, closeness: Closeness) -> list[str]:
        """Return the file's lines, normalized for one level."""
        if closeness not in self._forms:
            self._forms[closeness] = [_FORMS[closeness](line) for line in self.lines]
        return self._forms[closeness]


@dataclass(frozen=True, slots=True)
class Near:
    """The most similar place. ``differs`` is the index of the first wanted line that is different there."""

    index: int
    matching: int
    differs: int


def nearest(hay: Haystack, needle: Sequence[str]) -> Near | None:
    """Return the place where most of the wanted lines match, otherwise where the most distinctive one almost does, otherwise None.

    Only for lines that are nowhere in the file (see Haystack.everywhere).
    """
    lines = hay.form(Closeness.BYTES)
    wanted = [_readable(line) for line in needle]
    places: dict[str, list[int]] = {}
    for offset, line in enumerate(wanted):
        if line:
            places.setdefault(line, []).append(offset)
    scores: dict[int, int] = {}
    for index, line in enumerate(lines):
        for offset in places.get(line, ()):
            scores[index - offset] = scores.get(index - offset, 0) + 1
    if scores:
        top = max(scores.values())
        index = min(index for index, score in scores.items() if score == top)
        differs = next(
            offset
            for offset in range(len(wanted))
            if not 0 <= index + offset < len(lines) or lines[index + offset] != wanted[offset]
        )
        return Near(max(index, 0), top, differs)
    telling = max(range(len(wanted)), key=lambda offset: len(wanted[offset]), default=None)
    if telling is None or not wanted[telling]:
        return None
    # difflib takes time quadratic in the lengths, so very long files and lines are compared only where it is cheap.
    pool = {line for line in lines[:20_000] if line and len(line) < 500}
    close = difflib.get_close_matches(wanted[telling][:500], pool, n=1, cutoff=0.6)
    return Near(lines.index(close[0]), 0, telling) if close else None
