"""Drafts by prompt lookup: what followed the last time these tokens were seen is likely to follow again.

An agent copies long stretches of what it has read (patches, file contents, its own plan), so the conversation itself is a good
guesser. (Prompt lookup decoding: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.) Two things are added. A copy in a
patch differs at the start of each line, so after a token that differs the same source is followed on, after that token or in
its place, as the same token turned out before. And how often a source is right is counted, by how it was found, so that a guess
is as long as these counts and the cost of verifying it say, or is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Costs = tuple[tuple[int, float], ...]
"""What a step that verifies up to so many tokens, the one before the guess included, costs in plain steps; by tokens."""

H100_COSTS: Costs = (
    (4, 2.1),
    (8, 3.2),
    (16, 4.0),
    (32, 4.9),
)  # gpt-oss-20b: batches of that size, and the host's share

# Chances that a source foretells the next token, before anything was counted: where it was right about the token before, where
# as many tokens as this led to it, and where it is followed on after a token that differed, or with that token in place of one.
RIGHT, BEHIND, INSTEAD = "right", "behind", "instead"
MATCHES = {16: "16 tokens", 9: "9 tokens", 6: "6 tokens", 4: "4 tokens", 1: "some tokens"}
PRIORS = {
    RIGHT: 0.9,
    BEHIND: 0.7,
    INSTEAD: 0.35,
    **dict(zip(MATCHES.values(), (0.85, 0.8, 0.75, 0.65, 0.5), strict=True)),
}
PRIOR_WEIGHT = 4.0
FADE = 0.8  # of a count, each time it is counted: what is being written now says more than what was
HIGHEST = 0.985  # chance of anything
MARGIN = 1.03  # what a guess must promise above its cost


@dataclass(frozen=True, slots=True)
class Speculation:
    """How to guess: at most ``draft_tokens`` (0: never), where ``ngram`` tokens were seen before.

    ``costs`` None: those that the engine measures (``Engine.prepare``), and H100_COSTS until then. A step indexes at most
    ``index_tokens`` of what it has not seen yet, so that a long prompt does not hold up its first tokens.
    """

    draft_tokens: int = 31
    ngram: int = 3
    costs: Costs | None = None
    index_tokens: int = 1024


@dataclass(slots=True)
class Lookup:
    """One sequence's index of its own tokens, and the place in them that it seems to copy from."""

    options: Speculation
    costs: Costs
    seen: dict[tuple[int, ...], int] = field(default_factory=dict)  # an n-gram -> where its latest follower is
    indexed: int = 0  # n-grams that end before this position are in ``seen``
    read: int = 0  # tokens that were compared with the source
    source: int | None = None  # where the next token is, if this is a copy
    kind: str = ""  # why it is believed to be there: a key of PRIORS
    broken: int | None = None  # where the source stood when the last token differed
    hits: dict[str, float] = field(default_factory=dict)
    misses: dict[str, float] = field(default_factory=dict)
    replaces: dict[int, bool] = field(default_factory=dict)  # a token that differed: was it in place of the source's?

    def draft(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return what is likely to follow ``tokens``: at most ``draft_tokens`` ids, or none."""
        if not self.options.draft_tokens:
            return ()
        self.read = self.read or len(tokens)
        self._index(tokens, min(self.read, max(self.indexed, self.options.ngram) + self.options.index_tokens))
        for position in range(self.read, len(tokens)):
            self._compare(tokens, position)
            if self.indexed == position:  # only now: before, the tokens behind it would have led to itself
                self._index(tokens, position + 1)
        if self.source is None:
            self._find(tokens, len(tokens))
        if self.source is None:
            return ()
        count = self._length()
        found = list(tokens[self.source : self.source + count])
        # The text may end before the guess does, when it repeats itself: what follows then is the guess's own beginning.
        while len(found) < count:
            found.append(found[len(found) - (len(tokens) - self.source)])
        return tuple(found)

    def _index(self, tokens: Sequence[int], end: int) -> None:
        n = self.options.ngram
        for follower in range(max(self.indexed, n), end):
            self.seen[tuple(tokens[follower - n : follower])] = follower
        self.indexed = max(self.indexed, end)

    def _compare(self, tokens: Sequence[int], position: int) -> None:
        """Take in the token at ``position``: is it what the source said?"""
        token = tokens[position]
        self.read = position + 1
        if self.source is None:
            self._find(tokens, position)
        if self.broken is not None:
            if token == tokens[self.broken]:
                self.replaces[tokens[position - 1]] = False
            elif token == tokens[self.broken + 1]:
                self.replaces[tokens[position - 1]] = True
        if self.source is None:
            self.broken = None
            return
        hit = token == tokens[self.source]
        self.hits[self.kind] = self.hits.get(self.kind, 0.0) * FADE + hit
        self.misses[self.kind] = self.misses.get(self.kind, 0.0) * FADE + (not hit)
        if hit:
            self.source, self.kind, self.broken = self.source + 1, RIGHT, None
        else:
            self.broken = None if self.kind in {BEHIND, INSTEAD} else self.source  # not twice
            self.source = None

    def _find(self, tokens: Sequence[int], length: int) -> None:
        """Look for the source of what follows the first ``length`` tokens."""
        n = self.options.ngram
        follower = self.seen.get(tuple(tokens[length - n : length])) if length >= n else None
        match = 0
        if follower is not None:
            match = n
            while match < min(max(MATCHES), follower) and tokens[follower - match - 1] == tokens[length - match - 1]:
                match += 1
            self.source = follower
            self.kind = next(kind for least, kind in MATCHES.items() if match >= least)
        if self.broken is not None and match <= n:  # so few tokens lead to many places
            replaces = self.replaces.get(tokens[length - 1], True)
            self.source = self.broken + replaces
            self.kind = INSTEAD if replaces else BEHIND

    def _chance(self, kind: str) -> float:
        hits, misses = self.hits.get(kind, 0.0), self.misses.get(kind, 0.0)
        return min(HIGHEST, (hits + PRIOR_WEIGHT * PRIORS[kind]) / (hits + misses + PRIOR_WEIGHT))

    def _length(self) -> int:
        """Return how many tokens to guess: as many as give most tokens for their cost, or none."""
        likely, on = self._chance(self.kind), self._chance(RIGHT)
        best, count = MARGIN, 0
        for tokens, cost in self.costs:
            length = min(tokens - 1, self.options.draft_tokens)
            expected = 1 + likely * (1 - on**length) / (1 - on)  # tokens that such a step gives on average
            if expected > best * cost:
                best, count = expected / cost, length
        return count
