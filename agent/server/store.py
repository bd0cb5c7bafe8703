"""The server's memory: bounded, not persistent, thread-safe.

It stores *responses*, which a client may fetch or continue (``store``), and *turns*: the messages that led to a call, by the call's
id. Clients send a call back without its reasoning, or with different whitespace; with the stored turn the model sees
what it sampled, id for id, so that neither the reasoning nor the backend's prefix cache is lost between two calls.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from agent.conversation import Message, Role
from agent.tools.browser.page import Page

Value = TypeVar("Value")


class Bounded(Generic[Value]):
    """An LRU mapping with at most ``most`` entries and ``most_bytes`` in total."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Value, size_bytes: int) -> None:
        """Store a value, unless it alone exceeds the total limit."""
        with self._lock:
            self._drop(key)
            if size_bytes > self._most_bytes:
                return
            self._entries[key] = (value, size_bytes)
            self._bytes += size_bytes
            while len(self._entries) > self._most or self._bytes > self._most_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed

    def get(self, key: str) -> Value | None:
        """Return a value and mark it as recently used; None if it is not stored (any more)."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def drop(self, key: str) -> bool:
        """Remove a value; return whether it was there."""
        with self._lock:
            return self._drop(key)

    def _drop(self, key: str) -> bool:
        found = self._entries.pop(key, None)
        self._bytes -= found[1] if found else 0
        return found is not None


@dataclass(frozen=True, slots=True)
class Places:
    """The state of the built-in tools in a conversation: the latest web search's item, and the latest container."""

    web: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored response as JSON, and what is needed to continue it.

    That is its messages (without instructions), the names of its calls by their ids, and the tools' ``places``.
    """

    document: bytes
    messages: tuple[Message, ...]
    calls: Mapping[str, str] = field(default_factory=dict)
    places: Places = Places()


class Store:
    """The server's memory."""

    def __init__(self, most: int = 1024, most_bytes: int = 64 << 20) -> None:
        self.responses: Bounded[Kept] = Bounded(most, most_bytes)
        self.pages: Bounded[tuple[Page, ...]] = Bounded(
            most, most_bytes
        )  # a browser's pages, by its latest search's item
        self._turns: Bounded[tuple[Message, ...]] = Bounded(4 * most, most_bytes)

    def remember(self, call_id: str, turn: Sequence[Message]) -> None:
        """Store the messages of an answer that ended in the call ``call_id``, and the result if it was a built-in call."""
        self._turns.put(call_id, tuple(turn), messages_bytes(turn))

    def remember_pages(self, item_id: str, pages: Sequence[Page]) -> None:
        """Store the pages that a browser had open when the web search ``item_id`` ended."""
        once = {id(page): page for page in pages}.values()
        size_bytes = sum(100 * len(page.lines) + 2 * sum(map(len, page.lines)) for page in once)
        self.pages.put(item_id, tuple(pages), size_bytes)

    def turn(self, call_id: str) -> tuple[Message, ...] | None:
        """Return the messages that led to a call, if they are stored."""
        return self._turns.get(call_id)

    def recalled(self, messages: Sequence[Message], call_ids: Mapping[int, str]) -> tuple[Message, ...]:
        """Replace what a client sent of a turn by the stored turn.

        ``call_ids`` are the ids of the calls among ``messages``, by their index. A stored turn is used only if its call is
        equivalent to the client's. It replaces what the client sent of the same turn before the call, and for a built-in call
        also the result after it.
        """
        result: list[Message] = []
        begins = 0  # where in the result the assistant's latest turn begins
        answered = False
        for index, message in enumerate(messages):
            if answered and message.role is Role.TOOL:
                answered = False
                continue
            turn = self._turns.get(call_ids[index]) if index in call_ids else None
            if turn is not None and _is_same(_call(turn), message):
                del result[begins:]
                result += turn
                answered = turn[-1].role is Role.TOOL
            else:
                result.append(message)
            if message.role is not Role.ASSISTANT or message.is_call:
                begins = len(result)
        return tuple(result)


def _call(turn: Sequence[Message]) -> Message:
    return next(message for message in reversed(turn) if message.is_call)


def _is_same(remembered: Message, sent: Message) -> bool:
    """Whether two calls are equivalent: clients parse the arguments and may send them with different whitespace."""
    if remembered.recipient != sent.recipient:
        return False
    if remembered.text == sent.text:
        return True
    try:
        return bool(json.loads(remembered.text) == json.loads(sent.text))
    except (ValueError, RecursionError):
        return False


def messages_bytes(messages: Sequence[Message]) -> int:
    """Return an estimate of the memory that messages take: characters, ids (8 bytes each in a tuple, and shared) and objects."""
    return sum(200 + 2 * len(message.text) + 8 * len(message.tokens) for message in messages)
