"""Where a run of lines is in a file: exactly, or with what may differ named; and what is nearest when it is nowhere."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent.patch.parse import BLANKS


class Closeness(StrEnum):
    """How a match differs from the patch's lines: the ladder that Codex climbs, then one rung for files it cannot read."""

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
    """The line as open_file and the shell show it: U+FFFD for what is not UTF-8, no byte order mark."""
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
    """The lines of a file, with their looser forms made once when they are first needed."""

    lines: tuple[str, ...]
    _forms: dict[Closeness, list[str]] = field(default_factory=dict)

    def find(self, needle: Sequence[str], start: int = 0, at_end: bool = False) -> Found | None:
        """Return the first match at or after ``start`` on the strictest rung that has one; an empty needle matches there.

        With ``at_end`` only the file's last lines are looked at.
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
        """Every index at or after ``start`` where the lines match on one rung; none for an empty needle."""
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
        """Every match in the whole file on the strictest rung that has any, the one for unreadable bytes included."""
        for closeness in Closeness:
            indices = list(self.every(needle, closeness))
            if indices:
                return indices, closeness
        return [], Closeness.EXACT

    def form(self, closeness: Closeness) -> list[str]:
        """The file's lines as one rung sees them."""
        if closeness not in self._forms:
            self._forms[closeness] = [_FORMS[closeness](line) for line in self.lines]
        return self._forms[closeness]


@dataclass(frozen=True, slots=True)
class Near:
    """The place that is most like the wanted lines. ``differs`` is the index in the wanted lines of the first that is not there."""

    index: int
    matching: int
    differs: int


def nearest(hay: Haystack, needle: Sequence[str]) -> Near | None:
    """Return the place where most of the wanted lines match, else where the most telling one nearly does, else None.

    For lines that are nowhere: where all of them match (see Haystack.everywhere) there is nothing near to name.
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
    # difflib is quadratic in the lengths: very long files and lines are only compared where it is cheap.
    pool = {line for line in lines[:20_000] if line and len(line) < 500}
    close = difflib.get_close_matches(wanted[telling][:500], pool, n=1, cutoff=0.6)
    return Near(lines.index(close[0]), 0, telling) if close else None
