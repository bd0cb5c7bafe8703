"""A hub on the loopback: the few routes that huggingface_hub asks, with connections that can be made to break."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class FakeHub:
    """One repository: its files, and how it misbehaves. ``requests`` are (method, path, Range) as they came."""

    repository: str
    files: dict[str, bytes]
    break_after: int | None = None  # the first large answer ends after so many bytes
    corrupt: str | None = None  # this file is delivered with one bit turned
    kind: str = "models"  # or datasets
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: int = 0

    def is_large(self, name: str) -> bool:
        return name.endswith(".safetensors")

    def etag(self, name: str) -> str:
        content = self.files[name]
        if self.is_large(name):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for name, content in self.files.items():
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": self.etag(name)}
            if self.is_large(name):
                entry["lfs"] = {"oid": self.etag(name), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub on a free port until the block ends."""

    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            folder = "" if hub.kind == "models" else f"/{hub.kind}"
            api, resolve = f"/api/{hub.kind}/{hub.repository}/", f"{folder}/{hub.repository}/resolve/"
            if path.startswith(f"{api}revision/"):
                siblings = [{"rfilename": name} for name in hub.files]
                self.json({"id": hub.repository, "sha": COMMIT, "siblings": siblings})
            elif path.startswith(f"{api}tree/"):
                self.json(hub.tree())
            elif path.startswith(resolve) and path.removeprefix(resolve).partition("/")[2] in hub.files:
                self.file(path.removeprefix(resolve).partition("/")[2])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def file(self, name: str) -> None:
            content = hub.files[name]
            if name == hub.corrupt:
                content = bytes([content[0] ^ 1]) + content[1:]
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hub.etag(name)}"')
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            with lock:  # files are fetched side by side, and one connection is to break
                after = hub.break_after if hub.is_large(name) else None
                hub.break_after = None if after is not None else hub.break_after
            if after is not None:
                self.wfile.write(content[start : start + after])
                hub.sent_bytes += after
                self.close_connection = True
                return
            self.wfile.write(content[start:])
            hub.sent_bytes += len(content) - start

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
