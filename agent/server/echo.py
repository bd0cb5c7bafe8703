"""The settings of a request that its response repeats, with defaults filled in, in the form of OpenAI's schema. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.server.ask import Ask
from agent.server.builtin import CODE_TYPE, Wanted, tool_name
from agent.server.fields import Fields

MOST_METADATA = 16
_SUMMARIES = ("auto", "concise", "detailed")
_LEVELS = ("low", "medium", "high")


def echo(body: Fields, ask: Ask, wanted: Wanted, *, keep: bool) -> dict[str, Any]:
    """Return the repeated settings. Raises BadRequest for values that a response cannot repeat."""
    reasoning = body.object("reasoning")
    summary = reasoning.choice("summary", _SUMMARIES) if reasoning is not None and "summary" in reasoning else None
    return {
        "background": False,
        "instructions": body.raw("instructions"),
        "max_output_tokens": ask.params.max_tokens,
        "max_tool_calls": wanted.most_calls,
        "metadata": _metadata(body),
        "parallel_tool_calls": ask.parallel,
        "previous_response_id": body.raw("previous_response_id"),
        "reasoning": {"effort": ask.conversation.effort, "summary": summary},
        "service_tier": "default",
        "store": keep,
        "temperature": ask.params.temperature,
        "text": _text(body.object("text")),
        "tool_choice": _choice(body),
        "tools": [told for tool in body.objects("tools") if (told := _tool(tool, wanted))],
        "top_p": ask.params.top_p,
        "truncation": "disabled",
        "user": body.text("user") if "user" in body else None,
    }


def _metadata(body: Fields) -> Mapping[str, str]:
    values = body.raw("metadata") or {}
    whole = isinstance(values, Mapping) and len(values) <= MOST_METADATA
    if not whole or not all(isinstance(value, str) for value in values.values()):
        raise body.wrong("metadata", f"must be an object of up to {MOST_METADATA} strings")
    return dict(values)


def _choice(body: Fields) -> Any:  # noqa: ANN401 - a word or an object
    value = body.raw("tool_choice")
    if value is None or isinstance(value, str):
        return value or "auto"
    named = Fields(value, "tool_choice")
    match named.text("type"):
        case "allowed_tools":
            tools = [dict(entry) for entry in named.list("tools")]
            return {"type": "allowed_tools", "mode": named.text("mode", "auto"), "tools": tools}
        case "function":
            return {"type": "function", "name": named.text("name")}
        case kind:
            return {
                "type": CODE_TYPE if kind == CODE_TYPE else "web_search_preview"
            }  # the name that the schema has for it


def _text(text: Fields | None) -> dict[str, Any]:
    told: dict[str, Any] = {"format": {"type": "text"}}
    inner = text.object("format") if text is not None else None
    if inner is not None:
        told["format"] = {"type": inner.text("type", "text"), **_only(inner, "name", "description", "schema")}
        if "strict" in inner:
            told["format"]["strict"] = inner.flag("strict")
        if told["format"]["type"] == "json_schema":
            told["format"].setdefault("name", "answer")
    if text is not None and "verbosity" in text:
        told["verbosity"] = text.choice("verbosity", _LEVELS)
    return told


def _tool(tool: Fields, wanted: Wanted) -> dict[str, Any] | None:
    """Return a tool that the model is given, or None for one that was left out, so that the client can see which."""
    kind = tool.text("type")
    if kind == "function":
        strict = tool.flag("strict") if "strict" in tool else None
        told = {"type": kind, **_only(tool, "name", "description")}
        return {**told, "parameters": tool.raw("parameters"), "strict": strict}
    match tool_name(kind):
        case "browser" if wanted.web:
            told = {"type": kind, **_only(tool, "search_context_size")}
            if "user_location" in tool:
                location = tool.object("user_location")
                assert location is not None
                place = _only(location, "city", "country", "region", "timezone")
                told["user_location"] = {"type": "approximate", **place}
            return told | ({"filters": {"allowed_domains": list(wanted.domains)}} if wanted.domains else {})
        case "python" if wanted.code:
            container = tool.raw("container")
            if isinstance(container, str):
                return {"type": kind, "container": container}
            inner = tool.object("container")
            return {"type": kind, "container": {"type": "auto", **(_only(inner, "memory_limit") if inner else {})}}
    return None


def _only(fields: Fields, *names: str) -> dict[str, Any]:
    return {name: fields.raw(name) for name in names if name in fields}
