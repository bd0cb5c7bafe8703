"""``/v1/chat/completions``: reading a request and writing its answer, whole or as chunks. Pure.

Reasoning is sent as ``reasoning`` and as ``reasoning_content``, the two names that clients look for, and is accepted under
both, so that between two calls the model still knows why it made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.server import sse
from agent.server.answer import Called, Cited, Ended, Part, Said, Void, Worked, Working
from agent.server.ask import (
    FUNCTIONS,
    UNHEEDED,
    Ask,
    Choice,
    Format,
    by_id,
    check_choice,
    effort,
    function,
    instructed,
    json_format,
    sampling,
    stops,
)
from agent.server.builtin import RESERVED, WEB, Offer, Wanted, read_web
from agent.server.faults import Refusal
from agent.server.fields import Fields
from agent.server.responses import new_id
from agent.server.sse import DONE, event
from agent.server.store import Store

_TEXT_KINDS = frozenset({"text", "input_text", "output_text", "refusal"})
_ROLES = ("system", "developer", "user", "assistant", "tool")
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNHEEDED,
    "audio": (),
    "functions": (),
    "function_call": (),
    "modalities": (["text"],),
}
_FINISHES: Mapping[str, str] = {"stop": "stop", "call": "tool_calls", "length": "length"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request."""

    ask: Ask
    stream: bool
    usage: bool
    wanted: Wanted


def read_chat(body: Fields, store: Store, default_effort: str, offer: Offer) -> ChatRequest:
    """Parse a request. Raises BadRequest, which names the field."""
    body.refuse(_UNSUPPORTED)
    messages, call_ids = _messages(body)
    instructions, shown = instructed("", store.recalled(messages, call_ids))
    tools = tuple(_function(tool) for tool in body.objects("tools") if tool.text("type") == "function")
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    options = body.object("stream_options")
    conversation = Conversation(instructions, tools, shown, effort(body, "reasoning_effort", default_effort))
    parallel = body.flag("parallel_tool_calls", default=True)
    ask = Ask(conversation, sampling(body, limit), _choice(body, tools), _format(body), stops(body), parallel)
    usage = options is not None and options.flag("include_usage")
    return ChatRequest(ask, body.flag("stream"), usage, _wanted(body, offer, tools))


def _wanted(body: Fields, offer: Offer, tools: tuple[ToolSpec, ...]) -> Wanted:
    """Read ``web_search_options``. A client sends it on purpose, so it is refused if there is no web search."""
    options = body.object("web_search_options")
    if options is None:
        return Wanted()
    if not offer.web:
        raise body.wrong(
            "web_search_options",
            "is not enabled on this server: its operator can enable it with agent serve --web-search",
        )
    if clash := next((tool.name for tool in tools if tool.name in RESERVED[WEB]), None):
        raise body.wrong("tools", f"declares a function {clash}, which is also the name of a requested built-in tool")
    return Wanted(web=True, **read_web(options))


def _messages(body: Fields) -> tuple[list[Message], dict[int, str]]:
    entries = list(body.objects("messages"))
    if not entries:
        raise body.wrong("messages", "must be an array with at least one message")
    tools = (entry for entry in entries if entry.raw("role") == "tool")
    results = by_id((entry.text("tool_call_id"), entry.content("content", _TEXT_KINDS)) for entry in tools)
    messages: list[Message] = []
    call_ids: dict[int, str] = {}
    for entry in entries:
        match entry.choice("role", _ROLES):
            case "assistant":
                for message, call_id in _assistant(entry):
                    if call_id:
                        call_ids[len(messages)] = call_id
                    messages.append(message)
                    if results.get(call_id):
                        messages.append(Message(Role.TOOL, results[call_id].popleft(), name=message.recipient))
            case "tool" if entry.text("tool_call_id") not in call_ids.values():
                raise entry.wrong("tool_call_id", "names a call that no message before it made")
            case "tool":
                pass  # it was added right after its call
            case role:
                messages.append(Message(Role(role), entry.content("content", _TEXT_KINDS)))
    return messages, call_ids


def _assistant(entry: Fields) -> Iterator[tuple[Message, str]]:
    """Yield an assistant message's parts in the order in which a model samples them, calls with their ids."""
    calls = list(entry.objects("tool_calls"))
    if thought := entry.text("reasoning", "") or entry.text("reasoning_content", ""):
        yield Message(Role.ASSISTANT, thought, Channel.ANALYSIS), ""
    text = entry.content("content", _TEXT_KINDS)
    if text or not calls:
        yield Message(Role.ASSISTANT, text, Channel.COMMENTARY if calls else Channel.FINAL), ""
    for call in calls:
        inner = call.object("function")
        if inner is None:
            raise call.wrong("function", "is missing")
        arguments = inner.text("arguments", "") or "{}"
        recipient = FUNCTIONS + inner.text("name")
        yield Message(Role.ASSISTANT, arguments, Channel.COMMENTARY, recipient, "json"), call.text("id")


