"""Who computes what in the next step. Policy without tensors: tested on any laptop.

A sequence is a list of tokens of which the first ``computed`` are in the cache. A step computes some of the rest; when it
reaches the last one, the step also samples. Prefill, a chunk of a prefill and decode are the same plan with other counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from runtime.errors import RequestRefused
from runtime.pages import ROOT, PagePool
from runtime.request import Request, TokenOut


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way."""

    request: Request
    tokens: list[int]
    computed: int = 0  # tokens whose keys and values are in the cache
    pages: list[int] = field(default_factory=list)
    published: int = 0  # leading pages that the pool was told of
    prefix: int = ROOT  # the pool's key of those pages
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache when the request first ran
    started: bool = False
    ended: bool = False

    @property
    def sampled(self) -> int:
        """How many tokens were sampled so far."""
        return len(self.tokens) - len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a step: compute ``count`` tokens from position ``start``; sample after the last if asked.

    ``index`` counts the tokens that the sequence sampled before the one that this step samples.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    index: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the engine can carry."""

    step_tokens: int = 2048  # tokens computed in one step, over all sequences
    sequences: int = 64  # sequences running at a time
    context_tokens: int = 131072  # the model's window


class Scheduler:
    """First come, first served; decoding before prefilling; the youngest gives way when pages run out."""

    def __init__(self, pool: PagePool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0

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
        self.waiting.append(Sequence(request, list(request.prompt)))

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
            if budget and sequence in self.running:  # an earlier one may have made it give way
                work = self._work(sequence, budget, [w.sequence for w in works])
                if work is not None:
                    works.append(work)
                    budget -= work.count
        while budget and self.waiting and len(self.running) < self.limits.sequences:
            work = self._admit(self.waiting[0], budget)
            if work is None:
                break
            self.running.append(self.waiting.popleft())
            works.append(work)
            budget -= work.count
        return works

    def ahead(self, works: Seq[Work]) -> list[Work]:
        """Plan the step after ``works`` before their tokens are known; empty where that can't be done or would be unwise.

        Every running sequence must be about to sample, none may be sure to end with that token, nobody may be waiting
        for a place, and there must be pages for all. The tokens to compute are then those that ``works`` sample.
        """
        running = {id(work.sequence) for work in works if work.samples and not work.sequence.ended}
        if not works or len(running) < len(works) or len(running) < len(self.running):
            return []
        if self.waiting and len(self.running) < self.limits.sequences:
            return []
        if any(len(w.sequence.tokens) + 1 >= self._room or w.index + 1 >= w.sequence.request.max_tokens for w in works):
            return []
        if not all(self._grow(work.sequence, len(work.sequence.tokens) + 1) for work in works):
            return []
        return [Work(w.sequence, len(w.sequence.tokens), 1, True, w.index + 1) for w in works]

    def record(self, works: Seq[Work], tokens: Seq[int], logprobs: Seq[float] | None = None) -> list[TokenOut]:
        """Take in what a step computed; ``tokens`` are those sampled, one for each work that samples, in order.

        Work for a sequence that ended meanwhile (an abort, or a stop while the next step was under way) is void.
        """
        outs: list[TokenOut] = []
        index = 0
        for work in works:
            sequence = work.sequence
            if sequence.ended:
                index += work.samples
                continue
            sequence.computed = work.start + work.count
            self._publish(sequence)
            if not work.samples:
                continue
            token = tokens[index]
            logprob = None if logprobs is None or not sequence.request.sampling.logprobs else logprobs[index]
            index += 1
            sequence.tokens.append(token)
            finish = self._finish(sequence, token)
            if finish is not None:
                self._drop(sequence)
            outs.append(TokenOut(sequence.request.id, token, finish, logprob, sequence.cached_tokens))
        return outs

    @property
    def _room(self) -> int:
        """Tokens that one sequence can have: alone in the pool and out of pages is an end too, for nobody can give way."""
        return min(self.limits.context_tokens, self.pool.total * self.pool.page_tokens)

    def _finish(self, sequence: Sequence, token: int) -> str | None:
        if token in sequence.request.stop:
            return "stop"
        full = len(sequence.tokens) >= self._room
        return "length" if full or sequence.sampled >= sequence.request.max_tokens else None

    def _work(self, sequence: Sequence, budget: int, planned: list[Sequence]) -> Work | None:
        """Work for a running sequence. Makes the youngest others give way for its pages; gives way itself if it is the youngest."""
        count = min(len(sequence.tokens) - sequence.computed, budget)
        while not self._grow(sequence, sequence.computed + count):
            victim = next((other for other in reversed(self.running) if other not in planned), None)
            if victim is None or victim is sequence:
                self._preempt(sequence)
                return None
            self._preempt(victim)
        samples = sequence.computed + count == len(sequence.tokens)
        return Work(sequence, sequence.computed, count, samples, sequence.sampled)

    def _admit(self, sequence: Sequence, budget: int) -> Work | None:
        """Work for a waiting sequence, or None (with nothing held) when its first chunk doesn't fit now."""
        sequence.pages, sequence.prefix = self.pool.match(sequence.tokens)
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
        samples = sequence.computed + count == len(sequence.tokens)
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
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.published, sequence.prefix, sequence.computed = [], 0, ROOT, 0

    def _drop(self, sequence: Sequence) -> None:
        sequence.ended = True
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)
