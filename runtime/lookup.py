"""Drafts by prompt lookup: what followed the last time these tokens were seen is likely to follow again.

An agent copies long stretches of what it has read (patches, file contents, its own plan), so the conversation itself is a good
guesser. (Prompt lookup decoding: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.) A guess costs a larger step, so
each sequence keeps account of what its guesses earned and stops guessing for a while when they do not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Speculation:
    """How to guess. ``draft_tokens`` 0 never does.

    ``ngram`` tokens must have been seen before. A verifying step costs about ``cost`` plain ones, so the tokens that it
    gives, on average, must be more than that. After a run of poor guesses ``pause_tokens`` are sampled plainly, twice as
    many the next time, up to sixteen times as many. A step indexes at most ``index_tokens`` of what it has not seen yet, so
    that a long prompt does not hold up its first tokens.
    """

    draft_tokens: int = 7
    ngram: int = 4
    cost: float = 2.5
    pause_tokens: int = 32
    index_tokens: int = 1024


@dataclass(slots=True)
class Lookup:
    """One sequence's index of its own tokens, and the account of its guesses."""

    options: Speculation
    seen: dict[tuple[int, ...], int] = field(default_factory=dict)  # an n-gram -> where its latest follower is
    indexed: int = 0  # n-grams that end before this position are in ``seen``
    earned: float = 4.0  # moving average of the tokens that a verifying step gave
    resume: int = 0  # no guess before the sequence has this many tokens
    pause: int = 0

    def draft(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return what is likely to follow ``tokens``: ``draft_tokens`` ids, or none."""
        options = self.options
        n = options.ngram
        if not options.draft_tokens or len(tokens) < max(self.resume, n + 1):
            return ()
        first = max(self.indexed, n)
        self.indexed = min(len(tokens), first + options.index_tokens)
        for end in range(first, self.indexed):
            self.seen[tuple(tokens[end - n : end])] = end
        follower = self.seen.get(tuple(tokens[-n:]))
        if follower is None:
            return ()
        found = list(tokens[follower : follower + options.draft_tokens])
        # The text may end before the guess does, when it repeats itself: what follows then is the guess's own beginning.
        while len(found) < options.draft_tokens:
            found.append(found[len(found) - (len(tokens) - follower)])
        return tuple(found)

    def account(self, given: int, length: int) -> None:
        """Note that a verifying step gave ``given`` tokens to a sequence that now has ``length``."""
        options = self.options
        self.earned += (given - self.earned) / 4
        if self.earned < options.cost:
            self.pause = min(max(2 * self.pause, options.pause_tokens), 16 * options.pause_tokens)
            self.resume = length + self.pause
            self.earned = 4.0
        elif given > options.cost:
            self.pause = 0
