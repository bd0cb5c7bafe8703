"""Admission: who may send requests, how large, and how many at a time."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from agent.server.faults import BadRequest, Refusal
from agent.server.fields import Fields

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server. ``requests`` run at a time; the next one is refused with 429.

    A request has ``head_s`` for its head, then ``body_s`` for its body. A body has at most ``body_bytes``, and all
    arriving ones together at most ``arriving_bytes``. At shutdown, answers may continue for ``shutdown_s``.
    """

    requests: int = 256
    head_bytes: int = 64 << 10
    head_s: float = 20.0
    body_bytes: int = 8 << 20
    body_s: float = 60.0
    arriving_bytes: int = 128 << 20
    request_timeout_s: float = 3600.0
    keep_alive_s: float = 10.0
    shutdown_s: float = 10.0


class Slots:
    """Counts the running requests. Used by the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0
        self.closing = False

    def take(self) -> None:
        """Take a slot. Raises Refusal if there is none."""
        if self.closing:
            said = "This server is shutting down."
            raise Refusal(503, said, kind="server_error", code="shutting_down", retry_after_s=5)
        if self.taken >= self._most:
            raise _busy(f"This server answers {self._most} requests at a time and is busy. Try again shortly.")
        self.taken += 1

    def give(self) -> None:
        """Release a slot."""
        self.taken -= 1


class Arriving:
    """Counts the bytes of requests that are still arriving or not parsed yet. Used by the event loop's thread only."""

    def __init__(self, limits: Limits) -> None:
        self._most_bytes = max(limits.arriving_bytes, limits.body_bytes)
        self._bytes = 0

    def add(self, size_bytes: int) -> None:
        """Add bytes of a body (negative: subtract). Raises Refusal if that exceeds the limit."""
        if self._bytes + size_bytes > self._most_bytes:
            raise _busy("Too many large requests are arriving at this server. Try again shortly.")
        self._bytes += size_bytes


def _busy(said: str) -> Refusal:
    return Refusal(429, said, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=1)


def check_access(request: Request, api_key: str | None, hosts: frozenset[str] | None) -> None:
    """Raise Refusal unless the caller may use the server.

    ``hosts`` are the host names that the server accepts (None: any). This stops DNS rebinding: a web page whose name was made to
    resolve to this machine sends its own name.
    """
    if hosts is not None and _host(request.headers.get("host", "")) not in hosts:
        raise Refusal(403, "This server answers to its loopback address only.", code="host_not_allowed")
    if api_key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given if scheme.lower() == "bearer" else request.headers.get("api-key", "")
    if not hmac.compare_digest(given.encode(), api_key.encode()):
        raise Refusal(401, "The API key is missing or wrong.", code="invalid_api_key")


def _host(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def read_body(request: Request, limits: Limits, arriving: Arriving, body: bytearray) -> None:
    """Fill ``body``. Raises Refusal after at most ``body_bytes`` or ``body_s``.

    The caller subtracts the size of ``body`` from ``arriving`` afterwards.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page cannot send this type to another site without a preflight request
        raise Refusal(415, "The request must be application/json.", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "The request must not be compressed.", code="unsupported_content_encoding")
    try:
        async with asyncio.timeout(limits.body_s):
            await _read(request, limits.body_bytes, arriving, body)
    except ClientDisconnect as error:
        raise BadRequest("The request arrived incomplete.") from error
    except TimeoutError as error:
        said = f"The request did not arrive completely within {limits.body_s:g} seconds."
        raise Refusal(408, said, code="request_timeout") from error


def read_json(body: bytearray) -> Fields:
    """Parse a body as a JSON object. Raises BadRequest."""
    try:
        return Fields(json.loads(body, parse_float=_finite, parse_constant=_finite))
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request is not JSON.", code="invalid_json") from error


async def _read(request: Request, most_bytes: int, arriving: Arriving, body: bytearray) -> None:
    too_large = Refusal(413, f"The request is larger than {most_bytes} bytes.", code="request_too_large")
    if _length(request.headers) > most_bytes:
        raise too_large
    async for piece in request.stream():
        arriving.add(len(piece))
        body += piece
        if len(body) > most_bytes:
            raise too_large


def _finite(text: str) -> float:
    """Parse a number; refuse those that JSON cannot represent (NaN, Infinity, 1e999), because an answer may repeat it."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _length(headers: Mapping[str, str]) -> int:
    value = headers.get("content-length", "")
    return int(value) if value.isdecimal() else 0
