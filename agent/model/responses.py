"""The responses wire, through the openai package: stateless, with the whole history and the raw reasoning in every request.

Read with a wide tolerance: gpt-oss's own reference server starts its output indexes at -1, announces calls only when they
are done, and says completed when the limit cut it off. So items are taken as they are done, in the order they arrive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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

_OPTIONAL = frozenset(("parallel_tool_calls", "top_k", "min_p", "include", "store"))
_FOREIGN = ("top_k", "min_p")  # not the openai package's, but taken by vLLM and SGLang
_NOT_RUN = "(this call was not run)"
_DELTAS: Mapping[str, Channel] = {
    "response.reasoning_text.delta": Channel.ANALYSIS,
    "response.reasoning_summary_text.delta": Channel.ANALYSIS,
    "response.output_text.delta": Channel.FINAL,
    "response.function_call_arguments.delta": Channel.COMMENTARY,
}


class ResponsesModel:
    """A model behind ``/responses``."""

    def __init__(self, client: Client, context_tokens: int | None = None) -> None:
        self._client = client
        self._context_tokens = context_tokens
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        """The model's name and its endpoint."""
        return f"{self._client.endpoint.model} at {self._client.endpoint.url} (responses)"

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
        foreign = {name: body.pop(name) for name in _FOREIGN if name in body}
        # The openai package walks through every argument by type, the whole history in every turn; not through this.
        extra = foreign | {name: body[name] for name in ("input", "tools") if name in body}
        known = {name: value for name, value in body.items() if name not in extra}
        create = self._client.openai().responses.with_streaming_response.create
        began = self._client.clock.now()
        answer = _Answer(body.get("max_output_tokens"))
        first_token_s = 0.0
        try:
            for event in self._client.post_through_openai(
                create(**known, extra_body=extra, timeout=self._client.timeout(params.timeout_s)), params.timeout_s
            ):
                if event.data.strip() == "[DONE]":
                    continue
                for delta in self._read(event, answer):
                    first_token_s = first_token_s or self._client.clock.now() - began
                    yield delta
        except EndpointRefused as error:
            named = refused_field(error, {*body, *foreign} & _OPTIONAL)
            if named is None:
                raise
            self._refused.add(named)
            raise Transient(f"the endpoint does not take {named!r}; asking without it", retry_after_s=0.0) from error
        except ContextOverflow as error:
            if "max_output_tokens" in body and "max_output_tokens" not in self._refused:
                self._refused.add("max_output_tokens")
                raise Transient(f"{error}; asking without max_output_tokens", retry_after_s=0.0) from error
            self._refused.discard("max_output_tokens")
            raise
        self._refused.discard("max_output_tokens")
        messages, repairs, finish = answer.close(functions)
        yield from repairs
        for message in messages:
            yield MessageAdded(message)
        duration_s = self._client.clock.now() - began
        details = mapping(answer.usage.get("input_tokens_details"))
        prompt_tokens = count(answer.usage.get("input_tokens"))
        completion_tokens = count(answer.usage.get("output_tokens"))
        yield Sampled(
            prompt_tokens=estimated_tokens(body) if prompt_tokens is None else prompt_tokens,
            completion_tokens=estimated_tokens(answer.items) if completion_tokens is None else completion_tokens,
            finish=finish,
            cached_tokens=count(details.get("cached_tokens")) or 0,
            duration_s=duration_s,
            first_token_s=first_token_s or duration_s,
        )

    def _read(self, event: ServerEvent, answer: _Answer) -> Iterator[Delta]:
        """Take one event of the stream into ``answer`` and give what of it is for the eye."""
        found = decoded(event)
        kind = str(found.get("type") or event.name)
        if kind in _DELTAS:
            if isinstance(found.get("delta"), str) and found["delta"]:
                channel = _DELTAS[kind]
                yield Delta(channel, found["delta"], answer.calling if channel is Channel.COMMENTARY else None)
        elif kind == "response.output_item.added":
            answer.calling = string(mapping(found.get("item")).get("name"))
        elif kind == "response.output_item.done":
            answer.items.append(mapping(found.get("item")))
        elif kind in {"error", "response.failed"} or found.get("error"):
            inner = mapping(found.get("response"))
            raise error_event(found.get("error") or inner.get("error") or found, wall_s=self._client.clock.wall())
        elif kind in {"response.completed", "response.incomplete"} or found.get("object") == "response":
            answer.end(mapping(found.get("response")) or found)

    def _body(self, conversation: Conversation, functions: Functions, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._client.endpoint.model,
            "input": input_items(conversation, functions),
            "stream": True,
            "store": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "reasoning": {"effort": conversation.effort},
        }
        if conversation.instructions:
            body["instructions"] = conversation.instructions
        if conversation.tools:
            body["tools"] = [{"type": "function", "strict": False, **f} for f in functions.declarations()]
            body["parallel_tool_calls"] = False
        if params.max_tokens is not None:
            body["max_output_tokens"] = params.max_tokens
        return {name: value for name, value in body.items() if name not in self._refused}


