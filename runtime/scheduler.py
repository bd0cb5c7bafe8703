"""Who computes what in the next step. Policy without tensors: tested on any laptop.

A sequence is a list of tokens of which the first ``computed`` are in the cache. A step computes some of the rest; when it
reaches the last one, the step also samples. Prefill, a chunk of a prefill and decode are the same plan with other counts.

A step may also compute tokens that are only guessed (a draft) and sample after each of them. Those that the samples agree
with are kept, and the first sample that differs takes the place of the guess. As a guess is certain of itself, this is
rejection sampling (Leviathan et al. 2023, arXiv 2211.17192) with the same random numbers as without it: the same tokens.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from runtime.errors import RequestRefused
from runtime.lookup import H100_COSTS, Lookup, Speculation
from runtime.pages import ROOT, PagePool
from runtime.request import Mask, Request, TokenOut


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way."""

    request: Request
    tokens: list[int]
    computed: int = 0  # tokens whose keys and values are in the cache
    pages: array[int] = field(default_factory=lambda: array("i"))  # 32 bits each: a row of a step's page table
    published: int = 0  # leading pages that the pool was told of
    prefix: int = ROOT  # the pool's key of those pages
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache when the request first ran
    started: bool = False
    running: bool = False  # has a place in the steps; otherwise it waits, or it has ended
    ended: bool = False
    lookup: Lookup | None = None
    mask: Mask | None = None

    @property
    def sampled(self) -> int:
        """How many tokens were sampled so far."""
        return len(self.tokens) - len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a step: compute ``count`` tokens from position ``start``, the last of them ``draft``.

    The step samples after each of the last ``samples`` tokens: none, one, or one more than the draft has. ``index`` counts
    the tokens that the sequence sampled before the first of these.
    """

    sequence: Sequence
    start: int
    count: int
    samples: int
    index: int
    draft: tuple[int, ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether any token may be sampled in all of its places, as far as is known by now."""
        mask = self.sequence.mask
        unknown = (None,) * (self.index - self.sequence.sampled)
        return mask is None or not self.samples or mask.is_free((*unknown, *self.draft))

    def allowed(self) -> Seq[bytes | None]:
        """Return a mask for each sample, once the tokens before are known; None: any token may come."""
        mask = self.sequence.mask
        if mask is None or not self.samples or self.sequence.ended:
            return (None,) * self.samples
        return mask.allowed(self.draft)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the engine can carry."""

    step_tokens: int = 2048  # tokens computed in one step, over all sequences
    sequences: int = 64  # sequences running at a time
    context_tokens: int = 131072  # the model's window
    speculation: Speculation = field(default_factory=Speculation)


class Scheduler:
    """First come, first served; decoding before prefilling; the youngest gives way when pages run out."""

    def __init__(self, pool: PagePool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0
        self.guess_costs = limits.speculation.costs or H100_COSTS

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestRefused for one that could never run."""
        length, window = len(request.prompt), self.limits.context_tokens
        if any(sequence.request.id == request.id for sequence in (*self.waiting, *self.running)):
            raise RequestRefused(f"a request with the id {request.id!r} is already running")
        if length >= window:
            raise RequestRefused(
                f"the prompt has {length} tokens and the window {window}: nothing is left to answer in"
            )
        capacity = self.pool.total * self.pool.page_tokens
        if length >= capacity:
            raise RequestRefused(
                f"the prompt has {length} tokens and the cache holds {capacity}: "
                "give the cache more memory or shorten the prompt"
            )
        mask = None if request.mask is None else request.mask()
        self.waiting.append(Sequence(request, list(request.prompt), mask=mask))

    def abort(self, request_id: str) -> TokenOut | None:
        """Drop a request and give its pages back; None when there is no such request (any more)."""
        for sequence in (*self.running, *self.waiting):
            if sequence.request.id == request_id:
                self._drop(sequence)
                return TokenOut(request_id, None, "cancelled", cached_tokens=sequence.cached_tokens)
        return None

    def plan(self) -> list[Work]:
        """Choose the next step's work and take the pages it needs. Empty only when idle."""
        budget = self.limits.step_tokens
        works: list[Work] = []
        # Those one token short of sampling first: a decode step must not wait behind somebody's long prompt.
        for sequence in sorted(self.running, key=lambda s: len(s.tokens) - s.computed > 1):
            if budget and sequence.running:  # an earlier one may have made it give way
                work = self._work(sequence, budget, works)
                if work is not None:
                    works.append(work)
                    budget -= work.count
        while budget and self.waiting and len(self.running) < self.limits.sequences:
            work = self._admit(self.waiting[0], budget)
            if work is None:
                break
            self.running.append(self.waiting.popleft())
            work.sequence.running = True
            works.append(work)
            budget -= work.count
        return works

    def ahead(self, works: Seq[Work]) -> list[Work]:
        """Plan the step after ``works`` before their tokens are known; empty where that can't be done or would be unwise.

        Every running sequence must be about to sample, none may be sure to end with that token, nobody may be waiting for a
        place, and there must be pages for all. The tokens to compute are then those that ``works`` sample.
        """
        if not works or len(works) < len(self.running):
            return []
        if self.waiting and len(self.running) < self.limits.sequences:
            return []
        room = self._room
        for work in works:
            sequence = work.sequence
            request, length = sequence.request, len(sequence.tokens) + 1
            if (
                sequence.ended
                or not work.samples
                or length >= room
                or work.index + 1 >= request.max_tokens
                or not self._grow(sequence, length)
            ):
                return []
        if len(works) == 1 and (works[0].draft or self._guess(works[0].sequence)):
            return []  # a guess needs to know what came before it
        return [Work(w.sequence, len(w.sequence.tokens), 1, 1, w.index + 1) for w in works]

    def record(self, works: Seq[Work], tokens: Seq[int], logprobs: Seq[float] | None = None) -> list[TokenOut]:
        """Take in what a step computed; ``tokens`` are those sampled, ``samples`` for each work, in order.

        Work for a sequence that ended meanwhile (an abort, or a stop while the next step was under way) is void.
        """
        outs: list[TokenOut] = []
        first = 0
        for work in works:
            rows = slice(first, first + work.samples)
            first += work.samples
            if not work.sequence.ended:
                asks = logprobs is not None and work.sequence.request.sampling.logprobs
                outs += self._accept(work, tokens[rows], logprobs[rows] if logprobs is not None and asks else None)
        return outs

    def _accept(self, work: Work, tokens: Seq[int], logprobs: Seq[float] | None) -> list[TokenOut]:
        """Take one work's samples up to the first that its draft did not foresee."""
        sequence = work.sequence
        sequence.computed = work.start + work.count - len(work.draft)
        outs: list[TokenOut] = []
        for place, token in enumerate(tokens):
            out = self._take(sequence, token, None if logprobs is None else logprobs[place])
            outs.append(out)
            if out.finish is not None or place == len(work.draft) or token != work.draft[place]:
                break
            sequence.computed += 1
        if not outs or outs[-1].finish is None:
            self._publish(sequence)
        return outs

    def _take(self, sequence: Sequence, token: int, logprob: float | None) -> TokenOut:
        """Add a sampled token to its sequence, which may end with it."""
        sequence.tokens.append(token)
        if sequence.mask is not None:
            sequence.mask.take(token)
        full = len(sequence.tokens) >= self._room
        finish = None
        if token in sequence.request.stop:
            finish = "stop"
        elif full or sequence.sampled >= sequence.request.max_tokens:
            finish = "length"
        if finish is not None:
            self._publish(sequence)
            self._drop(sequence)
        return TokenOut(sequence.request.id, token, finish, logprob, sequence.cached_tokens)

    @property
    def _room(self) -> int:
        """Tokens that one sequence can have: alone in the pool and out of pages is an end too, for nobody can give way."""
        return min(self.limits.context_tokens, self.pool.total * self.pool.page_tokens)

    def _work(self, sequence: Sequence, budget: int, planned: Seq[Work]) -> Work | None:
        """Work for a running sequence. Makes the youngest others give way for its pages; gives way itself if it is the youngest."""
        count = min(len(sequence.tokens) - sequence.computed, budget)
        if count == 1 and len(self.running) == 1 and not self.waiting:
            drafted = self._drafted(sequence)
            if drafted is not None:
                return drafted
        while not self._grow(sequence, sequence.computed + count):
            busy = {id(work.sequence) for work in planned}
            victim = next((other for other in reversed(self.running) if id(other) not in busy), None)
            if victim is None or victim is sequence:
                self._preempt(sequence)
                return None
            self._preempt(victim)
        samples = int(sequence.computed + count == len(sequence.tokens))
        return Work(sequence, sequence.computed, count, samples, sequence.sampled)

    def _drafted(self, sequence: Sequence) -> Work | None:
        """Decode work with a guess of what follows, or None where there is none or no room for it."""
        draft = self._guess(sequence)
        length = len(sequence.tokens) + len(draft)
        if (
            not draft
            or length > self._room
            or len(draft) >= self.limits.step_tokens
            or not self._grow(sequence, length)
        ):
            return None
        return Work(sequence, sequence.computed, 1 + len(draft), 1 + len(draft), sequence.sampled, draft)

    def _guess(self, sequence: Sequence) -> tuple[int, ...]:
        if sequence.lookup is None:
            sequence.lookup = Lookup(self.limits.speculation, self.guess_costs)
        return sequence.lookup.draft(sequence.tokens)

    def _admit(self, sequence: Sequence, budget: int) -> Work | None:
        """Work for a waiting sequence, or None (with nothing held) when its first chunk doesn't fit now."""
        pages, sequence.prefix = self.pool.match(sequence.tokens)
        sequence.pages = array("i", pages)
        sequence.published = len(sequence.pages)
        sequence.computed = len(sequence.pages) * self.pool.page_tokens
        count = min(len(sequence.tokens) - sequence.computed, budget)
        # Whole prompts only: a prompt that can't be finished would hold pages that those who decode need.
        missing = self._pages_for(len(sequence.tokens)) - len(sequence.pages)
        if (self.running and missing > self.pool.available) or not self._grow(sequence, sequence.computed + count):
            self._release(sequence)
            return None
        if not sequence.started:
            sequence.cached_tokens, sequence.started = sequence.computed, True
        samples = int(sequence.computed + count == len(sequence.tokens))
        return Work(sequence, sequence.computed, count, samples, sequence.sampled)

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.page_tokens)

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Hold pages for ``tokens`` tokens, all or none."""
        missing = self._pages_for(tokens) - len(sequence.pages)
        if missing > self.pool.available:
            return False
        for _ in range(missing):
            page = self.pool.take()
            assert page is not None, "the pool said that it had a page"
            sequence.pages.append(page)
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Tell the pool of pages that became full."""
        size = self.pool.page_tokens
        while (sequence.published + 1) * size <= sequence.computed:
            index = sequence.published
            tokens = sequence.tokens[index * size : (index + 1) * size]
            sequence.prefix = self.pool.publish(sequence.pages[index], sequence.prefix, tokens)
            sequence.published += 1

    def _preempt(self, sequence: Sequence) -> None:
        """Give way: pages go back, the sequence waits at the head of the queue and is computed again later."""
        self.running.remove(sequence)
        sequence.running = False
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.published, sequence.prefix, sequence.computed = array("i"), 0, ROOT, 0

    def _drop(self, sequence: Sequence) -> None:
        (self.running if sequence.running else self.waiting).remove(sequence)
        sequence.ended, sequence.running = True, False
        self._release(sequence)
