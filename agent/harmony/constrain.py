"""Constrains sampling to the grammar of headers and calls. (The grammar: agent/harmony/grammar.py.)

::

                START                        MESSAGE of a text
    BETWEEN ───────────────► HELD ──────────────────────────────► FREE
       ▲                      ▲ │ CALL                              │
       │                      │ ▼                                   │ START, CHANNEL where an end was left out
       │◄─────────────────────┼─┘         any token                 ▼
       │                      └──────────────────────────────────  AJAR
       └─────────────────────────── END, RETURN, … ─────────────────┘

In the state FREE no token is forbidden, and neither is the one after it: reasoning and answers are sampled as if there were no
guide, at the same cost. A guide is never a dead end: if the grammar allows no token, or a sampled token does not match it, the
guide lets go until the next message, and reports that.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from agent.conversation import ToolSpec
from agent.errors import ModelUnfit
from agent.harmony.grammar import grammar
from agent.harmony.tokens import (
    ASSISTANT,
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    ENDS,
    FIRST_CONTROL,
    MESSAGE,
    RETURN,
    START,
    VOCABULARY_SIZE,
)
from agent.harmony.vocabulary import FILE_NAME, unpack

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Encode = Callable[[str], list[int]]

_NAMES: Final = {
    ENDOFTEXT: "endoftext", RETURN: "return", CONSTRAIN: "constrain", CHANNEL: "channel", START: "start", END: "end",
    MESSAGE: "message", CALL: "call",
}  # fmt: skip
_MASK_BYTES: Final = VOCABULARY_SIZE // 8
_MOST_GRAMMARS: Final = 16  # cached; one for each set of tools
# Slices: sets of tokens that llguidance checks as a whole, because all or none of them match. One is text inside a JSON string, the
# other text at the beginning of a line of a patch (most tokens begin with a space). Without the latter, a mask there takes
# 1.5 ms, with it 0.2.
_STRING: Final = r'[^"\\\x00-\x1F\x7F]'
_SLICES: Final = [
    r"[\x20\x0A\x0D\x09]+", rf" {_STRING}+", rf"[+\-]{_STRING}*", rf"{_STRING}{{1,10}}", rf"{_STRING}{{1,30}}", rf"{_STRING}+",
]  # fmt: skip


class _Place(Enum):
    BETWEEN = auto()
    AJAR = auto()
    HELD = auto()
    FREE = auto()


class Guide:
    """Restricts the tokens of one answer; see ``Guide`` in agent/model/base.py. Not thread-safe."""

    def __init__(self, template: LLMatcher | None) -> None:
        self._template = template  # a matcher at the beginning of a message; None: no constraint
        self._matcher = template
        self._place = _Place.BETWEEN
        self._opened: tuple[int, ...] = ()  # the tokens before the one that AJAR waits for
        self._let_go: list[str] = []

    @property
    def let_go(self) -> Sequence[str]:
        """The reasons why the guide let go, one for each time."""
        return self._let_go

    def take(self, token: int) -> None:
        """Consume the next sampled token."""
        match self._place:
            case _Place.HELD:
                self._follow(token)
            case _Place.BETWEEN if token == START:
                self._hold((), START)
            case _Place.BETWEEN if token == CHANNEL:
                self._hold((ASSISTANT, CHANNEL), CHANNEL)
            case _Place.AJAR:
                self._hold((*self._opened, token), token)
            case _:
                self._opened = (ASSISTANT, CHANNEL) if token == CHANNEL else ()
                self._place = _behind(self._place, token)

    def is_free(self, coming: Sequence[int | None]) -> bool:
        """Whether any token is allowed next, and after each token of ``coming``; None stands for a token not known yet."""
        place = self._place
        for token in coming:
            if place is _Place.HELD:
                return False
            place = _behind(place, token)
        return place is not _Place.HELD

    def allowed(self, draft: Sequence[int]) -> Sequence[bytes | None]:
        """Return the tokens allowed next, and after each token of ``draft``: a bit for each token of the vocabulary; None: any."""
        if self.is_free(draft):
            return (None,) * (len(draft) + 1)
        rows = [self._row()]
        if not draft:
            return rows
        ahead = self._fork()
        for token in draft:
            before = rows[-1]
            if before is not None and not before[token // 8] >> token % 8 & 1:
                return rows + [None] * (len(draft) + 1 - len(rows))  # sampling will not get that far
            ahead.take(token)
            rows.append(ahead._row())
        return rows

    def _fork(self) -> Guide:
        fork = Guide(self._template)
        fork._matcher = None if self._matcher is None else self._matcher.deep_copy()
        fork._place, fork._opened = self._place, self._opened
        return fork

    def _hold(self, begun: Sequence[int], token: int) -> None:
        """Constrain the message that begins with ``begun``, whose last token is ``token``, if that matches the grammar so far."""
        if self._template is not None:
            self._matcher = self._template.deep_copy()
            if self._matcher.consume_tokens(list(begun)):
                self._settle(token)
                return
        self._release(token)

    def _follow(self, token: int) -> None:
        assert self._matcher is not None
        if self._matcher.consume_token(token):
            self._settle(token)
        else:
            self._let_go.append("a token that does not fit")
            self._release(token)

    def _settle(self, token: int) -> None:
        assert self._matcher is not None
        if not self._matcher.is_stopped():
            self._place = _Place.HELD
        else:
            self._place = _Place.FREE if token == MESSAGE else _Place.BETWEEN

    def _release(self, token: int) -> None:
        self._place = _Place.BETWEEN if token in ENDS else _Place.FREE

    def _row(self) -> bytes | None:
        if self._place is not _Place.HELD:
            return None
        assert self._matcher is not None
        row: bytes = self._matcher.compute_bitmask()[:_MASK_BYTES]
        if self._matcher.is_error() or row.count(0) == _MASK_BYTES:
            self._let_go.append(self._matcher.get_error().partition("\n")[0] or "no token fits")
            self._place = _Place.FREE
            return None
        return row


class Guides:
    """Creates guides for answers. Safe to use from several threads."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ready: dict[str, LLMatcher | None] = {}
        self._lock = Lock()

    def guide(self, tools: Sequence[ToolSpec], opening: Sequence[int]) -> Guide:
        """Return a guide for an answer of a model with the declared ``tools``; it applies after ``opening``.

        A new set of tools takes 5 ms. If llguidance does not support a tool's parameter schema, any JSON object is allowed.
        """
        text = grammar(tools)
        with self._lock:
            if text not in self._ready:
                if len(self._ready) == _MOST_GRAMMARS:
                    del self._ready[next(iter(self._ready))]
                self._ready[text] = self._made(text) or self._made(grammar([self._sound(tool) for tool in tools]))
            template = self._ready[text]
        guide = Guide(template)
        for token in opening:
            guide.take(token)
        return guide

    def _sound(self, tool: ToolSpec) -> ToolSpec:
        if self._made(grammar([tool])) is not None:
            return tool
        return replace(tool, parameters={"type": "object", "additionalProperties": True})

    def _made(self, text: str) -> LLMatcher | None:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(text), log_level=0)
        return None if matcher.is_error() else matcher


