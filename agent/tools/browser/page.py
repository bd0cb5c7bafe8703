"""Pages as the model sees them: wrapped lines, a window of them, link marks, and search inside a page. Pure.

The layout is the one that gpt-oss was trained with: a page is shown as ``[cursor] title (address)``, then which lines are in
view, then lines ``L12: …`` wrapped at 80 columns, about 1,024 tokens of them. A link is ``【id†text†domain】`` and a citation
``【cursor†L12-L15】``; brackets in a page's own text are replaced, so that a page can forge neither.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

Encode = Callable[[str], Sequence[int]]

WRAP_COLUMNS = 80
WINDOW_TOKENS = 1024
MOST_LINES = 500  # of a window whose length the model chose
MOST_CHARS = 400_000  # of a page; the rest is left out, and a note says so
MOST_MATCHES = 50
MATCH_LINES = 4
TITLE_CHARS = 200

_MARKS = str.maketrans({"【": "〖", "】": "〗", "†": "‡"})
_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Link:
    """The target of a link mark: an address, and the line to show there (None: the beginning)."""

    url: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page in lines. ``url`` is "" for a page of results, which has no address of its own."""

    url: str
    title: str
    lines: tuple[str, ...]
    links: Mapping[int, Link]


def make_page(url: str, title: str, text: str, links: Mapping[int, Link]) -> Page:
    """Wrap a text whose own marks are already neutralized (see ``neutral``); a text that is too long is cut, with a note."""
    if len(text) > MOST_CHARS:
        text = f"{text[:MOST_CHARS]}\n[{len(text) - MOST_CHARS} more characters of this page are left out]"
    return Page(url, one_line(title) or "Untitled", tuple(wrapped(text)) or ("",), links)


def neutral(text: str) -> str:
    """Return untrusted text without anything that looks like a link or citation mark, and without control characters."""
    return _CONTROL.sub("", _LINE_END.sub("\n", text).expandtabs(4)).translate(_MARKS)


def one_line(text: str) -> str:
    """Return a title or an address neutralized, on one line, cut at 200 characters."""
    found = " ".join(neutral(text).split())
    return found if len(found) <= TITLE_CHARS else f"{found[: TITLE_CHARS - 1]}…"


def mark(number: int, text: str, url: str, page_url: str) -> str:
    """Return a link as the model reads it, with its domain if that differs from the page's."""
    there = domain(url)
    return f"【{number}†{one_line(text)}†{there}】" if there != domain(page_url) else f"【{number}†{one_line(text)}】"


def domain(url: str) -> str:
    """Return the host of an address, "" if it has none."""
    try:
        return one_line(urlsplit(url).hostname or "")
    except ValueError:
        return ""


def wrapped(text: str) -> list[str]:
    """Return lines of at most 80 columns; joining them loses only the spaces at the breaks."""
    lines: list[str] = []
    for line in text.split("\n"):
        fits = len(line) <= WRAP_COLUMNS
        lines += [line] if fits else textwrap.wrap(line, WRAP_COLUMNS, break_on_hyphens=False) or [""]
    return lines


def window_end(lines: Sequence[str], start: int, encode: Encode) -> int:
    """Return the line after the window that begins at ``start``; its last line is the one with its 1,024th token."""
    used_tokens = 0
    for number in range(start, len(lines)):
        used_tokens += len(encode(numbered(number, lines[number])))
        if used_tokens >= WINDOW_TOKENS:
            return number + 1
    return len(lines)


def numbered(number: int, line: str) -> str:
    """Return a line as it is shown."""
    return f"L{number}: {line}\n"


def view(page: Page, cursor: int, start: int, end: int) -> str:
    """Return the lines from ``start`` up to ``end`` (exclusive) as the model reads them."""
    address = f" ({one_line(unquote(page.url))})" if page.url else ""
    head = f"[{cursor}] {page.title}{address}\n**viewing lines [{start} - {end - 1}] of {len(page.lines) - 1}**\n\n"
    return head + "".join(numbered(number, page.lines[number]) for number in range(start, end))


def find(page: Page, pattern: str) -> Page:
    """Return a page with the matches of ``pattern`` (case is ignored), each with its line and the three lines after it."""
    wanted = pattern.casefold()
    places: list[int] = []
    number = 0
    while number < len(page.lines) and len(places) < MOST_MATCHES:
        if wanted in page.lines[number].casefold():
            places.append(number)
            number += MATCH_LINES
        else:
            number += 1
    parts = [
        f"# 【{index}†match at L{line}】\n" + "\n".join(page.lines[line : line + MATCH_LINES])
        for index, line in enumerate(places)
    ]
    shown = one_line(pattern)
    text = "\n\n".join(parts) or f"No line of this page contains {shown!r}."
    links = {index: Link(page.url, line) for index, line in enumerate(places)}
    return make_page("", f"Find results for {shown!r} in {page.title}", text, links)
