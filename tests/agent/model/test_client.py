"""Asking again: how often, how long, and what the person is told, against a real socket and a clock that does not wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable, ModelUnfit
from agent.events import Retried
from agent.model.client import Client, Clock, Endpoint, persist
from agent.model.faults import Transient
from tests.servers import Pause, Reset, document, event, head, nobody, serving, stream

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "m")


@dataclass
class Watch:
    """A clock whose sleep only moves its hands."""

    s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(now=lambda: self.s, wall=lambda: self.s, sleep=self.sleep, jitter=lambda: 1.0)

    def sleep(self, s: float) -> None:
        self.slept.append(s)
        self.s += s


def failing(errors: list[Exception], watch: Watch, took_s: float = 0.0) -> Callable[[], Iterator[str]]:
    """An attempt that raises the next error (the last one for ever), and answers once none is left."""
    rest = list(errors)

    def attempt() -> Iterator[str]:
        watch.s += took_s
        if rest:
            raise rest.pop(0)
        yield "answer"

    return attempt


def forever(error: Exception, watch: Watch, took_s: float = 0.0) -> Callable[[], Iterator[str]]:
    def attempt() -> Iterator[str]:
        watch.s += took_s
        yield from ()
        raise error

    return attempt


def test_an_answer_is_given_through() -> None:
    watch = Watch()
    assert list(persist(failing([], watch), ENDPOINT, watch.clock())) == ["answer"]
    assert watch.slept == []


def test_waits_double_and_each_retry_is_told() -> None:
    watch = Watch()
    found = list(persist(failing([Transient("no")] * 3, watch), ENDPOINT, watch.clock()))
    assert found == [Retried("no", 1, 0.5), Retried("no", 2, 1.0), Retried("no", 3, 2.0), "answer"]
    assert watch.slept == [0.5, 1.0, 2.0]


def test_the_server_says_how_long_to_wait() -> None:
    watch = Watch()
    found = list(persist(failing([Transient("429", retry_after_s=7.0)], watch), ENDPOINT, watch.clock()))
    assert found == [Retried("429", 1, 7.0), "answer"]


@given(took_s=st.floats(0, 30), patience_s=st.floats(0, 200), after_s=st.none() | st.floats(0, 100))
def test_a_dead_endpoint_ends_within_the_stated_time(took_s: float, patience_s: float, after_s: float | None) -> None:
    watch = Watch()
    endpoint = Endpoint(ENDPOINT.url, "m", patience_s=patience_s)
    took_s = min(took_s, patience_s)  # the time to connect is bounded by the patience
    with pytest.raises(EndpointUnreachable) as caught:
        # A zero wait with zero cost would spin: the server's wish of nothing is only met by an attempt that costs time.
        list(persist(forever(Transient("dead", retry_after_s=after_s), watch, took_s + 0.01), endpoint, watch.clock()))
    assert watch.s <= patience_s + 0.02
    assert not isinstance(caught.value, Transient)
    assert "dead" in str(caught.value)


def test_it_does_not_give_up_long_before_its_time() -> None:
    watch = Watch()
    with pytest.raises(EndpointUnreachable, match="endpoint_timeout_s = 60"):
        list(persist(forever(Transient("dead"), watch), ENDPOINT, watch.clock()))
    assert 45 <= watch.s <= 60


def test_a_wait_longer_than_patience_is_not_begun() -> None:
    watch = Watch()
    with pytest.raises(EndpointUnreachable, match="asks to wait 300 s, which is more than endpoint_timeout_s = 60"):
        list(persist(forever(Transient("429", retry_after_s=300), watch), ENDPOINT, watch.clock()))
    assert watch.slept == []


def test_a_server_that_says_at_once_is_not_hammered() -> None:
    watch = Watch()
    with pytest.raises(EndpointUnreachable):
        list(persist(forever(Transient("429", retry_after_s=0.0), watch), ENDPOINT, watch.clock()))
    assert len(watch.slept) < 130


def test_costly_failures_are_bounded_by_count() -> None:
    watch = Watch()
    with pytest.raises(EndpointUnreachable, match="asked 2 times"):
        list(persist(forever(Transient("silent", most=2), watch, took_s=120), ENDPOINT, watch.clock()))
    assert len(watch.slept) == 1


@pytest.mark.parametrize("error", [EndpointRefused("no", 400), ContextOverflow("long"), ModelUnfit("odd")])
def test_what_asking_again_does_not_cure_is_raised_at_once(error: Exception) -> None:
    watch = Watch()
    with pytest.raises(type(error)):
        list(persist(forever(error, watch), ENDPOINT, watch.clock()))
    assert watch.slept == []


def test_closing_the_iterator_closes_the_attempt() -> None:
    closed: list[bool] = []

    def attempt() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    items = persist(attempt, ENDPOINT, Watch().clock())
    assert next(items) == "a"
    items.close()
    assert closed == [True]


def client(url: str, silence_s: float = 0.5, key: str | None = None) -> Client:
    return Client(Endpoint(url, "m", key, silence_timeout_s=silence_s, patience_s=1.0))


def datas(found: Client) -> list[str]:
    return [e.data for e in found.post("/completions", {"a": 1})]


def test_it_posts_and_reads_events() -> None:
    with serving([stream([{"n": 1}])]) as server:
        found = client(server.url, key="sesame")
        assert datas(found) == ['{"n": 1}', "[DONE]"]
        found.close()
        found.close()
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/completions", {"a": 1})
    assert request.headers["authorization"] == "Bearer sesame"


def test_without_a_key_none_is_sent() -> None:
    with serving([stream([])]) as server:
        datas(client(server.url))
    assert "authorization" not in server.requests[0].headers


def test_the_key_is_in_no_representation() -> None:
    assert "sesame" not in repr(Endpoint("u", "m", "sesame"))


BREAKAGES = {
    "refused connection": (None, "no connection"),
    "reset before the answer": ([Reset()], "broke"),
    "closed before the answer": ([], "broke"),
    "reset inside the answer": ([head(), event({}), Reset()], "broke"),
    "cut by a length that was not met": ([head(200, Content_Length="99"), event({})], "broke"),
    "garbage for an answer": ([b"SSH-2.0-OpenSSH_9.6\r\n"], "broke"),
    "silence before the answer": ([Pause(5)], "no byte"),
    "silence inside the answer": ([head(), event({}), Pause(5)], "no byte"),
    "500": (document({"error": "x"}, 500), "HTTP 500"),
    "429": (document({"error": "x"}, 429), "HTTP 429"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_breaks_on_the_way_is_transient(breakage: str) -> None:
    reply, said = BREAKAGES[breakage]
    if reply is None:
        with nobody() as url, pytest.raises(Transient, match=said):
            datas(client(url))
        return
    with serving([reply]) as server, pytest.raises(Transient, match=said):
        datas(client(server.url))


def test_bytes_that_mean_nothing_still_break_the_silence() -> None:
    pings = [Pause(0.05), b": ping\n\n"] * 24
    with serving([[head(), *pings, event("late"), event("[DONE]")]]) as server:
        assert datas(client(server.url, silence_s=1.0)) == ["late", "[DONE]"]


@pytest.mark.parametrize("silent", [[Pause(60)], [Pause(0.1), b": ping\n\n"] * 600], ids=["silent", "pinging"])
def test_the_time_that_a_run_has_left_bounds_an_answer(silent: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.model.client._LEAST_READ_S", 0.3)
    with serving([[head(), event("early"), *silent]]) as server:  # type: ignore[list-item]
        began_s = time.monotonic()
        found: list[str] = []
        with pytest.raises(EndpointUnreachable):
            found += (event.data for event in client(server.url, silence_s=60.0).post("/completions", {}, 0.5))
        assert 0.3 < time.monotonic() - began_s < 30
    assert found == ["early"]


def test_an_endless_answer_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.model.client._MOST_ANSWER_BYTES", 1 << 20)
    flood = [event("x" * 1000)] * 5000
    with serving([[head(), *flood]]) as server, pytest.raises(ModelUnfit, match="ignores max_tokens"):
        datas(client(server.url))


def test_an_html_page_is_no_model_server() -> None:
    with serving([[head(200, "text/html"), b"<html><h1>Welcome to nginx</h1></html>"]]) as server:
        found = client(server.url)
        with pytest.raises(ModelUnfit, match=r"Welcome to nginx.*/v1"):
            datas(found)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:port/v1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(EndpointRefused, match="check the URL"):
        client(url)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1:1/v1"])
def test_a_url_of_no_use_is_refused(url: str) -> None:
    with pytest.raises(EndpointRefused, match="check the URL"):
        datas(client(url))


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    with serving([stream([])]) as server, pytest.raises(EndpointRefused, match="key") as caught:
        datas(client(server.url, key="line\nbreak"))
    assert "break" not in str(caught.value)


def test_a_key_that_a_server_repeats_is_not_repeated() -> None:
    with serving([document({"error": {"message": "wrong key: sesame"}}, 401)]) as server:
        found = client(server.url, key="sesame")
        for ask in (lambda: datas(found), lambda: found.get("/models", 1.0)):
            with pytest.raises(EndpointRefused, match="wrong key") as caught:
                ask()
            assert "sesame" not in str(caught.value)


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([stream([])]) as server, nobody() as proxy:
        monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
        assert datas(client(server.url)) == ["[DONE]"]


def test_documents_are_fetched_below_the_base_and_at_the_root() -> None:
    with serving([document({"data": []})]) as server:
        found = client(server.url)
        assert found.get("/models", 1.0) == {"data": []}
        assert found.get("//props", 1.0) == {"data": []}
        assert found.ask("//tokenize", {"prompt": "x"}, 1.0) == {"data": []}
    assert [r.path for r in server.requests] == ["/v1/models", "/props", "/tokenize"]


@pytest.mark.parametrize("reply", [[head(), b"<html>"], document([1, 2])])
def test_a_document_that_is_no_object_is_unfit(reply: list[bytes]) -> None:
    with serving([reply]) as server, pytest.raises(ModelUnfit, match="not a JSON object"):
        client(server.url).get("/models", 1.0)


def test_a_missing_document_is_refused() -> None:
    with serving([document({"error": "nothing here"}, 404)]) as server:
        found = client(server.url)
        with pytest.raises(EndpointRefused, match="nothing here"):
            found.get("/models", 1.0)
