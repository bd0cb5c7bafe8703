"""Runs a step: from its tensors to tokens, by a CUDA graph if there is one of that size, otherwise kernel by kernel."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from runtime import batch
from runtime.batch import Counts, Layout
from runtime.errors import RequestRefused
from runtime.graphs import Graph, Record
from runtime.kernels.base import LayerCache, Sample, StepInputs
from runtime.lookup import Costs
from runtime.sampler import SamplingInputs, logprob, pick
from runtime.scheduler import Work

Forward = Callable[[StepInputs, Sequence[LayerCache]], torch.Tensor]
"""(a step's inputs, one cache per layer) -> fp32 logits [S, V]."""

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""A decode step is padded to the next of these numbers of sequences; each has a graph …"""

CONTEXTS = (512, 1024, 2048, 4096, 131072)
"""… for each of these upper bounds of the context, because the bound decides over how many blocks attention is split. Above 4096
the number of blocks does not grow."""

GUESSES = (4, 8, 16, 32)
"""A step in which a single sequence verifies a draft is padded to the next of these numbers of tokens, the token before the draft
included."""

PROMPTS = (*range(16, 64, 16), 64, 96, *range(128, 512, 64), *range(512, 2049, 128))
"""A prompt, or a chunk of one, alone in its step is padded to the next of these numbers of tokens. Up to about 100 tokens a step takes
the time to read all experts; above, padding costs 4 % on average (about 17 us per token: gpt-oss-20b on an H100)."""

MIXED = (8, 64)
"""A step with several sequences and a prompt among them is padded to the next of these numbers of sequences, and of ``PROMPTS``
tokens."""

OFTEN = 6  # steps of one size with a prompt in them, before a graph is recorded for that size

NOT_AHEAD_S = 150e-6  # time the device waits for the host around a step when the next one cannot be launched ahead


@dataclass(frozen=True, slots=True)
class _Size:
    """The steps that a graph serves. Its output is tokens if it ``picks``, otherwise logits.

    The graph of a single prompt never picks: so it serves prompts with and without a mask, and picking afterwards is one more kernel.
    """

    counts: Counts
    picks: bool


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: Graph
    picks: bool
    laid: Layout
    buffer: torch.Tensor  # the graph's input: every step is copied into it
    inputs: StepInputs


@dataclass(frozen=True, slots=True)
class _Choice:
    """How a step samples, known on the host. ``inside``: a graph can do it; the other ways are rare and run after the graph."""

    nucleus: bool
    logprobs: bool
    masked: bool

    @property
    def inside(self) -> bool:
        return not (self.nucleus or self.logprobs or self.masked)


@dataclass(frozen=True, slots=True)
class _Unsampled:
    """What is needed to sample a launched step."""

    logits: torch.Tensor  # fp32 [S, V]
    sampling: SamplingInputs
    choice: _Choice


class Launched:
    """A step that runs on the device; ``tokens`` waits for it. While ``left`` is set, it is still to be sampled (``Runner.sample``)."""

    def __init__(self, works: Sequence[Work], left: _Unsampled | None = None) -> None:
        self.works = works
        self.left = left
        self.picked: torch.Tensor | None = None  # int64 [S], on the device
        self._picked = torch.empty(0, dtype=torch.int64)
        self._logprobs: torch.Tensor | None = None
        self._done: torch.cuda.Event | None = None

    def sampled(self, picked: torch.Tensor, logprobs: torch.Tensor | None = None) -> Launched:
        """Set the sampled tokens and start their copy to the host."""
        self.left = None
        self.picked = picked
        self._picked = _to_host(picked)
        self._logprobs = None if logprobs is None else _to_host(logprobs)
        if picked.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._done.record()
        return self

    def tokens(self) -> tuple[list[int], list[float] | None]:
        """Wait, then return a token for each sampled row, in order, and their log-probabilities if a request wants them."""
        if self._done is not None:
            self._done.synchronize()
        return self._picked.tolist(), None if self._logprobs is None else self._logprobs.tolist()


class Runner:
    """Owns the caches and the graphs of one model on one device.

    Sequences use all pages of ``caches`` but the last, which is for padding. ``record`` None: no graphs. Everything is launched
    on one stream, in order: a page can pass to another sequence at once, because that one writes it after all earlier work.
    """

    def __init__(
        self,
        forward: Forward,
        caches: Sequence[LayerCache],
        *,
        page_tokens: int,
        context_tokens: int,
        vocabulary: int,
        device: torch.device,
        sample: Sample,
        record: Record | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._forward = forward
        self._caches = caches
        self._page_tokens = page_tokens
        self._context_tokens = context_tokens
        self._device = device
        self._sample = sample
        self._record = record
        self._recorded: dict[_Size, _Recorded] = {}
        self._met: Counter[_Size] = Counter()  # how often sizes without a graph were met, of steps with a prompt
        self._spare_page = caches[0].keys.shape[0] - 1

    def launch(self, works: Sequence[Work], after: Launched | None = None) -> Launched:
        """Launch a step. ``after`` is the step whose sampled tokens, still unknown to the host, are the input of this one.

        Call ``sample`` before the next launch. A step that no mask can affect is sampled here already.
        """
        with torch.inference_mode():
            counts = batch.exact(works, self._page_tokens)
            choice = _choice(works)
            found = self._graph_for(works, counts, choice)
            if found is not None:
                return self._replay(found, works, counts, choice, after)
            laid = batch.layout(counts)
            host = self._pack(works, laid)
            buffer = self._upload(host)
            inputs = batch.step_inputs(buffer, laid)
            if after is not None:
                assert after.picked is not None, "the step before was not sampled"
                inputs.token_ids.copy_(after.picked)
            logits = self._forward(inputs, self._caches)
            if not counts.samples:
                return Launched(works).sampled(logits.new_empty(0, dtype=torch.int64))
            if self._device.type == "mps":  # MPS has no float64
                buffer, logits = host, logits.cpu()
            return self._begun(works, _Unsampled(logits, batch.sampling_inputs(buffer, laid), choice))

    def sample(self, launched: Launched) -> None:
        """Sample a launched step if that is not done yet. Computes its masks, so the tokens before it must be known.

        Raises RequestRefused if a request's mask is invalid.
        """
        if launched.left is not None:
            with torch.inference_mode():
                self._pick(launched, launched.left, self._mask(launched.works))

    def _begun(self, works: Sequence[Work], left: _Unsampled) -> Launched:
        launched = Launched(works, left)
        return launched if left.choice.masked else self._pick(launched, left, None)

    def _pick(self, launched: Launched, left: _Unsampled, mask: torch.Tensor | None) -> Launched:
        logits, choice = left.logits, left.choice
        on_device = None if mask is None else mask.to(logits.device, non_blocking=True)
        picked = pick(logits, replace(left.sampling, nucleus=choice.nucleus, mask=on_device), self._sample)
        return launched.sampled(picked, logprob(logits, picked) if choice.logprobs else None)

    def _mask(self, works: Sequence[Work]) -> torch.Tensor | None:
        """Return the masks of all rows, uint8 [S, ceil(V / 8)] on the host, or None if every token is allowed everywhere."""
        rows = [(work.sequence.request.id, allowed) for work in works for allowed in work.allowed()]
        if all(allowed is None for _, allowed in rows):
            return None
        width = -(-self._vocabulary // 8)
        whole = self._host_buffer(len(rows) * width).view(len(rows), width)
        for row, (request_id, allowed) in zip(whole.numpy(), rows, strict=True):
            if allowed is None:
                row.fill(0xFF)
            else:
                row[:] = _checked(request_id, allowed, self._vocabulary)
        return whole

    def _pack(self, works: Sequence[Work], laid: Layout) -> torch.Tensor:
        return batch.pack(
            works, laid, page_tokens=self._page_tokens, spare_page=self._spare_page, new_buffer=self._host_buffer
        )

    def _host_buffer(self, nbytes: int) -> torch.Tensor:
        # Pinned, so that its copy to the device is asynchronous; torch reuses the memory only after the copy.
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def _upload(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self._device, non_blocking=True)

    def prepare(self) -> bool:
        """Record one more of the graphs that a single conversation needs; return False if none is left or memory is short."""
        if self._record is None or not self._record.has_room():
            return False
        sizes = (size for size in _wanted(self._page_tokens) if size.counts.tokens <= self._context_tokens)
        size = next((size for size in sizes if size not in self._recorded), None)
        if size is not None:
            with torch.inference_mode():
                self._recorded[size] = self._new_graph(self._record, size)
        return size is not None

    def guess_costs(self) -> Costs | None:
        """Measure what verifying a draft costs, in units of a plain decode step; None unless ``prepare`` has recorded the graphs.

        The tokens are random, so they use more different experts than those of a text do: the costs are upper bounds.
        """
        sizes = [_Size(_decode(1, CONTEXTS[-2], self._page_tokens), picks=True)]
        sizes += [_Size(_alone(tokens, tokens, self._page_tokens), picks=True) for tokens in GUESSES]
        if not all(size in self._recorded for size in sizes):
            return None
        plain_s, *guesses_s = [self._time_s(self._recorded[size]) for size in sizes]
        return tuple((n, (seconds + NOT_AHEAD_S) / plain_s) for n, seconds in zip(GUESSES, guesses_s, strict=True))

    def _time_s(self, recorded: _Recorded, times: int = 4) -> float:
        """Return the seconds of one replay on random tokens, whose keys and values go to the padding page."""
        with torch.inference_mode():
            recorded.buffer.copy_(self._pack([], recorded.laid))
            recorded.inputs.token_ids.random_(0, self._vocabulary)
            recorded.graph.output.cpu()
            began = time.perf_counter()
            for _ in range(times):
                recorded.graph.replay()
            recorded.graph.output.cpu()
            return max(time.perf_counter() - began, 1e-6) / times

    def _graph_for(self, works: Sequence[Work], counts: Counts, choice: _Choice) -> _Recorded | None:
        """Return the graph for such a step, if there is one. A graph for decode or a draft is recorded when it is first needed.

        Recording one for a step with a prompt pays only after several uses, so that is done here only for sizes that were met often.
        """
        if self._record is None:
            return None
        padded = _padded(works, counts, self._page_tokens)
        if padded is None or padded.tokens > self._context_tokens:
            return None
        is_prompt = any(work.samples != work.count for work in works)
        if len(works) > 1 and is_prompt and not choice.inside:
            return None  # each such graph would keep the logits of many rows in memory
        size = _Size(padded, choice.inside and (len(works) > 1 or not is_prompt))
        if size not in self._recorded and (not is_prompt or self._is_frequent(self._record, size)):
            self._recorded[size] = self._new_graph(self._record, size)
        return self._recorded.get(size)

    def _is_frequent(self, record: Record, size: _Size) -> bool:
        self._met[size] += 1
        return self._met[size] > OFTEN and record.has_room()

    def _replay(
        self,
        found: _Recorded,
        works: Sequence[Work],
        counts: Counts,
        choice: _Choice,
        after: Launched | None,
    ) -> Launched:
        rows = counts.samples
        found.buffer.copy_(self._pack(works, found.laid), non_blocking=True)
        if after is not None:
            assert after.picked is not None, "the step before was not sampled"
            found.inputs.token_ids[:rows].copy_(after.picked)
        found.graph.replay()
        output = found.graph.output[:rows]
        if not rows:
            return Launched(works).sampled(output.new_empty(0, dtype=torch.int64))
        if found.picks:
            # A copy, because the next replay overwrites the output.
            return Launched(works).sampled(output.clone())
        sampling = batch.sampling_inputs(found.buffer, found.laid)
        sampling = replace(
            sampling,
            temperature=sampling.temperature[:rows],
            top_p=sampling.top_p[:rows],
            uniform=sampling.uniform[:rows],
        )
        return self._begun(works, _Unsampled(output, sampling, choice))

    def _new_graph(self, record: Record, size: _Size) -> _Recorded:
        laid = batch.layout(size.counts)
        buffer = self._upload(self._pack([], laid))
        inputs = batch.step_inputs(buffer, laid)
        sampling = batch.sampling_inputs(buffer, laid)

        def work() -> torch.Tensor:
            logits = self._forward(inputs, self._caches)
            return pick(logits, sampling, self._sample) if size.picks else logits

        return _Recorded(record(work), size.picks, laid, buffer, inputs)


def _padded(works: Sequence[Work], counts: Counts, page_tokens: int) -> Counts | None:
    """Return the counts of the graph that serves such a step; None: there is none."""
    if counts.max_context_len > CONTEXTS[-1]:
        return None
    if counts.max_query_len == 1 and counts.samples == counts.sequences <= BATCHES[-1]:
        return _decode(_at_least(counts.sequences, BATCHES), _at_least(counts.max_context_len, CONTEXTS), page_tokens)
    if len(works) > 1:
        if len(works) > MIXED[-1] or counts.tokens > PROMPTS[-1]:
            return None
        return _mixed(_at_least(counts.tokens, PROMPTS), _at_least(len(works), MIXED), page_tokens)
    guess = counts.samples == counts.tokens
    sizes = GUESSES if guess else PROMPTS
    if counts.tokens > sizes[-1]:
        return None
    tokens = _at_least(counts.tokens, sizes)
    return _alone(tokens, tokens if guess else counts.samples, page_tokens)


def _at_least(count: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= count)


def _decode(sequences: int, context: int, page_tokens: int) -> Counts:
    """Return the counts of a decode step: one new token per sequence."""
    return Counts(sequences, sequences, -(-context // page_tokens), sequences, 1, context)


def _alone(tokens: int, samples: int, page_tokens: int) -> Counts:
    """Return the counts of a step of one sequence with several new tokens. One context bound is enough: with many query tokens, attention
    is not split by it.
    """
    return Counts(tokens, 1, -(-CONTEXTS[-1] // page_tokens), samples, tokens, CONTEXTS[-1])


def _mixed(tokens: int, sequences: int, page_tokens: int) -> Counts:
    """Return the counts of a step of several sequences with a prompt among them, however the tokens are distributed."""
    return Counts(tokens, sequences, -(-CONTEXTS[-1] // page_tokens), sequences, tokens, CONTEXTS[-1])


def _wanted(page_tokens: int) -> Iterator[_Size]:
    """Yield the sizes that a single conversation needs, the most frequent first."""
    for context in CONTEXTS:
        yield _Size(_decode(1, context, page_tokens), picks=True)
    for tokens in PROMPTS:
        yield _Size(_alone(tokens, 1, page_tokens), picks=False)
    yield _Size(_alone(PROMPTS[-1], 0, page_tokens), picks=False)
    for tokens in GUESSES:
        yield _Size(_alone(tokens, tokens, page_tokens), picks=True)


def _choice(works: Sequence[Work]) -> _Choice:
    """Return how the rows of a plan are sampled."""
    requests = [work.sequence.request for work in works if work.samples]
    return _Choice(
        nucleus=any(request.sampling.top_p < 1 for request in requests),
        logprobs=any(request.sampling.logprobs for request in requests),
        masked=not all(work.is_free for work in works),
    )


def _checked(request_id: str, allowed: bytes, vocabulary: int) -> NDArray[np.uint8]:
    """Return a mask as an array. Bits beyond the vocabulary are ignored. Raises RequestRefused for an invalid mask."""
    width = -(-vocabulary // 8)
    if len(allowed) != width:
        raise RequestRefused(
            f"the mask of request {request_id!r} has {len(allowed)} bytes: {width} hold a bit for each of {vocabulary} tokens"
        )
    row = np.frombuffer(allowed, dtype=np.uint8)
    if not row.any():
        raise RequestRefused(f"the mask of request {request_id!r} forbids every token: nothing can be sampled")
    return row


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy to pinned host memory, so that it overlaps with the device's next work."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
