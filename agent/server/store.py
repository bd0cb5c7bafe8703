"""What the server remembers, and for how long: bounded, in memory, gone with the process. Any thread may use it.

Two things are kept. *Responses* that a client may ask for again or continue (``store``). And *turns*: the messages that led to a
call, under the call's id. Clients send a call back without its reasoning, or with other spaces; with the turn the model sees
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
    """A mapping that forgets what was used least recently: at most ``most`` entries of together at most ``most_bytes``."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: Value, size_bytes: int) -> None:
        """Keep a value; one that is larger than everything together may be is not kept."""
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
        """Return a value, which is then the newest; None where it was never kept or is forgotten."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def drop(self, key: str) -> bool:
        """Forget a value; say whether it was there."""
        with self._lock:
            return self._drop(key)

    def _drop(self, key: str) -> bool:
        found = self._entries.pop(key, None)
        self._bytes -= found[1] if found else 0
        return found is not None


@dataclass(frozen=True, slots=True)
class Places:
    """Where the server's own tools left off in a conversation: the newest web search's item, and the newest container."""

    web: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored response as JSON, whose size is known, and what its continuation starts from.

    These are its messages (without its instructions), the names of its calls by their ids, and places.
    """

    document: bytes
    messages: tuple[Message, ...]
    calls: Mapping[str, str] = field(default_factory=dict)
    places: Places = Places()


class Store:
    """The server's memory."""

    def __init__(self, most: int = 1024, most_bytes: int = 64 << 20) -> None:
        self.responses: Bounded[Kept] = Bounded(most, most_bytes)
        self.pages: Bounded[tuple[Page, ...]] = Bounded(most, most_bytes)  # of a browser, by the newest search's item
        self._turns: Bounded[tuple[Message, ...]] = Bounded(4 * most, most_bytes)

    def remember(self, call_id: str, turn: Sequence[Message]) -> None:
        """Keep the messages of an answer that ended in the call ``call_id``, and its result if it was a call of ours."""
        self._turns.put(call_id, tuple(turn), messages_bytes(turn))

    def remember_pages(self, item_id: str, pages: Sequence[Page]) -> None:
        """Keep what a browser had opened when the web search ``item_id`` ended."""
        once = {id(page): page for page in pages}.values()
        size_bytes = sum(100 * len(page.lines) + 2 * sum(map(len, page.lines)) for page in once)
        self.pages.put(item_id, tuple(pages), size_bytes)

    def turn(self, call_id: str) -> tuple[Message, ...] | None:
        """Return the messages by which a call came about, if they are remembered."""
        return self._turns.get(call_id)

    def recalled(self, messages: Sequence[Message], call_ids: Mapping[int, str]) -> tuple[Message, ...]:
        """Put the turns that are remembered in the place of what a client sent of them.

        ``call_ids`` are the ids of the calls among ``messages``, by their place. A turn is only believed if its call
        means what the client's means. What the client sent of the same turn before the call is replaced with it; so is
        the answer behind it, where the call was one of ours.
        """
        result: list[Message] = []
        begins = 0  # where in the result the assistant's newest turn begins
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
    """Whether a call came back as the call that it was: clients parse the arguments and write them with other spaces."""
    if remembered.recipient != sent.recipient:
        return False
    if remembered.text == sent.text:
        return True
    try:
        return bool(json.loads(remembered.text) == json.loads(sent.text))
    except (ValueError, RecursionError):
        return False


def messages_bytes(messages: Sequence[Message]) -> int:
    """Return about how much memory messages take: characters, ids (8 bytes each in a tuple, and shared) and the objects."""
    return sum(200 + 2 * len(message.text) + 8 * len(message.tokens) for message in messages)
