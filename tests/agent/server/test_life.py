"""What a server says before its model is there and after its engine is gone, and what half a request costs it."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from openai import InternalServerError

from agent.conversation import Message
from agent.errors import ModelError
from agent.harmony.codec import Codec
from agent.model.base import SamplingParams
from agent.model.local import LocalSource
from agent.model.raw import RawModel
from agent.openfiles import allow_files
from agent.server.app import Service
from agent.server.backend import as_backend
from agent.server.gate import Limits
from agent.server.loading import loading
from agent.server.run import listen, serve, url_of
from agent.server.store import Store
from runtime.errors import EngineStopped
from runtime.request import Request, TokenOut
from tests.agent.server.conftest import client_of
from tests.agent.server.served import Talker, scripted, serving, until
from tests.agent.server.test_access import BODY, open_stream
from tests.agent.server.test_clients import ROOT, environment
from tests.agent.server.test_ends import heard_until, rest
from tests.servers import Reply, document
from tests.servers import Request as Asked
from tests.servers import serving as scripted_http

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def root(url: str) -> str:
    return url.removesuffix("/v1")


def connected(url: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])))
    connection.settimeout(20)
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return rest(connection) is not None
    except ConnectionError:
        return True


# ── before ──


def test_while_a_model_loads_every_request_is_told_to_come_back() -> None:
    with listen("127.0.0.1", 0) as listener:
        url = url_of(listener)
        with loading(listener):
            health = httpx2.get(f"{root(url)}/health")
            assert (health.status_code, health.json()) == (503, {"status": "loading"})
            asked = httpx2.post(f"{url}/chat/completions", json={**BODY, "user": "x" * 100_000})
            assert (asked.status_code, asked.headers["retry-after"]) == (503, "5")
            assert asked.json()["error"]["code"] == "loading"
            with client_of(url) as client, pytest.raises(InternalServerError, match="is being loaded"):
                client.responses.create(model="m", input="x")
            half = connected(url)
            half.sendall(HEAD)
            httpx2.get(f"{root(url)}/health")  # connections are taken in their order: the half one is taken too
        with half:  # which does not hold up what follows
            assert is_closed(half)
        service = Service(scripted())
        answered: list[int] = []

        def ready(told: str) -> None:
            threading.Thread(target=ask, args=(told,)).start()

        def ask(told: str) -> None:
            answered.append(httpx2.get(f"{root(told)}/health").status_code)
            signal.raise_signal(signal.SIGINT)

        serve(service, listener, ready)
    assert answered == [200]


def test_while_a_model_loads_a_head_may_come_in_pieces_before_a_long_body() -> None:
    body = b"x" * 200_000
    with listen("127.0.0.1", 0) as listener, loading(listener), connected(url_of(listener)) as stream:
        stream.sendall(HEAD[:20])
        httpx2.get(f"{root(url_of(listener))}/health")  # the first piece is read by then
        stream.sendall(HEAD[20:] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert rest(stream).startswith(b"HTTP/1.1 503")


def test_what_connects_as_loading_ends_is_not_left_hanging() -> None:
    gc.disable()  # which would close in time what is left behind
    try:
        for _ in range(100):
            with listen("127.0.0.1", 0) as listener, loading(listener):
                half = connected(url_of(listener))
            with half:
                assert is_closed(half)
    finally:
        gc.enable()


def test_the_line_with_the_url_comes_once_the_model_is_there(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def models(request: Asked) -> Reply:
        asked.set()
        assert go_on.wait(30)
        return document({"object": "list", "data": [{"id": "m", "object": "model"}]})

    command = [sys.executable, "-m", "agent", "serve", "--backend", "chat", "--model", "m"]
    env = {**environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    with socket.socket() as chosen, scripted_http(models) as backend, ExitStack() as stack:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server may have it too, nobody else
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
        command += ["--endpoint", backend.url, "--port", str(port)]
        process = stack.enter_context(
            subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        )
        assert process.stdout is not None
        assert asked.wait(30)
        health = httpx2.get(f"http://127.0.0.1:{port}/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        go_on.set()
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/v1\n"
        assert httpx2.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
        process.terminate()
        assert process.wait(20) == 0


# ── after ──


class Mortal:
    """An engine that ends of a fault when it is asked."""

    def __init__(self) -> None:
        self.stopped: str | None = None

    def stream(self, request: Request, unwanted: Callable[[], bool] = lambda: False) -> Generator[TokenOut]:
        self.stopped = "the engine stopped: CUDA error: an illegal memory access was encountered"
        raise EngineStopped(self.stopped)

    def cancel(self, request_id: str) -> None:
        pass

    def close(self) -> None:
        pass


def mortal(codec: Codec) -> Service:
    return Service(as_backend("m", RawModel(codec, LocalSource("m", Mortal(), 4096))))


def test_a_server_whose_engine_has_died_says_so_and_ends_with_the_reason(codec: Codec) -> None:
    service = mortal(codec)
    told: list[tuple[int, str]] = []

    def ask(url: str) -> None:
        with httpx2.Client() as client:
            told.append((client.get(f"{root(url)}/health").status_code, "before"))
            failed = client.post(f"{url}/chat/completions", json=BODY)
            told.append((failed.status_code, failed.json()["error"]["code"]))

    with listen("127.0.0.1", 0) as listener:
        asking = threading.Thread(target=ask, args=(url_of(listener),))
        with pytest.raises(ModelError, match="illegal memory access was encountered; start the server again"):
            serve(service, listener, lambda _: asking.start())
        asking.join()
    assert told == [(200, "before"), (502, "backend_error")]


def test_health_names_the_engine_for_as_long_as_the_server_still_listens(codec: Codec) -> None:
    service = mortal(codec)
    source = service.backend.source
    assert source is not None

    async def health() -> tuple[int, object]:
        transport = httpx2.ASGITransport(service.app())
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/health")
            return answer.status_code, answer.json()

    assert asyncio.run(health()) == (200, {"status": "ok"})
    with pytest.raises(ModelError):
        list(source.generate((1,), SamplingParams(), ()))
    assert asyncio.run(health()) == (503, {"status": "engine_stopped"})
    service.close()


# ── half a request ──


def test_three_hundred_heads_that_do_not_come_hold_nobody_up_and_are_ended() -> None:
    with serving(scripted(), limits=Limits(head_s=1.0)) as (url, _), ExitStack() as stack:
        halves = [stack.enter_context(connected(url)) for _ in range(300)]
        for half in halves:
            half.sendall(HEAD)
        assert httpx2.post(f"{url}/chat/completions", json=BODY).status_code == 200
        assert all(map(is_closed, halves))
        assert httpx2.get(f"{url}/models").status_code == 200


def test_three_hundred_bodies_that_do_not_come_hold_nobody_up_and_are_refused() -> None:
    with serving(scripted(), limits=Limits(body_s=1.0)) as (url, service), ExitStack() as stack:
        halves = [stack.enter_context(connected(url)) for _ in range(300)]
        for half in halves:
            half.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"messages":')
        assert httpx2.post(f"{url}/chat/completions", json=BODY).status_code == 200
        assert {heard_until(half, b"}}")[:13] for half in halves} == {b"HTTP/1.1 408 "}
        assert service.slots.taken == 0


def sent_until_closed(connection: socket.socket, piece: bytes, *, most: int = 1000) -> bool:
    """Send the same again and again; say whether the server ended that."""
    try:
        for _ in range(most):
            connection.sendall(piece)
            time.sleep(0.01)
    except ConnectionError:
        return True
    return False


def test_a_head_that_comes_byte_by_byte_is_ended_too() -> None:
    with serving(scripted(), limits=Limits(head_s=0.3)) as (url, _), connected(url) as slow:
        slow.sendall(HEAD)
        assert sent_until_closed(slow, b"X")


def test_a_body_that_goes_on_behind_its_refusal_is_ended() -> None:
    with serving(scripted(), limits=Limits(head_s=0.6)) as (url, _), connected(url) as endless:
        endless.sendall(HEAD.replace(b"json", b"text") + b"Transfer-Encoding: chunked\r\n\r\n")
        assert heard_until(endless, b"}}").startswith(b"HTTP/1.1 415 ")
        assert sent_until_closed(endless, b"5\r\nhello\r\n")


@pytest.mark.parametrize("kind", ["one header", "many headers", "path"])
def test_a_head_without_an_end_is_refused_before_it_fills_the_memory(kind: str) -> None:
    lead, more = {
        "one header": (HEAD + b"X: ", b"x" * 1000),
        "many headers": (HEAD, b"X: y\r\n" * 200),
        "path": (b"GET /", b"x" * 1000),
    }[kind]
    with serving(scripted(), limits=Limits(head_bytes=20_000)) as (url, _), connected(url) as endless:
        endless.sendall(lead)
        heard = b""
        for _ in range(100):
            try:
                endless.sendall(more)
                endless.settimeout(0.02)
                heard = endless.recv(1000)
                break
            except TimeoutError:
                continue
        assert heard.startswith(b"HTTP/1.1 400 ")
        assert b"larger than 20000 bytes" in heard


def test_large_bodies_and_requests_behind_each_other_are_no_heads() -> None:
    body = json.dumps({**BODY, "user": "x" * 500_000}).encode()
    request = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with serving(scripted(), limits=Limits(head_bytes=1000)) as (url, _), connected(url) as connection:
        sending = threading.Thread(target=connection.sendall, args=(3 * request,))
        sending.start()
        heard = b""
        while heard.count(b"HTTP/1.1 200 ") < 3:
            piece = connection.recv(65536)
            assert piece, heard
            heard += piece
        sending.join()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such bound")
def test_as_many_files_as_the_limits_need_may_be_open() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
        most = allow_files(1100)
        assert most == (1100 if hard == resource.RLIM_INFINITY else min(1100, hard))
        assert allow_files(10) == most
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such bound")
def test_a_kernel_that_refuses_more_open_files_leaves_what_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")  # as on macOS

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert allow_files(100_000) == 256


class Noting(Store):
    """Notes which threads read requests."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def recalled(self, messages: Sequence[Message], call_ids: Mapping[int, str]) -> tuple[Message, ...]:
        self.threads.append(threading.current_thread())
        return super().recalled(messages, call_ids)


