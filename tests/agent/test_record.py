"""Every event survives the log exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import events
from agent.conversation import Conversation, Message, Role, ToolSpec
from agent.errors import LogError
from agent.record import EVENTS, Entry, dump, load

TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["\u2028\u0085\r\n\x00", "\ud800 lone surrogate", '"}\n{"seq":0', "<|call|>", "\U0001f600"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
st.register_type_strategy(str, TEXT)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def whole(kind: type) -> st.SearchStrategy[Any]:
    """Instances with every field filled, mappings of Any with JSON data in them."""
    made = {}
    for each in fields(kind):
        hint = get_type_hints(kind)[each.name]
        if hint == Mapping[str, Any] or hint == Mapping[str, Any] | None:
            strategy = st.dictionaries(TEXT, JSON, max_size=3)
            made[each.name] = strategy if hint == Mapping[str, Any] else st.none() | strategy
        elif hint is Conversation or hint is Message:
            made[each.name] = whole(hint)
        elif hint == tuple[ToolSpec, ...]:
            made[each.name] = st.lists(whole(ToolSpec), max_size=2).map(tuple)
        else:
            made[each.name] = st.from_type(hint)
    return st.builds(kind, **made)


EVENT = st.sampled_from(sorted(EVENTS)).flatmap(lambda name: whole(EVENTS[name]))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENT, st.integers(0, 10**6), st.floats(0, 1e10))
def test_every_event_round_trips_exactly_on_one_line(event: events.Durable, seq: int, at: float) -> None:
    line = dump(Entry(seq, at, event))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert load(line) == Entry(seq, at, event)
    assert type(load(line).event) is type(event)


def test_the_table_of_events_is_the_union() -> None:
    assert set(EVENTS.values()) == set(get_args(events.Durable))
    assert events.Delta not in EVENTS.values()


def test_a_record_is_flat_and_leaves_defaults_out() -> None:
    line = dump(Entry(3, 1.5, events.MessageAdded(Message(Role.USER, "hi"))))
    assert json.loads(line) == {"seq": 3, "at": 1.5, "event": "MessageAdded", "message": {"role": "user", "text": "hi"}}


def test_no_event_has_a_field_that_the_record_owns() -> None:
    taken = {name: {each.name for each in fields(kind)} & {"seq", "at", "event"} for name, kind in EVENTS.items()}
    assert not any(taken.values())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not a JSON record"),
        (b"[]", "not an event record"),
        (b'{"seq":0,"at":0}', "not an event record"),
        (
            b'{"seq":0,"at":0,"event":"Teleported"}',
            "unknown event 'Teleported': the log was written by a newer version",
        ),
        (b'{"seq":0,"at":0,"event":"ToolStarted","call":1,"tool":"x","new":1}', "has no field new"),
        (b'{"seq":0,"at":0,"event":"ToolStarted","call":"1","tool":"x"}', "expected int"),
        (b'{"seq":0,"at":0,"event":"ToolStarted","call":1}', "missing 1 required"),
        (b'{"seq":0,"at":0,"event":"MessageAdded","message":{"role":"king","text":""}}', "'king' is not a valid Role"),
        (b'{"seq":0,"at":0,"event":"ToolStarted","call":true,"tool":"x"}', "expected int"),
        (b'{"seq":"x","at":0,"event":"Resumed"}', "does not fit"),
        (b'{"seq":0,"at":0,"event":["Resumed"]}', "unknown event"),
    ],
)
def test_what_cannot_be_read_is_named(line: bytes, says: str) -> None:
    with pytest.raises(LogError, match=says.replace("(", r"\(")):
        load(line)
