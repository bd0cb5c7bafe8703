"""One fault each in a well-formed stream, and what should come of it all the same.

Where the fault hits a message's text, the text it should come out as is the text with that fault in it and nothing else
lost; where it hits the frame (header, markers), nothing at all may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.harmony.codec import Codec
from agent.harmony.tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDS,
    MESSAGE,
    OPENING,
    RETURN,
    START,
)

WORDS = (" code", " now", "user", " commentary", "assistant", "??", " <", "json", " to", "functions", "\n", ".")
CONTROLS = (START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN, 199_999, 200_013, 201_087)
HEADER_WORDS = (" please", " code_interpreter", " ??", " Action", " (tool)", " json_schema")


@dataclass(frozen=True)
class Fault:
    """A damaged completion. ``text`` says whether the fault is in a message's text; ``cut`` that the server cut there."""

    kind: str
    ids: tuple[int, ...]
    text: bool
    position: int
    cut: bool = False


@dataclass(frozen=True)
class Stream:
    """A well-formed completion, and for every id whether it is a message's text."""

    name: str
    ids: tuple[int, ...]
    in_text: tuple[bool, ...]


def stream(codec: Codec, name: str, spelling: str) -> Stream:
    ids = tuple(codec.encode_sampled(spelling))
    in_text, inside = [], False
    for token in ids:
        inside = False if token in ENDS or token == START else inside
        in_text.append(inside)
        inside = inside or token == MESSAGE
    return Stream(name, ids, tuple(in_text))


def faults(codec: Codec, origin: Stream, seed: int) -> Iterator[Fault]:
    """Every fault of every kind at every position (insertions: three drawn ids for each)."""
    chance = random.Random(f"{origin.name} {seed}")
    ids, size = origin.ids, len(origin.ids)
    pool = [*CONTROLS, *(codec.encode(word)[0] for word in WORDS)]
    for at in range(size):
        inside = origin.in_text[at]
        yield Fault("dropped", ids[:at] + ids[at + 1 :], inside, at)
        yield Fault("doubled", ids[: at + 1] + ids[at:], inside, at)
        if at + 1 < size and ids[at] != ids[at + 1]:
            swapped = (*ids[:at], ids[at + 1], ids[at], *ids[at + 2 :])
            yield Fault("swapped", swapped, inside or origin.in_text[at + 1], at)
        for token in chance.sample(pool, 3):
            yield Fault("inserted", (*ids[:at], token, *ids[at:]), inside or ids[at] in ENDS, at)
        if at:
            yield Fault("cut", ids[:at], inside, at, cut=True)
        if not inside and ids[at] not in ENDS and ids[at] != START:
            word = codec.encode(chance.choice(HEADER_WORDS))
            yield Fault("header word", (*ids[:at], *word, *ids[at:]), False, at)


def continuation(origin: Stream, prompt: Sequence[int]) -> tuple[int, ...]:
    """How the model would go on from a prompt that it did not finish: the way it meant to, where that can be told."""
    begun = tuple(prompt[len(prompt) - 1 - list(reversed(prompt)).index(START) :])
    whole = (*OPENING, *origin.ids)
    for at in range(len(whole) - len(begun), -1, -1):
        if whole[at : at + len(begun)] == begun:
            return whole[at + len(begun) :]
    return (RETURN,)
