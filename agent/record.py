"""Converts events to JSON and back without loss: one pair of functions, driven by the event types.

A record is ``{"seq": 7, "at": 1764000000.25, "event": "ToolStarted", <the event's own fields>}``. ``at`` is seconds since
the epoch. Fields with their default value are left out, so records stay short and a new field with a default does not
make old logs unreadable.
"""

from __future__ import annotations

import json
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from agent import events
from agent.errors import LogError
from agent.events import Durable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
EVENTS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(events.Durable)}
OWN_FIELDS = ("seq", "at", "event")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a log: the event, its number (from 0) and when it was written (seconds since the epoch)."""

    seq: int
    at: float
    event: Durable


def dump(entry: Entry) -> bytes:
    """Return the entry as one line of ASCII JSON, newline byte included."""
    head = {"seq": entry.seq, "at": entry.at, "event": type(entry.event).__name__}
    return json.dumps(head | _plain_fields(entry.event), separators=(",", ":")).encode("ascii") + b"\n"


def load(line: bytes) -> Entry:
    """Read one line. Raises LogError, which names what could not be understood."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise LogError(f"not a JSON record: {line[:80]!r}") from error
    if not isinstance(data, dict) or not all(name in data for name in OWN_FIELDS):
        raise LogError(f"not an event record (it needs {', '.join(OWN_FIELDS)}): {line[:80]!r}")
    kind = EVENTS.get(str(data["event"]))
    if kind is None:
        raise LogError(
            f"unknown event {data['event']!r}: the log was written by a newer version; read it with that version or a later one"
        )
    body = {name: value for name, value in data.items() if name not in OWN_FIELDS}
    try:
        return Entry(int(data["seq"]), float(data["at"]), cast("Durable", _typed(kind, body)))
    except (TypeError, ValueError, KeyError) as error:
        raise LogError(f"the {data['event']} record does not fit this version: {error}") from error


def _plain_fields(value: DataclassInstance) -> dict[str, object]:
    """Return a dataclass's fields as JSON data, without those that have their default value."""
    found = {}
    for each in fields(value):
        content = getattr(value, each.name)
        if content != _default(each):
            found[each.name] = _plain(content)
    return found


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _default(each: Field[object]) -> object:
    return each.default if each.default_factory is MISSING else each.default_factory()


@cache
def _hints(kind: Hashable) -> dict[str, object]:
    return get_type_hints(kind)


def _typed(kind: object, value: object) -> object:
    """Turn JSON data into ``kind``: a dataclass, enum, tuple, mapping, optional or plain type. Raises TypeError, ValueError."""
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (each for each in get_args(kind) if each is not type(None))
        return _typed(inner, value)
    if origin is tuple:
        return tuple(_typed(get_args(kind)[0], item) for item in _expect(list, value))
    if origin is not None:  # the only other generic in the events is Mapping[str, X]
        return {name: _typed(get_args(kind)[1], item) for name, item in _expect(dict, value).items()}
    if not isinstance(kind, type):
        raise TypeError(f"no rule to read {kind}")
    if is_dataclass(kind):
        hints = _hints(kind)
        data = _expect(dict, value)
        if unknown := sorted(data.keys() - hints.keys()):
            raise TypeError(f"{kind.__name__} has no field {', '.join(unknown)}")
        return kind(**{name: _typed(hints[name], item) for name, item in data.items()})
    if issubclass(kind, StrEnum):
        return kind(_expect(str, value))
    if kind is float and type(value) is int:
        return float(value)
    return _expect(kind, value)


def _expect(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r:.60}")
    return value
