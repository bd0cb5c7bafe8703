"""How things end: the server by a signal in the middle of streams, and clients that are killed, go silent or do not read."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.server.app import Service
from agent.server.backend import Backend
from agent.server.gate import Limits
from agent.server.run import listen, server_of, url_of
from tests.agent.server.served import Talker, heard_until, serving, until
from tests.agent.server.test_access import AT_ONCE_S, BODY, open_stream
from tests.agent.server.test_clients import ROOT, environment
from tests.servers import Pause, Reply, Request, document, event, head
from tests.servers import serving as scripted_http

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(text: str, finish: str | None = None) -> bytes:
    return event({**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def talking(pause_s: float) -> Any:
    """A chat server that says a word, waits, and ends."""

    def answer(request: Request) -> Reply:
        if request.method == "GET":
            return document({"object": "list", "data": [{"id": "m", "object": "model"}]})
        return [head(), chunk("Hello"), Pause(pause_s), chunk(" there."), chunk("", "stop"), b"data: [DONE]\n\n"]

    return answer


@contextmanager
def real_server(folder: Path, endpoint: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    env = {**environment(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agent", "serve", "--backend", "chat", "--endpoint", endpoint, "--model", "m"]
    with subprocess.Popen(
        [*command, "--port", "0", *flags], env=env, cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def rest(stream: socket.socket) -> bytes:
    heard = b""
    while piece := stream.recv(65536):
        heard += piece
    return heard


def last_event(heard: bytes) -> dict[str, Any]:
    lines = [line for line in heard.split(b"\n") if line.startswith(b"data: {")]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(b"data: "))
    return found


def test_a_stream_that_can_end_in_time_is_finished(tmp_path: Path) -> None:
    with scripted_http(talking(1.0)) as backend, real_server(tmp_path, backend.url) as (process, url):
        with open_stream(url, "/v1/responses", input="x", store=False) as stream:
            heard = heard_until(stream, b"Hello")
            process.send_signal(signal.SIGTERM)
            heard += rest(stream)
        assert process.wait(20) == 0
    last = last_event(heard)
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "Hello there."
    assert heard.endswith(b"0\r\n\r\n")  # the end of a chunked body, and no cut connection


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_a_stream_that_cannot_is_ended_with_an_event(tmp_path: Path, path: str) -> None:
    flags = ("--grace", "0.5")
    with scripted_http(talking(60.0)) as backend, real_server(tmp_path, backend.url, *flags) as (process, url):
        with open_stream(url, path, input="x") as stream:
            heard = heard_until(stream, b"Hello")
            process.send_signal(signal.SIGTERM)
            heard += rest(stream)
        assert process.wait(20) == 0
    last = last_event(heard)
    if path == "/v1/responses":
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"] == {"code": "server_error", "message": "This server is shutting down."}
        assert last["response"]["output"][0]["status"] == "incomplete"
    else:
        assert last["error"]["code"] == "shutting_down"
    assert heard.endswith(b"0\r\n\r\n")


def test_a_whole_answer_that_cannot_end_is_a_503(tmp_path: Path) -> None:
    flags = ("--grace", "0.2")
    with scripted_http(talking(60.0)) as backend, real_server(tmp_path, backend.url, *flags) as (process, url):
        with open_stream(url, stream=False) as stream:
            until(lambda: b"in_flight 1" in httpx2.get(url.removesuffix("/v1") + "/metrics").content)
            process.send_signal(signal.SIGTERM)
            stream.settimeout(20)
            heard = rest(stream)
        assert process.wait(20) == 0
    assert heard.startswith(b"HTTP/1.1 503 ")
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["error"]["code"] == "shutting_down"


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    flags = ("--grace", "60")
    with (
        scripted_http(talking(60.0)) as backend,
        real_server(tmp_path, backend.url, *flags) as (process, url),
        open_stream(url, "/v1/responses", input="x") as stream,
    ):
        heard_until(stream, b"Hello")
        process.send_signal(signal.SIGINT)
        until(lambda: _refuses(url))
        process.send_signal(signal.SIGINT)
        process.wait(20)


def _refuses(url: str) -> bool:
    try:
        return httpx2.get(url.removesuffix("/v1") + "/health", timeout=1).status_code == 503
    except httpx2.TransportError:
        return True


def test_a_client_that_is_killed_frees_its_slot_at_once() -> None:
    talker = Talker()
    source = (
        "import socket, sys\nc = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "c.sendall(sys.argv[2].encode())\nwhile True: c.recv(100); print('.', flush=True)"
    )
    with serving(talker) as (url, service):
        body = json.dumps({**BODY, "stream": True})
        head_ = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head_}Content-Length: {len(body)}\r\n\r\n{body}"
        port = url.split(":")[2].split("/")[0]
        with subprocess.Popen([sys.executable, "-c", source, port, request], stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline()
            client.kill()
            client.wait()
        assert talker.closed.wait(AT_ONCE_S)
        until(lambda: service.slots.taken == 0)


def test_a_request_that_does_not_arrive_is_refused_and_holds_no_slot() -> None:
    with (
        serving(Talker(), limits=Limits(body_s=0.3)) as (url, service),
        socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) as connection,
    ):
        lead = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{lead}Content-Length: 1000\r\n\r\n{{"input":'.encode())
        heard = heard_until(connection, b"}}")
        assert service.slots.taken == 0
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in heard


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
def test_a_client_that_reads_nothing_for_long_is_gone() -> None:
    """Its buffers fill up, the model waits, and after a while the kernel ends the connection."""
    talker = Talker(pause_s=0.0, times=10_000)
    service = Service(Backend("test", talker))
    listener = listen("127.0.0.1", 0, patience_s=1.0)
    server = server_of(service)
    import threading

    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        with open_stream(url_of(listener)):
            until(lambda: service.slots.taken == 1)
            assert talker.closed.wait(20)
            until(lambda: service.slots.taken == 0)
    finally:
        server.should_exit = True
        thread.join()
        service.close()
        listener.close()
