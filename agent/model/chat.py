"""The chat completions API, for servers that offer neither raw completions nor responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.conversation import Channel, Conversation, Message, Role
from agent.events import Delta, Repaired
from agent.model.api import ApiModel, Made, called, cut_call, spelt
from agent.model.base import SamplingParams
from agent.model.capabilities import OF_MESSAGES
from agent.model.client import Client, OpenAIResponse
from agent.model.faults import cut, error_event
from agent.model.functions import Functions, call_id, whole
from agent.model.history import entries, last_final, orphan
from agent.model.sse import ServerEvent
from agent.model.stream import count, decoded, mapping, sequence, string

if TYPE_CHECKING:
    import httpx2
    import openai

REASONING_FIELDS = ("reasoning", "reasoning_content")
_OPTIONAL = frozenset(
    (
        "stream_options",
        "parallel_tool_calls",
        "reasoning_effort",
        "chat_template_kwargs",
        "top_k",
        "min_p",
        *REASONING_FIELDS,
    )
)


def chat_model(client: Client, context_tokens: int | None = None) -> ApiModel:
    """Return the model behind ``/chat/completions``."""
    return ApiModel(client, ChatApi(), context_tokens)


class ChatApi:
    """``/chat/completions``. Reasoning is sent back in the field that the server itself uses."""

    name = "chat"
    limit = "max_tokens"
    optional = _OPTIONAL
    capabilities = OF_MESSAGES

    def __init__(self) -> None:
        self._fields: tuple[str, ...] = REASONING_FIELDS  # until the server shows which one is its own

    def body(
        self,
        model: str,
        conversation: Conversation,
        functions: Functions,
        params: SamplingParams,
        without: frozenset[str],
    ) -> dict[str, Any]:
        """Return a request; see ``agent.model.api.Api``."""
        body: dict[str, Any] = {
            "model": model,
            "messages": chat_messages(conversation, functions, [name for name in self._fields if name not in without]),
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "reasoning_effort": conversation.effort,
            "chat_template_kwargs": {"reasoning_effort": conversation.effort},
        }
        if conversation.tools:
            body["tools"] = [{"type": "function", "function": f} for f in functions.declarations()]
            body["parallel_tool_calls"] = False
        if params.max_tokens is not None:
            body["max_tokens"] = params.max_tokens
        if params.seed is not None:
            body["seed"] = params.seed
        return {name: value for name, value in body.items() if name not in without}

    def send(
        self, client: openai.OpenAI, body: Mapping[str, Any], timeout: httpx2.Timeout
    ) -> AbstractContextManager[OpenAIResponse]:
        """Send a request. The history, and fields for which the package has no argument, are passed as ``extra_body``.

        The package would transform every argument by its type, which cost 0.5 ms for each earlier turn, in every turn.
        """
        extra = {name: body[name] for name in ("messages", "tools", *_FOREIGN) if name in body}
        known = {name: value for name, value in body.items() if name not in extra}
        create = client.chat.completions.with_streaming_response.create
        return create(**known, messages=[], extra_body=extra, timeout=timeout)

    def answer(self, body: Mapping[str, Any]) -> _Answer:
        """Return the reader of an answer."""
        del body
        return _Answer(self._heard)

    def _heard(self, fields: tuple[str, ...]) -> None:
        self._fields = fields


_FOREIGN = ("top_k", "min_p", "chat_template_kwargs")  # unknown to the openai package, but accepted by vLLM and SGLang


@dataclass(slots=True)
class _Call:
    """A tool call while its pieces arrive. ``key`` is the index that the server gave it."""

    key: int | None
    id: str | None
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    @property
    def body(self) -> str:
        return "".join(self.arguments) or "{}"


@dataclass(slots=True)
class _Answer:
    """One answer while it arrives. ``heard`` is called with the field names in which the server sends reasoning."""

    heard: Callable[[tuple[str, ...]], None]
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    finish: str | None = None
    done: bool = False

    def read(self, event: ServerEvent, *, wall_s: float) -> Iterator[Delta]:
        """Read one event of the stream and yield the text to display."""
        if event.data.strip() == "[DONE]":
            self.done = True
            return
        chunk = decoded(event)
        if chunk.get("error"):
            raise error_event(chunk["error"], wall_s=wall_s)
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        choice = mapping(next(iter(sequence(chunk.get("choices"))), None))
        delta = mapping(choice.get("delta")) or mapping(choice.get("message"))
        found = tuple(name for name in REASONING_FIELDS if isinstance(delta.get(name), str) and delta[name])
        if found:
            self.heard(found)
            self.reasoning.append(delta[found[0]])
            yield Delta(Channel.ANALYSIS, delta[found[0]])
        if text := _text(delta.get("content")):
            self.content.append(text)
            yield Delta(Channel.FINAL, text)
        for call in sequence(delta.get("tool_calls")):
            if isinstance(call, dict) and (piece := self.add(call)):
                yield Delta(Channel.COMMENTARY, piece, self.calls[-1].name)
        self.finish = string(choice.get("finish_reason")) or self.finish

    def add(self, delta: Mapping[str, Any]) -> str:
        """Add a piece of a tool call and return its new text.

        Pieces with the same index belong together. Servers that send whole calls may give all of them the same index or none:
        a new id that comes with a name starts a new call.
        """
        function = mapping(delta.get("function"))
        key, ident, name = delta.get("index"), string(delta.get("id")) or None, string(function.get("name"))
        arguments = function.get("arguments")
        call = next((c for c in reversed(self.calls) if key is None or c.key == key), None)
        if call is None or (ident and name and call.id and ident != call.id):
            call = _Call(key, ident)
            self.calls.append(call)
        call.id = call.id or ident
        if not call.arguments and name != call.name:
            call.name += name
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(arguments, str) or not arguments:
            return ""
        call.arguments.append(arguments)
        return arguments

    def close(self, functions: Functions) -> Made:
        """Return the messages, the repairs and the finish reason. Raises Transient if the answer is incomplete."""
        complete = all(call.name and whole(call.body) for call in self.calls)
        if self.finish is None and not (self.done and (self.content or self.calls) and complete):
            raise cut("the stream ended without a finish reason")
        if self.finish in {"error", "abort"}:
            raise cut(f"the server ended it with {self.finish!r}")
        found: list[Message] = []
        repairs: list[Repaired] = []
        if self.reasoning:
            found.append(Message(Role.ASSISTANT, "".join(self.reasoning), Channel.ANALYSIS))
        calls = [call for call in self.calls if call.name]
        if self.finish == "length" and calls and not whole(calls[-1].body):
            repairs.append(cut_call(calls.pop().name))
        text = "".join(self.content)
        if not calls and (taken := spelt(functions, text, whole=self.finish != "length")) is not None:
            found += taken.messages
            repairs += taken.repairs
        elif text:
            found.append(Message(Role.ASSISTANT, text, Channel.COMMENTARY if calls else Channel.FINAL))
        found += [called(functions, call.name, call.body) for call in calls]
        details = mapping(self.usage.get("prompt_tokens_details"))
        return Made(
            tuple(found),
            tuple(repairs),
            "call" if found and found[-1].is_call else "length" if self.finish == "length" else "stop",
            [*self.reasoning, *self.content, *(a for c in self.calls for a in c.arguments)],
            count(self.usage.get("prompt_tokens")),
            count(self.usage.get("completion_tokens")),
            count(details.get("cached_tokens")),
        )


def chat_messages(conversation: Conversation, functions: Functions, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return the history as chat messages that every server accepts.

    ``fields`` are the field names in which reasoning is sent. Reasoning before the last final answer is left out, as in
    harmony. A call without a result gets one that says so; a result without a call becomes text.
    """
    result: list[dict[str, Any]] = []
    if conversation.instructions:
        result.append({"role": "system", "content": conversation.instructions})
    final = last_final(conversation)
    said: dict[str, Any] | None = None  # the assistant message under construction
    for entry in entries(conversation):
        message = entry.message
        match message.role:
            case Role.ASSISTANT:
                if said is None:
                    said = {"role": "assistant", "content": None}
                    result.append(said)
                if message.is_call:
                    ident = call_id(entry.index)
                    said["tool_calls"] = [_chat_call(message, ident, functions)]
                    result.append({"role": "tool", "tool_call_id": ident, "content": entry.result})
                    said = None
                elif message.channel is Channel.ANALYSIS:
                    if entry.index > final:
                        for name in fields:
                            said[name] = _joined(said.get(name), message.text)
                else:
                    said["content"] = _joined(said["content"], message.text)
                continue
            case Role.TOOL:
                result.append({"role": "user", "content": orphan(message)})
            case Role.SYSTEM | Role.DEVELOPER if all(m["role"] == "system" for m in result):
                result.append({"role": "system", "content": message.text})
            case _:
                result.append({"role": "user", "content": message.text})
        said = None
    for made in result:
        if made["role"] == "assistant" and made["content"] is None and "tool_calls" not in made:
            made["content"] = ""
    return result


def _chat_call(message: Message, ident: str, functions: Functions) -> dict[str, Any]:
    recipient = message.recipient or ""
    arguments = functions.arguments(recipient, message.text)
    return {"id": ident, "type": "function", "function": {"name": functions.name(recipient), "arguments": arguments}}


def _joined(before: str | None, text: str) -> str:
    return text if not before else f"{before}\n\n{text}"


def _text(content: object) -> str:
    """Return content's text: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
