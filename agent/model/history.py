"""A conversation as the chat and responses wires replay it: every call with its result right after it. Pure.

An answer may hold several calls, whose results follow it in their order. They are replayed one after the other, call and
result, call and result: gpt-oss knows no other order, and its own chat template shows the model the first call of a
message only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.conversation import Conversation, Message, Role

NOT_RUN = "(this call was not run)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message at its place in the conversation. ``result`` is what a call is answered with, whatever became of it."""

    index: int
    message: Message
    result: str = ""


def entries(conversation: Conversation) -> Iterator[Entry]:
    """Give the messages in the order in which they are replayed; results stand in the entries of their calls.

    A call without a result gets one that says so. A result without a call stays an entry of its own.
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
        if at == said and at < len(messages):  # neither an answer nor a result: the person's word
            yield Entry(at, messages[at])
            at += 1


def last_final(conversation: Conversation) -> int:
    """Return the place of the last final answer: reasoning before it is not replayed, as in harmony. -1: there is none."""
    return max((index for index, message in enumerate(conversation.messages) if message.is_final), default=-1)


def orphan(message: Message) -> str:
    """Return what stands for a result whose call is gone."""
    return f"Output of {message.name or 'a tool'}:\n{message.text}"


def _run(messages: tuple[Message, ...], start: int, role: Role) -> int:
    """Return where the run of messages of one role that begins at ``start`` ends."""
    end = start
    while end < len(messages) and messages[end].role is role:
        end += 1
    return end
