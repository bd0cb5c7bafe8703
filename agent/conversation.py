"""Messages between a user, a model and its tools: plain frozen data, independent of any wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """Who wrote a message, in descending order of authority (harmony's five roles)."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Channel(StrEnum):
    """Where an assistant message goes: reasoning, calls and preambles, or the answer."""

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is declared to the model.

    ``name`` may be dotted (``container.exec``): the part before the dot is harmony's namespace. A name without a dot
    is a plain function. ``parameters`` is a JSON schema object; None declares a freeform tool whose body is raw text.
    ``python`` and ``browser`` without parameters are the built-in tools; an empty description means the trained text.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. An assistant message with a recipient is a *call*.

    ``name`` is the tool that answers, for role TOOL. ``content_type`` is the bare word (``json``, ``code``), without
    harmony's marker. ``tokens`` are the ids the message was sampled as, verbatim, including header and end token; empty
    if we wrote the message or it came over a wire without ids. Concatenated, the ``tokens`` of the messages of one
    completion are exactly the opening that the prompt ended in (``<|start|>assistant``, or a longer prefill) and that
    completion; so the next prompt can be made by concatenation.
    """

    role: Role
    text: str
    channel: Channel | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None
    tokens: tuple[int, ...] = ()

    @property
    def is_call(self) -> bool:
        """Whether this message asks for a tool to be run."""
        return self.role is Role.ASSISTANT and self.recipient is not None

    @property
    def is_final(self) -> bool:
        """Whether this message is the assistant's answer to the user."""
        return self.role is Role.ASSISTANT and self.channel is Channel.FINAL and self.recipient is None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything a model is shown: instructions, declared tools and messages. All analysis is kept.

    The codec decides how much of it is rendered. ``effort`` is harmony's reasoning effort (low, medium or high), which
    is part of the system message and therefore of the prefix.
    """

    instructions: str = ""
    tools: tuple[ToolSpec, ...] = ()
    messages: tuple[Message, ...] = field(default=())
    effort: str = "medium"

    def add(self, *messages: Message) -> Conversation:
        """Return this conversation with messages appended."""
        return replace(self, messages=(*self.messages, *messages))

    @property
    def last(self) -> Message | None:
        """The latest message, or None if there is none."""
        return self.messages[-1] if self.messages else None
