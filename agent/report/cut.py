"""Cuts long text to the room that a page has, and counts what was left out."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """The beginning and the end of a text, and how many characters between them were left out (0: none)."""

    head: str
    left_out_chars: int = 0
    tail: str = ""


def cut(text: str, most_bytes: int) -> Cut:
    """Cut a text so that it takes at most ``most_bytes`` as HTML, at a line end if one is near.

    A third of the room is for the beginning, the rest for the end, where errors usually are.
    """
    if cost_bytes(text) <= most_bytes:
        return Cut(text)
    room = min(most_bytes, len(text))
    while True:
        first = room // 3
        head, tail = text[:first], text[len(text) - (room - first) :]
        spent = cost_bytes(head) + cost_bytes(tail)
        if spent <= most_bytes:
            break
        room = min(room - 1, room * most_bytes // spent)
    head = head[: end + 1] if (end := head.rfind("\n")) > first // 2 else head
    start = tail.find("\n") + 1
    tail = tail[start:] if 0 < start < len(tail) // 2 else tail
    return Cut(head, len(text) - len(head) - len(tail), tail)


def cost_bytes(text: str) -> int:
    """Return the size of a text as HTML."""
    return len(html.escape(text, quote=False).encode("utf-8", "surrogatepass"))
