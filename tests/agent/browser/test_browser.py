"""The browser end to end: our tools over loopback servers that answer as Exa and You.com do, and what goes wrong there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import ToolResult
from agent.tools.browser.browser import MOST_CACHED, Browser, browser_tools
from agent.tools.browser.citations import Source
from agent.tools.browser.services import Api, Document, Exa, Hit, Service, WebError, You
from sandbox.base import Sandbox
from tests.servers import Pause, Reply, Request, Reset, Server, document, head, nobody, serving

KEY = "key-very-secret"
SITE: Mapping[str, str] = {
    "https://example.org/": "<title>Home</title><p>Hello <a href='/long'>long</a> <a href='https://b.example/'>b</a>",
    "https://example.org/long": "<title>Long</title>"
    + "".join(f"<div>row {n} of many words</div>" for n in range(1, 401)),
    "https://b.example/": "<p>no title, one <b>word</b>",
}


def page(url: str) -> str | None:
    return SITE.get(url)


def exa(request: Request) -> Reply:
    """Exa's two calls, as its documents show them."""
    if request.headers.get("x-api-key") != KEY:
        return document({"error": "Invalid API key"}, 401)
    match request.path, request.body:
        case "/search", {"query": str(query), "numResults": int(most), "contents": {"summary": True}}:
            found = [{"title": f"{query} {n}", "url": url, "summary": f"about {n}"} for n, url in enumerate(SITE)]
            return document({"requestId": "r", "results": found[:most]})
        case "/contents", {"urls": [str(url)], "text": {"includeHtmlTags": True}}:
            html = page(url)
            found = [] if html is None else [{"id": url, "url": url, "title": "Exa's title", "text": html}]
            return document({"results": found, "statuses": [{"id": url, "status": "success" if found else "error"}]})
        case _:
            return document({"error": "bad request"}, 400)


def you(request: Request) -> Reply:
    """You.com's two calls, as its documents show them."""
    if request.headers.get("x-api-key") != KEY:
        return document({"detail": "Forbidden"}, 403)
    parts = urlsplit(request.path)
    match request.method, parts.path, request.body:
        case "GET", "/v1/search", _:
            asked = parse_qs(parts.query)
            query, most = asked["query"][0], int(asked["count"][0])
            web = [{"url": url, "title": f"{query} {n}", "snippets": [f"about {n}"]} for n, url in enumerate(SITE)][:2]
            news = [{"url": url, "title": f"{query} 2", "description": "about 2"} for url in list(SITE)[2:]]
            return document({"results": {"web": web[:most], "news": news[:most]}, "metadata": {}})
        case "POST", "/v1/contents", {"urls": [str(url)], "livecrawl_formats": "html"}:
            html = page(url)
            return document([{"url": url, "title": "You's title", "html": html}])
        case _:
            return document({"detail": "bad request"}, 400)


@dataclass
class Desk:
    """A browser's tools over one loopback service, called by our names."""

    browser: Browser
    server: Server

    def __call__(self, name: str, body: str | None = None, **given: object) -> ToolResult:
        tool = next(tool for tool in browser_tools(self.browser) if tool.name == f"browser_{name}")
        return tool.run(json.dumps(given) if body is None else body, NOWHERE)


