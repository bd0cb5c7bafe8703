"""Tools on the chat and responses wires: functions whose names have no dot and whose arguments are JSON objects. Pure.

Harmony's names may be dotted (``container.exec``) and its bodies may be plain text; servers accept neither. This module converts in
both directions, and keeps the replayed history valid: one malformed call in it makes many servers refuse every later request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.broken_json import meant
from agent.conversation import ToolSpec

_NAMESPACE = "functions."
_FREEFORM = "input"
_FREEFORM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {_FREEFORM: {"type": "string", "description": "The whole input, as plain text."}},
    "required": [_FREEFORM],
}
_MOST_NAME_CHARS = 64
_MOST_REPAIRED_CHARS = 1 << 15  # every request repeats all calls, and repairing takes 10 µs per character
# Descriptions for tools that are declared without one, in place of the trained texts, which only raw wires can show.
_BUILT_IN: Mapping[str, str] = {
    "python": "Executes Python in a stateful notebook for 120 s at most; files can be kept in /mnt/data.",
    "browser": "Searches and opens web pages.",
}


class Functions:
    """The declared tools, with names that servers accept."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._by_wire: dict[str, ToolSpec] = {}
        for tool in tools:
            name = safe_name(tool.name.removeprefix(_NAMESPACE))
            while name in self._by_wire:
                name = f"{name[: _MOST_NAME_CHARS - 1]}_"
            self._by_wire[name] = tool
        self._to_wire = {tool.name: name for name, tool in self._by_wire.items()}

    def declarations(self) -> list[dict[str, Any]]:
        """Return name, description and parameters of every tool, in the order of declaration."""
        return [
            {
                "name": name,
                "description": tool.description or _BUILT_IN.get(tool.name, ""),
                "parameters": dict(_FREEFORM_SCHEMA if tool.parameters is None else tool.parameters),
            }
            for name, tool in self._by_wire.items()
        ]

    def recipients(self) -> frozenset[str]:
        """Return the recipients as the model sees them: the server declares all tools as functions."""
        return frozenset(f"{_NAMESPACE}{name}" for name in self._by_wire)

    def recipient(self, name: str) -> str:
        """Return the recipient for a function name; an undeclared name stays as the model wrote it.

        Servers that fail to parse a header leave pieces of it in the name: everything from the first control token on is dropped.
        """
        clean = name.split("<|", 1)[0].strip() or name
        tool = self._by_wire.get(clean.removeprefix(_NAMESPACE))
        if tool is None:
            return clean
        return tool.name if "." in tool.name else _NAMESPACE + tool.name

    def name(self, recipient: str) -> str:
        """Return a function name for a recipient that servers accept."""
        bare = recipient.removeprefix(_NAMESPACE)
        return self._to_wire.get(recipient) or self._to_wire.get(bare) or safe_name(bare)

    def body(self, recipient: str, arguments: str) -> str:
        """Return a call's body: the plain text for a freeform tool, else the arguments as they are."""
        if not self._is_freeform(recipient):
            return arguments
        found = _object(arguments)
        text = found.get(_FREEFORM) if found is not None and len(found) == 1 else None
        return text if isinstance(text, str) else arguments

    def arguments(self, recipient: str, body: str) -> str:
        """Return a call's body as arguments to replay: always a JSON object, whatever the model wrote."""
        if self._is_freeform(recipient):
            return json.dumps({_FREEFORM: body}, ensure_ascii=False)
        if _object(body) is not None:
            return body
        repaired = _repaired(body) if len(body) <= _MOST_REPAIRED_CHARS else None
        return json.dumps({_FREEFORM: body} if repaired is None else repaired, ensure_ascii=False)

    def _is_freeform(self, recipient: str) -> bool:
        tool = self._by_wire.get(self.name(recipient))
        return tool is not None and tool.parameters is None


def safe_name(name: str) -> str:
    """Return ``name`` with every character replaced that OpenAI's schema refuses (``[a-zA-Z0-9_-]{1,64}``)."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:_MOST_NAME_CHARS] or "unnamed"


def call_id(index: int) -> str:
    """Return the id of the call at ``index`` of a conversation: the same in every request, so that caches stay valid.

    Nine letters and digits, as the strictest servers require.
    """
    return f"call{index:05d}"


def whole(arguments: str) -> bool:
    """Whether arguments are a complete JSON object."""
    return _object(arguments) is not None


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _repaired(text: str) -> dict[str, Any] | None:
    """Repair a damaged JSON object; None if that would be guessing."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = meant(text)
    except RecursionError:
        return None
    return found if isinstance(found, dict) and found else None
