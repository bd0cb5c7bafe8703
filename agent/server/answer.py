"""One answer in the form the APIs need: text as it arrives, calls when they are complete, required formats enforced. Sync.

A stream cannot take back what it has sent, so this module decides what is sent when:

- reasoning and text are sent as they are sampled;
- a call is sent when it is complete, so that a damaged one can be repaired or sampled again first;
- text that must be JSON, or that is not allowed because a call is required, is held back until it is known to be valid;
- if the backend starts over (Retried) after reasoning was sent, the request continues; after text was sent, it fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agent.compact import estimate
from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ModelError
from agent.events import Delta, MessageAdded, Repaired, Retried, Sampled
from agent.model.base import Model, SamplingParams, later_seed
from agent.model.client import closing_iterator
from agent.model.functions import Functions
from agent.server.ask import Ask
from agent.server.backend import Backend
from agent.server.faults import InvalidAnswer
from agent.server.schema import mismatch
from agent.server.stops import StopFilter

TRIES = 3  # an answer in the wrong form is sampled again


@dataclass(frozen=True, slots=True)
class Said:
    """More text: reasoning, or text of the answer."""

    kind: Literal["reasoning", "text"]
    text: str


@dataclass(frozen=True, slots=True)
class Void:
    """The backend starts over: the reasoning sent so far is not part of the answer."""


@dataclass(frozen=True, slots=True)
class Cited:
    """A citation of characters ``start`` to ``end`` (exclusive) of the current text, counted from where this text began."""

    start: int
    end: int
    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Called:
    """A complete call for the client to run. ``arguments`` is a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end. ``messages`` are to be added to the conversation; ``finish`` is stop, call or length."""

    messages: tuple[Message, ...]
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Working:
    """A call of a built-in tool begins. ``detail`` are the specific fields of its item: an action, or code and container."""

    id: str
    kind: Literal["web", "code"]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Worked:
    """The call has ended. ``output`` is the text for the model; ``turn`` are the messages that led to the call, and its result."""

    id: str
    kind: Literal["web", "code"]
    detail: Mapping[str, Any]
    ok: bool
    output: str
    sources: tuple[str, ...]
    turn: tuple[Message, ...]


Part = Said | Void | Cited | Called | Working | Worked | Ended


@dataclass(slots=True)
class _Attempt:
    """One sample while it arrives: what was sent of each kind, and what is held back."""

    stop: StopFilter
    hold: bool
    out: dict[str, list[str]] = field(default_factory=lambda: {"reasoning": [], "text": []})
    messages: list[Message] = field(default_factory=list)
    sampled: Sampled = field(default_factory=lambda: Sampled(0, 0, "stop"))
    sampled_chars: int = 0

    def hear(self, delta: Delta) -> Iterator[Said]:
        """Yield the part of a delta that may be sent."""
        self.sampled_chars += len(delta.text)
        if delta.recipient is not None or not delta.text:
            return
        if delta.channel is Channel.ANALYSIS:
            self.out["reasoning"].append(delta.text)
            yield Said("reasoning", delta.text)
        elif not self.hold and (text := self.stop.feed(delta.text)):
            self.out["text"].append(text)
            yield Said("text", text)

    def one_call(self) -> None:
        """Drop everything after the first call."""
        first = next((at for at, message in enumerate(self.messages) if message.is_call), len(self.messages))
        del self.messages[first + 1 :]

    def rest(self) -> Iterator[Said]:
        """Yield the text of the messages that no delta had."""
        for kind in ("reasoning", "text"):
            whole = "".join(m.text for m in self.messages if m.recipient is None and _kind(m) == kind)
            if kind == "text":
                whole = self.stop.cut(whole)
            said = "".join(self.out[kind])
            if whole.startswith(said) and len(whole) > len(said):
                more = whole[len(said) :]
                self.out[kind].append(more)
                yield Said("reasoning" if kind == "reasoning" else "text", more)


def answer(backend: Backend, ask: Ask) -> Iterator[Part]:
    """Sample until the answer has the required form. Closing the iterator stops the work.

    Raises ModelError; InvalidAnswer if no attempt of TRIES had the required form.
    """
    conversation = ask.shown()
    functions = Functions(conversation.tools)
    params = ask.params
    spent = [0, 0]
    for tried in range(TRIES):
        attempt = _Attempt(StopFilter(ask.stop), hold=ask.format is not None or ask.choice.mode == "required")
        yield from _sample(backend.model, replace(ask, conversation=conversation, params=params), attempt)
        spent[0] = max(spent[0], attempt.sampled.prompt_tokens)
        spent[1] += attempt.sampled.completion_tokens
        if not ask.parallel:
            attempt.one_call()
        wrong = _wrong(ask, attempt)
        if not wrong:
            yield from attempt.rest()
            yield from _calls(attempt.messages, functions)
            yield _ended(attempt, spent)
            return
        yield Void()
        params = _again(backend, ask, params, tried)
    raise InvalidAnswer(f"The model was asked {TRIES} times, and {wrong}.")


def _sample(model: Model, ask: Ask, attempt: _Attempt) -> Iterator[Said | Void]:
    with closing_iterator(model.sample(ask.conversation, ask.params)) as events:
        for event in events:
            match event:
                case Delta():
                    yield from attempt.hear(event)
                    if attempt.stop.met:
                        _stopped_by_text(attempt, ask.conversation)
                        return
                case Retried(reason):
                    if attempt.out["text"]:
                        raise ModelError(f"the answer broke off after part of it was sent: {reason}")
                    attempt.out["reasoning"].clear()
                    attempt.stop.restart()
                    yield Void()
                case MessageAdded(message):
                    attempt.messages.append(message)
                case Sampled():
                    attempt.sampled = event
                case Repaired():
                    pass


def _stopped_by_text(attempt: _Attempt, conversation: Conversation) -> None:
    """Handle a stop sequence: the text so far is the answer. The backend's counts will not come, so they are estimated."""
    said = [(Channel.ANALYSIS, attempt.out["reasoning"]), (Channel.FINAL, attempt.out["text"])]
    attempt.messages = [Message(Role.ASSISTANT, "".join(texts), channel) for channel, texts in said if texts]
    attempt.sampled = Sampled(estimate(conversation), max(1, attempt.sampled_chars // 4), "stop")


def _wrong(ask: Ask, attempt: _Attempt) -> str:
    """Return how an answer violates the required form, "" if it does not. An answer that the limit cut off is accepted as it is."""
    calls = [message for message in attempt.messages if message.is_call]
    if attempt.sampled.finish == "length":
        return ""
    if ask.choice.mode == "required":
        if not calls:
            return "it did not call a function"
        if not all(ask.choice.is_met_by(call.recipient) for call in calls):
            return "it did not call the required function"
    if ask.format is not None and not calls:
        text = "".join(m.text for m in attempt.messages if m.is_final)
        return mismatch(text, ask.format.schema)
    return ""


def _again(backend: Backend, ask: Ask, params: SamplingParams, tried: int) -> SamplingParams:
    """Return the request of the next attempt: another seed and, if the backend takes ids, a prefill that forces the required call."""
    opening = params.opening
    if backend.codec is not None and ask.choice.mode == "required":
        codec, name = backend.codec, ask.choice.name
        opening = codec.built_in_opening(name or "") if ask.choice.built_in else codec.call_opening(name)
    return replace(params, opening=opening, seed=later_seed(params.seed, 1_000_003 * (tried + 1)))


def _calls(messages: list[Message], functions: Functions) -> Iterator[Called]:
    for message in messages:
        if message.is_call and message.recipient is not None:
            arguments = functions.arguments(message.recipient, message.text)
            yield Called(functions.name(message.recipient), arguments)


def _ended(attempt: _Attempt, spent: list[int]) -> Ended:
    messages = tuple(attempt.messages)
    called = any(message.is_call for message in messages)
    sampled = attempt.sampled
    return Ended(
        messages,
        "call" if called else "length" if sampled.finish == "length" else "stop",
        spent[0],
        spent[1],
        sampled.cached_tokens,
        min(spent[1], _reasoning_tokens(messages, sampled.completion_tokens)),
    )


def _reasoning_tokens(messages: tuple[Message, ...], completion_tokens: int) -> int:
    """Count reasoning tokens by their ids; without ids, estimate them by their share of the characters."""
    thoughts = [m for m in messages if m.channel is Channel.ANALYSIS and m.recipient is None]
    if all(message.tokens for message in thoughts):
        return sum(len(message.tokens) for message in thoughts)
    total = sum(len(message.text) for message in messages)
    return completion_tokens * sum(len(message.text) for message in thoughts) // max(total, 1)


def _kind(message: Message) -> str:
    return "reasoning" if message.channel is Channel.ANALYSIS else "text"
