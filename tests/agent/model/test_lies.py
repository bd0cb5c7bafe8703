"""Servers whose JSON is not what it should be: an answer of every wire with any one member replaced by something else.

Whatever comes, the wire gives messages or raises ModelError, and nothing that is no token of gpt-oss gets into the history.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.errors import ModelError
from agent.events import MessageAdded, Sampled
from agent.harmony.codec import Codec
from agent.harmony.tokens import VOCABULARY_SIZE
from agent.model.base import SamplingParams
from agent.model.client import Client, Clock, Endpoint
from agent.model.open import Vocabulary
from tests.agent.model.players import Player, players
from tests.servers import Reply, Server, serving

WIRES = ("ids", "llama.cpp", "sglang", "text", "ollama", "responses", "chat")
NO_WAIT = Clock(sleep=lambda _: None)
TOOL = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})
TASK = Conversation("Be brief.", (TOOL,), (Message(Role.USER, "Look."),))
ANSWER = (
    Message(Role.ASSISTANT, "Hm 🙂.", Channel.ANALYSIS),
    Message(Role.ASSISTANT, '{"path": "a"}', Channel.COMMENTARY, "functions.look", "json"),
)
ODD = (
    None,
    True,
    False,
    -1,
    1.5,
    10**12,
    VOCABULARY_SIZE,
    "",
    "x",
    "5",
    [],
    [None],
    [[]],
    ["x"],
    {},
    {"a": 1},
    "\ud800",
)


@pytest.fixture(scope="module")
def wires(codec: Codec, cache_dir: Path) -> dict[str, Player]:
    found = players(codec, Vocabulary(cache_dir))
    return {name.removeprefix("completions: "): player for name, player in found.items()}


class Liar:
    """A server whose reply can be set."""

    reply: Reply = ()

    def __call__(self, _: Any) -> Reply:
        return self.reply


@pytest.fixture(scope="module")
def liar() -> Iterator[tuple[Liar, Server]]:
    answers = Liar()
    with serving(answers) as server:
        yield answers, server


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member inside."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = by
    return changed


@pytest.mark.parametrize("wire", WIRES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_json_at_all_breaks_a_wire(wires, liar, wire: str, data: st.DataObject) -> None:
    answers, server = liar
    player = wires[wire]
    names, documents = [], []
    for said in player.say(ANSWER):
        *lead, line = said.decode().strip().split("\n")
        names.append("".join(f"{each}\n" for each in lead))
        documents.append(line.removeprefix("data: "))
    said = [json.loads(text) if text != "[DONE]" else text for text in documents]
    path = data.draw(st.sampled_from([place for place in places(said) if place[1:] or said[place[0]] != "[DONE]"]))
    told = replaced(said, path, data.draw(st.sampled_from(ODD)))
    lines = [text if text == "[DONE]" else json.dumps(text) for text in told]
    framed = "{}{}\n" if wire == "ollama" else "{}data: {}\n\n"
    answers.reply = [player.head(), *(framed.format(*both).encode() for both in zip(names, lines, strict=True))]
    client = Client(Endpoint(server.url, "m", silence_timeout_s=5.0, patience_s=1.0), NO_WAIT)
    try:
        events = list(player.build(client).sample(TASK, SamplingParams(max_tokens=4000)))
    except ModelError:
        return
    finally:
        client.close()
    assert isinstance(events[-1], Sampled)
    for message in [event.message for event in events if isinstance(event, MessageAdded)]:
        assert isinstance(message.text, str)
        assert isinstance(message.recipient, str | None)
        assert all(type(token) is int and 0 <= token < VOCABULARY_SIZE for token in message.tokens)
