"""The only module that talks HTTP to a model: it connects, waits, retries, and raises only ModelError."""

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
_KEEPALIVE_S = 2.0  # uvicorn closes idle connections after 5 s: a request must not be sent at that moment
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0
_PROMPT_RETRIES = 4
_MOST_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model's endpoint. ``url`` is the base URL (usually with /v1), without a slash at its end.

    ``silence_timeout_s`` is the longest wait for the next byte, before and during the answer. ``patience_s`` bounds how long
    immediate failures (no connection, 429, 5xx) are retried; a silence is tried twice, and an answer that breaks off five
    times. ``shared``: several threads send requests, and each may be cancelled. Then connections are not reused, because the
    connection of a request cannot be identified before its answer begins.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    silence_timeout_s: float = 120.0
    patience_s: float = 60.0
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Clock:
    """The client's clock, replaced in tests so that they need not wait. ``jitter`` returns a number from 0 to 1."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random


class OpenAIResponse(Protocol):
    """The openai package's response to a request, with the body not read yet."""

    @property
    def http_response(self) -> httpx2.Response:
        """The underlying response."""
        ...


def persist(
    attempt: Callable[[], Iterator[Item]], endpoint: Endpoint, clock: Clock, cancel: Cancel | None = None
) -> Iterator[Item | Retried]:
    """Yield what ``attempt`` yields; if it fails with Transient, yield a Retried and run it again.

    The output of the failed attempt is void. Raises EndpointUnreachable when the retries are used up, Cancelled when ``cancel``
    was called, and every other error of ``attempt`` at once. Closing the iterator closes the attempt.
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
                # Assume that the next attempt takes as long as this one: the time limit is a hard upper bound.
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
    """Close an iterator at the end if it is a generator, so that its connection is released at once."""
    if isinstance(items, Generator):
        with closing(items):
            yield items
    else:
        yield items


def _wait_s(error: Transient, asked: int, clock: Clock) -> float:
    """Return the wait: exponential backoff, half of it random so that clients do not retry in lockstep; or the server's Retry-After."""
    if error.retry_after_s is not None:
        # Do not hammer a server that keeps asking for an immediate retry.
        return error.retry_after_s if asked <= _PROMPT_RETRIES else max(error.retry_after_s, _FIRST_WAIT_S)
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (asked - 1))
    return longest * (0.5 + 0.5 * clock.jitter())


def _gave_up(error: Transient, endpoint: Endpoint, asked: int, wait_s: float) -> str:
    told = f"{error}; asked {asked} times"
    if error.retry_after_s is not None and error.retry_after_s > endpoint.patience_s:
        return f"{told}, and it asks to wait {wait_s:.0f} s, which is more than endpoint_timeout_s = {endpoint.patience_s:g}"
    if error.most is not None:
        return told
    return f"{told} within endpoint_timeout_s = {endpoint.patience_s:g}. Is the model server running at {endpoint.url}?"


