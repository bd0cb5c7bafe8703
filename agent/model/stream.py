"""What all wires do with an event: decode it, read its members, and count. Pure.

A member of a wrong type counts as missing: servers differ, and none may break a run with anything but a ModelError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import ModelUnfit
from agent.harmony.tokens import VOCABULARY_SIZE
from agent.model.faults import cut
from agent.model.sse import ServerEvent

# For servers that do not count: source code has three to four bytes per token, and overestimating is safe.
_BYTES_A_TOKEN = 3


def decoded(event: ServerEvent) -> dict[str, Any]:
    """Return an event's JSON object. Raises Transient if it is not JSON: the stream was corrupted."""
    try:
        found = json.loads(event.data)
    except (ValueError, RecursionError) as error:
        raise cut(f"an event is not JSON: {event.data[:100]!r}") from error
    if not isinstance(found, dict):
        raise ModelUnfit(f"the endpoint streams {type(found).__name__} where an object belongs: {event.data[:100]!r}")
    return found


def mapping(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[Any]:
    """Return ``value`` if it is a JSON array, otherwise an empty one."""
    return value if isinstance(value, list) else []


def string(value: object) -> str:
    """Return ``value`` if it is a string, otherwise ""."""
    return value if isinstance(value, str) else ""


def token_ids(value: object) -> tuple[int, ...]:
    """Return sampled ids. Raises ModelUnfit if one is not in the vocabulary: it would break every later prompt."""
    ids = tuple(sequence(value))
    odd = [token for token in ids if type(token) is not int or not 0 <= token < VOCABULARY_SIZE]
    if odd:
        raise ModelUnfit(
            f"the endpoint sent the token id {odd[0]!r}, which gpt-oss does not have: is it another model?"
        )
    return ids


def count(value: object) -> int | None:
    """Return ``value`` if it is a count, otherwise None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def estimated_tokens(value: object) -> int:
    """Return an estimate of a JSON value's tokens, for servers that do not count. It is rather too high."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN
