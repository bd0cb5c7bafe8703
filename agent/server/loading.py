"""Answers requests while the model is loading, which takes seconds to minutes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agent.server import sse
from agent.server.faults import Refusal

_MOST_WAITING = 2048
_HEAD_BYTES = 65536
_PAUSE_S = 0.1
_PATIENCE_S = 5.0  # for a request's head, and for a client to take the answer
_LOADING = Refusal(
    503, "The model is being loaded. Try again shortly.", kind="server_error", code="loading", retry_after_s=5
)


@contextmanager
def loading(listener: socket.socket) -> Iterator[None]:
    """Answer every request with 503 during the block, as llama-server does. ``listener`` stays open.

    It runs in a thread: the main thread loads the model, so that signals end the loading as usual.
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
    # Not asyncio.start_server: a connection that it has just accepted when the loop ends would stay open.
    loop = asyncio.get_running_loop()
    tasks = set[asyncio.Task[None]]()

    def take() -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client is gone already
            return
        except OSError:  # no free file descriptor
            loop.remove_reader(listener)
            loop.call_later(_PAUSE_S, loop.add_reader, listener, take)
            return
        connection.setblocking(False)
        task = loop.create_task(_turn_away(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: connection.close())  # also for a task that is cancelled before it starts

    listener.setblocking(False)
    listener.listen(_MOST_WAITING)
    loop.add_reader(listener, take)
    await done.wait()
    loop.remove_reader(listener)


async def _turn_away(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):  # a TimeoutError is one
        async with asyncio.timeout(_PATIENCE_S):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = await loop.sock_recv(connection, _HEAD_BYTES)
                head += piece
                if not piece or (len(head) > _HEAD_BYTES and b"\r\n\r\n" not in head):
                    return
            await loop.sock_sendall(connection, _answer(head))
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(
                connection, _HEAD_BYTES
            ):  # read the body: if it were cut off, the client could lose the answer
                pass


def _answer(head: bytes) -> bytes:
    health = head.partition(b"\r\n")[0].split(b" ")[1:2] == [b"/health"]
    body = sse.document({"status": "loading"} if health else _LOADING.body())
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"retry-after: %d\r\ncontent-length: %d\r\n\r\n%s" % (_LOADING.retry_after_s or 0, len(body), body)
    )
