"""Converts a server's text to token ids; the content of one event of a raw answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.model.stream import token_ids


@dataclass(frozen=True, slots=True)
class Spelling:
    """The functions of the vocabulary that a source of text needs.

    ``encode`` never returns a control id; ``control`` returns the control id that a text spells, or None; ``decode`` takes any ids.
    """

    encode: Callable[[str], Sequence[int]]
    control: Callable[[str], int | None]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of one event."""

    ids: tuple[int, ...] = ()
    finish: str | None = None
    stopped_by: int | None = None  # the stop id, if the server reports it separately
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


def text_ids(text: str, spelling: Spelling) -> tuple[int, ...]:
    """Return the ids of a piece of text: one control id if the whole piece spells a control token, otherwise text ids only."""
    if text.startswith("<|") and (control := spelling.control(text)) is not None:
        return (control,)
    return token_ids(list(spelling.encode(text)))