def _function(tool: Fields) -> ToolSpec:
    inner = tool.object("function")
    if inner is None:
        raise tool.wrong("function", "is missing")
    return function(inner)


def _choice(body: Fields, tools: tuple[ToolSpec, ...]) -> Choice:
    value = body.raw("tool_choice")
    if value is None or isinstance(value, str):
        return check_choice(Choice(body.choice("tool_choice", ("auto", "none", "required"), "auto")), tools, body)
    named = Fields(value, "tool_choice")
    named.choice("type", ("function",))
    inner = named.object("function")
    if inner is None:
        raise named.wrong("function", "is missing")
    return check_choice(Choice("required", inner.text("name")), tools, body)


def _format(body: Fields) -> Format | None:
    wanted = body.object("response_format")
    if wanted is None:
        return None
    if wanted.raw("type") != "json_schema":
        return json_format(wanted)
    inner = wanted.object("json_schema")
    if inner is None:
        raise wanted.wrong("json_schema", "is missing")
    return json_format(Fields({"type": "json_schema", **_values(inner)}, wanted.path("json_schema")))


def _values(inner: Fields) -> dict[str, Any]:
    return {name: inner.raw(name) for name in ("name", "description", "schema")}


@dataclass(slots=True)
class ChatWriter:
    """Writes the parts of an answer as one chat completion. ``usage``: the stream ends with the token counts."""

    model: str
    created_s: int
    usage: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    ended: Ended | None = None
    call_ids: list[str] = field(default_factory=list)
    _frame: tuple[bytes, bytes] | None = None
    _reasoning: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _text_begins: int | None = None  # where the current piece of text begins; its citations are counted from there
    _annotations: list[dict[str, Any]] = field(default_factory=list)
    _calls: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> bytes:
        """Return the opening chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def part(self, part: Part) -> bytes:
        """Return the chunks for a part of the answer."""
        match part:
            case Said("reasoning", text):
                self._text_begins = None
                self._reasoning.append(text)
                return self._delta({"reasoning": text, "reasoning_content": text})
            case Said(_, text):
                if self._text_begins is None:
                    self._text_begins = sum(map(len, self._text))
                self._text.append(text)
                return self._delta({"content": text})
            case Cited():
                return self._cite(part)
            case Void():
                self._text_begins = None
                self._reasoning.clear()
                return b""
            case Working() | Worked():  # chat completions have no items for the server's own tools
                self._text_begins = None
                return b""
            case Called(name, arguments):
                call_id = new_id("call")
                self.call_ids.append(call_id)
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                self._calls.append(call)
                return self._chunk({"tool_calls": [{"index": len(self._calls) - 1, **call}]})
            case Ended():
                self.ended = part
                last = self._chunk({}, _FINISHES[part.finish])
                return last + (self._usage_chunk(part) if self.usage else b"") + DONE

    def fail(self, error: Refusal) -> bytes:
        """Return the last event of a stream that broke off."""
        return event(error.body())

    def cancel(self) -> bytes:
        """Return nothing: a chat completion can only be cancelled by disconnecting."""
        return b""

    def document(self) -> dict[str, Any]:
        """Return the whole completion after its end."""
        assert self.ended is not None
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text) or None, "refusal": None}
        if not self._calls:
            message["content"] = message["content"] or ""
        if self._annotations:
            message["annotations"] = self._annotations
        if self._reasoning:
            message["reasoning"] = message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISHES[self.ended.finish]}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(self.ended)}

    def _cite(self, cited: Cited) -> bytes:
        begins = self._text_begins or 0
        place = {"start_index": begins + cited.start, "end_index": begins + cited.end}
        annotation = {"type": "url_citation", "url_citation": {**place, "url": cited.url, "title": cited.title}}
        self._annotations.append(annotation)
        return self._chunk({"annotations": [annotation]})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        extra = {"usage": None} if self.usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **extra})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        """Return a chunk with only a delta. There is one per token, so the part that is always the same is encoded once."""
        if self._frame is None:
            before, _, after = self._chunk({"content": None}).partition(b'{"content":null}')
            self._frame = (before, after)
        return self._frame[0] + sse.document(delta) + self._frame[1]

    def _usage_chunk(self, ended: Ended) -> bytes:
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(ended)})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def usage(ended: Ended) -> dict[str, Any]:
    """Return the token counts in the form of chat completions."""
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.completion_tokens,
        "total_tokens": ended.prompt_tokens + ended.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": ended.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": ended.reasoning_tokens},
    }
