"""JSON schemas that callers give: looked at before they are used, never followed out of themselves, and given little time.

A reference is only ever resolved inside its schema. jsonschema's own default would fetch it, from this machine's network or disk.
A pattern is searched for with the regex package: Python's own matcher cannot be interrupted, and holds up all threads meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

    Check = Callable[[Validator, Any, Any, Any], Iterator[ValidationError] | None]

MOST_CHARS = 1 << 17
MOST_VALUES = 3000  # looking at a schema takes up to 0.6 ms for each, in the loop's thread
PATIENCE_S = 5.0
MOST_LEVELS = 100  # openai-harmony's reader of JSON ends at 128, some of which stand around a function's parameters
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


def wrong_with(schema: Mapping[str, Any]) -> str:
    """Return what makes a schema one that nothing can be held to; empty where it is as it should be."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema.get("$schema", ""), str):
        return "has a $schema that is not a string"
    try:
        if len(json.dumps(schema)) > MOST_CHARS:
            return f"is longer than {MOST_CHARS} characters"
        if sum(1 for _ in _values(schema)) > MOST_VALUES:
            return f"has more than {MOST_VALUES} values"
        if wrong := next(filter(None, (_wrong_keyword(*keyword) for keyword in _keywords(schema))), ""):
            return wrong
        if any(
            key == "$schema" and isinstance(value, str) for part in schema.values() for key, value in _keywords(part)
        ):
            return "has a part with a $schema of its own"
        _draft(schema).check_schema(dict(schema))
    except SchemaError as error:
        return f"is not a JSON schema (at {error.json_path})"
    except RecursionError:
        return "is nested too deeply"
    return ""


def is_deep(value: object, most: int = MOST_LEVELS) -> bool:
    """Whether JSON is nested beyond ``most`` levels."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return most < 0 or any(is_deep(part, most - 1) for part in inner)


def mismatch(text: str, schema: Mapping[str, Any] | None, patience_s: float = PATIENCE_S) -> str:
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
        validator = _timed(_draft(schema), time.monotonic() + patience_s)(schema, registry=Registry())
        fault = next(iter(validator.iter_errors(value)), None)
    except Unresolvable:
        return "its answer cannot be held to the schema, which has a $ref to something that it does not define"
    except RecursionError:
        return "its answer cannot be held to the schema, which refers to itself without an end"
    except TimeoutError:
        return f"its answer cannot be held to the schema within {patience_s:g} seconds"
    return "" if fault is None else f"its answer does not fit the schema (at {fault.json_path})"


def _draft(schema: Mapping[str, Any]) -> type[Validator]:
    """Return the validator of the draft that a schema names, or of the newest."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)


def _timed(draft: type[Validator], ends_s: float) -> type[Validator]:
    """Return the same validator, which raises TimeoutError at the first keyword, or in a pattern, once its time is over."""
    import regex
    from jsonschema import ValidationError
    from jsonschema.validators import extend

    def timed(check: Check) -> Check:
        def in_time(validator: Validator, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
            if time.monotonic() > ends_s:
                raise TimeoutError
            yield from check(validator, wanted, value, schema) or ()

        return in_time

    def pattern(validator: Validator, wanted: str, value: object, schema: object) -> Iterator[ValidationError]:
        del validator, schema
        left_s = max(ends_s - time.monotonic(), 0.001)
        if isinstance(value, str) and regex.search(wanted, value, timeout=left_s, concurrent=True) is None:
            yield ValidationError("does not match the pattern")

    checks: Mapping[str, Check] = {**draft.VALIDATORS, "pattern": pattern}
    extended: type[Validator] = extend(draft, {name: timed(check) for name, check in checks.items()})  # type: ignore[no-untyped-call]
    return extended


def _wrong_keyword(key: str, value: object) -> str:
    import regex

    if key in _REFERENCES and not isinstance(value, Mapping) and not (isinstance(value, str) and value.startswith("#")):
        return "has a $ref that leads out of it: only references within the schema (#…) are followed"
    if key == "patternProperties":
        return "has patternProperties, to which this server holds no answer"
    if key == "pattern" and isinstance(value, str):
        try:
            regex.compile(value)
        except regex.error:
            return "has a pattern that is not a regular expression"
    return ""


def _values(value: object) -> Iterator[object]:
    """Give a JSON value and all that is in it."""
    yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _values(inner)


def _keywords(value: object) -> Iterator[tuple[str, object]]:
    """Give all keywords and their values, also what only looks like one (in an example, say): better too many."""
    for part in _values(value):
        if isinstance(part, Mapping):
            yield from part.items()
