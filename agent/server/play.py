"""Sends an answer to a client as a stream of events or one document, until it ends, fails, is cancelled or the client disconnects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent.server import sse
from agent.server.bridge import Bridge
from agent.server.faults import Refusal, refusal
from agent.server.gate import Limits
from agent.server.metrics import Metrics

log = logging.getLogger(__name__)
Item_contra = TypeVar("Item_contra", contravariant=True)
Item = TypeVar("Item")

_PATIENCE_S = 1.0  # an error within this time is sent with its own HTTP status; a later one is an event of the stream
_FAREWELL_S = 2.0  # time to tell the client why an answer has ended
_CLOSED_BY_CLIENT = 499  # nginx's status code; only the metrics show it


class Writer(Protocol[Item_contra]):
    """Turns the parts of an answer into the events of an API, and into its document."""

    def start(self) -> bytes:
        """Return the events that open a stream."""
        ...

    def part(self, part: Item_contra, /) -> bytes:
        """Return the events of one part."""
        ...

    def fail(self, error: Refusal, /) -> bytes:
        """Return the events that end a stream which broke off."""
        ...

    def cancel(self) -> bytes:
        """Return the events that end a cancelled stream."""
        ...

    def document(self) -> dict[str, Any]:
        """Return the whole answer."""
        ...


@dataclass(slots=True)
class Flight(Generic[Item]):
    """One answer in progress. ``heard`` is called with each part before the client gets it, ``landed`` at the end."""

    bridge: Bridge[Item]
    writer: Writer[Item]
    limits: Limits
    metrics: Metrics
    route: str
    heard: Callable[[Item], None] = lambda _: None
    landed: Callable[[], None] = lambda: None
    began_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    stopped: Refusal | None = None

    def is_over(self) -> bool:
        """Whether it was cancelled or stopped."""
        return self.cancelled or self.stopped is not None

    def cancel(self) -> None:
        """End it at a client's request."""
        self.cancelled = True
        self.bridge.close()

    def stop(self, why: Refusal) -> None:
        """End it with an error."""
        self.stopped = why
        self.bridge.close()

    def fault(self) -> Refusal | None:
        """Return what ended it, or None if it ended normally."""
        if self.stopped is not None:
            return self.stopped
        error = self.bridge.error if self.bridge.done else None
        if not isinstance(error, Exception):
            return None
        told = refusal(error)
        log.log(logging.ERROR if told.status == 500 else logging.INFO, "a request failed", exc_info=error)
        return told

    async def begin(self, timeout_s: float) -> list[Item]:
        """Return the first parts; empty if nothing came in time."""
        items = await self.bridge.take(timeout_s)
        if items:
            self.metrics.first_token_s.observe(time.monotonic() - self.began_s)
        return items

    async def piece(self) -> bytes | None:
        """Return the next events, None after the last; a comment if nothing came for long, so that no proxy closes the connection."""
        if self.is_over():
            return None
        items = await self.bridge.take(self.limits.keep_alive_s)
        if time.monotonic() - self.began_s > self.limits.request_timeout_s:
            said = f"The answer took longer than {self.limits.request_timeout_s:g} seconds."
            self.stop(Refusal(504, said, kind="server_error", code="timeout"))
        if items:
            return self.events(items)
        return None if self.is_over() or self.bridge.done else sse.KEEP_ALIVE

    def events(self, items: list[Item]) -> bytes:
        """Turn parts into events, and call ``heard`` for each."""
        out = []
        for item in items:
            out.append(self.writer.part(item))
            self.heard(item)
        return b"".join(out)


class Played(Response, Generic[Item]):
    """The response to a client: a flight as a stream or as its document."""

    def __init__(self, flight: Flight[Item], *, stream: bool) -> None:
        super().__init__()
        self.flight = flight
        self.stream = stream
        self.status_code = _CLOSED_BY_CLIENT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer until it ends or the client disconnects."""
        watching = asyncio.create_task(self._watch(receive))
        playing = asyncio.create_task(self._play_stream(send) if self.stream else self._play_whole(send))
        try:
            # The answer ends in time by itself, but a client that reads one byte per second would not get the end.
            most_s = self.flight.limits.request_timeout_s + _FAREWELL_S
            await asyncio.wait({watching, playing}, return_when=asyncio.FIRST_COMPLETED, timeout=most_s)
            if playing.done():
                playing.result()
        finally:
            self.flight.bridge.close()
            self.flight.landed()
            for task in (watching, playing):
                task.cancel()
            await asyncio.wait({watching, playing})
            self.flight.metrics.request(self.flight.route, self.status_code, time.monotonic() - self.flight.began_s)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _play_whole(self, send: Send) -> None:
        while await self.flight.piece() is not None:
            pass
        await self._send_document(send, self.flight.fault())

    async def _play_stream(self, send: Send) -> None:
        first = await self.flight.begin(_PATIENCE_S)
        if not first and (fault := self.flight.fault()) is not None:
            await self._send_document(send, fault)
            return
        await self._head(send, 200, b"text/event-stream; charset=utf-8", (b"cache-control", b"no-cache"))
        await _body(send, self.flight.writer.start() + self.flight.events(first))
        while (piece := await self.flight.piece()) is not None:
            await _body(send, piece)
        fault = self.flight.fault()
        if fault is not None:
            await _body(send, self.flight.writer.fail(fault))
        elif self.flight.cancelled:
            await _body(send, self.flight.writer.cancel())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_document(self, send: Send, fault: Refusal | None) -> None:
        if fault is None and self.flight.cancelled:
            self.flight.writer.cancel()
        body = sse.document(self.flight.writer.document() if fault is None else fault.body())
        headers = (b"content-length", b"%d" % len(body)), *retry_header(fault)
        await self._head(send, 200 if fault is None else fault.status, b"application/json", *headers)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _head(self, send: Send, status: int, kind: bytes, *more: tuple[bytes, bytes]) -> None:
        self.status_code = status
        headers = [(b"content-type", kind), (b"x-accel-buffering", b"no"), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body(send: Send, piece: bytes) -> None:
    if piece:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


def retry_header(fault: Refusal | None) -> list[tuple[bytes, bytes]]:
    """Return the Retry-After header, if the fault has one."""
    if fault is None or fault.retry_after_s is None:
        return []
    return [(b"retry-after", str(fault.retry_after_s).encode())]
