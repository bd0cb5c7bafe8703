"""Runs the application: the socket, one line when it is ready, and a clean shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from agent.errors import ModelError, UsageError
from agent.openfiles import allow_files
from agent.server.app import Service
from agent.server.connection import connections


class _Server(uvicorn.Server):
    """uvicorn's server, with hooks at its start and before its end."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call ``ready``."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """End also if the backend has stopped for good, so that a supervisor restarts this process."""
        return await super().on_tick(counter) or self._service.backend.stopped is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers finish within the time limit, end the others, close the connections. A second Ctrl-C skips the wait."""
        draining = asyncio.create_task(self._service.drain(lambda: self.force_exit))
        await super().shutdown(sockets)
        await draining


# A client that reads nothing for so long, or does not answer TCP keep-alives for so long, counts as gone.
PATIENCE_S = 120.0


def listen(host: str, port: int, patience_s: float = PATIENCE_S) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises UsageError if that fails."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # The protocol is explicit so that asyncio recognizes TCP and turns Nagle's algorithm off, which costs 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _be_patient(listener, patience_s)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        raise UsageError(
            f"The server cannot listen on {host} port {port}: {error.strerror or error}. Choose another with --host and --port; "
            "--port 0 takes a free one."
        ) from error
    return listener


def _be_patient(listener: socket.socket, patience_s: float) -> None:
    """Let the kernel close connections whose client has vanished or does not read. Accepted sockets inherit these options."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(int(patience_s / 2), 1))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(int(patience_s / 8), 1))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience_s * 1000))


def url_of(listener: socket.socket) -> str:
    """Return the base URL that clients are given."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}/v1"


def serve(service: Service, listener: socket.socket, ready: Callable[[str], None], *, verbose: bool = False) -> None:
    """Answer requests until SIGINT or SIGTERM. ``ready`` is called with the URL once requests are accepted.

    Raises ModelError if the engine in this process has died: only a restart helps.
    """
    # Log to standard error: standard output has only the one line with the URL.
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    allow_files(4 * service.limits.requests + 4096)
    try:
        with _ended_by_signal():
            server_of(service, lambda: ready(url_of(listener)), verbose=verbose).run([listener])
        if service.backend.stopped is not None:
            raise ModelError(f"{service.backend.stopped}; start the server again")
    finally:
        service.close()


def server_of(service: Service, ready: Callable[[], None] = lambda: None, *, verbose: bool = False) -> uvicorn.Server:
    """Return the uvicorn server of a service; its ``run`` takes the listening sockets."""
    config = uvicorn.Config(
        service.app(),
        http=connections(service.limits),  # type: ignore[arg-type] # a factory of protocols works too
        ws="none",
        log_config=None,
        access_log=verbose,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=int(service.limits.shutdown_s) + 2,
    )
    return _Server(config, service, ready)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Suppress the signal that uvicorn raises again after its shutdown: for a server it is a normal end."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
