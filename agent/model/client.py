"""The one place that talks HTTP to a model: opens the connection, waits, asks again, and lets only ModelError out."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx2

from agent.errors import EndpointUnreachable, ModelError, ModelUnfit
from agent.events import Retried
from agent.model import sse
from agent.model.cancel import Cancel
from agent.model.faults import BREAKS, Transient, broken, message_in, refusal

if TYPE_CHECKING:
    import openai

Item = TypeVar("Item")

_CONNECT_TIMEOUT_S = 10.0
_LEAST_CONNECT_S = 1.0
_WRITE_TIMEOUT_S = 60.0
_LEAST_READ_S = 1.0
_MOST_ANSWER_BYTES = 64 << 20  # 2 KiB for each of 32,768 tokens
_KEEPALIVE_S = 2.0  # uvicorn hangs up after 5 s of rest: a request must not meet it doing so
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0
_PROMPT_RETRIES = 4
_MOST_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked. ``url`` is the base (usually with /v1), without a slash at its end.

    ``silence_timeout_s`` is the longest wait for a next byte, before the answer and inside it. ``patience_s`` bounds how
    long failures that come at once (no connection, 429, 5xx) are answered by asking again; a silence is tried twice and
    an answer that breaks off five times. ``shared`` says that several threads ask, each of which may be cancelled: then no
    connection is kept, since a kept one cannot be found while its next answer has not begun.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    silence_timeout_s: float = 120.0
    patience_s: float = 60.0
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the client sees it, so that tests need not wait. ``jitter`` gives a number from 0 to 1."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random


class OpenAIResponse(Protocol):
    """What the openai package gives for a request whose body has not been read."""

    @property
    def http_response(self) -> httpx2.Response:
        """The response under it."""
        ...


def persist(
    attempt: Callable[[], Iterator[Item]], endpoint: Endpoint, clock: Clock, cancel: Cancel | None = None
) -> Iterator[Item | Retried]:
    """Give what ``attempt`` gives; when it fails with Transient, say so with a Retried and run it again.

    What the failed attempt gave is void. Raises EndpointUnreachable when patience has run out, Cancelled when ``cancel``
    was called, and whatever else ``attempt`` raises at once. Closing the iterator closes the attempt.
    """
    failing_s = 0.0
    bounded = 0
    asked = 0
    while True:
        asked += 1
        began = clock.now()
        try:
            with closing_iterator(attempt()) as items:
                yield from items
        except ModelError as error:
            if cancel is not None and cancel.called:
                raise cancel.error() from error
            if not isinstance(error, Transient):
                raise
            took_s = clock.now() - began
            wait_s = _wait_s(error, asked, clock)
            if error.most is not None:
                bounded += 1
                over = bounded >= error.most
            else:
                failing_s += took_s
                # The next attempt may take as long as this one did: the stated time is an upper bound, not a hint.
                over = failing_s + wait_s + took_s > endpoint.patience_s
            if over:
                raise EndpointUnreachable(_gave_up(error, endpoint, asked, wait_s)) from error
            yield Retried(str(error), asked, wait_s)
            (clock.sleep if cancel is None else cancel.sleep)(wait_s)
            failing_s += wait_s
        else:
            return


@contextmanager
def closing_iterator(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Close an iterator at the end if it is a generator, so that the connection under it is given back at once."""
    if isinstance(items, Generator):
        with closing(items):
            yield items
    else:
        yield items


def _wait_s(error: Transient, asked: int, clock: Clock) -> float:
    """Exponential backoff with half of it random, so that many clients do not come back as one; or what the server asked for."""
    if error.retry_after_s is not None:
        # A server that says "at once" for ever is not hammered.
        return error.retry_after_s if asked <= _PROMPT_RETRIES else max(error.retry_after_s, _FIRST_WAIT_S)
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (asked - 1))
    return longest * (0.5 + 0.5 * clock.jitter())


def _gave_up(error: Transient, endpoint: Endpoint, asked: int, wait_s: float) -> str:
    told = f"{error}; asked {asked} times"
    if error.retry_after_s is not None and error.retry_after_s > endpoint.patience_s:
        return f"{told}, and it wants {wait_s:.0f} s of rest, which is more than endpoint_timeout_s = {endpoint.patience_s:g}"
    if error.most is not None:
        return told
    return f"{told} within endpoint_timeout_s = {endpoint.patience_s:g}. Is the model server running at {endpoint.url}?"