class _Nowhere:
    """A sandbox that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the browser used the sandbox: {name}")


NOWHERE: Sandbox = _Nowhere()  # type: ignore[assignment]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text[::4]]  # about what a vocabulary gives


def exa_at(url: str, key: str = KEY, **options: Any) -> Service:
    return Exa(Api("Exa", url, key, **options))


def you_at(url: str, key: str = KEY, **options: Any) -> Service:
    return You(Api("You.com", url, key, **options))


SERVICES = [pytest.param(exa, exa_at, id="exa"), pytest.param(you, you_at, id="youcom")]


def origin(server: Server) -> str:
    return server.url.removesuffix("/v1")


@pytest.fixture(params=[(exa, exa_at), (you, you_at)], ids=["exa", "youcom"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    answer, make = request.param
    with serving(answer) as server:
        yield Desk(Browser(make(origin(server)), letters), server)


class TestPages:
    def test_search_then_open_then_find(self, desk: Desk) -> None:
        found = desk("search", query="widgets", topn=2)
        assert found.ok
        assert found.text.splitlines() == [
            "[0] Search results for 'widgets'",
            "**viewing lines [0 - 1] of 1**",
            "",
            "L0: * 【0†widgets 0†example.org】 about 0",
            "L1: * 【1†widgets 1†example.org】 about 1",
        ]
        home = desk("open", id=0)
        assert home.text.startswith("[1] Home (https://example.org/)\n**viewing lines [0 - 0] of 0**\n\nL0: Hello ")
        assert home.text.endswith("Hello 【0†long】 【1†b†b.example】\n")
        long = desk("open", id=0)
        assert long.text.startswith("[2] Long (https://example.org/long)\n**viewing lines [0 - ")
        assert "L0: row 1 of many words\n" in long.text
        places = desk("find", pattern="ROW 250 ")
        assert "L0: # 【0†match at L249】\nL1: row 250 of many words\n" in places.text
        there = desk("open", id=0)
        assert there.text.startswith("[4] Long (https://example.org/long)\n**viewing lines [245 - ")
        back = desk("open", cursor=1, id=1)
        assert back.text.startswith("[5] " + desk.browser.pages[5].title + " (https://b.example/)")
        assert desk.browser.pages[5].title in {"Exa's title", "You's title"}

    def test_the_window_goes_on_where_it_ended(self, desk: Desk) -> None:
        first = desk("open", id="https://example.org/long")
        last = int(first.text.split(" - ")[1].split("]")[0])
        assert 50 < last < 399
        second = desk("open", loc=last + 1)
        assert f"L{last + 1}: row {last + 2} " in second.text
        assert f"L{last}: " not in second.text
        few = desk("open", cursor=0, loc=10, num_lines=3)
        assert few.text.splitlines()[1] == "**viewing lines [10 - 12] of 399**"

    def test_all_results_are_shown_when_nothing_is_said(self, desk: Desk) -> None:
        assert desk("search", query="x").text.count("【") == 3
        assert desk("search", query="x", topn=-1, source="web").text.count("【") == 3

    def test_links_come_from_the_cache_and_addresses_are_fetched_anew(self, desk: Desk) -> None:
        desk("open", id="https://example.org/")
        for _ in range(2):
            desk("open", cursor=0, id=0)
        assert len(desk.server.requests) == 2
        desk("open", id="https://example.org/long")
        assert len(desk.server.requests) == 3

    @pytest.mark.parametrize("spelt", [0, "0", "【0†long】", "0†long"])
    def test_a_link_however_its_number_is_spelt(self, desk: Desk, spelt: object) -> None:
        desk("open", id="https://example.org/")
        assert desk("open", id=spelt).text.startswith("[1] Long")

    def test_the_source_of_a_page(self, desk: Desk) -> None:
        shown = desk("open", id="https://b.example/", view_source=True)
        assert "(view-source:https://b.example/)" in shown.text
        assert "L0: <p>no title, one <b>word</b>\n" in shown.text
        again = desk("open", id="view-source:https://b.example/")
        assert again.text.split("\n", 1)[1] == shown.text.split("\n", 1)[1]
        desk("open", id="https://example.org/")
        assert "L0: <title>Home" in desk("open", view_source=True).text
        assert desk.browser.cited(0) == Source("https://b.example/", desk.browser.pages[0].title)

    def test_what_can_be_cited(self, desk: Desk) -> None:
        desk("search", query="x")
        desk("open", id=0)
        assert desk.browser.cited(1) == Source("https://example.org/", "Home")
        assert desk.browser.cited(0) is None
        assert desk.browser.cited(2) is None


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "given", "said"),
        [
            ("search", {}, "'query' is missing"),
            ("search", {"query": " "}, "1 to 2000 characters"),
            ("search", {"query": "x" * 2001}, "1 to 2000 characters"),
            ("search", {"query": 3}, "must be text"),
            ("search", {"query": "x", "topn": "many"}, "'topn' must be a whole number"),
            ("search", {"query": "x", "recency": 3}, "no argument 'recency'"),
            ("open", {"id": 7}, "There is no link 7 on 'Home': its links are 0 to 1"),
            ("open", {"id": True}, "'id' must be"),
            ("open", {"id": [1]}, "'id' must be"),
            ("open", {"id": "example.org"}, "neither a link's number nor an address"),
            ("open", {"id": "file:///etc/passwd"}, "neither a link's number nor an address"),
            ("open", {"cursor": 9}, "There is no cursor 9: the newest is 0"),
            ("open", {"loc": 99}, "There is no line 99: the last line of 'Home' is 0"),
            ("open", {"loc": 1.5}, "'loc' must be a whole number"),
            ("open", {"view_source": "yes"}, "'view_source' must be true or false"),
            ("open", {"url": "https://example.org/"}, "no argument 'url'"),
            ("open", {"id": "https://nowhere.example/"}, "could not fetch https://nowhere.example/"),
            ("find", {}, "'pattern' is missing"),
            ("find", {"pattern": ""}, "1 to 2000 characters"),
            ("find", {"pattern": "x", "cursor": 5}, "There is no cursor 5"),
            ("find", {"pattern": "x", "loc": 5}, "no argument 'loc'"),
        ],
    )
    def test_a_wrong_call_is_a_result_and_leaves_no_trace(
        self, desk: Desk, name: str, given: Mapping[str, object], said: str
    ) -> None:
        desk("open", id="https://example.org/")
        result = desk(name, **given)
        assert not result.ok
        assert said in result.text
        assert len(desk.browser.pages) == 1

    def test_nothing_is_open_yet(self, desk: Desk) -> None:
        assert "search first" in desk("open", id=0).text
        assert "search first" in desk("find", pattern="x").text

    def test_find_on_results(self, desk: Desk) -> None:
        desk("search", query="x")
        assert "open one of its links first" in desk("find", pattern="x").text

    def test_a_body_that_is_no_json(self, desk: Desk) -> None:
        for body in ("{", "[1]", "null"):
            result = desk("open", body)
            assert (result.ok, "JSON object" in result.text) == (False, True)


VALUES = st.none() | st.booleans() | st.integers(-3, 2**70) | st.text(max_size=20) | st.lists(st.integers(), max_size=2)


@dataclass
class OfMemory:
    """A service that is only a dictionary."""

    pages: Mapping[str, str] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    name: str = "memory"

    def search(self, query: str, most: int) -> tuple[Hit, ...]:
        return tuple(Hit(url, query, "") for url in self.pages)[:most]

    def fetch(self, url: str) -> Document:
        self.fetched.append(url)
        if url not in self.pages:
            raise WebError(f"no {url}")
        return Document(self.pages[url])


@given(
    st.sampled_from(["search", "open", "find"]),
    st.dictionaries(
        st.sampled_from(["id", "cursor", "loc", "num_lines", "query", "pattern", "topn", "view_source"]), VALUES
    ),
)
def test_no_arguments_raise(name: str, given: Mapping[str, object]) -> None:
    browser = Browser(OfMemory(), letters)
    for tool in browser_tools(browser):
        if tool.name == "browser_search":
            tool.run('{"query": "x"}', NOWHERE)
    before = len(browser.pages)
    (tool,) = (tool for tool in browser_tools(browser) if tool.name == f"browser_{name}")
    result = tool.run(json.dumps(given), NOWHERE)
    assert len(browser.pages) == before + result.ok


class TestService:
    """What goes wrong on the way, for both services alike."""

    @pytest.mark.parametrize(("answer", "make"), SERVICES)
    def test_a_refused_key_is_not_tried_again_and_not_shown(self, answer: Any, make: Any) -> None:
        with serving(answer) as server, pytest.raises(WebError, match="refuses the key") as raised:
            make(origin(server), "wrong-key").search("x", 3)
        assert len(server.requests) == 1
        assert "wrong-key" not in str(raised.value) + repr(make("http://x", "wrong-key"))

    @pytest.mark.parametrize(("answer", "make"), SERVICES)
    def test_what_passes_is_tried_again(self, answer: Any, make: Any) -> None:
        failing: list[Reply] = [document({}, 503), [Reset()]]
        with serving(lambda request: failing.pop() if failing else answer(request)) as server:
            waited: list[float] = []
            assert len(make(origin(server), sleep=waited.append).search("x", 2)) == 2
        assert waited == [0.5, 1.0]

    @pytest.mark.parametrize(("answer", "make"), SERVICES)
    def test_a_wait_that_was_asked_for(self, answer: Any, make: Any) -> None:
        failing = [document({}, 429, Retry_After="3600"), document({}, 429, Retry_After="2")]
        with serving(lambda request: failing.pop() if failing else answer(request)) as server:
            waited: list[float] = []
            make(origin(server), sleep=waited.append).search("x", 2)
        assert waited == [2.0, 8.0]

    @pytest.mark.parametrize("make", [exa_at, you_at])
    def test_it_gives_up(self, make: Any) -> None:
        with serving([document({}, 500)]) as server, pytest.raises(WebError, match=r"3 times, last: status 500"):
            make(origin(server), sleep=lambda _: None).search("x", 2)
        assert len(server.requests) == 3
        with nobody() as url, pytest.raises(WebError, match="ConnectError"):
            make(url.removesuffix("/v1"), sleep=lambda _: None).fetch("https://example.org/")

    @pytest.mark.parametrize("make", [exa_at, you_at])
    def test_a_silence_ends(self, make: Any) -> None:
        with serving([[Pause(60)]]) as server, pytest.raises(WebError, match="ReadTimeout"):
            make(origin(server), timeout_s=0.2, sleep=lambda _: None).search("x", 2)

    @pytest.mark.parametrize("make", [exa_at, you_at])
    def test_an_answer_that_trickles_ends_too(self, make: Any) -> None:
        drops: list[Any] = [head(200, "application/json"), *[b" ", Pause(0.03)] * 2000]
        with serving([drops]) as server, pytest.raises(WebError, match="took longer"):
            make(origin(server), timeout_s=0.3, sleep=lambda _: None).search("x", 2)

    @pytest.mark.parametrize("make", [exa_at, you_at])
    @pytest.mark.parametrize(
        "value",
        [None, 3, "x", [], {}, [None], {"results": None}, {"results": [None, {"url": 3}]}, {"results": {"web": 3}}],
    )
    def test_answers_of_another_shape(self, make: Any, value: object) -> None:
        with serving([document(value)]) as server:
            assert make(origin(server)).search("x", 2) == ()
            with pytest.raises(WebError, match="could not fetch"):
                make(origin(server)).fetch("https://e.org")

    @pytest.mark.parametrize("make", [exa_at, you_at])
    def test_an_answer_that_is_no_json(self, make: Any) -> None:
        with serving([[head(200, "application/json"), b"<html>"]]) as server, pytest.raises(WebError, match="not JSON"):
            make(origin(server)).search("x", 2)

    @pytest.mark.parametrize("make", [exa_at, you_at])
    def test_a_refusal_says_why(self, make: Any) -> None:
        reply = document({"error": "query is\ntoo odd"}, 422)
        with serving([reply]) as server, pytest.raises(WebError, match=r"status 422.*too odd"):
            make(origin(server)).search("x", 2)

    def test_a_page_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agent.tools.browser.services.MOST_BYTES", 1000)
        with serving([document({"results": ["x" * 2000]})]) as server, pytest.raises(WebError, match="too large"):
            exa_at(origin(server)).fetch("https://e.org")


def test_the_cache_forgets_the_oldest_page() -> None:
    service = OfMemory({f"https://e.org/{n}": f"<a href=/{n + 1}>next</a>" for n in range(MOST_CACHED + 2)})
    browser = Browser(service, letters)
    browser.open({"id": "https://e.org/0"})
    for _ in range(MOST_CACHED + 1):
        browser.open({"id": 0})
    fetched = len(service.fetched)
    browser.open({"cursor": MOST_CACHED - 1, "id": 0})  # still there
    assert len(service.fetched) == fetched
    browser.open({"cursor": 0, "id": 0})  # forgotten
    assert len(service.fetched) == fetched + 1
