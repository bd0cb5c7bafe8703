"""A scripted HTTP server on loopback with exact control of bytes, pauses and resets: one reply per quirk and fault."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Pause:
    """Send nothing for a while, or until the client hangs up."""

    s: float


@dataclass(frozen=True, slots=True)
class Reset:
    """Drop the connection with a TCP reset."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Step = bytes | Pause | Reset
Reply = Sequence[Step]


def head(status: int = 200, kind: str = "text/event-stream", **headers: str) -> bytes:
    """The start of an answer whose body ends with the connection."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def document(value: Any, status: int = 200, **headers: str) -> Reply:
    """A whole JSON answer."""
    return [head(status, "application/json", **headers), json.dumps(value).encode()]


def event(value: Any, name: str = "") -> bytes:
    """One server-sent event."""
    lead = f"event: {name}\n" if name else ""
    return f"{lead}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def line(value: Any) -> bytes:
    """One line of JSON lines."""
    return json.dumps(value).encode() + b"\n"


def stream(values: Iterable[Any], *, done: bool = True) -> Reply:
    """A whole stream of events."""
    steps: list[Step] = [head(), *(event(value) for value in values)]
    return [*steps, event("[DONE]")] if done else steps


@dataclass
class Server:
    """Answers every request with the next reply, the last one for ever; or with what a function of the request gives."""

    replies: Sequence[Reply] | Callable[[Request], Reply]
    requests: list[Request] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def posts(self) -> list[Any]:
        """The bodies that were posted, in order."""
        return [request.body for request in self.requests if request.method == "POST"]

    def answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            request = read_request(connection)
            if request is None:
                return
            with self.lock:  # requests that come together each get a reply of their own
                self.requests.append(request)
                number = len(self.requests)
            if callable(self.replies):
                reply = self.replies(request)
            else:
                reply = self.replies[min(number, len(self.replies)) - 1]
            try:
                for step in reply:
                    if not self.play(step, connection):
                        return
            except OSError:
                self.hung_up.set()

    def play(self, step: Step, connection: socket.socket) -> bool:
        match step:
            case bytes():
                connection.sendall(step)
            case Pause(s):
                connection.settimeout(s)
                try:
                    if connection.recv(1) == b"":
                        self.hung_up.set()
                        return False
                except TimeoutError:
                    connection.settimeout(30)
            case Reset():
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        return True


def read_request(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    top, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    missing = int(headers.get("content-length", "0")) - len(rest)
    while missing > 0:
        piece = connection.recv(65536)
        if not piece:  # hung up in the middle, as one that is cancelled does
            return None
        rest += piece
        missing -= len(piece)
    method, path, _ = first.split(" ")
    return Request(method, path, headers, json.loads(rest) if rest else None)


@contextmanager
def serving(replies: Sequence[Reply] | Callable[[Request], Reply]) -> Iterator[Server]:
    """Run a server for the length of a block."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(replies, port=listener.getsockname()[1])
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=server.answer, args=(connection,))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
