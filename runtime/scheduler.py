"""Decides which tokens the next step computes. Policy without tensors, so it is tested without a GPU.

A sequence is a list of tokens of which the first ``computed`` are in the cache. A step computes some of the rest; if it
reaches the last one, it also samples. Prefill, chunked prefill and decode are the same plan with different counts.

A step may also compute guessed tokens (a draft) and sample after each of them. Guesses that equal their sample are kept; the
first sample that differs replaces its guess. The draft is deterministic, so this is rejection sampling (Leviathan et al. 2023,
arXiv 2211.17192) with the random numbers that decoding without a draft would use: it gives the same tokens.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from runtime.errors import RequestRefused
from runtime.guess import Guesser
from runtime.lookup import H100_COSTS, Speculation
from runtime.pages import ROOT, PagePool
from runtime.request import Mask, Request, TokenOut


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that waits or runs."""

    request: Request
    tokens: list[int]
    computed: int = 0  # tokens whose keys and values are in the cache
    pages: array[int] = field(default_factory=lambda: array("i"))  # int32, because it is a row of a step's page table
    published: int = 0  # leading pages that were published to the pool
    prefix: int = ROOT  # the pool's key of those pages
    cached_tokens: int = 0  # prompt tokens found in the prefix cache when the request first ran
    started: bool = False
    running: bool = False  # otherwise it waits, or has ended
    ended: bool = False
    guesser: Guesser | None = None
    mask: Mask | None = None

    @property
    def sampled(self) -> int:
        """How many tokens have been sampled so far."""
        return len(self.tokens) - len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's part of a step: compute ``count`` tokens from position ``start``; the last of them are ``draft``.

    The step samples after each of the last ``samples`` tokens: 0, 1 or len(draft) + 1. ``index`` is how many tokens the
    sequence has sampled before those.
    """

    sequence: Sequence
    start: int
    count: int
    samples: int
    index: int
    draft: tuple[int, ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether the mask allows every token at all its samples, as far as can be known now."""
        mask = self.sequence.mask
        unknown = (None,) * (self.index - self.sequence.sampled)
        return mask is None or not self.samples or mask.is_free((*unknown, *self.draft))

    def allowed(self) -> Seq[bytes | None]:
        """Return a mask for each sample (None: every token is allowed). The tokens before them must be known."""
        mask = self.sequence.mask
        if mask is None or not self.samples or self.sequence.ended:
            return (None,) * self.samples
        return mask.allowed(self.draft)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a step and of the engine."""

    step_tokens: int = 2048  # tokens computed in one step, over all sequences
    sequences: int = 64  # sequences that run at the same time
    context_tokens: int = 131072  # the model's window
    speculation: Speculation = field(default_factory=Speculation)


class Scheduler:
    """First come, first served; decode before prefill; when pages run out, the youngest sequence is preempted."""

    def __init__(self, pool: PagePool, limits: Limits, vocabulary: int = 1 << 31) -> None:
        self.pool = pool
        self.limits = limits
        self.vocabulary = vocabulary
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
                f"the prompt has {length} tokens and the window {window}: no room is left for an answer"
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
        """Drop a request and release its pages; return its last output, or None if there is no such request (any more)."""
        for sequence in (*self.running, *self.waiting):
            if sequence.request.id == request_id:
                self._drop(sequence)
                return TokenOut(request_id, None, "cancelled", cached_tokens=sequence.cached_tokens)
        return None

    def plan(self) -> list[Work]:
        """Choose the work of the next step and take the pages it needs. Empty only when idle."""
        budget = self.limits.step_tokens
        works: list[Work] = []
        # Sequences that decode come first: they must not wait behind another one's long prompt.
        for sequence in sorted(self.running, key=lambda s: len(s.tokens) - s.computed > 1):
            if budget and sequence.running:  # an earlier one may have preempted it
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
        """Plan the step after ``works`` before their tokens are known; empty if that is impossible or unwise.

        Every running sequence must sample in ``works``, none may be certain to end with that token, no request may wait for
        a place, and there must be pages for all. The tokens to compute are then the ones that ``works`` sample.
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
            return []  # a draft can only be made once the token before it is known
        return [Work(w.sequence, len(w.sequence.tokens), 1, 1, w.index + 1) for w in works]

    def record(self, works: Seq[Work], tokens: Seq[int], logprobs: Seq[float] | None = None) -> list[TokenOut]:
        """Record what a step computed. ``tokens`` are the sampled ones, ``samples`` per work, in order.

        Work for a sequence that has ended meanwhile (by an abort, or by a stop after the next step was launched) is ignored.
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
        """Accept the samples of one work, up to and including the first that differs from the draft."""
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
        """Append a sampled token to its sequence, which may end with it."""
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
        """The most tokens of one sequence. Having the whole pool and needing more ends it too, as no other can be preempted."""
        return min(self.limits.context_tokens, self.pool.total * self.pool.page_tokens)

    def _work(self, sequence: Sequence, budget: int, planned: Seq[Work]) -> Work | None:
        """Plan a running sequence. For its pages the youngest other sequences are preempted, or it is itself if it is the youngest."""
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
        """Return decode work with a draft, or None if there is no draft or no room for one."""
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
        if sequence.guesser is None:
            request = sequence.request
            sequence.guesser = Guesser(
                self.limits.speculation, self.guess_costs, request.drafter, len(request.prompt), self.vocabulary
            )
        return sequence.guesser.draft(sequence.tokens)

    def _admit(self, sequence: Sequence, budget: int) -> Work | None:
        """Plan a waiting sequence. Return None, without holding pages, if it does not fit now."""
        pages, sequence.prefix = self.pool.match(sequence.tokens)
        sequence.pages = array("i", pages)
        sequence.published = len(sequence.pages)
        sequence.computed = len(sequence.pages) * self.pool.page_tokens
        count = min(len(sequence.tokens) - sequence.computed, budget)
        # Beside others only if the whole prompt fits: an unfinished one would hold pages that decoding sequences need.
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
        """Take the pages for ``tokens`` tokens, all of them or none; return whether they were there."""
        missing = self._pages_for(tokens) - len(sequence.pages)
        if missing > self.pool.available:
            return False
        for _ in range(missing):
            page = self.pool.take()
            assert page is not None, "the pool said that it had a page"
            sequence.pages.append(page)
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Publish the pages that have become full, so that other prompts can find them."""
        size = self.pool.page_tokens
        while (sequence.published + 1) * size <= sequence.computed:
            index = sequence.published
            tokens = sequence.tokens[index * size : (index + 1) * size]
            sequence.prefix = self.pool.publish(sequence.pages[index], sequence.prefix, tokens)
            sequence.published += 1

    def _preempt(self, sequence: Sequence) -> None:
        """Release a sequence's pages and put it at the head of the queue; it is computed again later."""
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
