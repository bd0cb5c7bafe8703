"""Which answers of a service are asked again, how long, and what is said of the others."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ci.rest import MOST_PAGES, PATIENCE_S, Again, Rest, persist
from agent.errors import ServiceError
from agent.model.client import Clock
from tests.servers import Reply, Reset, document, head, nobody, serving

SECRET = "glpat-0123456789abcdefghij"
NOW_S = 1_764_000_000.0


def ask(reply: Reply, method: str = "GET") -> object:
    with serving([reply]) as server:
        rest = Rest(
            f"http://127.0.0.1:{server.port}", {"Authorization": f"Bearer {SECRET}"}, SECRET, Clock(wall=lambda: NOW_S)
        )
        try:
            return rest.ask(method, "/thing", {"a": "ä\ud800"} if method == "POST" else None)
        finally:
            rest.close()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_to_be_asked_again(status: int) -> None:
    with pytest.raises(Again, match=f"HTTP {status}: because") as caught:
        ask(document({"message": "because"}, status))
    assert caught.value.wait_s is None
    with pytest.raises(Again) as caught:
        ask(document({}, status, Retry_After="7"))
    assert caught.value.wait_s == 7.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry_After": "60"}, 60),
        ({"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": str(int(NOW_S) + 90)}, 90),
        ({"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "1"}, 0),
        ({"X_RateLimit_Remaining": "0"}, None),
        ({"Retry_After": formatdate(NOW_S + 60, usegmt=True)}, 60),
    ],
)
def test_a_spent_limit_is_no_refusal(headers: dict[str, str], wait_s: float | None) -> None:
    with pytest.raises(Again) as caught:
        ask(document({}, 403, **headers))
    assert caught.value.wait_s == wait_s


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (301, "has moved"),
        (302, "would not help"),
        (400, "would not help"),
        (401, "not valid"),
        (403, "docs/ci.md"),
        (404, "may not see it"),
        (409, "would not help"),
        (422, "would not help"),
        (501, "would not help"),
    ],
)
def test_what_does_not_pass_is_said_with_what_to_do(status: int, said: str) -> None:
    with pytest.raises(ServiceError, match=said) as caught:
        ask(document({"message": f"because {SECRET}"}, status, Location="http://127.0.0.1:9/elsewhere"))
    assert not isinstance(caught.value, Again)
    assert caught.value.status == status
    assert "because ***" in str(caught.value)


def test_connections_that_break_are_to_be_made_again() -> None:
    with pytest.raises(Again, match="failed"):
        ask([Reset()])
    with nobody() as url, pytest.raises(Again, match="failed"):
        Rest(url, {}, SECRET, Clock()).ask("GET", "/x")


def test_what_is_no_json_is_said_so() -> None:
    with pytest.raises(ServiceError, match="not JSON"):
        ask([head(200, "text/html"), b"<html>"])


@pytest.mark.parametrize("url", ["ftp://host", "nonsense"])
def test_a_url_of_no_use_is_not_asked_again(url: str) -> None:
    with pytest.raises(ServiceError, match="check the API") as caught:
        Rest(url, {}, SECRET, Clock()).ask("GET", "/x")
    assert not isinstance(caught.value, Again)


def test_a_token_with_a_line_end_is_not_repeated() -> None:
    rest = Rest("http://127.0.0.1:9", {"Authorization": f"Bearer {SECRET}\n"}, SECRET, Clock())
    with pytest.raises(ServiceError) as caught:
        rest.ask("GET", "/x")
    assert SECRET not in str(caught.value)


def test_a_body_of_any_text_can_be_sent() -> None:
    assert ask(document({"ok": True}), "POST") == {"ok": True}


def test_lists_are_read_page_by_page_and_have_an_end() -> None:
    def reply(request: object) -> Reply:
        page = int(str(getattr(request, "path", "")).partition("&page=")[2])
        return document(list(range(100)) if page < 3 else [7])

    with serving(reply) as server:
        rest = Rest(f"http://127.0.0.1:{server.port}", {}, SECRET, Clock())
        assert len(list(rest.pages("/things", {"state": "open"}))) == 201
        assert server.requests[0].path == "/things?state=open&per_page=100&page=1"
    with serving([document(list(range(100)))]) as server:
        rest = Rest(f"http://127.0.0.1:{server.port}", {}, SECRET, Clock())
        with pytest.raises(ServiceError, match="has more than"):
            list(rest.pages("/things"))
        assert len(server.requests) == MOST_PAGES
    with serving([document({})]) as server, pytest.raises(ServiceError, match="not a list"):
        list(Rest(f"http://127.0.0.1:{server.port}", {}, SECRET, Clock()).pages("/things"))


class Time:
    def __init__(self) -> None:
        self.at_s = 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.at_s += seconds

    def clock(self) -> Clock:
        return Clock(now=lambda: self.at_s, sleep=self.sleep, jitter=lambda: 1.0)


@given(st.lists(st.none() | st.floats(0, 300), max_size=30))
def test_patience_has_an_end_and_is_used(waits: list[float | None]) -> None:
    watch, left = Time(), iter([*[Again("busy", 503, wait_s) for wait_s in waits], None])
    said: list[str] = []

    def work() -> str:
        error = next(left)
        if error is not None:
            raise error
        return "done"

    try:
        assert persist(work, watch.clock(), said.append) == "done"
    except ServiceError as error:
        assert "gave up" in str(error)  # noqa: PT017
        assert error.status == 503  # noqa: PT017
    assert watch.at_s <= PATIENCE_S
    assert all("busy; retrying" in each for each in said)


def test_waits_grow() -> None:
    watch, waited = Time(), []

    def failing() -> Iterator[None]:
        while True:
            waited.append(watch.at_s)
            yield

    calls = failing()

    def work() -> None:
        next(calls)
        raise Again("busy")

    with pytest.raises(ServiceError):
        persist(work, watch.clock(), lambda _: None)
    assert waited[:6] == [0, 1, 3, 7, 15, 31]


def test_other_errors_pass_at_once() -> None:
    def work() -> None:
        raise ServiceError("no", 404)

    with pytest.raises(ServiceError, match=r"^no$"):
        persist(work, Time().clock(), lambda _: None)
