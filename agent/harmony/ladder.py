"""Decides what to do with a parsed answer: take it, continue it, or sample again. Pure. The rules are tried in order:

1. A call or a final answer is taken.
2. A stream that the server cut off is continued exactly where it was cut.
3. Reasoning or a preamble alone, or reasoning that we cut because it loops or is too long, is continued with a prefill:
   first on the commentary channel (for a call), then on the final one.
4. Anything else is sampled again.
5. When no tries are left, the answer is taken as it is; a call that was cut is taken as text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.conversation import Channel, Message
from agent.events import Repaired
from agent.harmony.parser import Parsed
from agent.harmony.repair import Kind, repaired
from agent.harmony.tokens import CALL, CHANNEL, ENDS, OPENING

COMMENTARY_IDS: Final = (12606, 815)  # `commentary` in text ids
FINAL_IDS: Final = (17196,)
ASK_FOR_A_CALL: Final = (*OPENING, CHANNEL, *COMMENTARY_IDS)
ASK_FOR_AN_ANSWER: Final = (*OPENING, CHANNEL, *FINAL_IDS)

GRAM: Final = 8  # a loop is detected by its 8-grams …
VARIETY: Final = 8  # … if fewer than one in 8 of them is new
LOOP_TOKENS: Final = 1024  # window for reasoning or an answer
CALL_LOOP_TOKENS: Final = 4096  # window for a call, which may legitimately contain a table of zeros


@dataclass(frozen=True, slots=True)
class Tries:
    """How often each rule may still be applied within one answer."""

    extend: int = 3
    unfinished: bool = True
    prefill: tuple[tuple[int, ...], ...] = (ASK_FOR_A_CALL, ASK_FOR_AN_ANSWER)
    resample: int = 3


@dataclass(frozen=True, slots=True)
class Take:
    """Take these messages as the answer."""

    messages: tuple[Message, ...]
    repairs: tuple[Repaired, ...] = ()


@dataclass(frozen=True, slots=True)
class Continue:
    """Keep these messages and continue from ``opening``."""

    messages: tuple[Message, ...]
    opening: tuple[int, ...]
    repairs: tuple[Repaired, ...]
    left: Tries


@dataclass(frozen=True, slots=True)
class Resample:
    """Discard the answer and sample again."""

    repair: Repaired
    left: Tries


def decide(parsed: Parsed, finish: str, cut: Kind | None, tries: Tries) -> Take | Continue | Resample:
    """Apply the rules. ``finish`` is stop, length (the server cut it) or cancelled; ``cut`` says why *we* cut it, if we did."""
    last = parsed.messages[-1] if parsed.messages else None
    thought = parsed.partial is not None and _is_thought(parsed.partial)
    if finish == "cancelled":
        return Take(parsed.messages)
    if last is not None and tries.unfinished and _ends_too_early(last):
        begun = last.tokens[:-1] if last.tokens[-1] in ENDS else last.tokens
        left = replace(tries, unfinished=False)
        return Continue(parsed.messages[:-1], begun, (repaired(Kind.EXTENDED, "a stray stop"),), left)
    if _acts(parsed):
        return Take(parsed.messages)
    if cut is None and tries.extend and _can_extend(parsed, finish):
        left = replace(tries, extend=tries.extend - 1)
        return Continue(parsed.messages, parsed.open or OPENING, (repaired(Kind.EXTENDED, finish),), left)
    if tries.prefill and (thought or (parsed.messages and parsed.partial is None)):
        opening, *rest = tries.prefill
        messages = (*parsed.messages, parsed.partial) if thought and parsed.partial else parsed.messages
        left = replace(tries, prefill=tuple(rest))
        return Continue(messages, opening, (repaired(Kind.PREFILLED),), left)
    if tries.resample:
        reason = cut.value if cut else "an answer was cut" if parsed.partial else "neither a call nor an answer"
        return Resample(repaired(Kind.RESAMPLED, reason), replace(tries, resample=tries.resample - 1))
    return take_all(parsed)


def take_all(parsed: Parsed) -> Take:
    """Take everything, including an unfinished message unless it follows a call or an answer.

    An incomplete call must not run: it is kept as text.
    """
    partial = parsed.partial
    if partial is None or _acts(parsed):
        return Take(parsed.messages)
    if partial.recipient is None:
        return Take((*parsed.messages, partial))
    text = replace(partial, recipient=None, content_type=None, channel=Channel.COMMENTARY)
    return Take((*parsed.messages, text), (repaired(Kind.CUT_CALL, partial.recipient),))


def is_looping(ids: Sequence[int], *, calling: bool) -> bool:
    """Whether the latest ids only repeat themselves. Takes about 0.1 µs per id of the window."""
    window = CALL_LOOP_TOKENS if calling else LOOP_TOKENS
    if len(ids) < window:
        return False
    tail = tuple(ids[-window:])
    grams = {tail[start : start + GRAM] for start in range(window - GRAM)}
    return len(grams) <= window // VARIETY


def without_loop(ids: Sequence[int], *, calling: bool) -> Sequence[int]:
    """Return the ids before the repetition that ``is_looping`` found, and of the repetition only the part that can be new."""
    window = CALL_LOOP_TOKENS if calling else LOOP_TOKENS
    return ids[: len(ids) - window + window // VARIETY]


def _acts(parsed: Parsed) -> bool:
    return bool(parsed.messages) and (parsed.messages[-1].is_call or parsed.messages[-1].is_final)


def _is_thought(message: Message) -> bool:
    return message.channel is Channel.ANALYSIS and message.recipient is None


def _can_extend(parsed: Parsed, finish: str) -> bool:
    """Whether the answer can be continued: it was cut, or a stray stop token ended a header."""
    if finish == "length":
        return bool(parsed.open or parsed.messages)
    return parsed.partial is None and bool(parsed.open) and parsed.open != OPENING


def _ends_too_early(message: Message) -> bool:
    """Whether a message ended too early: its JSON is incomplete, or ``<|call|>`` ended a message that is not a call."""
    if message.tokens[-1] == CALL and message.recipient is None:
        return True
    if message.recipient is None:
        return False
    if not message.text.strip():
        return message.content_type is not None
    if message.content_type != "json" and not message.text.lstrip().startswith("{"):
        return False
    try:
        json.loads(message.text, strict=False)
    except json.JSONDecodeError as error:
        return error.pos >= len(message.text.rstrip()) or error.msg.startswith("Unterminated string")
    return False
