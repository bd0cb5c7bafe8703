"""HTML as a page: blocks become lines, links become marks. lxml reads whatever the web calls HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
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
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})
_TOO_DEEP = "ERR_RESOURCE_LIMIT"
_DECLARATION = re.compile(r"<!(?!--)[^>]*>")  # the standard library stumbles over those that it does not know
_BLOCKS = _SPACED | {"div", "li", "tr", "dt", "dd", "caption", "figcaption", "address", "hr", "body", "html", "option"}
_LEAD: Mapping[str, str] = {f"h{level}": "#" * level + " " for level in range(1, 7)} | {"li": "* "}


def page_of(html: str, url: str, title: str = "") -> Page:
    """Return a page for a document at ``url``; ``title`` is used where the document has none. Takes any text."""
    from lxml import etree

    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    root = etree.fromstring(html.encode("utf-8", "replace"), parser) if html.strip() else None
    if any(entry.type_name == _TOO_DEEP for entry in parser.error_log):
        return _deep_page(html, url, title)
    if root is None:
        return make_page(url, title, "", {})
    text = _Text(url)
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        if event == "start":
            if element.tag in _SKIPPED or "hidden" in element.attrib:
                walk.skip_subtree()
            else:
                text.start(element.tag, element.attrib)
                text.say(element.text)
        else:
            if element.tag not in _SKIPPED and "hidden" not in element.attrib:
                text.end(element.tag)
            text.say(element.tail)
    return make_page(url, one_line(root.findtext(".//title") or "") or title, text.finish(), text.links)


def _deep_page(html: str, url: str, title: str) -> Page:
    """The same for elements nested thousands deep, where lxml gives up: tag by tag, without a tree that could repair what is broken."""
    tags = _Tags(_Text(url))
    end = html.rfind(">") + 1  # up to here every declaration has an end, so none is looked for in vain
    tags.feed(_DECLARATION.sub("", html[:end]) + html[end:])
    tags.close()
    return make_page(url, one_line("".join(tags.title)) or title, tags.text.finish(), tags.text.links)


class _Tags(HTMLParser):
    """Tells a _Text of tags as they come, and leaves out what is skipped up to the end tag of the same name."""

    def __init__(self, text: _Text) -> None:
        super().__init__()
        self.text = text
        self.title: list[str] = []
        self._open_pre = 0
        self._skipped = ""
        self._skipped_levels = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self._in_title = self._in_title or tag == "title"
        if self._skipped:
            self._skipped_levels += tag == self._skipped
        elif tag in _SKIPPED or ("hidden" in attributes and tag not in _VOID):
            self._skipped, self._skipped_levels = tag, 1
        else:
            self._open_pre += tag == "pre"
            self.text.start(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        self._in_title = self._in_title and tag != "title"
        if self._skipped:
            self._skipped_levels -= tag == self._skipped
            self._skipped = self._skipped if self._skipped_levels else ""
        elif tag != "pre" or self._open_pre:
            self._open_pre -= tag == "pre"
            self.text.end(tag)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._skipped:
            self.text.say(data)


class _Text:
    """Lines as they are put together. Inside a link everything is one line, because its mark is."""

    def __init__(self, url: str) -> None:
        self.links: dict[int, Link] = {}
        self._url = url
        self._numbers: dict[str, int] = {}
        self._lines: list[str] = []
        self._words: list[str] = []
        self._verbatim = 0
        self._link: tuple[str, int] | None = None  # its address, and where its words begin

    def start(self, tag: str, attributes: Mapping[str, Any]) -> None:
        """Open an element."""
        if tag == "a" and self._link is not None:
            self._close_link()  # the one before was never closed
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
        """End the line, and leave one blank after it where the element is set apart."""
        if self._link is not None:
            self._words.append(" ")
            return
        line = "".join(self._words)
        line = line.rstrip() if self._verbatim else " ".join(line.split())
        self._words = []
        if line in {"*", "#", "##", "###", "####", "#####", "######"}:
            self._words.append(f"{line} ")  # the lead of a block whose text is in an inner one
        elif line or (self._verbatim and not spaced):
            self._lines.append(line)
        if spaced and self._lines and self._lines[-1]:
            self._lines.append("")

    def _target(self, href: str) -> str:
        """The absolute address of a link that leads to another page, else ""."""
        try:
            target = urljoin(self._url, href.strip())
            parts = urlsplit(target)
        except ValueError:
            return ""
        leads = parts.scheme in {"http", "https"} and bool(parts.hostname) and not href.strip().startswith("#")
        return target if leads and href.strip() else ""
