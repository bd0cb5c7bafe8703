"""Parses a request of ``/v1/responses`` into an Ask. Pure, except for reading the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.server.ask import (
    FUNCTIONS,
    UNHEEDED,
    Ask,
    Choice,
    by_id,
    check_choice,
    effort,
    function,
    instructed,
    json_format,
    sampling,
    stops,
)
from agent.server.builtin import CODE, WEB, Offer, Wanted, read_builtin, tool_name
from agent.server.echo import echo
from agent.server.faults import NotThere
from agent.server.fields import Fields
from agent.server.responses import MOST_SEALED_BYTES, unsealed
from agent.server.store import Kept, Places, Store

_TEXT_KINDS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
_ROLES = {"system": Role.SYSTEM, "developer": Role.DEVELOPER, "user": Role.USER, "assistant": Role.ASSISTANT}
# Unsupported fields, with the values that have no effect and are therefore accepted.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNHEEDED,
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    "moderation": (),
}
# Items that are ignored: calls of other servers' built-in tools in the history.
_SILENT = frozenset({"file_search_call", "image_generation_call", "item_reference", "compaction"})
_NOT_KEPT = "[The output of this call is not kept.]"


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A parsed request. ``echo`` are the settings that the response repeats; ``history`` are all messages, including earlier ones.

    ``wanted`` are the built-in tools that it asks for, and ``places`` their state from earlier answers.
    """

    ask: Ask
    stream: bool
    store: bool
    include: frozenset[str]
    echo: Mapping[str, Any]
    history: tuple[Message, ...]
    wanted: Wanted
    places: Places


@dataclass(slots=True)
class _Input:
    """The input's messages as they are read."""

    messages: list[Message] = field(default_factory=list)
    call_ids: dict[int, str] = field(default_factory=dict)
    recipients: dict[str, str] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    sealed_bytes_left: int = MOST_SEALED_BYTES


def read_responses(body: Fields, store: Store, default_effort: str, offer: Offer) -> ResponsesRequest:
    """Parse a request. Raises BadRequest, which names the field, and NotThere for a previous response that is not stored."""
    body.refuse(_UNSUPPORTED)
    include = body.list("include")
    previous = _previous(body, store)
    said = _input(body, previous, store)
    messages = store.recalled(said.messages, said.call_ids)
    history = (*previous.messages, *messages)
    instructions, shown = instructed(body.text("instructions", ""), history)
    tools = tuple(function(tool) for tool in body.objects("tools") if tool.text("type") == "function")
    wanted = read_builtin(body, offer, tools)
    choice, tools, wanted = _choice(body, tools, wanted)
    reasoning = body.object("reasoning")
    text = body.object("text")
    inner = text.object("format") if text is not None else None
    conversation = Conversation(instructions, tools, shown, effort(reasoning, "effort", default_effort))
    params = sampling(body, "max_output_tokens")
    parallel = body.flag("parallel_tool_calls", default=True)
    ask = Ask(conversation, params, choice, None if inner is None else json_format(inner), stops(body), parallel)
    keep = body.flag("store", default=True)
    return ResponsesRequest(
        ask,
        body.flag("stream"),
        keep,
        frozenset(map(str, include)),
        echo(body, ask, wanted, keep=keep),
        history,
        wanted,
        said.places,
    )


def _previous(body: Fields, store: Store) -> Kept:
    if "previous_response_id" not in body:
        return Kept(b"", ())
    kept = store.responses.get(body.text("previous_response_id"))
    if kept is None:
        raise NotThere(
            "The previous response is not stored here (any more, or it had store: false). Send the whole input instead.",
            "previous_response_id",
        )
    return kept


def _input(body: Fields, previous: Kept, store: Store) -> _Input:
    said = _Input(places=previous.places)
    value = body.raw("input")
    if isinstance(value, str):
        said.messages.append(Message(Role.USER, value))
        return said
    if value is None and not previous.messages:
        raise body.wrong("input", "is missing")
    items = list(body.objects("input"))
    given = (item for item in items if item.text("type", "") == "function_call_output")
    outputs = by_id((item.text("call_id"), item.content("output", _TEXT_KINDS)) for item in given)
    for item in items:
        if not _own_item(item, said, store):
            _item(item, said, outputs, previous)
    _mark_preambles(said.messages)
    return said


