"""Drafts a patch while the model writes it: most of its lines stand in what the model has read, with one more sign in front.

Looking tokens up in the prompt (runtime/lookup.py) finds a copy only up to the end of a line: the sign merges with the indentation
into other tokens, and inside a call, which is JSON, so do quotes and line ends. Here the patch is read as text. Its kept and
removed lines say where in a file it is; the draft is the lines that come next, written as the call writes them.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Final

from agent.conversation import Message, Role
from agent.model.reading import BEGIN, END, ReadText, Shown, shown, unescaped

TEXTS_CHARS: Final = 1 << 19  # of the latest messages: about as many as fit into the window
DRAFT_CHARS: Final = 160  # 31 tokens of code and a few more
PATHS: Final = 500  # the latest that calls name
LINE_CHARS: Final = 1000  # a patch with a longer line is not drafted
TAIL_CHARS: Final = 160  # of the line so far are encoded again: without spaces (Chinese), the time is quadratic
NEAR: Final = 30  # lines above and below that an added line may resemble
NEXT: Final = 4  # removed lines, one of which an added line replaces
AHEAD: Final = 60  # lines below that a patch is likely to go on with

UPDATE: Final = "*** Update File: "
_BEGINS: Final = re.compile(re.escape(BEGIN) + r"(\n|\\n)")
_LINES: Final = {False: re.compile(r"(.*?)\n"), True: re.compile(r"((?:[^\\]|\\[^n])*?)\\n", re.DOTALL)}

# An edited line goes on as the removed one does after the same so many characters.
_EQUAL: Final = {12: 0.65, 8: 0.6, 6: 0.45, 4: 0.3, 3: 0.3, 2: 0.15}
_AFTER_EQUAL: Final = {f"after {count} equal": chance for count, chance in _EQUAL.items()}

# Kinds of guesses, and how often they were right in patches of this repository's history.
INSIDE = "inside a line"
INSIDE_ADDED = "inside an added line"
PRIORS: Final[Mapping[str, float]] = {
    INSIDE: 0.975,
    INSIDE_ADDED: 0.93,
    "line": 0.95,  # the rest of a kept or removed line, where the patch is
    "elsewhere": 0.8,  # the rest of such a line found by its beginning
    "@@": 0.7,
    "header": 0.8,
    "path": 0.6,
    "kept again": 0.75,  # the next line's sign, after a line with the sign …
    "kept again, after a change": 0.6,
    "removed again": 0.5,
    "added again": 0.7,
    "added, then kept": 0.3,
    "added": 0.6,  # an added line, as the removed one that it replaces
    "edited": 0.45,
    "similar": 0.5,  # an added line, as one near it that begins alike
    **_AFTER_EQUAL,
}
_ADDED: Final = frozenset({"added", "edited", "similar", *_AFTER_EQUAL})
Piece = tuple[str, str]
"""(text, kind of guess)"""


class PatchDrafts:
    """Makes a drafter for each answer. What a message says is indexed once, about 1 ms for 40 KB."""

    def __init__(self, encode: Callable[[str], list[int]], token_bytes: Callable[[int], bytes]) -> None:
        self._encode = encode
        self._token_bytes = token_bytes
        # By what a message says, not by the object: a server gets the whole conversation anew with every request.
        self._known: dict[tuple[Role, bool, str], Shown] = {}

    def drafter(self, messages: Sequence[Message]) -> PatchDrafter:
        """Return the drafter of the answer to these messages. It needs about 50 us for a draft."""
        kept: dict[tuple[Role, bool, str], Shown] = {}
        left = TEXTS_CHARS
        for message in reversed(messages):
            left -= len(message.text)
            if left < 0:
                break
            key = message.role, message.is_call, message.text
            if key not in kept:
                kept[key] = self._known.get(key) or shown(message)
        self._known = kept
        texts = [each.text for each in kept.values() if each.text is not None]
        paths = dict.fromkeys(path for each in kept.values() for path in each.paths)
        return PatchDrafter(texts, tuple(islice(paths, PATHS)), self._encode, self._token_bytes)


@dataclass(slots=True)
class _Place:
    """Where in a patch and in a file something is: what the last line says about the next one."""

    text: ReadText | None = None
    line: int = 0  # of the text: the next that is kept or removed
    sign: str = (
        ""  # of the last line of the patch: one of " -+@"; "^" for its first line, "*" for a file's; "" in no patch
    )
    changed: bool = False  # whether the hunk has changed something
    removed: list[str] = field(default_factory=list)  # the last block of removed lines
    replaced: int = 0  # how many of them were added again, changed

    def here(self) -> str | None:
        """Return the file's next line."""
        return self.text.lines[self.line] if self.text is not None and self.line < len(self.text.lines) else None

    def go_on(self, sign: str, line: str) -> None:
        """Note a line of the patch that is where the place says."""
        if sign == "-":
            if self.sign != "-":
                self.removed, self.replaced = [], 0
            self.removed = [*self.removed, line]
        elif sign == " ":
            self.removed, self.replaced = [], 0
        else:
            self.replaced += 1
        self.line += sign != "+"
        self.changed |= sign != " "
        self.sign = sign


