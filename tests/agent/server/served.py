"""A real server on loopback for the length of a block, and the answers it plays."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.conversation import Channel, Conversation, Message, Role
from agent.events import Delta, MessageAdded, Sampled
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, OPENING, RETURN
from agent.model.base import Model, ModelEvent, SamplingParams
from agent.model.capabilities import OF_MESSAGES, Capabilities
from agent.model.raw import RawModel
from agent.model.scripted import ScriptedModel
from agent.model.scripted_tokens import ScriptedTokens
from agent.server.app import Service
from agent.server.backend import Backend, as_backend
from agent.server.run import listen, server_of, url_of

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def thought(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.ANALYSIS)


def preamble(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.COMMENTARY)


def call(name: str, arguments: str) -> Message:
    return Message(Role.ASSISTANT, arguments, Channel.COMMENTARY, f"functions.{name}", "json")


def code(source: str) -> Message:
    """A call of the trained python."""
    return Message(Role.ASSISTANT, source, Channel.ANALYSIS, "python", "code")


def web(verb: str, **arguments: Any) -> Message:
    """A call of the trained browser."""
    return Message(Role.ASSISTANT, json.dumps(arguments), Channel.ANALYSIS, f"browser.{verb}", "code")


def final(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.FINAL)


TURNS = (
    (thought("I should look."), preamble("Looking."), call("get_weather", '{"city": "Oslo"}')),
    (thought("It is sunny."), final("Sunny in Oslo ☀.")),
)


def ids(codec: Codec, messages: Sequence[Message]) -> list[int]:
    """What the model samples behind ``<|start|>assistant`` for these messages."""
    found: list[int] = []
    for number, message in enumerate(messages):
        assert message.channel is not None
        found += OPENING if number else ()
        found += [CHANNEL, *codec.encode(message.channel)]
        if message.is_call and message.content_type == "json":
            found += [*codec.encode(f" to={message.recipient} "), CONSTRAIN, *codec.encode("json")]
        elif message.is_call:
            found += codec.encode(f" to={message.recipient} {message.content_type}")
        found += [MESSAGE, *codec.encode(message.text)]
        found += [CALL if message.is_call else RETURN if message.is_final else END]
    return found


def scripted(turns: Sequence[Sequence[Message]] = TURNS) -> Backend:
    return as_backend("gpt-oss-test", ScriptedModel(turns))


def raw(codec: Codec, play: Callable[[Sequence[int]], Sequence[int]], context_tokens: int | None = 131_072) -> Backend:
    """A backend over tokens: ``play`` continues a prompt."""
    return as_backend("gpt-oss-test", RawModel(codec, ScriptedTokens(play, context_tokens=context_tokens)))


def by_turn(codec: Codec, turns: Sequence[Sequence[Message]] = TURNS) -> Callable[[Sequence[int]], list[int]]:
    """Play the turn that the number of calls in the prompt says."""
    return lambda prompt: ids(codec, turns[min(list(prompt).count(CALL), len(turns) - 1)])


@dataclass
class Talker:
    """A model that goes on for as long as it is let, and notes when it was closed."""

    pieces: int = 1_000_000
    pause_s: float = 0.002
    times: int = 1  # how often each piece says its number
    name: str = "talker"
    context_tokens: int | None = 4096
    capabilities: Capabilities = OF_MESSAGES
    asked: list[tuple[Conversation, SamplingParams]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        self.asked.append((conversation, params))
        try:
            for number in range(self.pieces):
                yield Delta(Channel.FINAL, f"{number} " * self.times)
                time.sleep(self.pause_s)
            yield MessageAdded(final("".join(f"{number} " for number in range(self.pieces))))
            yield Sampled(7, self.pieces, "stop")
        finally:
            self.closed.set()

    def close(self) -> None:
        pass


@dataclass
class Player:
    """A model that plays lists of events, or raises what is in them; the last list is repeated."""

    answers: Sequence[Sequence[ModelEvent | Exception]]
    name: str = "player"
    context_tokens: int | None = None
    capabilities: Capabilities = OF_MESSAGES
    asked: list[tuple[Conversation, SamplingParams]] = field(default_factory=list)

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        self.asked.append((conversation, params))
        for event in self.answers[min(len(self.asked), len(self.answers)) - 1]:
            if isinstance(event, Exception):
                raise event
            yield event

    def close(self) -> None:
        pass


def said(*messages: Message, finish: str = "stop") -> list[ModelEvent]:
    """A whole answer as events."""
    deltas = [Delta(m.channel, m.text, m.recipient) for m in messages]
    return [*deltas, *map(MessageAdded, messages), Sampled(10, 5, finish)]


@contextmanager
def serving(backend: Backend | Model, **options: Any) -> Iterator[tuple[str, Service]]:
    """Serve in a thread: gives the base URL and the service."""
    service = Service(backend if isinstance(backend, Backend) else Backend("gpt-oss-test", backend), **options)
    listener = listen("127.0.0.1", 0)
    server = server_of(service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        yield url_of(listener), service
    finally:
        server.should_exit = True
        thread.join()
        service.close()
        listener.close()


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, "it did not happen in time"
        time.sleep(0.002)


def heard_until(stream: socket.socket, *marks: bytes, heard: bytes = b"") -> bytes:
    """Read on until one of the marks was heard; a stream that ends or is silent before that is a failure."""
    stream.settimeout(20)
    while not any(mark in heard for mark in marks):
        piece = stream.recv(65536)
        assert piece, heard[-500:]
        heard += piece
    return heard


def write_script(path: Path, turns: Sequence[Sequence[dict[str, Any]]]) -> Path:
    path.write_text(json.dumps({"turns": turns}))
    return path
