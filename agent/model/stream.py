"""What all wires do with an event: decode it, and count. Pure."""

from __future__ import annotations

import json
from typing import Any

from agent.errors import ModelUnfit
from agent.model.faults import cut
from agent.model.sse import ServerEvent

# For servers that count nothing: source code runs at three to four bytes a token, and too many is the safe side.
_BYTES_A_TOKEN = 3


def decoded(event: ServerEvent) -> dict[str, Any]:
    """Return an event's JSON object. Raises Transient when it is garbled: the connection mixed something in."""
    try:
        found = json.loads(event.data)
    except (ValueError, RecursionError) as error:
        raise cut(f"an event is no JSON: {event.data[:100]!r}") from error
    if not isinstance(found, dict):
        raise ModelUnfit(f"the endpoint streams {type(found).__name__} where an object belongs: {event.data[:100]!r}")
    return found


def count(value: object) -> int | None:
    """Return a server's count, None where it gave none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def estimated_tokens(value: object) -> int:
    """Return how many tokens a JSON value may be, for servers that do not count. An estimate on the safe side."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN
