"""Reads a request's JSON: every value is checked, and errors name the path of the field. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agent.server.faults import BadRequest


class Fields:
    """A JSON object of a request. ``null`` counts as absent, as it does in OpenAI's API.

    Every reader raises BadRequest, which names the field as a path.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise BadRequest(f"{path or 'The request'} must be a JSON object.", path or None)
        self._values: Mapping[str, Any] = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def path(self, name: str) -> str:
        """Return the path of one of this object's fields."""
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> Any:  # noqa: ANN401 - JSON is anything
        """Return a value unchecked; None if it is missing."""
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string; without a default it is required."""
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        return value

    def choice(self, name: str, choices: Iterable[str], default: str | None = None) -> str:
        """Return one of a few strings."""
        known = tuple(choices)
        value = self.text(name, default)
        if value not in known:
            raise self.wrong(name, f"must be one of {', '.join(known)}")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number within its bounds."""
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int = 2**63 - 1) -> int | None:
        """Return an integer within its bounds, or None."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"must be an integer from {low} to {high}")
        return value

    def list(self, name: str) -> list[Any]:
        """Return an array, an empty one if it is missing."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "must be an array")
        return value

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield an array's objects."""
        for index, value in enumerate(self.list(name)):
            yield Fields(value, f"{self.path(name)}[{index}]")

    def object(self, name: str) -> Fields | None:
        """Return an inner object, or None."""
        return Fields(self.raw(name), self.path(name)) if name in self else None

    def wrong(self, name: str, why: str) -> BadRequest:
        """Return the error for a field."""
        return BadRequest(f"{self.path(name)} {why}.", self.path(name))

    def refuse(self, unsupported: Mapping[str, tuple[Any, ...]], who: str = "this server") -> None:
        """Refuse unsupported fields, unless their value has no effect. Nothing is ignored silently."""
        for name, harmless in unsupported.items():
            if name in self and not any(type(self.raw(name)) is type(v) and self.raw(name) == v for v in harmless):
                path = self.path(name)
                raise BadRequest(f"{path} is not supported by {who}.", path, "unsupported_parameter")

    def content(self, name: str, kinds: frozenset[str]) -> str:
        """Return a message's text: a string, or an array of parts, which must be text."""
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value or ""
        texts = []
        for part in self.objects(name):
            kind = part.text("type", "")
            if kind not in kinds:
                raise part.wrong("type", f"must be one of {', '.join(sorted(kinds))}: this model reads text only")
            texts.append(part.text("refusal" if kind == "refusal" else "text", ""))
        return "".join(texts)
