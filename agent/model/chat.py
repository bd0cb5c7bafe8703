"""The chat completions wire, through the openai package: for servers that offer nothing closer to the tokens.

What gpt-oss needs and a plain chat client loses: the reasoning goes back between tool calls, in the field the server itself
uses; one call at a time; sampling is always explicit; and what is replayed is always valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ContextOverflow, EndpointRefused
from agent.events import Delta, MessageAdded, Repaired, Sampled
from agent.model.base import ModelEvent, SamplingParams
from agent.model.client import Client, persist
from agent.model.faults import Transient, cut, error_event, refused_field
from agent.model.functions import Functions, call_id, whole
from agent.model.sse import ServerEvent
from agent.model.stream import count, decoded, estimated_tokens, mapping, sequence, string

REASONING_FIELDS = ("reasoning", "reasoning_content")
# What a request can do without: a server that refuses one of these by name is asked again without it.
_OPTIONAL = frozenset(
    (
        "stream_options",
        "parallel_tool_calls",
        "reasoning_effort",
        "chat_template_kwargs",
        "top_k",
        "min_p",
        "seed",
        *REASONING_FIELDS,
    )
)


class ChatModel:
    """A model behind ``/chat/completions``."""

    def __init__(self, client: Client, context_tokens: int | None = None) -> None:
        self._client = client
        self._context_tokens = context_tokens
        self._reasoning_fields: tuple[str, ...] = REASONING_FIELDS  # until the server shows which one is its own
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        """The model's name and its endpoint."""
        return f"{self._client.endpoint.model} at {self._client.endpoint.url} (chat)"

    @property
    def context_tokens(self) -> int | None:
        """The window in tokens, where it is known."""
        return self._context_tokens

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Answer ``conversation``; see ``agent.model.base.Model``."""
        functions = Functions(conversation.tools)
        yield from persist(
            lambda: self._attempt(conversation, functions, params), self._client.endpoint, self._client.clock
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _attempt(
        self, conversation: Conversation, functions: Functions, params: SamplingParams
    ) -> Iterator[Delta | Repaired | MessageAdded | Sampled]:
        body = self._body(conversation, functions, params)
        create = self._client.openai().chat.completions.with_streaming_response.create
        began = self._client.clock.now()
        answer = _Answer()
        first_token_s = 0.0
        try:
            for event in self._client.post_through_openai(
                create(**_arguments(body), timeout=self._client.timeout(params.timeout_s)), params.timeout_s
            ):
                for delta in self._read(event, answer):
                    first_token_s = first_token_s or self._client.clock.now() - began
                    yield delta
        except EndpointRefused as error:
            raise self._without_refused(error, body) from error
        except ContextOverflow as error:
            if "max_tokens" in body and "max_tokens" not in self._refused:
                # Several servers add the answer's limit to the prompt: only what is left without it is a real overflow.
                self._refused.add("max_tokens")
                raise Transient(f"{error}; asking without max_tokens", retry_after_s=0.0) from error
            self._refused.discard("max_tokens")
            raise
        self._refused.discard("max_tokens")
        messages, repairs, finish = _messages(answer, functions)
        yield from repairs
        for message in messages:
            yield MessageAdded(message)
        duration_s = self._client.clock.now() - began
        yield answer.sampled(finish, body, duration_s, first_token_s or duration_s)

    def _read(self, event: ServerEvent, answer: _Answer) -> Iterator[Delta]:
        """Take one event of the stream into ``answer`` and give what of it is for the eye."""
        if event.data.strip() == "[DONE]":
            answer.done = True
            return
        chunk = decoded(event)
        if chunk.get("error"):
            raise error_event(chunk["error"], wall_s=self._client.clock.wall())
        if isinstance(chunk.get("usage"), dict):
            answer.usage = chunk["usage"]
        choice = mapping(next(iter(sequence(chunk.get("choices"))), None))
        delta = mapping(choice.get("delta")) or mapping(choice.get("message"))
        found = tuple(name for name in REASONING_FIELDS if isinstance(delta.get(name), str) and delta[name])
        if found:
            self._reasoning_fields = found
            answer.reasoning.append(delta[found[0]])
            yield Delta(Channel.ANALYSIS, delta[found[0]])
        if text := _text(delta.get("content")):
            answer.content.append(text)
            yield Delta(Channel.FINAL, text)
        for call in sequence(delta.get("tool_calls")):
            if isinstance(call, dict) and (piece := answer.add(call)):
                yield Delta(Channel.COMMENTARY, piece, answer.calls[-1].name)
        answer.finish = string(choice.get("finish_reason")) or answer.finish

    def _body(self, conversation: Conversation, functions: Functions, params: SamplingParams) -> dict[str, Any]:
        fields = tuple(name for name in self._reasoning_fields if name not in self._refused)
        body: dict[str, Any] = {
            "model": self._client.endpoint.model,
            "messages": chat_messages(conversation, functions, fields),
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
        return {name: value for name, value in body.items() if name not in self._refused}

    def _without_refused(self, error: EndpointRefused, body: Mapping[str, Any]) -> Exception:
        """Learn from a refusal that names a field we can do without; any other refusal stays what it is."""
        sent = {*body, *self._reasoning_fields} - self._refused
        named = refused_field(error, sent & _OPTIONAL)
        if named is None:
            return error
        self._refused.add(named)
        return Transient(f"the endpoint does not take {named!r}; asking without it", retry_after_s=0.0)


@dataclass(slots=True)
class _Call:
    """A tool call while it is put together. ``key`` is the index the server gave it."""

    key: int | None
    id: str | None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Answer:
    """One answer while it arrives."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    finish: str | None = None
    done: bool = False

    def add(self, delta: Mapping[str, Any]) -> str:
        """Add a piece of a tool call and return its new text.

        Pieces belong together by index. Servers that send calls whole may give all of them the same index or none: a
        new id that comes with a name starts a new call.
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

    def sampled(self, finish: str, body: Mapping[str, Any], duration_s: float, first_token_s: float) -> Sampled:
        """Return the closing event, with an estimate for what the server did not count."""
        details = mapping(self.usage.get("prompt_tokens_details"))
        said = [*self.reasoning, *self.content, *(a for c in self.calls for a in c.arguments)]
        prompt_tokens = count(self.usage.get("prompt_tokens"))
        completion_tokens = count(self.usage.get("completion_tokens"))
        return Sampled(
            prompt_tokens=estimated_tokens(body) if prompt_tokens is None else prompt_tokens,
            completion_tokens=estimated_tokens(said) if completion_tokens is None else completion_tokens,
            finish=finish,
            cached_tokens=count(details.get("cached_tokens")) or 0,
            duration_s=duration_s,
            first_token_s=first_token_s,
        )


def chat_messages(conversation: Conversation, functions: Functions, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return the history as chat messages, valid whatever happened in it.

    ``fields`` are the names under which reasoning is sent. Reasoning before the last final answer is left out, as harmony
    does. A call without a result gets one that says so; a result without a call becomes text.
    """
    result: list[dict[str, Any]] = []
    if conversation.instructions:
        result.append({"role": "system", "content": conversation.instructions})
    messages = conversation.messages
    last_final = max((i for i, m in enumerate(messages) if m.is_final), default=-1)
    said: dict[str, Any] | None = None  # the assistant message that is being put together
    open_call: str | None = None
    for index, message in enumerate(messages):
        if open_call is not None and message.role is not Role.TOOL:
            result.append({"role": "tool", "tool_call_id": open_call, "content": "(this call was not run)"})
            open_call = None
        match message.role:
            case Role.ASSISTANT:
                if said is None:
                    said = {"role": "assistant", "content": None}
                    result.append(said)
                if message.is_call:
                    open_call = call_id(index)
                    said["tool_calls"] = [_chat_call(message, open_call, functions)]
                    said = None
                elif message.channel is Channel.ANALYSIS:
                    if index > last_final:
                        for name in fields:
                            said[name] = _joined(said.get(name), message.text)
                else:
                    said["content"] = _joined(said["content"], message.text)
                continue
            case Role.TOOL if open_call is not None:
                result.append({"role": "tool", "tool_call_id": open_call, "content": message.text})
                open_call = None
            case Role.TOOL:
                result.append({"role": "user", "content": f"Output of {message.name or 'a tool'}:\n{message.text}"})
            case Role.SYSTEM | Role.DEVELOPER if all(m["role"] == "system" for m in result):
                result.append({"role": "system", "content": message.text})
            case _:
                result.append({"role": "user", "content": message.text})
        said = None
    if open_call is not None:
        result.append({"role": "tool", "tool_call_id": open_call, "content": "(this call was not run)"})
    for entry in result:
        if entry["role"] == "assistant" and entry["content"] is None and "tool_calls" not in entry:
            entry["content"] = ""
    return result


