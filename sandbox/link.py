"""The host's end of the connection to the helper: one thread reads, any thread may send requests."""

from __future__ import annotations

import base64
import itertools
import json
import queue
import secrets
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from sandbox.errors import SandboxLost
from sandbox.guest import frames

PING_EVERY_S = 15.0
MAX_REPLY_BYTES = 512 << 20  # a repository may choose the image, and so the python3 that sends the replies
MODULES = ("frames", "ignore", "removal", "files", "commands", "main")
BOOTSTRAP = """
import base64, json, sys, types, zlib
for name, text in json.loads(zlib.decompress(base64.b64decode(sys.argv[1])).decode()):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(text, name, 'exec'), module.__dict__)
    parent, _, child = name.rpartition('.')
    if parent:
        setattr(sys.modules[parent], child, module)
sys.modules['sandbox.guest.main'].main(sys.argv[2:])
"""


class Wire(Protocol):
    """Bytes to and from the helper."""

    def read(self, timeout_s: float) -> bytes | None:
        """Return what arrived, b"" at the end, None if nothing came in time."""
        ...

    def write(self, data: bytes) -> None:
        """Write everything. Raises OSError if the other side is gone."""
        ...

    def close(self) -> None:
        """Disconnect. May be called twice, and from another thread than the reader's."""
        ...

    def last_words(self) -> str:
        """Return the end of what the helper wrote to its standard error."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """The status of a request, and its data."""

    status: Mapping[str, Any]
    data: bytes


def program(python: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of the helper. It contains the helper's source, so that the image needs only Python."""
    folder = resources.files("sandbox.guest")
    texts = [("sandbox", ""), ("sandbox.guest", "")]
    texts += [(f"sandbox.guest.{name}", folder.joinpath(f"{name}.py").read_text("utf-8")) for name in MODULES]
    packed = base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()
    return [python, "-I", "-S", "-c", BOOTSTRAP, packed, json.dumps(dict(settings))]


class Link:
    """A connection for requests. Thread-safe."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._numbers = itertools.count(
            secrets.randbits(62)
        )  # unguessable, so that output in the sandbox cannot forge replies
        self._waiting: dict[int, queue.SimpleQueue[tuple[int, bytes]]] = {}
        self._writing = threading.Lock()
        self._lost: str | None = None
        self._reader = threading.Thread(target=self._read, name="sandbox-link", daemon=True)
        self._reader.start()

    def hello(self, grace_s: float, timeout_s: float) -> Reply:
        """Start, or take over from a host that died in the middle of a frame."""
        with self._writing:
            self._write(frames.PADDING)
        return self.request({"verb": "hello", "grace_s": grace_s}, timeout_s=timeout_s)

    def request(self, head: Mapping[str, Any], body: Iterable[bytes] = (), timeout_s: float = 60.0) -> Reply:
        """Send a request and wait for the reply.

        Raises SandboxLost if the helper is gone or does not reply within ``timeout_s``.
        """
        number = next(self._numbers)
        answers: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._waiting[number] = answers
        try:
            self._ask(number, head, body)
            pieces: list[bytes] = []
            taken_bytes = 0
            while True:
                try:
                    kind, payload = answers.get(timeout=timeout_s)
                except queue.Empty:
                    raise SandboxLost(
                        f"the sandbox did not answer '{head['verb']}' within {timeout_s:.0f} s; "
                        "look at the load of the machine, then resume the run"
                    ) from None
                match kind:
                    case frames.DATA:
                        pieces.append(payload)
                        taken_bytes += frames.HEADER.size + len(payload)
                        if taken_bytes > MAX_REPLY_BYTES:
                            raise SandboxLost(f"the sandbox's reply to '{head['verb']}' is endless; use another image")
                    case frames.END:
                        return Reply(json.loads(payload), b"".join(pieces))
                    case _:
                        raise SandboxLost(self._reason())
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """Disconnect; the helper stays for its grace period."""
        self._lost = self._lost or "this sandbox was closed"
        self._wire.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5.0)

    def _ask(self, number: int, head: Mapping[str, Any], body: Iterable[bytes]) -> None:
        text = b"".join(frames.encode_all(frames.HEAD, number, json.dumps(dict(head)).encode()))
        for piece in body:
            text += b"".join(frames.encode_all(frames.DATA, number, piece))
            if len(text) >= frames.MAX_PAYLOAD_BYTES:
                with self._writing:
                    self._write(text)
                text = b""
        with self._writing:
            self._write(text + frames.encode(frames.END, number, b""))

    def _write(self, data: bytes) -> None:
        if self._lost is not None:
            raise SandboxLost(self._reason())
        try:
            self._wire.write(data)
        except OSError as error:
            self._lost = str(error)
            raise SandboxLost(self._reason()) from error

    def _reason(self) -> str:
        words = self._wire.last_words().strip()
        return f"the sandbox is gone: {self._lost}" + (f"; its last words: {words}" if words else "")

    def _read(self) -> None:
        decoder = frames.Decoder()
        ping = frames.encode(frames.HEAD, 0, b'{"verb": "ping"}') + frames.encode(frames.END, 0, b"")
        while True:
            try:
                data = self._wire.read(PING_EVERY_S)
                if data is None:
                    with self._writing:
                        self._wire.write(ping)
                    continue
            except OSError as error:
                self._lost = self._lost or str(error)
                data = b""
            if not data:
                break
            for kind, number, payload in decoder.feed(data):
                waiting = self._waiting.get(number)
                if waiting is not None:
                    waiting.put((kind, payload))
        if self._lost is None:
            self._lost = "its helper ended (killed by the engine, or out of memory)"
        for waiting in list(self._waiting.values()):
            waiting.put((0, b""))