def open_guides(cache_dir: Path, encode: Encode) -> Guides:
    """Return the factory of guides; takes about a second and 70 MB. ``encode`` tokenizes text as the model does.

    Raises ModelUnfit if llguidance is not installed, AgentError if the vocabulary is not available.
    """
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ModuleNotFoundError as missing:
        raise ModelUnfit(
            f"constrained calls need {missing.name}, which is not installed: "
            'pip install "gpt-oss-agent[runtime]", or turn them off (--constrain off)'
        ) from missing
    spelled = _Spelled(token_bytes(cache_dir), encode)
    return Guides(LLTokenizer(TokenizerWrapper(spelled), n_vocab=VOCABULARY_SIZE, slices=_SLICES))


def token_bytes(cache_dir: Path) -> list[bytes]:
    """Return the bytes of each id of the vocabulary; for a control id, its name. Takes 0.2 s."""
    spelled = [f"<|{_NAMES.get(token, token)}|>".encode() for token in range(VOCABULARY_SIZE)]
    for line in (unpack(cache_dir) / FILE_NAME).read_bytes().splitlines():
        spelling, _, rank = line.partition(b" ")
        spelled[int(rank)] = base64.b64decode(spelling)
    return spelled


class _Spelled:
    """The vocabulary in the form that llguidance expects."""

    eos_token_id = RETURN
    bos_token_id = None
    special_token_ids = range(FIRST_CONTROL, VOCABULARY_SIZE)

    def __init__(self, tokens: list[bytes], encode: Encode) -> None:
        self.tokens = tokens
        self._encode = encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


def _behind(place: _Place, token: int | None) -> _Place:
    """Return the state after a token that is not constrained. None stands for an unknown token: the state closest to HELD."""
    match place:
        case _Place.FREE if token is None or token in (START, CHANNEL):
            return _Place.AJAR
        case _Place.FREE | _Place.BETWEEN if token in ENDS:
            return _Place.BETWEEN
        case _Place.BETWEEN if token not in (None, START, CHANNEL):
            return _Place.FREE
        case _Place.FREE:
            return _Place.FREE
        case _:
            return _Place.HELD