def _item(item: Fields, said: _Input, outputs: Mapping[str, deque[str]], previous: Kept) -> None:
    match item.text("type", "message"):
        case "message":
            role = _ROLES[item.choice("role", _ROLES)]
            channel = Channel.FINAL if role is Role.ASSISTANT else None
            said.messages.append(Message(role, item.content("content", _TEXT_KINDS), channel))
        case "reasoning":
            text = item.content("content", _TEXT_KINDS) or _unsealed(item, said)
            if text := text or item.content("summary", _TEXT_KINDS):
                said.messages.append(Message(Role.ASSISTANT, text, Channel.ANALYSIS))
        case "function_call":
            call_id, recipient = item.text("call_id"), FUNCTIONS + item.text("name")
            arguments = item.text("arguments", "") or "{}"
            said.call_ids[len(said.messages)] = call_id
            said.recipients[call_id] = recipient
            said.messages.append(Message(Role.ASSISTANT, arguments, Channel.COMMENTARY, recipient, "json"))
            if outputs.get(call_id):  # moved right after its call, because harmony has no parallel calls
                said.messages.append(Message(Role.TOOL, outputs[call_id].popleft(), name=recipient))
        case "function_call_output":
            _late_output(item, said, outputs, previous)
        case kind if kind not in _SILENT:
            raise item.wrong("type", "is unknown to this server")


def _unsealed(item: Fields, said: _Input) -> str:
    """Unpack reasoning. The total per request is limited, because compressed data can expand a thousandfold."""
    text = unsealed(item.text("encrypted_content", ""), said.sealed_bytes_left + 1)
    said.sealed_bytes_left -= len(text.encode("utf-8", "replace"))
    if said.sealed_bytes_left < 0:
        raise item.wrong("encrypted_content", f"comes to more than {MOST_SEALED_BYTES} bytes with those before it")
    return text


def _own_item(item: Fields, said: _Input, store: Store) -> bool:
    """Add a call of a built-in tool to the history. Return False if the item is something else.

    A search whose results are not stored any more is left out.
    """
    match item.text("type", "message"):
        case "web_search_call":
            ident = item.text("id", "")
            turn = store.turn(ident)
            if turn is not None and len(turn) > 1:
                said.places = replace(said.places, web=ident)
                said.call_ids[len(said.messages)] = ident
                said.messages += turn[-2:]
        case "code_interpreter_call":
            said.places = replace(said.places, container=item.text("container_id", "") or said.places.container)
            said.call_ids[len(said.messages)] = item.text("id", "")
            logs = [entry.text("logs", "") for entry in item.objects("outputs")]
            said.messages += [
                Message(Role.ASSISTANT, item.text("code", ""), Channel.ANALYSIS, CODE, "code"),
                Message(Role.TOOL, "\n".join(logs) if logs else _NOT_KEPT, name=CODE),
            ]
        case _:
            return False
    return True


def _late_output(item: Fields, said: _Input, outputs: Mapping[str, deque[str]], previous: Kept) -> None:
    """Add the result of a call in the previous, stored response. A result whose call is in the input was added with its call."""
    call_id = item.text("call_id")
    if call_id in said.recipients:
        return
    if call_id not in previous.calls:
        raise item.wrong("call_id", "names a call that is neither in the input nor in the previous response")
    said.messages.append(Message(Role.TOOL, outputs[call_id].popleft(), name=f"{FUNCTIONS}{previous.calls[call_id]}"))


def _mark_preambles(messages: list[Message]) -> None:
    """Move text before a call of the same turn to the commentary channel: it is a preamble and not an answer."""
    calling = False
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role is not Role.ASSISTANT:
            calling = False
        elif message.is_call:
            calling = True
        elif calling and message.channel is Channel.FINAL:
            messages[index] = Message(Role.ASSISTANT, message.text, Channel.COMMENTARY)


def _choice(body: Fields, tools: tuple[ToolSpec, ...], wanted: Wanted) -> tuple[Choice, tuple[ToolSpec, ...], Wanted]:
    value = body.raw("tool_choice")
    if value is None or isinstance(value, str):
        choice = Choice(body.choice("tool_choice", ("auto", "none", "required"), "auto"))
        wanted = wanted if choice.mode != "none" else Wanted()
        return check_choice(choice, tools, body, wanted.names), tools, wanted
    named = Fields(value, "tool_choice")
    built_in = tool_name(named.text("type"))
    if built_in is not None:
        return check_choice(Choice("required", built_in, built_in=True), tools, body, wanted.names), tools, wanted
    if named.choice("type", ("function", "allowed_tools")) == "function":
        return check_choice(Choice("required", named.text("name")), tools, body), tools, wanted
    entries = list(named.objects("tools"))
    kinds = {tool_name(entry.text("type", "function")) for entry in entries}
    wanted = replace(wanted, web=wanted.web and WEB in kinds, code=wanted.code and CODE in kinds)
    allowed = {entry.text("name", "") for entry in entries}
    tools = tuple(tool for tool in tools if tool.name in allowed)
    choice = Choice(named.choice("mode", ("auto", "required"), "auto"))
    return check_choice(choice, tools, body, wanted.names), tools, wanted
