"""Helpers of the tools for reading a call's body and writing its result: arguments, limits, and text from bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agent.events import ToolResult

# Colours and cursor movements (ECMA-48 control sequences), which are useless tokens for the model.
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class CallError(Exception):
    """The model's call is invalid; the message is the tool's answer. Never leaves agent/tools."""


def arguments(text: str, example: str) -> dict[str, Any]:
    """Read a canonical body: a JSON object. Raises CallError with ``example``, one correct body."""
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"
        raise CallError(
            f"The arguments are not a JSON object ({error}):\n  {shown}\n"
            'Inside a string, a quote is written \\" and a line break \\n. '
            f"A correct call's body: {example}"
        ) from None
    if not isinstance(found, dict):
        raise CallError(
            f"The arguments must be a JSON object, not {type(found).__name__}. A correct call's body: {example}"
        )
    return found


def text_argument(given: Mapping[str, Any], name: str, example: str, default: str | None = None) -> str:
    """Return a text argument. Raises CallError if it is missing (and has no default) or not text."""
    value = given.get(name, default)
    if isinstance(value, str):
        return value
    what = (
        f"The argument {name!r} is missing"
        if name not in given
        else f"The argument {name!r} must be text, not {value!r}"
    )
    raise CallError(f"{what}. A correct call's body: {example}")


def number_argument(given: Mapping[str, Any], name: str, example: str, low: int = 0) -> int | None:
    """Return an integer argument, or None if it was not given. Raises CallError if it is something else."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise CallError(
            f"The argument {name!r} must be a whole number from {low} up, not {value!r}. A correct call's body: {example}"
        )
    return value


def refuse(message: str) -> ToolResult:
    """Return the result of an invalid call."""
    return ToolResult(message, ok=False)


def decoded(output: bytes) -> str:
    """Return output as text: invalid UTF-8 becomes U+FFFD, control sequences are removed."""
    return _CONTROL_SEQUENCE.sub("", output.decode("utf-8", "replace"))


def bounded(text: str, max_bytes: int) -> tuple[str, int]:
    """Keep the head and the tail of a long text, in whole lines if possible; return it and the number of bytes left out."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text, 0
    head, tail = data[: max_bytes // 2], data[-(max_bytes - max_bytes // 2) :]
    head = head[: head.rfind(b"\n") + 1] or head
    tail = tail[tail.find(b"\n") + 1 :] or tail
    cut = len(data) - len(head) - len(tail)
    shown = f"{head.decode('utf-8', 'ignore')}\n[… {cut} bytes left out …]\n{tail.decode('utf-8', 'ignore')}"
    return shown, cut