def _messages(answer: _Answer, functions: Functions) -> tuple[list[Message], list[Repaired], str]:
    """Turn a whole answer into messages, what was mended, and the finish. Raises Transient if it is not whole."""
    complete = all(call.name and whole("".join(call.arguments) or "{}") for call in answer.calls)
    if answer.finish is None and not (answer.done and (answer.content or answer.calls) and complete):
        raise cut("the stream ended without a finish reason")
    if answer.finish in {"error", "abort"}:
        raise cut(f"the server ended it with {answer.finish!r}")
    found: list[Message] = []
    repairs: list[Repaired] = []
    if answer.reasoning:
        found.append(Message(Role.ASSISTANT, "".join(answer.reasoning), Channel.ANALYSIS))
    calls = [call for call in answer.calls if call.name]
    if answer.finish == "length" and calls and not complete:
        # Half a call may mean something else than the whole one (`rm -rf /tmp/x`): it must not be run.
        repairs.append(Repaired("cut_call", f"a call to {calls[-1].name} was cut off by the token limit"))
        calls = []
    if len(calls) > 1:
        repairs.append(Repaired("parallel_calls", f"{len(calls) - 1} calls after the first were dropped"))
    if text := "".join(answer.content):
        found.append(Message(Role.ASSISTANT, text, Channel.COMMENTARY if calls else Channel.FINAL))
    for call in calls[:1]:
        recipient = functions.recipient(call.name)
        body = functions.body(recipient, "".join(call.arguments) or "{}")
        found.append(Message(Role.ASSISTANT, body, Channel.COMMENTARY, recipient=recipient, content_type="json"))
    if calls:
        return found, repairs, "call"
    return found, repairs, "length" if answer.finish == "length" else "stop"


def _chat_call(message: Message, ident: str, functions: Functions) -> dict[str, Any]:
    recipient = message.recipient or ""
    arguments = functions.arguments(recipient, message.text)
    return {"id": ident, "type": "function", "function": {"name": functions.name(recipient), "arguments": arguments}}


def _arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """Split a body into the openai package's arguments and its extra body, which goes out as it is.

    What the package has no argument for goes there, and so does the history: the package walks through every argument by
    type, which cost 0.5 ms for each turn there had been, in every turn.
    """
    extra = ("messages", "tools", "top_k", "min_p", "chat_template_kwargs")
    known = {name: value for name, value in body.items() if name not in extra}
    return {**known, "messages": [], "extra_body": {name: body[name] for name in extra if name in body}}


def _joined(before: str | None, text: str) -> str:
    return text if not before else f"{before}\n\n{text}"


def _text(content: object) -> str:
    """Return content's text: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
