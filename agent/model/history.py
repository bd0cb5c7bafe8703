"""The order in which the chat and responses wires replay a conversation: every call is followed by its result. Pure.

An answer may contain several calls, whose results follow in the same order. They are replayed pairwise, call and result,
because gpt-oss was trained on no other order, and its own chat template renders only the first call of a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.conversation import Conversation, Message, Role

NOT_RUN = "(this call was not run)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message with its index in the conversation. ``result`` is the result of a call; every call has one."""

    index: int
    message: Message
    result: str = ""


def entries(conversation: Conversation) -> Iterator[Entry]:
    """Yield the messages in the order in which they are replayed; results are in the entries of their calls.

    A call without a result gets one that says so. A result without a call is an entry of its own.
    """
    messages = conversation.messages
    at = 0
    while at < len(messages):
        said = _run(messages, at, Role.ASSISTANT)
        done = _run(messages, said, Role.TOOL)
        results = iter(range(said, done))
        for index in range(at, said):
            if not messages[index].is_call:
                yield Entry(index, messages[index])
                continue
            result = next(results, None)
            yield Entry(index, messages[index], NOT_RUN if result is None else messages[result].text)
        for index in results:
            yield Entry(index, messages[index])
        at = max(done, at)
        if at == said and at < len(messages):  # neither an answer nor a result: a user message
            yield Entry(at, messages[at])
            at += 1


def last_final(conversation: Conversation) -> int:
    """Return the index of the last final answer, -1 if there is none. Reasoning before it is not replayed, as in harmony."""
    return max((index for index, message in enumerate(conversation.messages) if message.is_final), default=-1)


def orphan(message: Message) -> str:
    """Return the text that replaces a result whose call is gone."""
    return f"Output of {message.name or 'a tool'}:\n{message.text}"


def _run(messages: tuple[Message, ...], start: int, role: Role) -> int:
    """Return where the run of messages of one role that begins at ``start`` ends."""
    end = start
    while end < len(messages) and messages[end].role is role:
        end += 1
    return end
