"""Answering while there is nothing to answer with: a model takes seconds to minutes to load."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agent.server import sse
from agent.server.faults import Refusal

_MOST_WAITING = 2048
_PATIENCE_S = 5.0  # for a request's head, and for a client to take the answer
_LOADING = Refusal(
    503, "The model is being loaded. Try again shortly.", kind="server_error", code="loading", retry_after_s=5
)


@contextmanager
def loading(listener: socket.socket) -> Iterator[None]:
    """Answer every request with 503 for the length of the block, as llama-server does. ``listener`` stays open.

    From a thread of its own: the main thread loads, so that a signal ends that as ever.
    """
    with listener.dup() as own, asyncio.Runner() as runner:
        done = asyncio.Event()
        thread = threading.Thread(target=runner.run, args=(_turn_all_away(own, done),), name="loading")
        thread.start()
        try:
            yield
        finally:
            runner.get_loop().call_soon_threadsafe(done.set)
            thread.join()


async def _turn_all_away(listener: socket.socket, done: asyncio.Event) -> None:
    server = await asyncio.start_server(_turn_away, sock=listener, backlog=_MOST_WAITING)
    await done.wait()
    server.close()


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(head))
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return
    finally:
        writer.transport.abort()


def _answer(head: bytes) -> bytes:
    health = head.partition(b"\r\n")[0].split(b" ")[1:2] == [b"/health"]
    body = sse.document({"status": "loading"} if health else _LOADING.body())
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"retry-after: %d\r\ncontent-length: %d\r\n\r\n%s" % (_LOADING.retry_after_s or 0, len(body), body)
    )
