"""What is said between a person, a model and its tools: plain frozen data, free of any wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """Who wrote a message, in falling authority (harmony's five roles)."""

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

    ``name`` is the tool that speaks, for role TOOL. ``content_type`` is the bare word (``json``, ``code``), without
    harmony's marker. ``tokens`` are the ids the message was sampled as, verbatim, header and end token included; empty
    for what the harness wrote or a wire without ids delivered. The ``tokens`` of the consecutive messages of one
    completion concatenate exactly to the opening that the prompt ended in (``<|start|>assistant``, or a longer prefill)
    and that completion, so that concatenating them is all it takes to continue.
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
        """Whether this message is the assistant's answer to the person."""
        return self.role is Role.ASSISTANT and self.channel is Channel.FINAL and self.recipient is None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything a model is shown: instructions, declared tools and messages. All analysis is kept.

    What of it is rendered is the codec's rule. ``effort`` is harmony's reasoning effort (low, medium or high), which
    belongs to the system message and therefore to the prefix.
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
        """The newest message, or None when nothing was said."""
        return self.messages[-1] if self.messages else None
