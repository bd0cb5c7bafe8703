"""A model behind an API of messages: what chat completions and responses have in common.

It does what gpt-oss needs and a plain client does not do: reasoning is sent back between tool calls, sampling parameters are always
explicit, and the replayed history is always valid. What differs is an ``Api``: how to write a request and read its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ContextOverflow, EndpointRefused
from agent.events import Delta, MessageAdded, Repaired, Sampled
from agent.harmony.ladder import Take
from agent.harmony.spelt import apart, read_spelt
from agent.model.base import ModelEvent, SamplingParams, later_seed
from agent.model.capabilities import Capabilities
from agent.model.client import Client, OpenAIResponse, persist
from agent.model.faults import Garbled, Transient, refused_field
from agent.model.functions import Functions
from agent.model.sse import ServerEvent
from agent.model.stream import estimated_tokens

if TYPE_CHECKING:
    import httpx2
    import openai


@dataclass(frozen=True, slots=True)
class Made:
    """A complete answer. Counts are None if the server did not send them; then they are estimated from ``said``."""

    messages: tuple[Message, ...]
    repairs: tuple[Repaired, ...]
    finish: str
    said: object
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class Answer(Protocol):
    """One answer while it arrives."""

    def read(self, event: ServerEvent, *, wall_s: float) -> Iterator[Delta]:
        """Read one event and yield the text to display. Raises ModelError for an error event."""
        ...

    def close(self, functions: Functions) -> Made:
        """Return the complete answer. Raises Transient if it is incomplete."""
        ...


class Api(Protocol):
    """How one API writes requests and reads answers."""

    @property
    def name(self) -> str:
        """Its name in ``--wire``."""
        ...

    @property
    def limit(self) -> str:
        """The field that limits the tokens of an answer."""
        ...

    @property
    def optional(self) -> frozenset[str]:
        """The fields that a request can do without, wherever they are in it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the API."""
        ...

    def body(
        self,
        model: str,
        conversation: Conversation,
        functions: Functions,
        params: SamplingParams,
        without: frozenset[str],
    ) -> dict[str, Any]:
        """Return a request, without the fields named in ``without``."""
        ...

    def send(
        self, client: openai.OpenAI, body: Mapping[str, Any], timeout: httpx2.Timeout
    ) -> AbstractContextManager[OpenAIResponse]:
        """Send a request through the openai package; the history bypasses the package's transformation of arguments, which is slow."""
        ...

    def answer(self, body: Mapping[str, Any]) -> Answer:
        """Return the reader of the answer to ``body``."""
        ...


class ApiModel:
    """A model behind one of the APIs. Safe to use from several threads."""

    def __init__(self, client: Client, api: Api, context_tokens: int | None = None) -> None:
        self._client = client
        self._api = api
        self._context_tokens = context_tokens
        self._refused: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The model's name, its endpoint and the API."""
        return f"{self._client.endpoint.model} at {self._client.endpoint.url} ({self._api.name})"

    @property
    def context_tokens(self) -> int | None:
        """The window in tokens, if it is known."""
        return self._context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the API."""
        return self._api.capabilities

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Answer ``conversation``; see ``agent.model.base.Model``."""
        asking = _Asking(_apart(conversation), Functions(conversation.tools), params)
        endpoint, clock = self._client.endpoint, self._client.clock
        yield from persist(lambda: self._attempt(asking), endpoint, clock, params.cancel)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _attempt(self, asking: _Asking) -> Iterator[Delta | Repaired | MessageAdded | Sampled]:
        params = replace(asking.params, seed=later_seed(asking.params.seed, asking.garbled))
        clock, api = self._client.clock, self._api
        without = self._refused | ({api.limit} if asking.unlimited else set())
        model = self._client.endpoint.model
        body = api.body(model, asking.conversation, asking.functions, params, frozenset(without))
        answer = api.answer(body)
        began, first_token_s = clock.now(), 0.0
        try:
            call = api.send(self._client.openai(), body, self._client.timeout(params.timeout_s))
            for event in self._client.post_through_openai(call, params.timeout_s, params.cancel):
                for delta in answer.read(event, wall_s=clock.wall()):
                    first_token_s = first_token_s or clock.now() - began
                    yield delta
        except Garbled:
            asking.garbled += 1
            raise
        except EndpointRefused as error:
            named = refused_field(error, api.optional - without)
            if named is None:
                raise
            self._refused |= {named}
            raise Transient(
                f"the endpoint does not accept {named!r}; retrying without it", retry_after_s=0.0
            ) from error
        except ContextOverflow as error:
            if api.limit not in body:
                raise
            # Several servers count max_tokens as part of the prompt: it is a real overflow only if it happens without that limit.
            asking.unlimited = True
            raise Transient(f"{error}; retrying without {api.limit}", retry_after_s=0.0) from error
        made = answer.close(asking.functions)
        yield from made.repairs
        yield from map(MessageAdded, made.messages)
        duration_s = clock.now() - began
        yield Sampled(
            prompt_tokens=estimated_tokens(body) if made.prompt_tokens is None else made.prompt_tokens,
            completion_tokens=estimated_tokens(made.said) if made.completion_tokens is None else made.completion_tokens,
            finish=made.finish,
            cached_tokens=made.cached_tokens or 0,
            duration_s=duration_s,
            first_token_s=first_token_s or duration_s,
        )


@dataclass(slots=True)
class _Asking:
    """One request, over all attempts. ``unlimited`` is set when the answer's limit turned out to cause the overflow."""

    conversation: Conversation
    functions: Functions
    params: SamplingParams
    unlimited: bool = False
    garbled: int = 0  # answers that the server could not parse


def _apart(conversation: Conversation) -> Conversation:
    """Return the conversation without text that a server could mistake for control tokens."""
    messages = tuple(replace(m, text=apart(m.text)) if "<|" in m.text else m for m in conversation.messages)
    return replace(conversation, instructions=apart(conversation.instructions), messages=messages)


def called(functions: Functions, name: str, arguments: str) -> Message:
    """Return a function call as a message."""
    recipient = functions.recipient(name)
    return Message(Role.ASSISTANT, functions.body(recipient, arguments), Channel.COMMENTARY, recipient, "json")


def spelt(functions: Functions, text: str, *, whole: bool) -> Take | None:
    """Return the messages of an answer that the server's own parser gave up on; None where ``text`` is just text."""
    taken = read_spelt(text, functions.recipients(), whole=whole)
    if taken is None:
        return None
    messages = (m if m.recipient is None else called(functions, m.recipient, m.text) for m in taken.messages)
    return replace(taken, messages=tuple(messages))


def cut_call(name: str) -> Repaired:
    """Return the repair of a call that was cut off. It must not run: its beginning may mean something else (``rm -rf /tmp/x``)."""
    return Repaired("cut_call", f"a call to {name} was cut off by the token limit")