class _Line:
    """The connection of one request, so that another thread can hang up: it is not there yet when the request begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of what httpcore tells about a request: what it connected, first bare, then with TLS around it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self._cut:
                self.hang_up()

    def hang_up(self) -> None:
        """End the connection under whoever reads from it. Not by closing: that wakes no reader, and frees the number."""
        with self._lock:
            self._cut = True
            for one in self._sockets:
                with suppress(OSError):  # it is gone already
                    # The plain socket's method: that of a TLS socket takes its cipher away under the reader.
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


class Client:
    """HTTP to one endpoint. Its methods make one attempt each; ``persist`` is what asks again."""

    def __init__(self, endpoint: Endpoint, clock: Clock | None = None) -> None:
        self.endpoint = endpoint
        self.clock = clock or Clock()
        self._openai: openai.OpenAI | None = None
        self._asking = threading.local()  # the line of the request that this thread makes
        try:
            host = httpx2.URL(endpoint.url).host
        except httpx2.InvalidURL as error:
            raise broken(error, endpoint.url) from error
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._http = httpx2.Client(
            headers=headers,
            timeout=self.timeout(None),
            limits=_limits(endpoint),
            event_hooks={"request": [self._watch]},
            # A proxy is for the world outside; a certificate store takes 50 ms to load and plain HTTP has no use for it.
            trust_env=host not in _LOOPBACK,
            verify=endpoint.url.startswith("https:") or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def timeout(self, most_s: float | None) -> httpx2.Timeout:
        """Return the timeouts of a request of which the whole may take ``most_s``."""
        silence_s = self.endpoint.silence_timeout_s
        return httpx2.Timeout(
            silence_s if most_s is None else min(silence_s, max(most_s, _LEAST_READ_S)),
            connect=max(_LEAST_CONNECT_S, min(_CONNECT_TIMEOUT_S, self.endpoint.patience_s)),
            write=_WRITE_TIMEOUT_S,
        )

    def openai(self) -> openai.OpenAI:
        """Return the openai package's client over the same connections. Its own retries are off: ``persist`` does them."""
        if self._openai is None:
            import openai

            self._openai = openai.OpenAI(
                base_url=self.endpoint.url,
                api_key=self.endpoint.api_key or "none",
                http_client=self._http,
                max_retries=0,
            )
        return self._openai

    def post(
        self, path: str, body: Mapping[str, Any], most_s: float | None = None, cancel: Cancel | None = None
    ) -> Iterator[sse.ServerEvent]:
        """Send ``body`` and give the answer's events. ``path`` starts with a slash and is appended to the base URL.

        Raises EndpointUnreachable, which is not asked again, when the answer takes longer than ``most_s``; a Transient
        when ``cancel`` was called.
        """
        timeout = self.timeout(most_s)
        return self._events(self._http.stream("POST", self._url(path), json=body, timeout=timeout), most_s, cancel)

    def post_through_openai(
        self,
        call: AbstractContextManager[OpenAIResponse],
        most_s: float | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[sse.ServerEvent]:
        """Give the events of a request made by ``client.….with_streaming_response.create(…)`` of the openai package."""
        return self._events(_through_openai(call), most_s, cancel)

    def get(self, path: str, timeout_s: float) -> dict[str, Any]:
        """Return the JSON object at ``path``, or at a path of the server's root if it starts with two slashes.

        Raises ModelError, ModelUnfit among them when the answer is no JSON object.
        """
        return self._exchange("GET", path, None, timeout_s)

    def ask(self, path: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Post ``body`` and return the JSON object it gives, read whole: for probes. Raises as ``get`` does."""
        return self._exchange("POST", path, body, timeout_s)

    def close(self) -> None:
        """Close the connections. May be called twice."""
        self._http.close()

    def _exchange(self, method: str, path: str, sent: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        url = self._url(path)
        try:
            response = self._http.request(method, url, json=sent, timeout=timeout_s)
        except BREAKS as error:
            raise broken(error, url) from error
        if not response.is_success:
            body = self._masked(response.text)
            raise refusal(response.status_code, response.headers, body, wall_s=self.clock.wall())
        found: object = None
        with suppress(ValueError, RecursionError):
            found = response.json()
        if not isinstance(found, dict):
            raise ModelUnfit(_no_json(url, response.headers.get("content-type", ""), response.text))
        return found

    def _masked(self, text: str) -> str:
        """What a server says, without the key, which some repeat."""
        key = self.endpoint.api_key
        return text.replace(key, "***") if key else text

    def _url(self, path: str) -> str:
        if path.startswith("//"):
            parts = httpx2.URL(self.endpoint.url)
            return str(parts.copy_with(raw_path=path[1:].encode()))
        return self.endpoint.url.rstrip("/") + path

    def _within(self, chunks: Iterator[bytes], most_s: float | None) -> Iterator[bytes]:
        """Give the bytes of an answer that is neither endless nor late, whatever the server does."""
        began_s, size = self.clock.now(), 0
        for chunk in chunks:
            size += len(chunk)
            if size > _MOST_ANSWER_BYTES:
                raise ModelUnfit(
                    f"the endpoint sent more than {_MOST_ANSWER_BYTES >> 20} MiB for one answer: it ignores max_tokens"
                )
            if most_s is not None and self.clock.now() - began_s > most_s:
                raise EndpointUnreachable(f"the answer took longer than the {most_s:.0f} s that the run had left")
            yield chunk

    def _watch(self, request: httpx2.Request) -> None:
        line: _Line | None = getattr(self._asking, "line", None)
        if line is not None:
            request.extensions["trace"] = line.trace

    @contextmanager
    def _on_line(self, cancel: Cancel | None) -> Iterator[None]:
        """Within the block, ``cancel`` hangs up on the request that this thread makes, however far it has come."""
        line = _Line()
        self._asking.line = line
        try:
            with nullcontext() if cancel is None else cancel.by(line.hang_up):
                yield
        finally:
            self._asking.line = None

    def _events(
        self, opening: AbstractContextManager[httpx2.Response], most_s: float | None, cancel: Cancel | None
    ) -> Iterator[sse.ServerEvent]:
        """One attempt: open, refuse what is no success, and decode the stream (or the one document) that comes back."""
        try:
            with self._on_line(cancel), opening as response:
                if not response.is_success:
                    body = self._masked(_start_of(response))
                    raise refusal(response.status_code, response.headers, body, wall_s=self.clock.wall())
                kind = response.headers.get("content-type", "")
                if kind.startswith("text/html"):
                    raise ModelUnfit(_no_json(self.endpoint.url, kind, _start_of(response)))
                if kind.startswith("application/json"):  # a server that does not stream answers whole
                    yield sse.ServerEvent("", response.read().decode("utf-8", "replace"))
                else:
                    lines = sse.lines(self._within(response.iter_bytes(), most_s))
                    yield from sse.documents(lines) if kind.startswith("application/x-ndjson") else sse.events(lines)
        except BREAKS as error:
            raise broken(error, self.endpoint.url) from error


def _limits(endpoint: Endpoint) -> httpx2.Limits:
    """Keep connections only where opening one is dear.

    llama.cpp hangs up after a streamed answer without saying so, and a request that meets it doing so is lost.
    """
    if endpoint.url.startswith("https:") and not endpoint.shared:
        return httpx2.Limits(keepalive_expiry=_KEEPALIVE_S)
    return httpx2.Limits(max_keepalive_connections=0)


@contextmanager
def _through_openai(call: AbstractContextManager[OpenAIResponse]) -> Iterator[httpx2.Response]:
    """Make the openai package's request look like one of ours: its errors become the response, or the cause, they wrap."""
    import openai

    wrapped: BaseException | None = None
    try:
        response = call.__enter__()
    except openai.APIStatusError as error:
        yield error.response
        return
    except openai.APIConnectionError as error:
        wrapped = error.__cause__ or httpx2.TransportError(str(error))
    if wrapped is not None:  # raised out here, so that it does not become its own cause
        raise wrapped
    try:
        yield response.http_response
    finally:
        call.__exit__(None, None, None)


def _start_of(response: httpx2.Response) -> str:
    if response.is_stream_consumed:
        return response.text[:_MOST_ERROR_BYTES]
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) >= _MOST_ERROR_BYTES:
            break
    return body.decode("utf-8", "replace")


def _no_json(url: str, kind: str, body: str) -> str:
    return f"{url} answered with {kind or 'something'} that is not a JSON object: {message_in(body)!r}. Does the URL end in /v1?"
