"""What the APIs have in common: a request to the model, whichever API it came by. Pure."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent.conversation import Conversation, Message, Role, ToolSpec
from agent.model.base import SamplingParams
from agent.model.cancel import Cancel
from agent.model.functions import safe_name
from agent.server.fields import Fields
from agent.server.schema import MOST_LEVELS, is_deep, wrong_with

# OpenAI's reasoning efforts, mapped to harmony's.
EFFORTS: Mapping[str, str] = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high",
}  # fmt: skip
# Sampling settings that are not supported, with the values that have no effect and are therefore accepted.
UNHEEDED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "top_k": (-1, 0),
    "min_p": (0, 0.0),
}
FUNCTIONS = "functions."
MOST_STOPS = 16
MUST_CALL = "Answer with a call to one of the functions, not with text."


@dataclass(frozen=True, slots=True)
class Choice:
    """The tool choice. ``mode`` is auto, none or required; ``name`` is the one function that is required.

    ``built_in``: the name is that of a built-in tool, "" for any of them.
    """

    mode: str = "auto"
    name: str | None = None
    built_in: bool = False

    def is_met_by(self, recipient: str | None) -> bool:
        """Whether a call of ``recipient`` is the required one."""
        if self.name is None:
            return True
        if self.built_in:
            return (recipient or "").removeprefix(FUNCTIONS).startswith(self.name)
        return recipient == FUNCTIONS + self.name


@dataclass(frozen=True, slots=True)
class Format:
    """The required format of the answer's text: JSON that is valid against ``schema``, if there is one."""

    name: str = "json"
    description: str = ""
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to the model. ``stop`` sequences end the answer's text and are not part of it.

    ``parallel``: one answer may contain several calls.
    """

    conversation: Conversation
    params: SamplingParams = field(default_factory=SamplingParams)
    choice: Choice = field(default_factory=Choice)
    format: Format | None = None
    stop: tuple[str, ...] = ()
    parallel: bool = True

    def ended_by(self, cancel: Cancel) -> Ask:
        """Return the same request with a Cancel."""
        return replace(self, params=replace(self.params, cancel=cancel))

    def shown(self) -> Conversation:
        """Return the conversation as the model sees it: with the format and the required call in its instructions."""
        conversation, texts = self.conversation, [self.conversation.instructions]
        if self.choice.mode == "none":
            conversation = replace(conversation, tools=())
        elif self.choice.name:
            kind = "tool" if self.choice.built_in else "function"
            texts.append(f"Answer with a call to the {kind} {self.choice.name}, not with text.")
        elif self.choice.mode == "required":
            texts.append(MUST_CALL)
        if self.format is not None:
            texts.append(format_text(self.format))
        return replace(conversation, instructions="\n\n".join(filter(None, texts)))


def format_text(wanted: Format) -> str:
    """Return harmony's section of the developer message for response formats."""
    if wanted.schema is None:
        return "# Response Formats\n\n## json\n\n// The answer is one JSON object, and nothing around it."
    note = f"// {' '.join(wanted.description.split())}\n" if wanted.description else ""
    schema = json.dumps(wanted.schema, ensure_ascii=False, separators=(",", ":"))
    return f"# Response Formats\n\n## {safe_name(wanted.name)}\n\n{note}{schema}"


def sampling(body: Fields, limit: str) -> SamplingParams:
    """Read the sampling settings that all APIs share; ``limit`` is the API's field for the maximum number of tokens."""
    return SamplingParams(
        temperature=body.number("temperature", 1.0, 0.0, 2.0),
        top_p=body.number("top_p", 1.0, 0.0, 1.0),
        max_tokens=body.integer(limit, 1),
        seed=body.integer("seed", -(2**63)),
    )


def effort(body: Fields | None, name: str, default: str) -> str:
    """Read the reasoning effort; all of OpenAI's values are accepted."""
    return default if body is None or name not in body else EFFORTS[body.choice(name, EFFORTS)]


def stops(body: Fields) -> tuple[str, ...]:
    """Read the stop sequences: one string, or an array of them."""
    value = body.raw("stop")
    found = [value] if isinstance(value, str) else body.list("stop")
    if len(found) > MOST_STOPS or not all(isinstance(text, str) and text for text in found):
        raise body.wrong("stop", f"must be a string or an array of up to {MOST_STOPS} strings, none of them empty")
    return tuple(found)


def function(spec: Fields) -> ToolSpec:
    """Read a function's declaration."""
    name = spec.text("name")
    if not name or name != safe_name(name):
        raise spec.wrong("name", "must be 1 to 64 letters, digits, underscores or dashes")
    inner = spec.object("parameters")
    parameters = {"type": "object", "properties": {}} if inner is None else spec.raw("parameters")
    if is_deep(parameters):
        raise spec.wrong("parameters", f"is nested beyond {MOST_LEVELS} levels")
    return ToolSpec(name, spec.text("description", ""), parameters)


def check_choice(
    choice: Choice, tools: Sequence[ToolSpec], body: Fields, built_in: frozenset[str] = frozenset()
) -> Choice:
    """Return the choice if it can be met, by a function or by a tool of the server's own (``built_in`` are their names)."""
    if choice.built_in and choice.name not in built_in:
        raise body.wrong(
            "tool_choice", "names a built-in tool that is not in tools, or that is not enabled on this server"
        )
    if choice.mode == "required" and not tools and not built_in:
        raise body.wrong("tool_choice", "requires a call, but no function is declared")
    if choice.mode == "required" and choice.name is None and not tools:
        return Choice("required", next(iter(built_in)) if len(built_in) == 1 else "", built_in=True)
    if choice.name is not None and not choice.built_in and choice.name not in {tool.name for tool in tools}:
        raise body.wrong("tool_choice", "names a function that is not declared")
    return choice


def json_format(spec: Fields) -> Format | None:
    """Read the common part of ``text.format`` and ``response_format``; ``spec`` has the fields of the schema."""
    match spec.choice("type", ("text", "json_object", "json_schema"), "text"):
        case "json_object":
            return Format()
        case "json_schema":
            schema = spec.raw("schema")
            if not isinstance(schema, Mapping):
                raise spec.wrong("schema", "must be a JSON schema object")
            if wrong := wrong_with(schema):
                raise spec.wrong("schema", wrong)
            return Format(spec.text("name", "answer"), spec.text("description", ""), schema)
        case _:
            return None


def by_id(results: Iterable[tuple[str, str]]) -> dict[str, deque[str]]:
    """Return the results of calls by call id, in order. An id may have several results: some servers reuse ids in later turns."""
    found: dict[str, deque[str]] = {}
    for call_id, text in results:
        found.setdefault(call_id, deque()).append(text)
    return found


def instructed(instructions: str, messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """Move the system and developer messages at the beginning into the instructions, where the model expects them."""
    first = next((i for i, m in enumerate(messages) if m.role not in {Role.SYSTEM, Role.DEVELOPER}), len(messages))
    texts = [instructions, *(message.text for message in messages[:first])]
    return "\n\n".join(filter(None, texts)), tuple(messages[first:])
