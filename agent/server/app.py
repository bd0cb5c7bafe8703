"""The ASGI application: for each route, how a request is read, run and stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.conversation import Message
from agent.errors import ModelError
from agent.model.cancel import Cancel
from agent.server import sse
from agent.server.answer import Ended, Part, Worked, answer
from agent.server.ask import Ask
from agent.server.backend import Backend
from agent.server.bench import Bench, Builtins
from agent.server.bridge import Bridge
from agent.server.builtin import Wanted
from agent.server.capable import check_capable
from agent.server.chat import ChatWriter, read_chat
from agent.server.completions import CompletionWriter, Finished, Piece, complete, read_completion
from agent.server.faults import NotThere, Refusal, refusal
from agent.server.fields import Fields
from agent.server.gate import LOOPBACK, Arriving, Limits, Slots, check_access, read_body, read_json
from agent.server.metrics import Metrics
from agent.server.play import Flight, Played, retry_header
from agent.server.responses import ResponseWriter
from agent.server.responses_request import ResponsesRequest, read_responses
from agent.server.rounds import newest_turn, rounds
from agent.server.store import Kept, Places, Store, messages_bytes

Item = TypeVar("Item")
Asked = TypeVar("Asked")
Endpoint = Callable[[Request], Awaitable[Response]]

_SMALL_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Access:
    """Access control: the required API key (None: no key), and whether only loopback host names are accepted."""

    api_key: str | None = field(default=None, repr=False)
    loopback_only: bool = True


class Service:
    """One server over one backend. It holds all of the server's state; its methods run in the event loop's thread."""

    def __init__(
        self,
        backend: Backend,
        *,
        effort: str = "medium",
        access: Access | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        builtins: Builtins | None = None,
    ) -> None:
        self.backend = backend
        self._builtins = builtins or Builtins()
        self.limits = limits or Limits()
        can = backend.model.capabilities
        self.slots = Slots(self.limits.requests if can.parallel_requests else 1)
        self._arriving = Arriving(self.limits)
        self.store = store or Store()
        self._effort = effort
        self._access = access or Access()
        self._metrics = Metrics(lambda: self.slots.taken)
        self._flights: dict[str, Flight[Any]] = {}
        self._threads = ThreadPoolExecutor(self.limits.requests, thread_name_prefix="answer")
        self._created_s = int(time.time())

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            self._route("/v1/responses", self.responses, "POST"),
            self._route("/v1/responses/{id}", self.response, "GET"),
            self._route("/v1/responses/{id}", self.forget, "DELETE"),
            self._route("/v1/responses/{id}/cancel", self.cancel, "POST"),
            self._route("/v1/chat/completions", self.chat, "POST"),
            self._route("/v1/completions", self.completions, "POST"),
            self._route("/v1/models", self.models, "GET"),
            self._route("/v1/models/{id:path}", self.model, "GET"),
            self._route("/metrics", self.metrics, "GET"),
            Route("/health", self.health, methods=["GET"]),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _no_such_place, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def drain(self, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """Accept no more requests, wait for the running ones for a limited time (unless ``is_urgent``), and end the rest."""
        self.slots.closing = True
        ends_s = time.monotonic() + self.limits.shutdown_s
        # Do not count the slots: a thread is free before everything that it produced was sent.
        while self._flights and time.monotonic() < ends_s and not is_urgent():
            await asyncio.sleep(0.02)
        for flight in list(self._flights.values()):
            flight.stop(Refusal(503, "This server is shutting down.", kind="server_error", code="shutting_down"))

    def close(self) -> None:
        """Close the backend and the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._builtins.close()
        self.backend.close()

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        asked = await self._asked(
            request, lambda body: read_responses(body, self.store, self._effort, self._builtins.offer)
        )
        bench = self._bench(asked.wanted, asked.places)
        writer = ResponseWriter(self.backend.id, asked.echo, int(time.time()), asked.include)

        def heard(part: Part) -> None:
            self._keep_turn(part, writer.call_ids, apart=True)
            if isinstance(part, Worked):
                self.store.remember(part.id, part.turn)
            if isinstance(part, Ended):
                places = asked.places if bench is None else self._keep_places(bench, asked.places)
                if asked.store:
                    self._keep_response(asked, writer, part.messages, places)

        def landed(flight: Flight[Part]) -> None:
            if flight.cancelled and asked.store and writer.ended is None:
                writer.cancel()  # record the end that the disconnected client did not see
                self._keep_response(asked, writer, (), asked.places)

        work = self._work(asked.ask, bench)
        return self._play(work, writer, "/v1/responses", stream=asked.stream, heard=heard, landed=landed)

    async def response(self, request: Request) -> Response:
        """GET /v1/responses/{id}."""
        ident = request.path_params["id"]
        found = self._under_way(ident)
        if found is not None:
            return _json(found[0].document())
        kept = self.store.responses.get(ident)
        if kept is None:
            raise NotThere("There is no such response here: it is no longer kept, or it had store: false.", "id")
        return Response(kept.document, media_type="application/json")

    async def forget(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        ident = request.path_params["id"]
        if not self.store.responses.drop(ident):
            raise NotThere("There is no such response here.", "id")
        return _json({"id": ident, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel. A response that has ended is returned unchanged."""
        found = self._under_way(request.path_params["id"])
        if found is None or found[0].ended is not None:
            return await self.response(request)
        writer, flight = found
        flight.cancel()
        return _json({**writer.document(), "status": "cancelled"})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = await self._asked(request, lambda body: read_chat(body, self.store, self._effort, self._builtins.offer))
        bench = self._bench(asked.wanted, Places())
        writer = ChatWriter(self.backend.id, int(time.time()), asked.usage)
        return self._play(
            self._work(asked.ask, bench),
            writer,
            "/v1/chat/completions",
            stream=asked.stream,
            heard=lambda part: self._keep_turn(part, writer.call_ids, apart=False),
        )

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        source, codec = self.backend.source, self.backend.codec
        asked = await self._asked(request, lambda body: read_completion(body, codec))
        assert source is not None
        assert codec is not None

        def heard(part: Piece | Finished) -> None:
            if isinstance(part, Finished):
                self._metrics.tokens(len(asked.prompt), part.cached_tokens, part.completion_tokens)

        writer = CompletionWriter(self.backend.id, int(time.time()), asked)
        return self._play(
            lambda cancel: complete(source, codec, asked, cancel),
            writer,
            "/v1/completions",
            stream=asked.stream,
            heard=heard,
        )

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        del request
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        if request.path_params["id"] != self.backend.id:
            raise NotThere(f"There is no such model here; there is {self.backend.id}.", "model")
        return _json(self._model())

    async def health(self, request: Request) -> Response:
        """GET /health: needs no key, and reports only whether requests are accepted."""
        del request
        if self.backend.stopped is not None:
            return _json({"status": "engine_stopped"}, 503)
        return _json({"status": "shutting_down"}, 503) if self.slots.closing else _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        del request
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _asked(self, request: Request, read: Callable[[Fields], Asked]) -> Asked:
        """Parse a request: a large one in a thread, because a million small items take seconds."""
        data = bytearray()

        def work() -> Asked:
            body = read_json(data)
            check_capable(body, self.backend.model.capabilities)
            return read(body)

        try:
            await read_body(request, self.limits, self._arriving, data)
            return work() if len(data) <= _SMALL_BYTES else await asyncio.to_thread(work)
        finally:
            self._arriving.add(-len(data))

    def _play(
        self,
        work: Callable[[Cancel], Iterator[Item]],
        writer: ResponseWriter | ChatWriter | CompletionWriter,
        route: str,
        *,
        stream: bool,
        heard: Callable[[Item], None],
        landed: Callable[[Flight[Item]], None] = lambda _: None,
    ) -> Response:
        self.slots.take()
        bridge: Bridge[Any] = Bridge(work, self._threads, self.slots.give)
        flight: Flight[Any] = Flight(bridge, writer, self.limits, self._metrics, route, heard)
        self._flights[writer.id] = flight
        flight.landed = lambda: self._landed(writer.id, landed)
        return Played(flight, stream=stream)

    def _under_way(self, ident: str) -> tuple[ResponseWriter, Flight[Any]] | None:
        """Return a response in progress. (Completions have ids too, but nothing to show before their end.)"""
        flight = self._flights.get(ident)
        writer = flight.writer if flight is not None else None
        return (writer, flight) if flight is not None and isinstance(writer, ResponseWriter) else None

    def _landed(self, ident: str, landed: Callable[[Flight[Any]], None]) -> None:
        landed(self._flights.pop(ident))

    def _bench(self, wanted: Wanted, places: Places) -> Bench | None:
        """Return the built-in tools that a request uses, in the state in which its conversation left them."""
        if not wanted:
            return None
        interpreters = self._builtins.interpreters
        if wanted.container is not None and (interpreters is None or wanted.container not in interpreters):
            raise NotThere("There is no such container here (any more): use auto, and the server chooses one.", "tools")
        pages = self.store.pages.get(places.web) if places.web is not None else None
        return Bench(self._builtins, wanted, pages or (), places.container)

    def _work(self, ask: Ask, bench: Bench | None) -> Callable[[Cancel], Iterator[Part]]:
        if bench is None:
            return lambda cancel: answer(self.backend, ask.ended_by(cancel))
        return lambda cancel: rounds(self.backend, ask.ended_by(cancel), bench)

    def _keep_turn(self, part: Part, call_ids: list[str], *, apart: bool) -> None:
        """Count an answer, and store the turn that led to a call. ``apart``: built-in calls before it have items of their own."""
        if not isinstance(part, Ended):
            return
        self._metrics.tokens(part.prompt_tokens, part.cached_tokens, part.completion_tokens)
        if len(call_ids) == 1 and part.messages[-1].is_call:
            self.store.remember(call_ids[0], newest_turn(part.messages) if apart else part.messages)

    def _keep_places(self, bench: Bench, before: Places) -> Places:
        """Store the state of the built-in tools for the next answer of the conversation."""
        places = Places(bench.newest_search or before.web, bench.container)
        if bench.newest_search is not None and bench.browser is not None:
            self.store.remember_pages(bench.newest_search, bench.browser.pages)
        return places

    def _keep_response(
        self, asked: ResponsesRequest, writer: ResponseWriter, said: tuple[Message, ...], places: Places
    ) -> None:
        messages = (*asked.history, *said)
        document = writer.document()
        calls = {item["call_id"]: item["name"] for item in document["output"] if item["type"] == "function_call"}
        kept = Kept(sse.document(document), messages, calls, places)
        self.store.responses.put(writer.id, kept, len(kept.document) + messages_bytes(messages))

    def _model(self) -> dict[str, Any]:
        window = self.backend.model.context_tokens
        told = {} if window is None else {"max_model_len": window}
        return {
            "id": self.backend.id,
            "object": "model",
            "created": self._created_s,
            "owned_by": "gpt-oss-agent",
            "capabilities": self.backend.model.capabilities.public(),
            **told,
        }

    def _route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        hosts = LOOPBACK if self._access.loopback_only else None

        async def guarded(request: Request) -> Response:
            began_s = time.monotonic()
            try:
                check_access(request, self._access.api_key, hosts)
                return await endpoint(request)
            except (Refusal, ModelError) as error:
                told = refusal(error)
                self._metrics.request(path, told.status, time.monotonic() - began_s)
                return _refused(told)

        return Route(path, guarded, methods=[method])


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    return Response(sse.document(document), status, media_type="application/json")


def _refused(told: Refusal) -> Response:
    response = _json(told.body(), told.status)
    response.raw_headers += retry_header(told)
    return response


async def _no_such_place(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method in OpenAI's error format. Starlette raises the error."""
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = "This server has no such path." if status == 404 else "This path does not support this method."
    return _refused(Refusal(status, said, code="not_found" if status == 404 else "method_not_allowed"))


async def _broken(request: Request, error: Exception) -> Response:
    """Answer after an unexpected error; Starlette raises it again for the log."""
    del request
    return _refused(refusal(error))
