"""Repairs a model's broken JSON, if its intended value is certain. Pure."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Final

MOST_CHARS: Final = 1 << 18  # repairing takes 10 µs per character
MOST_LEVELS: Final = 64  # a looping model writes thousands, and repairing takes time quadratic in them
_ESCAPES = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\[nrtbf"/\\]')
# Arguments with one free text: {"command": ["bash", "-lc", TEXT], …} or {"command": TEXT, …}. Only a few arguments may
# follow it, because every quote is tried as the end of the text, and each try must be fast.
_ONE_TEXT = re.compile(
    r'\{(?P<before>\s*"\w+"\s*:\s*(?P<list>\[\s*"(?:/bin/)?(?:ba)?sh"\s*,\s*"-l?c"\s*,\s*)?)"(?P<text>.*)"'
    r'(?P<after>\s*(?(list)\]\s*)(?:,\s*"\w+"\s*:\s*(?:\d+|"[^"\n]*")\s*){0,8})\}',
    re.DOTALL,
)
_END_OF_TEXT = re.compile(r'"\s*[\]}]')
# The end of a text or list and the next argument's name; either the comma or the colon may be missing.
_NEXT_ARGUMENT = re.compile(r'"\s*(?:\]\s*)?(?:,\s*)*"\w+"\s*:|"\s*,\s*"\w+"\s+["\d\[{]')
_BARE = re.compile(r'(\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})|["\\]')  # an escape, or what should have been one
_SPARE_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)  # or a string, whose commas are kept
# Inside a string, something that usually separates two strings: `", "`, or `" "name":` with a missing comma.
_TWO_TEXTS = re.compile(r"""(["'])\s*(?:,\s*\1|\1\w+\1\s*:)""")


def meant(text: str) -> object:
    """Return the value that broken JSON was meant to be; None if that is uncertain. May raise RecursionError."""
    plain = text.strip()
    decoder = json.JSONDecoder(strict=False)  # allows line breaks inside strings
    try:
        value, end = decoder.raw_decode(plain)
    except ValueError:
        return _repaired(plain)
    rest = plain[end:].strip()
    if rest == plain[:end] or (not rest.strip("]})\"'`,;. \n\t") and not _END_OF_TEXT.search(rest)):
        return value  # followed only by spare brackets and quotes, or by the same value again
    return None  # two calls in one, or a string with unescaped quotes, or something else


def _repaired(plain: str) -> object:
    """Repair broken JSON, unless it was cut off (an incomplete command must not run) or repairing would be a guess.

    Words, commas, colons and quotes must be preserved: if a string's own quotes are not escaped, a guess could mistake its commas
    for those of the JSON, and run only the part of a command before one of them.
    """
    if len(plain) > MOST_CHARS:
        return None
    if (value := _with_bare_quotes(plain)) is not None:
        return value
    if _cut_off(plain):
        return None
    for closing in ("", "}", "}}"):  # if nothing else is wrong, the text is parsed as it is
        with suppress(ValueError):
            return json.loads(_SPARE_COMMA.sub(r"\1", plain) + closing, strict=False)
    from json_repair import repair_json  # rarely needed, and takes a millisecond to import

    # Without stream_stable, it would strip line breaks at the end of a string.
    try:
        value = repair_json(plain, return_objects=True, stream_stable=True)
    except ValueError:  # it cannot repair this
        return None
    if not isinstance(value, dict if plain.lstrip().startswith("{") else (list, str)):
        return None  # `{"command"` is the beginning of an object, not a list of one word
    if _runs_on(value):
        return None
    repaired = json.dumps(value, ensure_ascii=False)
    return value if _words(repaired) == _words(plain) and repaired.count('"') >= plain.count('"') else None


def _with_bare_quotes(plain: str) -> object:
    """Return arguments whose long text has unescaped quotes; the text extends to the last quote that can end it."""
    match = _ONE_TEXT.fullmatch(plain.strip())
    if match is None or match["before"].strip() in match["text"]:  # two calls
        return None
    if match["list"] is None and (_NEXT_ARGUMENT.search(match["text"]) or _cut_off(plain)):
        return None
    text = _BARE.sub(lambda found: found[1] or f"\\{found[0]}", match["text"])
    whole = f'{{{match["before"]}"{text}"{match["after"]}}}'
    try:
        return json.loads(whole, strict=False)
    except ValueError:
        return None


def _runs_on(value: object) -> bool:
    """Whether one of the strings may have swallowed the one after it."""
    match value:
        case str():
            return _TWO_TEXTS.search(value) is not None
        case list():
            return any(_runs_on(inner) for inner in value)
        case dict():
            return any(_runs_on(inner) or '"' in name for name, inner in value.items())
    return False


def _cut_off(plain: str) -> bool:
    """Whether the text ends inside a string, a list or a number, or before a value; or is nested deeper than any real arguments."""
    inside, escaped, depth = False, False, list[str]()
    before, is_key = (
        "",
        False,
    )  # the last character outside of strings; whether the latest string is at the position of a key
    for letter in plain:
        if escaped:
            escaped = False
        elif inside:
            escaped = letter == "\\"
            inside = letter != '"'
        elif letter == '"':
            inside, is_key = True, depth[-1:] == ["{"] and before in {"{", ","}
        elif letter in "[{":
            depth.append(letter)
            if len(depth) > MOST_LEVELS:
                return True
        elif letter in "]}" and depth:
            depth.pop()
        if not inside and letter != '"' and not letter.isspace():
            before = letter
    end = plain.rstrip()[-1:]
    is_word = end.isalnum() and bool(depth)  # a number may be incomplete
    return inside or is_word or (end not in "}]" and "[" in depth) or end in {":", ","} or (end == '"' and is_key)


def _words(text: str) -> str:
    """Return what a repair must preserve of JSON: everything but space, quotes, brackets, commas before one, and escapes."""
    plain = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), _SPARE_COMMA.sub(r"\1", text))
    return "".join(letter for letter in plain if not letter.isspace() and letter not in "\"'[]{}")
