"""What a conversation shows of files, as lines: the output of tools, the user's text, and what patches wrote."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from agent.conversation import Message, Role

BEGIN: Final = "*** Begin Patch"
END: Final = "*** End Patch"
CALL_CHARS: Final = 1000
_WORDS: Final = re.compile(r"[\w./\-]+")
_NUMBERED: Final = re.compile(r" *(\d+)[\t:](.*)", re.DOTALL)
_ANY_NUMBERED: Final = re.compile(r"^ *\d+[\t:]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ReadText:
    """One text that the model has read or written, as lines without numbers."""

    lines: tuple[str, ...]
    places: Mapping[str, Sequence[int]]  # of each line, by what it says without its indentation
    ordered: Sequence[tuple[str, int]]  # all lines that are not blank, sorted

    def beginning(self, begun: str) -> list[int]:
        """Return the places of lines that begin so, 50 at most."""
        first = bisect_left(self.ordered, (begun, -1))
        some = self.ordered[first : first + 50]
        return sorted(place for _, place in takewhile(lambda found: found[0].startswith(begun), some))

    def same(self, line: str, after: int) -> list[int]:
        """Return one place of a line that is not blank: the first from ``after`` on, else the last; none if it is not there."""
        if line.strip() not in self.places:
            return []
        following = bisect_left(self.ordered, (line, after))
        near = self.ordered[max(following - 1, 0) : following + 1]
        return [place for said, place in near if said == line][-1:]


def read_text(text: str) -> ReadText:
    """Index a text. Line numbers as of ``cat -n``, ``grep -n`` or open_file are removed, and so are carriage returns."""
    text = text.replace("\r\n", "\n")
    split = text.split("\n")
    lines = tuple(_without_numbers(split) if _ANY_NUMBERED.search(text) else split)
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        places.setdefault(line.strip(), []).append(place)
    return ReadText(lines, places, sorted((line, place) for place, line in enumerate(lines) if line.strip()))


def _without_numbers(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines; those that are numbered one after the other lose their numbers."""
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = [None if found is None else int(found[1][-9:]) for found in numbered]
    for place, (line, found, number) in enumerate(zip(lines, numbered, numbers, strict=True)):
        before = numbers[place - 1] if place else None
        after = numbers[place + 1] if place + 1 < len(numbers) else None
        if found is None or number is None or (before != number - 1 and after != number + 1):
            yield line
        else:
            yield found[2]


@dataclass(frozen=True, slots=True)
class Shown:
    """What one message shows of files: their text, or the paths that a call names."""

    text: ReadText | None = None
    paths: tuple[str, ...] = ()


def shown(message: Message) -> Shown:
    """Read a tool's output, the user's text, the new lines of a patch, or the paths in the beginning of another call."""
    if message.role in {Role.TOOL, Role.USER}:
        return Shown(read_text(_clean(message.text)))
    if not message.is_call:
        return Shown()
    _, begin, patch = message.text.partition(BEGIN)
    if not begin:
        return Shown(paths=tuple(_paths(message.text[:CALL_CHARS])))
    plain = patch if patch.startswith("\n") else unescaped(patch.partition(END)[0])
    lines = _clean(plain or "").split("\n")
    return Shown(read_text("\n".join(line[1:] for line in lines if line[:1] in {" ", "+"})))


def _paths(text: str) -> Iterator[str]:
    for word in _WORDS.findall(text):
        path = word.rstrip("./-")
        if "/" in path or "." in path:
            yield path


def _clean(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def unescaped(text: str) -> str | None:
    """Return the text that a part of a JSON string stands for; None if it ends within an escape, or is not one."""
    try:
        found = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return None
    return _clean(found) if isinstance(found, str) else None
