"""The responses API: stateless, with the whole history and the raw reasoning in every request.

Streams are read tolerantly: gpt-oss's own reference server starts its output indexes at -1, announces calls only when they
are done, and reports completed when the limit cut the answer off. So items are taken when they are done, in order of arrival.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
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

_FOREIGN = ("top_k", "min_p")  # unknown to the openai package, but accepted by vLLM and SGLang
_DELTAS: Mapping[str, Channel] = {
    "response.reasoning_text.delta": Channel.ANALYSIS,
    "response.reasoning_summary_text.delta": Channel.ANALYSIS,
    "response.output_text.delta": Channel.FINAL,
    "response.function_call_arguments.delta": Channel.COMMENTARY,
}


def responses_model(client: Client, context_tokens: int | None = None) -> ApiModel:
    """Return the model behind ``/responses``."""
    return ApiModel(client, ResponsesApi(), context_tokens)


class ResponsesApi:
    """``/responses``. It has no field for a seed."""

    name = "responses"
    limit = "max_output_tokens"
    capabilities = replace(OF_MESSAGES, seed=False)
    optional = frozenset(("parallel_tool_calls", "top_k", "min_p", "include", "store"))

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
        return {name: value for name, value in body.items() if name not in without}

    def send(
        self, client: openai.OpenAI, body: Mapping[str, Any], timeout: httpx2.Timeout
    ) -> AbstractContextManager[OpenAIResponse]:
        """Send a request; see ``agent.model.chat.ChatApi.send``."""
        extra = {name: body[name] for name in ("input", "tools", *_FOREIGN) if name in body}
        known = {name: value for name, value in body.items() if name not in extra}
        return client.responses.with_streaming_response.create(**known, extra_body=extra, timeout=timeout)

    def answer(self, body: Mapping[str, Any]) -> _Answer:
        """Return the reader of an answer."""
        return _Answer(body.get("max_output_tokens"))


@dataclass(slots=True)
class _Answer:
    """One answer while it arrives: the items that are done, and how it ended."""

    most_tokens: int | None = None
    items: list[Mapping[str, Any]] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    status: str | None = None
    reason: str | None = None
    calling: str = ""  # the function whose arguments are arriving, if the server announced it

    def read(self, event: ServerEvent, *, wall_s: float) -> Iterator[Delta]:
        """Read one event of the stream and yield the text to display."""
        if event.data.strip() == "[DONE]":
            return
        found = decoded(event)
        kind = str(found.get("type") or event.name)
        if kind in _DELTAS:
            if isinstance(found.get("delta"), str) and found["delta"]:
                channel = _DELTAS[kind]
                yield Delta(channel, found["delta"], self.calling if channel is Channel.COMMENTARY else None)
        elif kind == "response.output_item.added":
            self.calling = string(mapping(found.get("item")).get("name"))
        elif kind == "response.output_item.done":
            self.items.append(mapping(found.get("item")))
        elif kind in {"error", "response.failed"} or found.get("error"):
            inner = mapping(found.get("response"))
            raise error_event(found.get("error") or inner.get("error") or found, wall_s=wall_s)
        elif kind in {"response.completed", "response.incomplete"} or found.get("object") == "response":
            self._end(mapping(found.get("response")) or found)

    def _end(self, response: Mapping[str, Any]) -> None:
        self.status = str(response.get("status") or "completed")
        self.reason = mapping(response.get("incomplete_details")).get("reason")
        self.usage = mapping(response.get("usage"))
        if not self.items:  # some servers send the items only here
            self.items = [item for item in sequence(response.get("output")) if isinstance(item, dict)]

    def close(self, functions: Functions) -> Made:
        """Return the messages, the repairs and the finish reason. Raises Transient if the answer is incomplete."""
        calls = [item for item in self.items if item.get("type") == "function_call" and item.get("name")]
        if self.status is None and not (calls and self.items[-1] is calls[-1]):
            raise cut("the stream ended without a closing event")
        if self.status in {"failed", "cancelled"}:
            raise cut(f"the server ended it as {self.status}")
        repairs: list[Repaired] = []
        # Some servers report completed although the limit cut the answer off: then the token count shows it.
        full = self.most_tokens is not None and (count(self.usage.get("output_tokens")) or 0) >= self.most_tokens
        limited = full or (self.status == "incomplete" and self.reason != "content_filter")
        if limited and calls and not whole(_arguments(calls[-1])):
            repairs.append(cut_call(str(calls.pop()["name"])))
        messages = tuple(self._messages(calls, functions))
        last = messages[-1] if messages else None
        if last is not None and last.is_final and (taken := spelt(functions, last.text, whole=not limited)) is not None:
            messages = (*messages[:-1], *taken.messages)
            repairs += taken.repairs
        details = mapping(self.usage.get("input_tokens_details"))
        return Made(
            messages,
            tuple(repairs),
            "call" if messages and messages[-1].is_call else "length" if limited else "stop",
            self.items,
            count(self.usage.get("input_tokens")),
            count(self.usage.get("output_tokens")),
            count(details.get("cached_tokens")),
        )

    def _messages(self, calls: list[Mapping[str, Any]], functions: Functions) -> Iterator[Message]:
        calling = False
        for item in self.items:
            match item.get("type"):
                case "function_call" if any(item is call for call in calls):
                    calling = True
                    yield called(functions, str(item["name"]), _arguments(item))
                case _ if calling:
                    pass  # text after a call was written without the call's result: drop it
                case "reasoning" if text := _reasoning(item):
                    yield Message(Role.ASSISTANT, text, Channel.ANALYSIS)
                case "message" if text := _text(item.get("content")):
                    yield Message(Role.ASSISTANT, text, Channel.COMMENTARY if calls else Channel.FINAL)
                case _:
                    pass


def input_items(conversation: Conversation, functions: Functions) -> list[dict[str, Any]]:
    """Return the history as input items that every server accepts, by the rules of ``chat.chat_messages``."""
    result: list[dict[str, Any]] = []
    final = last_final(conversation)
    for entry in entries(conversation):
        message = entry.message
        match message.role:
            case Role.ASSISTANT if message.recipient is not None:
                ident, name = call_id(entry.index), functions.name(message.recipient)
                arguments = functions.arguments(message.recipient, message.text)
                result.append({"type": "function_call", "call_id": ident, "name": name, "arguments": arguments})
                result.append({"type": "function_call_output", "call_id": ident, "output": entry.result})
            case Role.ASSISTANT if message.channel is Channel.ANALYSIS:
                if entry.index > final:
                    content = [{"type": "reasoning_text", "text": message.text}]
                    ident = f"rs_{entry.index:05d}"
                    result.append({"type": "reasoning", "id": ident, "summary": [], "content": content})
            case Role.ASSISTANT:
                said = [{"type": "output_text", "text": message.text, "annotations": []}]
                made = {"type": "message", "id": f"msg_{entry.index:05d}", "status": "completed", "role": "assistant"}
                result.append({**made, "content": said})
            case Role.TOOL:
                result.append(_user(orphan(message)))
            case _:
                result.append(_user(message.text))
    return result


def _user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def _arguments(item: Mapping[str, Any]) -> str:
    """Return a call's arguments as text; some servers send an object."""
    found = item.get("arguments")
    return json.dumps(found, ensure_ascii=False) if isinstance(found, dict) else string(found) or "{}"


def _reasoning(item: Mapping[str, Any]) -> str:
    """Return an item's raw reasoning, or its summary if there is nothing else."""
    return _text(item.get("content")) or _text(item.get("summary"))


def _text(parts: object) -> str:
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    return "\n\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and part.get("text"))
