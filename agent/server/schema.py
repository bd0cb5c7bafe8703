"""JSON schemas that callers give: looked at before they are used, and never followed out of themselves.

A reference is only ever resolved inside its schema. jsonschema's own default would fetch it, from this machine's network or disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def wrong_with(schema: Mapping[str, Any]) -> str:
    """Return what makes a schema one that nothing can be held to; empty where it is as it should be."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema.get("$schema", ""), str):
        return "has a $schema that is no text"
    try:
        outside = [ref for ref in _references(schema) if not (isinstance(ref, str) and ref.startswith("#"))]
        if outside:
            return "has a $ref that leads out of it: only references within the schema (#…) are followed"
        _draft(schema).check_schema(dict(schema))
    except SchemaError as error:
        return f"is not a JSON schema (at {error.json_path})"
    except RecursionError:
        return "is nested too deeply"
    return ""


def mismatch(text: str, schema: Mapping[str, Any] | None) -> str:
    """Return how a text fails to be JSON that fits; empty where it fits. Without a schema any object does."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "its answer is not JSON"
    if schema is None:
        return "" if isinstance(value, dict) else "its answer is not a JSON object"
    try:
        validator = _draft(schema)(schema, registry=Registry())
        fault = next(iter(validator.iter_errors(value)), None)
    except Unresolvable:
        return "its answer cannot be held to the schema, which has a $ref to something that it does not define"
    except RecursionError:
        return "its answer cannot be held to the schema, which refers to itself without an end"
    return "" if fault is None else f"its answer does not fit the schema (at {fault.json_path})"


def _draft(schema: Mapping[str, Any]) -> type[Validator]:
    """Return the validator of the draft that a schema names, or of the newest."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)


def _references(value: object) -> Iterator[object]:
    """Give the targets of all references, also of what only looks like one (an example, say): better too many."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _REFERENCES and not isinstance(inner, Mapping):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
