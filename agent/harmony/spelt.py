"""Harmony spelt out as text, on wires where a server converts between text and tokens. Pure.

Incoming: if a server's own parser gave up, the answer's text contains control tokens. Text is parsed as harmony only if it begins
like an answer; markers further on are quotations in a final message. Outgoing: several servers (llama.cpp, Ollama) treat any text
that spells a control token as one, even in a file that a tool has read, so such text is broken up by an invisible character.
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
# A header up to its channel and one more marker: "<|channel|>commentary to=container.exec <|constrain|>". Each part includes only
# the spaces after it: with optional parts and spaces on both sides, a thousand spaces would take minutes to match.
_BEGINNING = re.compile(
    rf"\s*(?:<\|start\|>\s*)?(?:assistant\s*)?(?:to={NAME}\s*)?(?:<\|channel\|>\s*)?(?:analysis|commentary|final)\b"
    rf"(?:\s*to={NAME})?(?:\s*(?:code|json))?\s*<\|(?:channel|constrain|message)\|>"
)

_SPELLING = re.compile(r"<\|(?=[a-z0-9_]+\|>)")
_APART = re.compile(r"<(?:\u200b|\\u200b)\|(?=[a-z0-9_]+\|>)")  # the second as JSON may escape it


def apart(text: str) -> str:
    """Return text that spells no control token: a zero-width space is inserted between the bracket and the bar."""
    return _SPELLING.sub("<\u200b|", text) if "<|" in text else text


def together(text: str) -> str:
    """Undo ``apart`` in what a model wrote after reading such text, so that files get the original spelling."""
    return _APART.sub("<|", text) if "200b|" in text or "\u200b|" in text else text


def read_spelt(text: str, recipients: Collection[str], *, whole: bool) -> Take | None:
    """Return the messages in an answer that a server did not parse; None for text that does not begin like an answer.

    ``whole`` is False if the token limit cut it. The messages have no ids, because those are not known.
    """
    if _BEGINNING.match(text) is None:
        return None
    pieces: list[bytes] = []  # each piece of text gets an id of its own, so the parser needs no vocabulary
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
