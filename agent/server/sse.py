"""Writing server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def document(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as bytes. Lone surrogates, which no UTF-8 can hold, are replaced."""
    return _encode(value).encode("utf-8", "replace")


def text(value: str) -> bytes:
    """Return a JSON string as bytes, as ``document`` would write it."""
    return _encode(value).encode("utf-8", "replace")


def event(value: Mapping[str, Any], name: str = "") -> bytes:
    """Return one event; JSON has no raw newline, so it is one data line."""
    lead = b"event: " + name.encode() + b"\n" if name else b""
    return lead + b"data: " + document(value) + b"\n\n"
