"""The two services that search and fetch for the browser: Exa and You.com. The host sends the requests, not the sandbox.

Pages are fetched by the service and not from here, so a model cannot reach the machine's own network through the browser.
Requests and answers were read from the services' documents and from gpt-oss's own tool.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2

AGENT = "gpt-oss-agent"
TIMEOUT_S = 20.0  # for one attempt
TRIES = 3
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
MOST_BYTES = 16 << 20
SAID_CHARS = 200
EXA_URL = "https://api.exa.ai"
YOU_URL = "https://api.ydc-index.io"


class WebError(Exception):
    """A web request failed; the message is the answer to the model. Never leaves agent/tools."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    url: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A fetched page. ``title`` is the one that the service reports, or ""."""

    html: str
    title: str = ""


class Service(Protocol):
    """Searches the web and fetches pages. Every method raises WebError and nothing else."""

    @property
    def name(self) -> str:
        """What to call it."""
        ...

    def search(self, query: str, most: int) -> tuple[Hit, ...]:
        """Return at most ``most`` results, best first."""
        ...

    def fetch(self, url: str) -> Document:
        """Return the page at an address."""
        ...


@dataclass(frozen=True, slots=True)
class Api:
    """JSON over HTTP to one service. Temporary failures (no connection, 429, 5xx) are retried: three attempts."""

    name: str
    url: str
    key: str = field(repr=False)
    timeout_s: float = TIMEOUT_S
    sleep: Callable[[float], None] = time.sleep

    def ask(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> object:
        """Return the answer's JSON value. Raises WebError."""
        said = "it was not asked"
        for tried in range(TRIES):
            try:
                status, headers, data = self._attempt(method, path, params, body)
            except httpx2.TransportError as error:
                said, wait_s = f"{type(error).__name__}: {error}", None
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise WebError(f"{self.name} gave no usable answer: {error}") from error
            else:
                if status == 429 or status >= 500:
                    said, wait_s = f"status {status}", _retry_after_s(headers)
                else:
                    return self._read(status, data)
            if tried + 1 < TRIES:
                self.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**tried if wait_s is None else wait_s))
        raise WebError(f"{self.name} could not be asked ({TRIES} times, last: {said}). Try again later.")

    def _attempt(
        self, method: str, path: str, params: Mapping[str, Any] | None, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"x-api-key": self.key, "user-agent": AGENT}
        until_s = time.monotonic() + self.timeout_s
        with (
            httpx2.Client(timeout=self.timeout_s) as client,
            client.stream(method, self.url + path, params=params, json=body, headers=headers) as response,
        ):
            data = bytearray()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MOST_BYTES:
                    raise WebError(f"{self.name} sent more than {MOST_BYTES >> 20} MiB: this page is too large.")
                if time.monotonic() > until_s:
                    raise httpx2.ReadTimeout(f"the answer took longer than {self.timeout_s:g} s")
            return response.status_code, response.headers, bytes(data)

    def _read(self, status: int, data: bytes) -> object:
        if status in {401, 403}:
            raise WebError(f"{self.name} refuses the key (status {status}): ask the person to set another one.")
        if status >= 300:
            text = " ".join(data[: 4 * SAID_CHARS].decode("utf-8", "replace").split())[:SAID_CHARS]
            text = text.replace(self.key, "***")  # which some services repeat
            raise WebError(f"{self.name} refuses this request (status {status}): {text}")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WebError(f"{self.name} answered with something that is not JSON.") from error


@dataclass(frozen=True, slots=True)
class Exa:
    """exa.ai: ``POST /search`` and ``POST /contents``."""

    api: Api

    @property
    def name(self) -> str:
        """Exa."""
        return self.api.name

    def search(self, query: str, most: int) -> tuple[Hit, ...]:
        """See Service."""
        contents = {"text": {"maxCharacters": 500}, "summary": True}
        found = self.api.ask("POST", "/search", body={"query": query, "numResults": most, "contents": contents})
        return tuple(
            Hit(_text(item, "url"), _text(item, "title"), _text(item, "summary") or _text(item, "text"))
            for item in _objects(found, "results")
            if _text(item, "url")
        )[:most]

    def fetch(self, url: str) -> Document:
        """See Service."""
        found = self.api.ask("POST", "/contents", body={"urls": [url], "text": {"includeHtmlTags": True}})
        for item in _objects(found, "results"):
            if text := _text(item, "text"):
                return Document(text, _text(item, "title"))
        raise WebError(f"{self.name} could not fetch {url}.")


@dataclass(frozen=True, slots=True)
class You:
    """you.com: ``GET /v1/search`` and ``POST /v1/contents``."""

    api: Api

    @property
    def name(self) -> str:
        """You.com."""
        return self.api.name

    def search(self, query: str, most: int) -> tuple[Hit, ...]:
        """See Service. The web's results come first, then the news."""
        found = self.api.ask("GET", "/v1/search", params={"query": query, "count": most})
        results = found.get("results") if isinstance(found, dict) else None
        hits = []
        for item in (*_objects(results, "web"), *_objects(results, "news")):
            snippets = item.get("snippets")
            texts = [text for text in snippets if isinstance(text, str)] if isinstance(snippets, list) else []
            if _text(item, "url"):
                said = " ".join(texts) or _text(item, "description")
                hits.append(Hit(_text(item, "url"), _text(item, "title"), said))
        return tuple(hits[:most])

    def fetch(self, url: str) -> Document:
        """See Service."""
        found = self.api.ask("POST", "/v1/contents", body={"urls": [url], "livecrawl_formats": "html"})
        for item in _objects({"pages": found}, "pages"):
            if html := _text(item, "html"):
                return Document(html, _text(item, "title"))
        raise WebError(f"{self.name} could not fetch {url}.")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    said = headers.get("retry-after", "")
    return float(said) if said.isdecimal() else None


def _objects(found: object, key: str) -> list[dict[str, Any]]:
    items = found.get(key) if isinstance(found, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""
