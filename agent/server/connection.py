"""A client's connection: uvicorn's, with limits on the request head, which nothing else enforces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from agent.server.gate import Limits

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_BUSY = object()  # a request is being answered, or its body arrives


class Connection(HttpToolsProtocol):
    """Closes if a request head takes longer than ``head_s`` (at the latest after twice that) or exceeds ``head_bytes``.

    Data that a client keeps sending after an answer counts as an incomplete head.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(**options)
        self._limits = limits
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._look_again(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head. A chunk that may contain the end of the previous request is not counted."""
        cycle = self._request()
        waits = cycle is None or not cycle.more_body
        super().data_received(_without_upgrade(data) if waits else data)
        self._head_bytes = self._head_bytes + len(data) if waits and self._request() is cycle else 0
        if self._head_bytes > self._limits.head_bytes and not self.transport.is_closing():
            self.send_400_response(f"The request's head is larger than {self._limits.head_bytes} bytes.")

    def _request(self) -> RequestResponseCycle | None:
        """Return the latest request whose head has arrived, if any. (uvicorn's own type does not say that it may be None.)"""
        return self.cycle

    def _look(self, before: object) -> None:
        cycle = self._request()
        idle = cycle is None or cycle.response_complete
        now = cycle if idle else _BUSY
        if idle and now is before:
            self.transport.close()
        else:
            self._look_again(now)

    def _look_again(self, now: object) -> None:
        self._timer = self.loop.call_later(self._limits.head_s, self._look, now)


def _without_upgrade(data: bytes) -> bytes:
    """Remove an Upgrade header from a head: Java's client asks for HTTP/2, and httptools would then drop the body."""
    head, end, behind = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + behind


def connections(limits: Limits) -> Callable[..., asyncio.Protocol]:
    """Return a factory of connections with ``limits``, for uvicorn's setting ``http``."""
    return partial(Connection, limits)