@dataclass(slots=True)
class _Answer:
    """One answer while it arrives: the items that are done, and how it ended."""

    most_tokens: int | None = None
    items: list[Mapping[str, Any]] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    status: str | None = None
    reason: str | None = None
    calling: str = ""  # the function whose arguments are arriving, where the server announced it

    def end(self, response: Mapping[str, Any]) -> None:
        self.status = str(response.get("status") or "completed")
        self.reason = mapping(response.get("incomplete_details")).get("reason")
        self.usage = mapping(response.get("usage"))
        if not self.items:  # some servers give the items only here
            self.items = [item for item in sequence(response.get("output")) if isinstance(item, dict)]

    def close(self, functions: Functions) -> tuple[list[Message], list[Repaired], str]:
        """Return the messages, what was mended and the finish. Raises Transient if the answer is not whole."""
        calls = [item for item in self.items if item.get("type") == "function_call" and item.get("name")]
        if self.status is None and not (calls and self.items[-1] is calls[-1]):
            raise cut("the stream ended without a closing event")
        if self.status in {"failed", "cancelled"}:
            raise cut(f"the server ended it as {self.status}")
        repairs: list[Repaired] = []
        # Some servers say completed although the limit cut the answer off: the count tells.
        full = self.most_tokens is not None and (count(self.usage.get("output_tokens")) or 0) >= self.most_tokens
        limited = full or (self.status == "incomplete" and self.reason != "content_filter")
        if limited and calls and not whole(_arguments(calls[-1])):
            repairs.append(Repaired("cut_call", f"a call to {calls[-1]['name']} was cut off by the token limit"))
            calls = []
        if len(calls) > 1:
            repairs.append(Repaired("parallel_calls", f"{len(calls) - 1} calls after the first were dropped"))
        found: list[Message] = []
        for item in self.items:
            match item.get("type"):
                case "reasoning" if text := _reasoning(item):
                    found.append(Message(Role.ASSISTANT, text, Channel.ANALYSIS))
                case "message" if text := _text(item.get("content")):
                    channel = Channel.COMMENTARY if calls else Channel.FINAL
                    found.append(Message(Role.ASSISTANT, text, channel))
                case "function_call" if calls and item is calls[0]:
                    recipient = functions.recipient(str(item["name"]))
                    body = functions.body(recipient, _arguments(item))
                    found.append(Message(Role.ASSISTANT, body, Channel.COMMENTARY, recipient, "json"))
                    break  # what the model said after it, it said without the result
                case _:
                    pass
        return found, repairs, "call" if calls else "length" if limited else "stop"


def input_items(conversation: Conversation, functions: Functions) -> list[dict[str, Any]]:
    """Return the history as input items, valid whatever happened in it; the rules are those of ``chat.chat_messages``."""
    result: list[dict[str, Any]] = []
    messages = conversation.messages
    last_final = max((i for i, m in enumerate(messages) if m.is_final), default=-1)
    open_call: str | None = None
    for index, message in enumerate(messages):
        if open_call is not None and message.role is not Role.TOOL:
            result.append({"type": "function_call_output", "call_id": open_call, "output": _NOT_RUN})
            open_call = None
        match message.role:
            case Role.ASSISTANT if message.recipient is not None:
                open_call = call_id(index)
                arguments = functions.arguments(message.recipient, message.text)
                name = functions.name(message.recipient)
                result.append({"type": "function_call", "call_id": open_call, "name": name, "arguments": arguments})
            case Role.ASSISTANT if message.channel is Channel.ANALYSIS:
                if index > last_final:
                    content = [{"type": "reasoning_text", "text": message.text}]
                    result.append({"type": "reasoning", "id": f"rs_{index:05d}", "summary": [], "content": content})
            case Role.ASSISTANT:
                said = [{"type": "output_text", "text": message.text, "annotations": []}]
                ident = f"msg_{index:05d}"
                entry = {"type": "message", "id": ident, "status": "completed", "role": "assistant", "content": said}
                result.append(entry)
            case Role.TOOL if open_call is not None:
                result.append({"type": "function_call_output", "call_id": open_call, "output": message.text})
                open_call = None
            case Role.TOOL:
                result.append(_user(f"Output of {message.name or 'a tool'}:\n{message.text}"))
            case _:
                result.append(_user(message.text))
    if open_call is not None:
        result.append({"type": "function_call_output", "call_id": open_call, "output": _NOT_RUN})
    return result


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _arguments(item: Mapping[str, Any]) -> str:
    """Return a call's arguments, which some servers give as an object rather than as its text."""
    found = item.get("arguments")
    return json.dumps(found, ensure_ascii=False) if isinstance(found, dict) else string(found) or "{}"


def _reasoning(item: Mapping[str, Any]) -> str:
    """Return an item's raw reasoning, or its summary where only that is shown."""
    return _text(item.get("content")) or _text(item.get("summary"))


def _text(parts: object) -> str:
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    return "\n\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and part.get("text"))
