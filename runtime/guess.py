"""Chooses the draft of one sequence: from its own tokens (runtime/lookup.py), or from what its caller knows (``Drafter``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.lookup import MARGIN, Costs, Counts, Lookup, Speculation
from runtime.request import Drafter

log = logging.getLogger(__name__)

REFILL = 16  # a Drafter is asked again while fewer tokens than this are expected


@dataclass(slots=True)
class _Handed:
    """A Drafter, what it expects to come, and how often it was right."""

    drafter: Drafter
    counts: Counts
    read: int  # how many tokens of the sequence it has taken, the prompt included
    coming: list[tuple[int, str]] = field(default_factory=list)
    fresh: bool = False  # whether ``coming`` was drafted after the last token


class Guesser:
    """Drafts for one sequence whose prompt has ``prompt_tokens`` tokens, ids below ``vocabulary`` only."""

    def __init__(
        self, options: Speculation, costs: Costs, drafter: Drafter | None, prompt_tokens: int, vocabulary: int
    ) -> None:
        self._options = options
        self._costs = costs
        self._vocabulary = vocabulary
        self._lookup = Lookup(options, costs)
        self._handed = None if drafter is None else _Handed(drafter, Counts(drafter.priors), prompt_tokens)

    def draft(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the draft that promises most of what follows ``tokens``: at most ``draft_tokens`` ids, or none."""
        found = self._lookup.draft(tokens)
        if self._handed is None or not self._options.draft_tokens:
            return found
        try:
            return self._ask(self._handed, tokens) or found
        except Exception:  # it is the caller's code: a mistake in it must not stop the engine for everybody
            log.exception("a drafter failed; its answer goes on without it")
            self._handed = None
            return found

    def _ask(self, handed: _Handed, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the Drafter's draft if it promises more than what was found, or none."""
        self._follow(handed, tokens)
        if handed.read < len(tokens):
            return ()
        if not handed.fresh and len(handed.coming) < REFILL:
            handed.coming, handed.fresh = list(handed.drafter.draft()), True
        length = self._length(handed, max(MARGIN, self._lookup.gain))
        return tuple(token for token, _ in handed.coming[:length])

    def _follow(self, handed: _Handed, tokens: Sequence[int]) -> None:
        """Hand over new tokens, and count what they say about the guesses. At most ``index_tokens`` a step, as in Lookup."""
        for position in range(handed.read, min(len(tokens), handed.read + self._options.index_tokens)):
            token = tokens[position]
            if handed.coming:
                guess, kind = handed.coming.pop(0)
                handed.counts.add(kind, guess == token)
                if guess != token:
                    handed.coming.clear()
            handed.drafter.take(token)
            handed.read, handed.fresh = position + 1, False

    def _length(self, handed: _Handed, least: float) -> int:
        """Return the length of the draft that gives the most tokens for its cost; 0 if none gives more than ``least``."""
        chance = expected = 1.0
        best, length = least, 0
        costs = iter(self._costs)
        tokens, cost = next(costs, (0, 0.0))
        for count, (token, kind) in enumerate(handed.coming[: self._options.draft_tokens], 1):
            while count >= tokens:
                following = next(costs, None)
                if following is None:
                    return length
                tokens, cost = following
            if not 0 <= token < self._vocabulary:  # on a GPU it would destroy the CUDA context of the process
                return length
            chance *= handed.counts.chance(kind)
            expected += chance
            if expected > best * cost:
                best, length = expected / cost, count
        return length
