"""Converts HTML to a page: blocks become lines, links become marks. lxml parses even malformed HTML."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from agent.tools.browser.page import Link, Page, make_page, mark, neutral, one_line

_SKIPPED = frozenset(
    {"head", "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "select", "button"}
)
_SPACED = frozenset(
    {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "figure"}
    | {"section", "article", "header", "footer", "nav", "main", "form"}
)
# lxml's time to find the element of an end tag grows with the nesting level; with both limits, the worst page takes a second.
MOST_TAGS = 100_000
MOST_LEVELS = 5100
_PIECE_BYTES = 1 << 14
_LEFT_OUT = "\n[The rest of this page is left out: it has too many tags, or nests them too deeply]"
_BLOCKS = _SPACED | {"div", "li", "tr", "dt", "dd", "caption", "figcaption", "address", "hr", "body", "html", "option"}
_LEAD: Mapping[str, str] = {f"h{level}": "#" * level + " " for level in range(1, 7)} | {"li": "* "}


def page_of(html: str, url: str, title: str = "") -> Page:
    """Return a page for a document at ``url``; ``title`` is used if the document has none. Accepts any text.

    Elements are processed as events and no tree is built, because lxml's own tree is limited to 2,048 levels.
    """
    from lxml import etree

    begun = _beginning(html)
    reader = _Reader(_Text(url))
    if begun.strip():
        parser = etree.HTMLParser(target=reader, encoding="utf-8", huge_tree=True)
        data = begun.replace("\0", "\ufffd").encode(
            "utf-8", "replace"
        )  # lxml would do so too, but record an error for each
        with suppress(_TooDeep, etree.XMLSyntaxError):  # the latter if there is no element at all
            for at in range(
                0, len(data), _PIECE_BYTES
            ):  # lxml handles an exception of a callback only at the end of a piece
                parser.feed(data[at : at + _PIECE_BYTES])
            parser.close()
    text = reader.text.finish()
    if len(begun) < len(html) or reader.levels > MOST_LEVELS:
        text += _LEFT_OUT
    return make_page(url, one_line("".join(reader.title)) or title, text, reader.text.links)


def _beginning(html: str) -> str:
    """Return a document, cut after MOST_TAGS tags."""
    parts = html.split("<", MOST_TAGS + 1)
    return html if len(parts) < MOST_TAGS + 2 else html[: -len(parts[-1]) - 1]


class _TooDeep(Exception):
    """An element is nested deeper than in any real page."""


class _Reader:
    """lxml's parser target: passes elements on to a _Text, except what is inside a skipped element."""

    def __init__(self, text: _Text) -> None:
        self.text = text
        self.title: list[str] = []
        self.levels = 0
        self._skipped_from = 0  # the level of the skipped element, 0 for none
        self._title_at = 0
        self._has_title = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise _TooDeep
        if tag == "title" and not self._has_title:
            self._has_title, self._title_at = True, self.levels
        if self._skipped_from:
            return
        if tag in _SKIPPED or "hidden" in attributes:
            self._skipped_from = self.levels
        else:
            self.text.start(tag, attributes)

    def end(self, tag: str) -> None:
        """An element ends. lxml guarantees an end for every element, in the order of a tree."""
        if not self._skipped_from:
            self.text.end(tag)
        elif self._skipped_from == self.levels:
            self._skipped_from = 0
        if self._title_at == self.levels:
            self._title_at = 0
        self.levels -= 1

    def data(self, text: str) -> None:
        """Text between two tags."""
        if self._title_at:
            self.title.append(text)
        elif not self._skipped_from:
            self.text.say(text)

    def close(self) -> None:
        """The document ends."""


class _Text:
    """Builds lines. Inside a link everything is one line, because its mark is."""

    def __init__(self, url: str) -> None:
        self.links: dict[int, Link] = {}
        self._url = url
        self._numbers: dict[str, int] = {}
        self._lines: list[str] = []
        self._words: list[str] = []
        self._verbatim = 0
        self._link: tuple[str, int] | None = None  # the open link's address, and where its words begin

    def start(self, tag: str, attributes: Mapping[str, Any]) -> None:
        """Open an element."""
        if tag == "a" and self._link is not None:
            self._close_link()  # the previous link was never closed
        if tag == "a" and (target := self._target(str(attributes.get("href", "")))):
            self._link = target, len(self._words)
        elif tag == "img" and attributes.get("alt", "").strip():
            self._words.append(f"[Image: {one_line(attributes['alt'])}]")
        elif tag == "br" or tag in _BLOCKS:
            self._break(spaced=tag in _SPACED)
            self._words.append(_LEAD.get(tag, ""))
        elif tag in {"td", "th"} and any(word.strip() for word in self._words):
            self._words.append(" | ")
        self._verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        """Close an element."""
        if tag == "a" and self._link is not None:
            self._close_link()
        elif tag in _BLOCKS:
            self._break(spaced=tag in _SPACED)
        self._verbatim -= tag == "pre"

    def say(self, text: str | None) -> None:
        """Add text between two tags."""
        if not text:
            return
        if not self._verbatim or self._link is not None:
            self._words.append(neutral(text).replace("\n", " "))
            return
        first, *rest = neutral(text).split("\n")
        self._words.append(first)
        for line in rest:
            self._break()
            self._words.append(line)

    def finish(self) -> str:
        """Return everything, without blank lines around it."""
        if self._link is not None:
            self._close_link()
        self._break()
        return "\n".join(self._lines).strip("\n")

    def _close_link(self) -> None:
        assert self._link is not None
        target, begin = self._link
        self._link = None
        said = one_line("".join(self._words[begin:]))
        del self._words[begin:]
        if said:
            number = self._numbers.setdefault(target, len(self._numbers))
            self.links[number] = Link(target)
            self._words.append(mark(number, said, target, self._url))

    def _break(self, *, spaced: bool = False) -> None:
        """End the line, and add a blank line after elements with spacing."""
        if self._link is not None:
            self._words.append(" ")
            return
        line = "".join(self._words)
        line = line.rstrip() if self._verbatim else " ".join(line.split())
        self._words = []
        if line in {"*", "#", "##", "###", "####", "#####", "######"}:
            self._words.append(f"{line} ")  # the prefix of a block whose text is in an inner block
        elif line or (self._verbatim and not spaced):
            self._lines.append(line)
        if spaced and self._lines and self._lines[-1]:
            self._lines.append("")

    def _target(self, href: str) -> str:
        """Return the absolute address of a link to another page, otherwise ""."""
        try:
            target = urljoin(self._url, href.strip())
            parts = urlsplit(target)
        except ValueError:
            return ""
        leads = parts.scheme in {"http", "https"} and bool(parts.hostname) and not href.strip().startswith("#")
        return target if leads and href.strip() else ""
