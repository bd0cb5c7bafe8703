"""Citations in what the model writes: ``【3†L12-L15】`` becomes a link to the page at cursor 3. Pure, whole or as it streams."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from agent.tools.browser.page import domain

# A mark is bounded, so that a bracket which never closes holds the stream back for 140 characters at most.
_CITATION = re.compile(r"【(\d{1,6})†[^【】\n]{1,120}】")
_BEGUN = re.compile(r"【(?:\d{1,6}(?:†[^【】\n]{0,120})?)?\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """A page that can be cited."""

    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A source, and the characters of the normalised text that point to it: from ``start`` up to ``end``."""

    start: int
    end: int
    source: Source


@dataclass(frozen=True, slots=True)
class Normalized:
    """Text with its citations as links. ``partial``: the end may be the beginning of a mark (it is part of ``text``)."""

    text: str
    citations: tuple[Citation, ...]
    partial: bool


Sources = Callable[[int], Source | None]


def normalize(text: str, sources: Sources) -> Normalized:
    """Replace each mark with a known cursor by `` ([domain](address)) ``; the others stay unchanged."""
    stream = Citations(sources)
    clear, citations = stream.feed(text)
    rest = stream.finish()
    return Normalized(clear + rest, citations, bool(rest))


class Citations:
    """Do the same for text that arrives in pieces: what may be the beginning of a mark is held back until that is certain."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._out_chars = 0
        self._held = ""

    def feed(self, piece: str) -> tuple[str, tuple[Citation, ...]]:
        """Add a piece; return the text that is certain now, and the citations in it, with positions in the whole text."""
        pending = self._held + piece
        begun = _BEGUN.search(pending)
        clear = pending[: begun.start()] if begun is not None else pending
        self._held = pending[len(clear) :]
        return self._give(clear)

    def finish(self) -> str:
        """Return the text that was held back: the text has ended."""
        rest, self._held = self._held, ""
        return rest

    def _give(self, clear: str) -> tuple[str, tuple[Citation, ...]]:
        parts: list[str] = []
        citations: list[Citation] = []
        at, chars = 0, self._out_chars
        for found in _CITATION.finditer(clear):
            source = self._sources(int(found[1]))
            if source is None:
                continue
            before, link = clear[at : found.start()], f" ([{domain(source.url)}]({source.url})) "
            start = chars + len(before)
            chars, at = start + len(link), found.end()
            citations.append(Citation(start, chars, source))
            parts += [before, link]
        parts.append(clear[at:])
        text = "".join(parts)
        self._out_chars += len(text)
        return text, tuple(citations)
