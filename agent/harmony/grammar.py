"""Builds the grammar of what a model may write after ``<|start|>``, from its tools. Pure: text in llguidance's Lark dialect.

::

    <|start|>assistant<|channel|>analysis|commentary<|message|>                  then free text
                      <|channel|>final[ <|constrain|>json]<|message|>            then free text
                      <|channel|>analysis|commentary to=NAME[ TYPE]<|message|>   then the body that the tool takes, <|call|>
                       to=NAME<|channel|>analysis|commentary[ TYPE]<|message|>   likewise

Arguments may come in any order, each at most once, and only declared ones. A tool without parameters takes any text.
(Lark: github.com/guidance-ai/llguidance, docs/syntax.md and docs/parametric.md.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Final

from agent.conversation import ToolSpec
from agent.harmony.codec import recipients
from agent.patch.grammar import PATCH

WHITESPACE: Final = r"[ \n\t]{1,20}"  # bounded, so that a model cannot write whitespace forever
MOST_ARGUMENTS: Final = 64  # the number of bits of a rule's parameter
# Schema keywords of an object that this module handles. Objects with others are left to llguidance, in the declared order.
_PLAIN: Final = frozenset(
    {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", "strict"}
)
_COMMON: Final = rf"""
channel: "analysis" | "commentary"
constrained: " "? <|constrain|> "json"
json: (" json" | " code" | constrained)?
code: " code"?
ws: WS?
WS: /{WHITESPACE}/
PATCH: /{PATCH}/
"""
_FRAME: Final = """\
%llguidance {}
start: "assistant" <|channel|> behind
behind: channel <|message|> | "final" constrained? <|message|>
"""
_FRAME_WITH_CALLS: Final = """\
%llguidance {}
start: "assistant" (<|channel|> behind | " to=" before)
behind: channel (<|message|> | " to=" call) | "final" constrained? <|message|>
"""


def grammar(tools: Sequence[ToolSpec]) -> str:
    """Return the grammar of one message after ``<|start|>``: up to its ``<|message|>``, or its ``<|call|>`` if it is a call."""
    if not tools:
        return _FRAME + _COMMON
    names = {f"t{index}": json.dumps(*recipients((tool,))) for index, tool in enumerate(tools)}
    call = " | ".join(f"{name} {rule}" for rule, name in names.items())
    before = " | ".join(f"{name} <|channel|> channel {rule}" for rule, name in names.items())
    rules = [rule for index, tool in enumerate(tools) for rule in _tool(f"t{index}", tool)]
    return "\n".join([_FRAME_WITH_CALLS + _COMMON + f"call: {call}", f"before: {before}", *rules, ""])


def _tool(rule: str, tool: ToolSpec) -> list[str]:
    """Return the rules for what follows a tool's name."""
    is_patch = tool.name.rpartition(".")[2] == "apply_patch"
    if tool.parameters is None:
        body = "PATCH <|call|>" if is_patch else ""  # free text is unconstrained: the grammar ends before it
        return [f"{rule}: code <|message|> {body}"]
    body, rules = _arguments(rule, tool.parameters, is_patch=is_patch)
    bare = " | PATCH" if is_patch else ""  # as for a freeform tool
    return [f"{rule}: json <|message|> ({body}{bare}) <|call|>", *rules]


def _arguments(rule: str, schema: Mapping[str, Any], *, is_patch: bool) -> tuple[str, list[str]]:
    """Return the symbol of a tool's arguments, and its rules."""
    properties, demanded = schema.get("properties") or {}, schema.get("required") or []
    is_plain = (
        schema.get("type") == "object"
        and isinstance(properties, Mapping)
        and isinstance(demanded, list | tuple)
        and all(isinstance(name, str) and name in properties for name in demanded)
        and not set(schema) - _PLAIN
        and not schema.get("additionalProperties")
        and len(properties) <= MOST_ARGUMENTS
    )
    if not is_plain:
        return f"{rule}v", [f"{rule}v: {_value(schema)}"]
    if not properties:
        return f"{rule}o", [f'{rule}o: "{{" ws "}}"']
    required = [name for name in properties if name in demanded]
    # The rule's parameter has a bit for each argument that was already given.
    end = '"}"' + _if_all([f"bit_set({at})" for at, name in enumerate(properties) if name in required])
    pairs = [f"{rule}p{at} {rule}m::set_bit({at}) %if bit_clear({at})" for at in range(len(properties))]
    rules = [
        f'{rule}o: "{{" ws {rule}f::0',
        f"{rule}f::_: " + " | ".join([*pairs, end]),
        f"{rule}m::_: " + " | ".join([*(f'"," ws {pair}' for pair in pairs), end]),
    ]
    for at, (name, value) in enumerate(properties.items()):
        shape = value
        if is_patch and isinstance(value, Mapping) and value.get("type") == "string":
            shape = {"type": "string", "pattern": f"^{PATCH}$"}
        key = json.dumps(json.dumps(name, ensure_ascii=False))
        rules.append(f'{rule}p{at}: {key} ws ":" ws {_value(shape)} ws')
    return f"{rule}o", rules


def _if_all(conditions: Sequence[str]) -> str:
    return " %if " + reduce(lambda all_, more: f"and({all_}, {more})", conditions) if conditions else ""


def _value(schema: object) -> str:
    """Return a rule for JSON that matches a schema. Keywords that llguidance does not support are not enforced."""
    options = {"whitespace_pattern": WHITESPACE, "lenient": True, "json_allow_general_unicode_escapes": True}
    shape = dict(schema) if isinstance(schema, Mapping) else {}  # `true`: any value
    return "%json " + json.dumps({**shape, "x-guidance": options})
