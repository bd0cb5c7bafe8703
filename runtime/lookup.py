"""Drafts by prompt lookup: what followed these tokens the last time is likely to follow again.

An agent copies long passages of what it has read (patches, file contents, its own plan), so the conversation itself is a good
draft model. (Prompt lookup decoding: Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding.) Two things are added:

1. A copy in a patch differs from its source at the start of each line. After a token that differs, the same source is
   continued: either the token was inserted before the source's token, or it replaced it, whichever held for this token before.
2. For each way a source can be found, it is counted how often it predicted the next token. The length of a draft follows from
   these counts and the cost of verifying it; if it does not pay, no draft is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Costs = tuple[tuple[int, float], ...]
"""(tokens, cost): a step that verifies up to so many tokens, the one before the draft included, costs that many plain steps."""

H100_COSTS: Costs = ((4, 2.1), (8, 3.1), (16, 3.8), (32, 4.2))  # gpt-oss-20b, measured by the engine

# Prior probabilities that a source predicts the next token: RIGHT if it predicted the previous one; by the number of tokens that
# matched when it was found; BEHIND or INSTEAD if it is continued after a token that was inserted into the copy or replaced one.
RIGHT, BEHIND, INSTEAD = "right", "behind", "instead"
MATCHES = {16: "16 tokens", 9: "9 tokens", 6: "6 tokens", 4: "4 tokens", 1: "some tokens"}
PRIORS = {
    RIGHT: 0.9,
    BEHIND: 0.7,
    INSTEAD: 0.35,
    **dict(zip(MATCHES.values(), (0.85, 0.8, 0.75, 0.65, 0.5), strict=True)),
}
PRIOR_WEIGHT = 4.0
FADE = 0.8  # decay of the counts at each update: recent tokens say more than older ones
HIGHEST = 0.985  # upper limit of any probability
MARGIN = 1.15  # a draft must promise this many times its cost: the one that promises most is partly the luckiest


@dataclass(frozen=True, slots=True)
class Speculation:
    """Options of drafting: at most ``draft_tokens`` (0: off), after ``ngram`` tokens that occurred before.

    ``costs`` None: those that the engine measures (``Engine.prepare``), and H100_COSTS until then. A step indexes at most
    ``index_tokens`` new tokens, so that a long prompt does not delay its first answer tokens.
    """

    draft_tokens: int = 31
    ngram: int = 3
    costs: Costs | None = None
    index_tokens: int = 1024


@dataclass(slots=True)
class Counts:
    """How often each kind of guess was right, beside the probability that was expected before."""

    priors: Mapping[str, float]
    hits: dict[str, float] = field(default_factory=dict)
    misses: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, hit: bool) -> None:
        """Count one guess."""
        self.hits[kind] = self.hits.get(kind, 0.0) * FADE + hit
        self.misses[kind] = self.misses.get(kind, 0.0) * FADE + (not hit)

    def chance(self, kind: str) -> float:
        """Return the probability that the next guess of this kind is right."""
        hits, misses = self.hits.get(kind, 0.0), self.misses.get(kind, 0.0)
        return min(HIGHEST, (hits + PRIOR_WEIGHT * self.priors[kind]) / (hits + misses + PRIOR_WEIGHT))


@dataclass(slots=True)
class Lookup:
    """One sequence's index of its own tokens, and the position in them that it seems to be copying from."""

    options: Speculation
    costs: Costs
    seen: dict[tuple[int, ...], int] = field(
        default_factory=dict
    )  # n-gram -> position of the token after its last occurrence
    indexed: int = 0  # n-grams that end before this position are in ``seen``
    read: int = 0  # how many tokens were compared with the source
    source: int | None = None  # the position of the next token, if this is a copy
    kind: str = ""  # how the source was found: a key of PRIORS
    broken: int | None = None  # the position in the source when the last token differed
    counts: Counts = field(default_factory=lambda: Counts(PRIORS))
    gain: float = 1.0  # tokens per plain step's time that the last draft promised; 1 without one
    replaces: dict[int, bool] = field(
        default_factory=dict
    )  # token that differed -> whether it replaced the source's token

    def draft(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return a draft of what follows ``tokens``: at most ``draft_tokens`` ids, or none."""
        self.gain = 1.0
        if not self.options.draft_tokens:
            return ()
        self.read = self.read or len(tokens)
        self._index(tokens, min(self.read, max(self.indexed, self.options.ngram) + self.options.index_tokens))
        for position in range(self.read, len(tokens)):
            self._compare(tokens, position)
            if self.indexed == position:  # only after the comparison: otherwise the n-gram would find itself
                self._index(tokens, position + 1)
        if self.source is None:
            self._find(tokens, len(tokens))
        if self.source is None:
            return ()
        count = self._length()
        found = list(tokens[self.source : self.source + count])
        # If the text repeats itself, the source may reach its end: then it continues with the beginning of the draft.
        while len(found) < count:
            found.append(found[len(found) - (len(tokens) - self.source)])
        return tuple(found)

    def _index(self, tokens: Sequence[int], end: int) -> None:
        n = self.options.ngram
        for follower in range(max(self.indexed, n), end):
            self.seen[tuple(tokens[follower - n : follower])] = follower
        self.indexed = max(self.indexed, end)

    def _compare(self, tokens: Sequence[int], position: int) -> None:
        """Compare the token at ``position`` with the source's prediction and update the counts."""
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
        self.counts.add(self.kind, hit)
        if hit:
            self.source, self.kind, self.broken = self.source + 1, RIGHT, None
        else:
            self.broken = None if self.kind in {BEHIND, INSTEAD} else self.source  # continued only once
            self.source = None

    def _find(self, tokens: Sequence[int], length: int) -> None:
        """Find a source for what follows the first ``length`` tokens."""
        n = self.options.ngram
        follower = self.seen.get(tuple(tokens[length - n : length])) if length >= n else None
        match = 0
        if follower is not None:
            match = n
            while match < min(max(MATCHES), follower) and tokens[follower - match - 1] == tokens[length - match - 1]:
                match += 1
            self.source = follower
            self.kind = next(kind for least, kind in MATCHES.items() if match >= least)
        if self.broken is not None and match <= n:  # a match of so few tokens is ambiguous
            replaces = self.replaces.get(tokens[length - 1], True)
            self.source = self.broken + replaces
            self.kind = INSTEAD if replaces else BEHIND

    def _length(self) -> int:
        """Return the length of the draft that gives the most tokens for its cost; 0 if none pays."""
        likely, on = self.counts.chance(self.kind), self.counts.chance(RIGHT)
        best, count = MARGIN, 0
        for tokens, cost in self.costs:
            length = min(tokens - 1, self.options.draft_tokens)
            expected = 1 + likely * (1 - on**length) / (1 - on)  # expected tokens of such a step
            if expected > best * cost:
                best, count = expected / cost, length
        self.gain = best if count else 1.0
        return count