class PatchDrafter:
    """Drafts the patches of one answer (a ``Drafter``, see runtime/request.py). ``texts`` and ``paths``: the latest first."""

    def __init__(
        self,
        texts: Sequence[ReadText],
        paths: Sequence[str],
        encode: Callable[[str], list[int]],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._texts = texts
        self._paths = paths
        self._encode = encode
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = ""  # the line that is being written, as it is written
        self._escaped = False  # whether it stands in a JSON string
        self._place = _Place()
        self._named: set[str] = set()  # files that the patch has changed
        self._added: list[str] = []

    @property
    def priors(self) -> Mapping[str, float]:
        """Kinds of guesses; see ``Drafter``."""
        return PRIORS

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        said = self._token_bytes(token)
        if not said:  # a control token: the message is over
            self._leave()
        self._raw += self._decoder.decode(said)
        if not self._place.sign:
            self._enter()
            return
        while self._place.sign and (found := _LINES[self._escaped].match(self._raw)):
            self._raw = self._raw[found.end() :]
            line = unescaped(found[1]) if self._escaped else found[1]
            if line is None:
                self._leave()
            else:
                self._end_line(line)
        if len(self._raw) > LINE_CHARS:
            self._leave()

    def draft(self) -> Sequence[tuple[int, str]]:
        """Return what is likely to follow, or nothing outside of patches."""
        pieces: list[tuple[int, str]] = []  # (first byte in what is written, kind)
        written = ""
        for text, kind in self._pieces():
            text = text[: DRAFT_CHARS + 1]
            pieces.append((len(written.encode()), kind))
            written += json.dumps(text, ensure_ascii=False)[1:-1] if self._escaped else text
            if len(written) > DRAFT_CHARS:
                written = written[:DRAFT_CHARS]
                break
        if not written:
            return ()
        drafted: list[tuple[int, str]] = []
        inside = INSIDE
        end, kinds = 0, iter([*pieces, (1 << 31, "")])
        first, kind = next(kinds)
        for token in self._continuation(written)[:-1]:  # the last may merge with what follows
            end += len(self._token_bytes(token))
            drafted.append((token, kind if first < end else inside))
            while first < end:
                inside = INSIDE_ADDED if kind in _ADDED else INSIDE
                first, kind = next(kinds)
        return drafted

    def _continuation(self, written: str) -> list[int]:
        """Encode what follows the line so far, as tokens that do not depend on where the line is cut, if there are such."""
        raw = self._raw[-TAIL_CHARS:]
        ids = self._encode(raw + written)
        left = len(raw.encode())
        for place, token in enumerate(ids):
            if left <= 0:
                return ids[place:] if left == 0 else self._encode(written)
            left -= len(self._token_bytes(token))
        return []

    def _enter(self) -> None:
        found = _BEGINS.search(self._raw)
        if found is None:
            self._raw = self._raw[-len(BEGIN) - 2 :]
            return
        self._escaped = found[1] != "\n"
        self._raw = self._raw[found.end() :]
        self._place = _Place(sign="^")
        self._named.clear()

    def _leave(self) -> None:
        self._place = _Place()
        self._raw = ""

    def _end_line(self, line: str) -> None:
        """Note a complete line of the patch."""
        place, sign, rest = self._place, line[:1] or " ", line[1:]
        if line.startswith(END):
            self._leave()
        elif line.startswith("*** "):
            self._named.add(line.removeprefix(UPDATE))
            self._place = _Place(sign="*")
        elif line.startswith("@@"):
            self._place = _Place(place.text, place.line, "@")
            named = line[2:].strip()
            if named and (found := self._locate(lambda text: text.places.get(named, ()))):
                self._place.text, self._place.line = found[0], found[1] + 1
        elif sign == "+":
            self._added = [rest, *self._added[:NEAR]]
            block = place.removed[place.replaced : place.replaced + NEXT]
            replaced = next((n for n, removed in enumerate(block) if _alike(removed, rest)), -1)
            place.go_on("+", rest)
            place.replaced += replaced
        elif sign in {" ", "-"}:
            if place.here() != rest and rest.strip():
                found = self._locate(
                    lambda text: text.same(rest, place.line if text is place.text else len(text.lines))
                )
                if found:
                    place.text, place.line = found
            place.go_on(sign, rest)
        else:
            self._leave()

    def _locate(self, places: Callable[[ReadText], Sequence[int]]) -> tuple[ReadText, int] | None:
        """Choose one of the ``places``, in order, of a text: the next one in this text, else the last one in the latest text."""
        at = self._place
        texts = self._texts if at.text is None else (at.text, *self._texts)
        for text in texts:
            if found := places(text):
                after = bisect_left(found, at.line) if text is at.text else len(found)
                return text, found[after] if after < len(found) else found[-1]
        return None

    def _pieces(self) -> Iterator[Piece]:
        """Yield what may follow, piece by piece, without an end as long as there are lines."""
        place = copy(self._place)
        begun = unescaped(self._raw) if self._escaped else self._raw
        if begun is None or not place.sign:
            return
        if place.sign == "*" and not begun:
            yield "@@", "header"
        elif begun or place.sign == "^":
            goes_on = yield from self._rest(place, begun)
            if not goes_on:
                return
        while True:
            sign, kind = _next_sign(place)
            line = place.removed[place.replaced] if sign == "+" else place.here()
            if line is None:
                return
            yield sign, kind
            yield f"{line}\n", "added" if sign == "+" else "line"
            place.go_on(sign, line)

    def _rest(self, place: _Place, begun: str) -> Generator[Piece, None, bool]:
        """Yield the rest of a line; return whether the place after it is known."""
        sign, rest = begun[:1] or "*", begun[1:]  # without a sign, the patch has just begun
        if sign == "*":
            yield from self._header(begun)
        elif sign == "@" and begun.startswith("@@ "):
            found = self._begins(begun[3:])
            if found:
                yield f"{found[0].lines[found[1]][len(begun) - 3 :]}\n", "@@"
        elif sign in {" ", "-"}:
            line, kind = place.here(), "line"
            if line is None or not line.startswith(rest):
                found = self._begins(rest)
                if found is None:
                    return False
                (place.text, place.line), kind = found, "elsewhere"
                line = place.text.lines[place.line]
            yield f"{line[len(rest) :]}\n", kind
            place.go_on(sign, line)
            return True
        elif sign == "+":
            return (yield from self._rest_added(place, rest))
        return False

    def _rest_added(self, place: _Place, rest: str) -> Generator[Piece, None, bool]:
        block = place.removed[place.replaced : place.replaced + NEXT]
        alike = next((n for n, line in enumerate(block) if rest.strip() and line.startswith(rest)), 0)
        place.replaced += alike
        base = block[alike] if block else None
        if base is not None and base.startswith(rest):
            if base == rest:
                return False
            yield f"{base[len(rest) :]}\n", "edited" if rest.strip() else "added"
            place.go_on("+", base)
            return True
        if len(rest.strip()) > 1:
            similar = next((line for line in self._nearby(place) if line.startswith(rest) and line != rest), None)
            if similar is not None:
                yield f"{similar[len(rest) :]}\n", "similar"
                return False
        if base is None:
            return False
        same = _common(base, rest)
        for count in _EQUAL:
            at = base.find(rest[-count:], max(same - count, 0)) if len(rest) - same >= count else -1
            if at >= 0:
                yield f"{base[at + count :]}\n", f"after {count} equal"
                place.go_on("+", base)
                return True
        return False

    def _header(self, begun: str) -> Iterator[Piece]:
        for path in self._paths:
            if path not in self._named and f"{UPDATE}{path}".startswith(begun):
                if len(begun) < len(UPDATE):
                    yield UPDATE[len(begun) :], "header"
                yield f"{path[max(len(begun) - len(UPDATE), 0) :]}\n", "path"
                yield "@@", "header"
                return

    def _begins(self, begun: str) -> tuple[ReadText, int] | None:
        """Find a line by its beginning: one of the next in this text, else as ``_locate`` does."""
        if len(begun.strip()) < 2:
            return None
        text, line = self._place.text, self._place.line
        if text is not None:
            for place in range(line, min(line + AHEAD, len(text.lines))):
                if text.lines[place].startswith(begun):
                    return text, place
        return self._locate(lambda text: text.beginning(begun))

    def _nearby(self, place: _Place) -> Iterator[str]:
        """Yield lines that an added line may resemble, the most likely first."""
        yield from self._added
        if place.text is not None:
            lines, at = place.text.lines, place.line
            pairs = zip_longest(reversed(lines[max(at - NEAR, 0) : at]), lines[at : at + NEAR])
            yield from (line for line in chain.from_iterable(pairs) if line is not None)


def _next_sign(place: _Place) -> Piece:
    match place.sign:
        case "+" if place.replaced < len(place.removed):
            return "+", "added again"
        case "+":
            return " ", "added, then kept"
        case "-":
            return "-", "removed again"
        case _:
            return " ", "kept again, after a change" if place.changed else "kept again"


def _alike(one: str, other: str) -> bool:
    """Whether two lines share a third of the longer one at their ends."""
    one, other = one.strip(), other.strip()
    front = _common(one, other)
    back = _common(one[front:][::-1], other[front:][::-1])
    return 3 * (front + back) >= max(len(one), len(other))


def _common(one: str, other: str) -> int:
    """Return how many characters two lines share at their beginning."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
