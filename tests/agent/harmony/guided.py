"""A model that knows nothing: it says whatever it may, and sooner or later comes to an end."""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent.harmony.codec import Codec
from agent.harmony.constrain import Guide
from agent.harmony.tokens import CALL, MESSAGE, RETURN, VOCABULARY_SIZE

CLOSERS = (
    '"',
    '"}',
    '"]',
    '"]}',
    "]",
    "}",
    '":',
    ",",
    '","',
    " End",
    " Patch",
    "\n",
    "\\n",
    " ",
    "***",
    " json",
    "code",
)


def any_allowed(row: bytes, chance: random.Random) -> int:
    """One of the ids that a mask allows."""
    for _ in range(200):
        token = chance.randrange(VOCABULARY_SIZE)
        if may_come(row, token):
            return token
    return chance.choice([8 * at + bit for at, byte in enumerate(row) if byte for bit in range(8) if byte >> bit & 1])


def may_come(row: bytes | None, token: int) -> bool:
    return row is None or bool(row[token // 8] >> token % 8 & 1)


def babble(guide: Guide, codec: Codec, seed: int, most: int = 400) -> list[int]:
    """Say anything that is allowed, up to a stop token; half of the time what brings a call to its end, if that is allowed."""
    chance = random.Random(seed)
    ends = [CALL, MESSAGE, *(codec.encode(word)[0] for word in CLOSERS)]
    said: list[int] = []
    while len(said) < most:
        row = guide.allowed(())[0]
        if row is None:
            token = RETURN  # a text: nothing more is to be learnt from it
        else:
            ending = [token for token in ends if may_come(row, token)]
            token = chance.choice(ending) if ending and chance.random() < 0.5 else any_allowed(row, chance)
        said.append(token)
        guide.take(token)
        if token in (CALL, RETURN):
            return said
    return said


def forbidden(guide: Guide, ids: Sequence[int]) -> int | None:
    """The first place where a model that was held could not have said these ids; None if it could have said them all."""
    for place, token in enumerate(ids):
        if not may_come(guide.allowed(())[0], token):
            return place
        guide.take(token)
    return None
