"""The rules for configuration values, and the checks of values against them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from agent.errors import ConfigError

GIB = 1 << 30
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": GIB}  # single letters have the same meaning as in Docker
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, **_BINARY, **{f"{u}ib": n for u, n in _BINARY.items()}}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be, and its description (printed by --help and in docs/configuration.md)."""

    kind: Literal["text", "url", "integer", "number", "size", "flag", "choice", "path", "list"]
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False  # None is allowed
    personal: bool = False  # refused in a repository's agent.toml
    secret: bool = False  # never printed or logged


def checked(rule: Rule, key: str, value: object, place: str) -> object:
    """Return the value as a configuration stores it. Raises ConfigError, which names the key and the place."""

    def wrong(what: str) -> ConfigError:
        shown = "" if rule.secret else f" is {value!r}, but"
        return ConfigError(f"{place}: {key!r}{shown} must be {what}.")

    match rule.kind:
        case "integer" | "size":
            number = _bytes(value) if rule.kind == "size" else value
            if not isinstance(number, int) or isinstance(number, bool):
                raise wrong("a size such as 4GiB or a number of bytes" if rule.kind == "size" else "a whole number")
            return _within(rule, number, wrong)
        case "number":
            if not isinstance(value, int | float) or isinstance(value, bool) or value != value:  # NaN
                raise wrong("a number")
            return float(_within(rule, value, wrong))
        case "flag":
            if not isinstance(value, bool):
                raise wrong("true or false")
            return value
        case "choice":
            if value not in rule.choices:
                raise wrong("one of " + ", ".join(rule.choices))
            return value
        case "list":
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item.strip() for item in value):
                raise wrong("a list of commands")
            return tuple(value)
        case "path":
            if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
                raise wrong("a path")
            try:
                return Path(value).expanduser().absolute()
            except RuntimeError:
                raise wrong("a path that does not begin with the home of an unknown user") from None
        case "url":
            return _endpoint(value, wrong)
        case "text":
            if not isinstance(value, str) or not value.strip() or not value.strip().isprintable():
                raise wrong("a single line of text")
            if rule.secret and not value.strip().isascii():
                raise wrong("plain ASCII, because it is sent in a header")
            return value.strip()


def from_text(rule: Rule, key: str, text: str, place: str) -> object:
    """Return the value of a variable, typed as in TOML. Raises ConfigError, which names the key and the place."""
    match rule.kind:
        case "integer":
            return _number(int, key, text, place)
        case "number":
            return _number(float, key, text, place)
        case "flag":
            known = {
                "1": True,
                "true": True,
                "yes": True,
                "on": True,
                "0": False,
                "false": False,
                "no": False,
                "off": False,
            }
            if text.lower() not in known:
                raise ConfigError(f"{place}: {key!r} is {text!r}, but must be true or false.")
            return known[text.lower()]
        case "list":
            return [line for line in text.splitlines() if line.strip()]
        case _:
            return text


def _number(kind: type[int] | type[float], key: str, text: str, place: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{place}: {key!r} is {text!r}, but must be a number.") from None


def _within(rule: Rule, number: int | float, wrong: Callable[[str], ConfigError]) -> int | float:
    low, high = rule.low, rule.high
    if number == float("inf") and high is None:
        raise wrong("a finite number")
    if (low is not None and number < low) or (high is not None and number > high):
        raise wrong(f"at least {_shown(rule, low)}" if high is None else f"from {low} to {high}")
    return number


def _shown(rule: Rule, bound: float | None) -> str:
    return f"{int(bound) >> 20} MiB" if rule.kind == "size" and bound and bound >= 1 << 20 else f"{bound}"


def _bytes(value: object) -> object:
    """Return ``"4GiB"`` as a number of bytes; anything that is not a size is returned unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    digits = text.rstrip("kmgib")
    unit = text[len(digits) :]
    try:
        return round(float(digits) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        return value


def _endpoint(value: object, wrong: Callable[[str], ConfigError]) -> str:
    example = "a URL such as http://127.0.0.1:8000/v1"
    if not isinstance(value, str):
        raise wrong(example)
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise wrong(example) from None
    if parts.username or parts.password:
        # It would end up in logs and on the screen.
        raise ConfigError("The endpoint's URL contains a name or password. Give the key as OPENAI_API_KEY instead.")
    if not usable:
        raise wrong(example)
    return value.strip().rstrip("/")
