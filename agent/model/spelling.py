"""Text of a server as token ids, and what one event of a raw answer brings. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.model.stream import token_ids


@dataclass(frozen=True, slots=True)
class Spelling:
    """The vocabulary as far as a source of text needs it.

    ``encode`` never gives a control id; ``control`` gives the one that is spelt so, or None; ``decode`` spells any ids.
    """

    encode: Callable[[str], Sequence[int]]
    control: Callable[[str], int | None]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event brings."""

    ids: tuple[int, ...] = ()
    finish: str | None = None
    stopped_by: int | None = None  # the stop id, where the server names it apart from the ids
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


def text_ids(text: str, spelling: Spelling) -> tuple[int, ...]:
    """Return the ids of text that a server showed as one: a control token if it is one alone, else text ids only."""
    if text.startswith("<|") and (control := spelling.control(text)) is not None:
        return (control,)
    return token_ids(list(spelling.encode(text)))
