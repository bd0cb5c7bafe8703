"""Who may come in, how many at a time, and what becomes of those that go away."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import httpx2
import pytest

from agent.conversation import Channel
from agent.events import Delta
from agent.model.chat import chat_model
from agent.model.client import Client, Endpoint
from agent.model.responses import responses_model
from agent.server.answer import Ended
from agent.server.app import Access
from agent.server.bridge import MOST_WAITING, Bridge
from agent.server.faults import Refusal
from agent.server.gate import Limits
from agent.server.responses import ResponseWriter
from agent.server.store import Bounded
from tests.agent.server.served import Player, Talker, final, heard_until, said, scripted, serving, until
from tests.servers import Pause
from tests.servers import serving as endpoint

AT_ONCE_S = 5.0  # a few ms where nothing else runs; what is waited for otherwise takes longer still
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def open_stream(url: str, path: str = "/v1/chat/completions", **more: Any) -> socket.socket:
    """Ask for a stream by hand, and read its beginning."""
    port = int(url.split(":")[2].split("/")[0])
    connection = socket.create_connection(("127.0.0.1", port), 20)
    body = json.dumps({**BODY, "stream": True, **more}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_key_is_asked_for_everywhere_but_at_health() -> None:
    with serving(scripted(), access=Access("sesame")) as (url, _):
        assert httpx2.get(f"{url}/models").status_code == 401
        assert (
            httpx2.get(f"{url}/models", headers={"Authorization": "Bearer open"}).json()["error"]["code"]
            == "invalid_api_key"
        )
        assert httpx2.get(f"{url}/models", headers={"Authorization": "bearer sesame"}).status_code == 200
        assert httpx2.get(f"{url}/models", headers={"api-key": "sesame"}).status_code == 200
        assert httpx2.get(url.removesuffix("/v1") + "/metrics").status_code == 401
        assert httpx2.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("evil.example", 403), ("", 403)],
)
def test_a_page_under_another_name_cannot_reach_a_loopback_server(host: str, status: int) -> None:
    with serving(scripted()) as (url, _):
        assert httpx2.get(f"{url}/models", headers={"Host": host}).status_code == status


def test_what_a_page_may_send_without_asking_is_refused() -> None:
    with serving(scripted()) as (url, _):
        plain = httpx2.post(f"{url}/chat/completions", content=json.dumps(BODY), headers={"Content-Type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"messages": ' + b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_400(content: bytes) -> None:
    with serving(scripted()) as (url, _):
        answer = httpx2.post(f"{url}/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_not_read(announced: bool) -> None:
    body = json.dumps({**BODY, "user": "x" * 5000}).encode()
    with serving(scripted(), limits=Limits(body_bytes=4096)) as (url, _):
        content: Any = body if announced else (body[i : i + 1000] for i in range(0, len(body), 1000))
        answer = httpx2.post(f"{url}/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_unknown_places_and_methods_have_openais_shape() -> None:
    with serving(scripted()) as (url, _):
        assert httpx2.get(f"{url}/nothing").json()["error"]["code"] == "not_found"
        wrong = httpx2.get(f"{url}/chat/completions")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert httpx2.get(f"{url}/models/other").status_code == 404
        assert httpx2.get(f"{url}/models/gpt-oss-test").json()["id"] == "gpt-oss-test"


def test_one_too_many_is_told_to_come_back() -> None:
    talker = Talker()
    with serving(talker, limits=Limits(requests=2)) as (url, service):
        streams = [open_stream(url) for _ in range(2)]
        until(lambda: service.slots.taken == 2)
        turned_away = httpx2.post(f"{url}/chat/completions", json=BODY)
        assert (turned_away.status_code, turned_away.headers["retry-after"]) == (429, "1")
        assert turned_away.json()["error"]["type"] == "rate_limit_error"
        for stream in streams:
            stream.close()
        until(lambda: service.slots.taken == 0)
        assert httpx2.get(f"{url}/models").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot_at_once(path: str, *, stream: bool) -> None:
    talker = Talker()
    with serving(talker) as (url, service):
        connection = open_stream(url, path, stream=stream, input="x")
        until(lambda: service.slots.taken == 1)
        if stream:
            assert connection.recv(100)
        connection.close()
        assert talker.closed.wait(AT_ONCE_S)
        until(lambda: service.slots.taken == 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_a_client_that_goes_away_frees_its_slot_at_once_also_while_the_backend_is_silent(path: str, wire: str) -> None:
    """A long prompt is read for minutes before the first byte: nobody waits for that whom nobody waits for."""
    build = {"chat": chat_model, "responses": responses_model}[wire]
    with endpoint([[Pause(60)]]) as silent:
        backend = build(Client(Endpoint(silent.url, "m", shared=True)))
        with serving(backend) as (url, service):
            connection = open_stream(url, path, input="x")
            until(lambda: len(silent.requests) == 1)
            connection.close()
            until(lambda: service.slots.taken == 0, AT_ONCE_S)
            assert silent.hung_up.wait(AT_ONCE_S)


def test_a_response_that_is_cancelled_while_the_backend_is_silent_ends_as_cancelled_and_not_as_a_fault() -> None:
    with endpoint([[Pause(20)]]) as silent:
        backend = chat_model(Client(Endpoint(silent.url, "m", shared=True)))
        with serving(backend) as (url, service), open_stream(url, "/v1/responses", input="x") as stream:
            heard = heard_until(stream, b"response.in_progress")
            (ident,) = service._flights
            told = httpx2.post(f"{url}/responses/{ident}/cancel", json={}).json()
            assert told["status"] == "cancelled"
            heard = heard_until(stream, b"response.incomplete", heard=heard)
            assert b"response.failed" not in heard
            until(lambda: service.slots.taken == 0)


def test_cancelling_again_gives_the_cancelled_response() -> None:
    with serving(Talker()) as (url, service), open_stream(url, "/v1/responses", input="x") as stream:
        until(lambda: len(service._flights) == 1)
        (ident,) = service._flights
        told: list[Any] = []
        cancel = f"{url}/responses/{ident}/cancel"
        threads = [threading.Thread(target=lambda: told.append(httpx2.post(cancel, json={}))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: not service._flights)
        told += [httpx2.post(cancel, json={}), httpx2.get(f"{url}/responses/{ident}")]
        assert {(answer.status_code, answer.json()["status"]) for answer in told} == {(200, "cancelled")}
        stream.settimeout(5)
        assert stream.recv(100)


class Late(Future[None]):
    """Tells of its end a while after it has ended, as where its thread has to wait for a processor."""

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        super().add_done_callback(lambda done: (time.sleep(0.1), fn(done)))


class LateExecutor(Executor):
    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Any:
        future = Late()
        threading.Thread(target=lambda: (fn(*args), future.set_result(None))).start()
        return future


def test_an_answer_ends_once_its_slot_is_free_so_that_its_client_may_ask_again_at_once() -> None:
    happened: list[str] = []

    async def play() -> None:
        bridge: Bridge[int] = Bridge(lambda _: iter(range(3)), LateExecutor(), lambda: happened.append("slot"))
        while not bridge.done:
            happened.extend(str(item) for item in await bridge.take(60))
        happened.append("end")

    asyncio.run(play())
    assert happened == ["0", "1", "2", "slot", "end"]


def test_a_client_that_does_not_read_holds_the_model_up() -> None:
    talker = Talker(pause_s=0.0, times=10_000)
    with serving(talker) as (url, service), open_stream(url):
        until(lambda: bool(service._flights))
        flight = next(iter(service._flights.values()))
        until(lambda: len(flight.bridge._items) >= MOST_WAITING, 60)  # full, and nothing is piled up behind it
        time.sleep(0.2)
        assert len(flight.bridge._items) == MOST_WAITING


def test_an_answer_that_takes_too_long_is_ended() -> None:
    with serving(Talker(), limits=Limits(request_timeout_s=0.3)) as (url, service):
        whole = httpx2.post(f"{url}/chat/completions", json=BODY)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        with open_stream(url) as stream:
            heard_until(stream, b'"code":"timeout"')
        until(lambda: service.slots.taken == 0)


def test_a_client_that_takes_its_answer_too_slowly_does_not_hold_its_slot_for_longer() -> None:
    talker = Talker(pause_s=0.0, times=10_000)
    with serving(talker, limits=Limits(request_timeout_s=0.2)) as (url, service), open_stream(url) as stream:
        until(lambda: service.slots.taken == 1)
        while service.slots.taken:
            assert stream.recv(1)
            time.sleep(0.05)
        assert talker.closed.is_set()


def test_a_silent_stream_is_kept_alive() -> None:
    heard_of = threading.Event()

    class Slow(Player):
        def sample(self, conversation: Any, params: Any) -> Any:
            assert heard_of.wait(20)
            yield from super().sample(conversation, params)

    model = Slow([[Delta(Channel.ANALYSIS, "hm"), *said(final("ok"))[1:]]])
    with serving(model, limits=Limits(keep_alive_s=0.1)) as (url, _), open_stream(url) as stream:
        heard_until(stream, b": keep-alive\n\n")
        heard_of.set()
        heard_until(stream, b"data: [DONE]\n\n")


def test_a_shutdown_lets_short_answers_end_and_tells_the_others() -> None:
    with serving(Talker(), limits=Limits(shutdown_s=0.3)) as (url, service), open_stream(url) as stream:
        until(lambda: len(service._flights) == 1)
        (flight,) = service._flights.values()
        draining = asyncio.run_coroutine_threadsafe(service.drain(), flight.bridge._loop)
        until(lambda: service.slots.closing)
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 503
        refused = httpx2.post(f"{url}/chat/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        draining.result(20)
        heard_until(stream, b"shutting_down")


def test_metrics_count_requests_and_tokens() -> None:
    with serving(Player([said(final("ok"))])) as (url, _):
        httpx2.post(f"{url}/chat/completions", json=BODY)
        httpx2.post(f"{url}/chat/completions", json={"messages": []})
        text = httpx2.get(url.removesuffix("/v1") + "/metrics").text
    assert 'agent_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'agent_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'agent_tokens_total{kind="completion"} 5.0' in text
    assert "agent_requests_in_flight 0.0" in text


def test_the_store_forgets_what_was_not_used_for_longest() -> None:
    store: Bounded[str] = Bounded(3, 100)
    for name in "abc":
        store.put(name, name, 30)
    assert store.get("a") == "a"
    store.put("d", "d", 30)
    assert [store.get(name) for name in "abcd"] == ["a", None, "c", "d"]
    store.put("e", "e", 90)
    assert [store.get(name) for name in "acde"] == [None, None, None, "e"]
    store.put("f", "f", 101)
    assert store.get("f") is None
    assert store.drop("e")
    assert not store.drop("e")
    store.put("g", "g", 100)
    assert store.get("g") == "g"


def test_the_store_counts_what_several_threads_keep_under_one_name() -> None:
    store: Bounded[int] = Bounded(3, 100)

    def keep() -> None:
        for number in range(2000):
            store.put("a", number, 10)

    before, threads = sys.getswitchinterval(), [threading.Thread(target=keep) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    store.put("a", 0, 10)
    store.put("b", 0, 90)
    assert store.get("a") == 0


def test_small_events_are_not_held_back_by_the_socket() -> None:
    """Nagle's delay and delayed acknowledgements together cost every request 40 ms: one that took less shows there is none."""
    with serving(Player([said(final("ok"))])) as (url, _), httpx2.Client() as client:

        def took_s() -> float:
            began_s = time.monotonic()
            assert client.post(f"{url}/chat/completions", json={**BODY, "stream": True}).status_code == 200
            return time.monotonic() - began_s

        assert any(took_s() < 0.03 for _ in range(300))


def test_the_id_of_a_completion_under_way_is_no_response_and_ends_nothing() -> None:
    with serving(Talker()) as (url, service), open_stream(url):
        until(lambda: len(service._flights) == 1)
        (ident,) = service._flights
        for answer in (httpx2.get(f"{url}/responses/{ident}"), httpx2.post(f"{url}/responses/{ident}/cancel", json={})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert list(service._flights) == [ident]


def test_behind_the_end_of_a_response_comes_nothing_more() -> None:
    writer = ResponseWriter("m", {}, 0)
    writer.part(Ended((final("Hi."),), "stop", 1, 1, 0, 0))
    assert writer.cancel() + writer.fail(Refusal(503, "too late")) == b""
    assert writer.document()["status"] == "completed"