class _Line:
    """The connection of one request, so that another thread can close it. It does not exist yet when the request begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Record the sockets that httpcore reports for a request: first the plain one, then the one with TLS."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self._cut:
                self.hang_up()

    def hang_up(self) -> None:
        """Shut the connection down while another thread reads from it: ``close`` would not wake the reader, but free the descriptor."""
        with self._lock:
            self._cut = True
            for one in self._sockets:
                with suppress(OSError):  # it is gone already
                    # The plain socket's method: shutdown of a TLS socket would remove its TLS state while the reader uses it.
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


class Client:
    """HTTP to one endpoint. Each method makes one attempt; ``persist`` retries."""

    def __init__(self, endpoint: Endpoint, clock: Clock | None = None) -> None:
        self.endpoint = endpoint
        self.clock = clock or Clock()
        self._openai: openai.OpenAI | None = None
        self._asking = threading.local()  # the connection of this thread's request
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
            # No proxy for local endpoints, and no certificate store (50 ms to load) for plain HTTP.
            trust_env=host not in _LOOPBACK,
            verify=endpoint.url.startswith("https:") or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def timeout(self, most_s: float | None) -> httpx2.Timeout:
        """Return the timeouts of a request that may take ``most_s`` in total."""
        silence_s = self.endpoint.silence_timeout_s
        return httpx2.Timeout(
            silence_s if most_s is None else min(silence_s, max(most_s, _LEAST_READ_S)),
            connect=max(_LEAST_CONNECT_S, min(_CONNECT_TIMEOUT_S, self.endpoint.patience_s)),
            write=_WRITE_TIMEOUT_S,
        )

    def openai(self) -> openai.OpenAI:
        """Return the openai package's client over the same connections. Its own retries are off, because ``persist`` retries."""
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
        """Send ``body`` and yield the answer's events. ``path`` starts with a slash and is appended to the base URL.

        Raises EndpointUnreachable, which is not retried, if the answer takes longer than ``most_s``, and a Transient
        if ``cancel`` was called.
        """
        timeout = self.timeout(most_s)
        return self._events(self._http.stream("POST", self._url(path), json=body, timeout=timeout), most_s, cancel)

    def post_through_openai(
        self,
        call: AbstractContextManager[OpenAIResponse],
        most_s: float | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[sse.ServerEvent]:
        """Yield the events of a request made by ``client.….with_streaming_response.create(…)`` of the openai package."""
        return self._events(_through_openai(call), most_s, cancel)

    def get(self, path: str, timeout_s: float) -> dict[str, Any]:
        """Return the JSON object at ``path``; two leading slashes make the path relative to the server's root.

        Raises ModelError; ModelUnfit if the answer is not a JSON object.
        """
        return self._exchange("GET", path, None, timeout_s)

    def ask(self, path: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Post ``body`` and return the JSON object of the answer: for probes. Raises as ``get`` does."""
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
        """Return a server's text without the API key, which some servers repeat."""
        key = self.endpoint.api_key
        return text.replace(key, "***") if key else text

    def _url(self, path: str) -> str:
        if path.startswith("//"):
            parts = httpx2.URL(self.endpoint.url)
            return str(parts.copy_with(raw_path=path[1:].encode()))
        return self.endpoint.url.rstrip("/") + path

    def _within(self, chunks: Iterator[bytes], most_s: float | None) -> Iterator[bytes]:
        """Yield the bytes of an answer. Raises if it is too long or takes too long, whatever the server does."""
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
        """Inside the block, ``cancel`` closes the connection of this thread's request, in whatever phase it is."""
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
        """Make one attempt: connect, raise for an error status, and decode the stream (or single document) that comes back."""
        try:
            with self._on_line(cancel), opening as response:
                if not response.is_success:
                    body = self._masked(_start_of(response))
                    raise refusal(response.status_code, response.headers, body, wall_s=self.clock.wall())
                kind = response.headers.get("content-type", "")
                if kind.startswith("text/html"):
                    raise ModelUnfit(_no_json(self.endpoint.url, kind, _start_of(response)))
                if kind.startswith("application/json"):  # the server does not stream: this is the whole answer
                    yield sse.ServerEvent("", response.read().decode("utf-8", "replace"))
                else:
                    lines = sse.lines(self._within(response.iter_bytes(), most_s))
                    yield from sse.documents(lines) if kind.startswith("application/x-ndjson") else sse.events(lines)
        except BREAKS as error:
            raise broken(error, self.endpoint.url) from error


def _limits(endpoint: Endpoint) -> httpx2.Limits:
    """Reuse connections only where opening one is expensive.

    llama.cpp closes the connection after a streamed answer without announcing it, and a request sent at that moment is lost.
    """
    if endpoint.url.startswith("https:") and not endpoint.shared:
        return httpx2.Limits(keepalive_expiry=_KEEPALIVE_S)
    return httpx2.Limits(max_keepalive_connections=0)


@contextmanager
def _through_openai(call: AbstractContextManager[OpenAIResponse]) -> Iterator[httpx2.Response]:
    """Make the openai package's request behave like ours: its errors become the response, or the exception, that they wrap."""
    import openai

    wrapped: BaseException | None = None
    try:
        response = call.__enter__()
    except openai.APIStatusError as error:
        yield error.response
        return
    except openai.APIConnectionError as error:
        wrapped = error.__cause__ or httpx2.TransportError(str(error))
    if wrapped is not None:  # raised outside of the handler, so that it does not become its own context
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