def test_a_large_request_is_read_outside_of_the_loop() -> None:
    """A million of small items take seconds, in which nobody else would hear anything."""
    store = Noting()
    with serving(scripted(), store=store) as (url, service):
        for size in (1000, 1_000_000):
            answer = httpx2.post(f"{url}/chat/completions", json={**BODY, "user": "x" * size})
            assert answer.status_code == 200
        assert service._arriving._bytes == 0
    small, large = store.threads
    assert small is not large


@pytest.mark.parametrize("wanted", [b"h2c", b"websocket"])
def test_a_client_that_would_like_another_protocol_is_answered_in_this_one(wanted: bytes) -> None:
    """Java's own client asks for HTTP/2 with every first request, and its body was lost."""
    body = json.dumps(BODY).encode()
    request = HEAD + b"Content-Length: %d\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\n\r\n" % (
        len(body),
        wanted,
    )
    with serving(scripted()) as (url, _), connected(url) as connection:
        for _ in range(2):
            connection.sendall(request + body)
            assert heard_until(connection, b'"usage"').startswith(b"HTTP/1.1 200 ")


def test_a_stream_is_no_head_that_does_not_come() -> None:
    with serving(Talker(), limits=Limits(head_s=0.4)) as (url, service), open_stream(url) as stream:
        heard = b""
        while (
            heard.count(b"data: ") < 500
        ):  # for a second at least, which is more than twice as long as a head may take
            piece = stream.recv(65536)
            assert piece, heard[-500:]
            heard += piece
        assert service.slots.taken == 1


def test_large_requests_that_arrive_at_a_time_are_bounded_together() -> None:
    limits = Limits(body_bytes=2 << 20, arriving_bytes=3 << 20)
    with serving(scripted(), limits=limits) as (url, service), connected(url) as first, connected(url) as second:
        for connection in (first, second):
            connection.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n")
        first.sendall(b" " * 1_900_000)
        until(lambda: service._arriving._bytes == 1_900_000)
        second.sendall(b" " * 1_900_000)
        heard = heard_until(second, b"}}")
        assert heard.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in heard
        first.close()
        until(lambda: service._arriving._bytes == 0)
        assert httpx2.post(f"{url}/chat/completions", json=BODY).status_code == 200
