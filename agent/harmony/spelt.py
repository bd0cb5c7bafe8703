"""Harmony that a server handed on as text: where its own parser gave up, an answer's control tokens stand spelt out. Pure.

Only text that begins as an answer does is read so. Markers further on are what a final message quotes, and stay text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from agent.harmony.header import NAME
from agent.harmony.ladder import Take, take_all
from agent.harmony.parser import Parser
from agent.harmony.repair import Kind, repaired
from agent.harmony.tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START

_CONTROLS: Final[Mapping[str, int]] = {
    "<|start|>": START, "<|channel|>": CHANNEL, "<|constrain|>": CONSTRAIN, "<|message|>": MESSAGE, "<|end|>": END,
    "<|call|>": CALL, "<|return|>": RETURN,
}  # fmt: skip
_CONTROL = re.compile("(" + "|".join(map(re.escape, _CONTROLS)) + ")")
_BEGINNING = re.compile(  # a header as far as its channel, and one marker more
    rf"\s*(?:<\|start\|>)?\s*(?:assistant)?(?:\s*to={NAME})?\s*(?:<\|channel\|>)?\s*(?:analysis|commentary|final)\b"
    rf"(?:\s*to={NAME})?(?:\s*(?:code|json))?\s*<\|(?:channel|constrain|message)\|>"
)


def read_spelt(text: str, recipients: Collection[str], *, whole: bool) -> Take | None:
    """Return the messages in an answer that a server did not parse; None for text that does not begin as an answer does.

    ``whole`` is False where the token limit cut it. The messages have no ids: those are not known.
    """
    if _BEGINNING.match(text) is None:
        return None
    pieces: list[bytes] = []  # a piece of text is an id of its own: the parser needs no vocabulary
    parser = Parser(pieces.__getitem__, recipients)
    parser.feed(_ids("<|start|>assistant" + re.sub(r"^\s*(?:<\|start\|>)?\s*(?:assistant)?", "", text), pieces))
    parsed = parser.finish(stopped=whole)
    taken = take_all(parsed)
    messages = tuple(replace(message, tokens=()) for message in taken.messages)
    return Take(messages, (repaired(Kind.SPELT), *parsed.repairs, *taken.repairs))


def _ids(text: str, pieces: list[bytes]) -> Iterator[int]:
    for piece in filter(None, _CONTROL.split(text)):
        if piece in _CONTROLS:
            yield _CONTROLS[piece]
        else:
            pieces.append(piece.encode("utf-8", "replace"))
            yield len(pieces) - 1
