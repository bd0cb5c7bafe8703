"""What all wires do with an event: decode it, take it apart, and count. Pure.

A member of another type than it should be counts as one that is not there: servers differ, and none may break a run with
anything but a ModelError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import ModelUnfit
from agent.harmony.tokens import VOCABULARY_SIZE
from agent.model.faults import cut
from agent.model.sse import ServerEvent

# For servers that count nothing: source code runs at three to four bytes a token, and too many is the safe side.
_BYTES_A_TOKEN = 3


def decoded(event: ServerEvent) -> dict[str, Any]:
    """Return an event's JSON object. Raises Transient when it is garbled: the connection mixed something in."""
    try:
        found = json.loads(event.data)
    except (ValueError, RecursionError) as error:
        raise cut(f"an event is not JSON: {event.data[:100]!r}") from error
    if not isinstance(found, dict):
        raise ModelUnfit(f"the endpoint streams {type(found).__name__} where an object belongs: {event.data[:100]!r}")
    return found


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[Any]:
    """Return a JSON array, an empty one where there is none."""
    return value if isinstance(value, list) else []


def string(value: object) -> str:
    """Return a JSON string, "" where there is none."""
    return value if isinstance(value, str) else ""


def token_ids(value: object) -> tuple[int, ...]:
    """Return sampled ids. Raises ModelUnfit where one is not in the vocabulary: sent back, it would break every later prompt."""
    ids = tuple(sequence(value))
    odd = [token for token in ids if type(token) is not int or not 0 <= token < VOCABULARY_SIZE]
    if odd:
        raise ModelUnfit(f"the endpoint gives {odd[0]!r} for a token, which gpt-oss does not have")
    return ids


def count(value: object) -> int | None:
    """Return a server's count, None where it gave none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def estimated_tokens(value: object) -> int:
    """Return how many tokens a JSON value may be, for servers that do not count. An estimate on the safe side."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN
