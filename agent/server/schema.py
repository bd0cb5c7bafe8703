"""JSON schemas from callers: checked before use, self-contained, and with a time limit for validation.

References are resolved only inside the schema. jsonschema's own default would fetch them, from this machine's network or disk.
Patterns are matched with the regex package, because Python's re cannot be interrupted and blocks all threads meanwhile.
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
MOST_VALUES = 3000  # checking a schema takes up to 0.6 ms per value, in the event loop's thread
PATIENCE_S = 5.0
MOST_LEVELS = 100  # openai-harmony's JSON parser supports 128 levels, some of which enclose a function's parameters
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


def wrong_with(schema: Mapping[str, Any]) -> str:
    """Return why a schema cannot be used, "" if it can."""
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
    """Whether JSON is nested more than ``most`` levels deep."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return most < 0 or any(is_deep(part, most - 1) for part in inner)


def mismatch(text: str, schema: Mapping[str, Any] | None, patience_s: float = PATIENCE_S) -> str:
    """Return why a text is not JSON that matches the schema, "" if it is. Without a schema, any JSON object matches."""
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
        return "its answer cannot be checked against the schema, which has a $ref to something that it does not define"
    except RecursionError:
        return "its answer cannot be checked against the schema, which refers to itself endlessly"
    except TimeoutError:
        return f"its answer cannot be checked against the schema within {patience_s:g} seconds"
    return "" if fault is None else f"its answer does not match the schema (at {fault.json_path})"


def _draft(schema: Mapping[str, Any]) -> type[Validator]:
    """Return the validator for the draft that a schema names, or for the newest draft."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)


def _timed(draft: type[Validator], ends_s: float) -> type[Validator]:
    """Return the same validator with a deadline: it raises TimeoutError at the next keyword, or inside a pattern."""
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
        return "has a $ref to the outside: only references within the schema (#…) are supported"
    if key == "patternProperties":
        return "has patternProperties, which this server does not support"
    if key == "pattern" and isinstance(value, str):
        try:
            regex.compile(value)
        except regex.error:
            return "has a pattern that is not a regular expression"
    return ""


def _values(value: object) -> Iterator[object]:
    """Yield a JSON value and all values inside it."""
    yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _values(inner)


def _keywords(value: object) -> Iterator[tuple[str, object]]:
    """Yield all keywords and their values; also what only looks like a keyword (in an example, say), to be safe."""
    for part in _values(value):
        if isinstance(part, Mapping):
            yield from part.items()
