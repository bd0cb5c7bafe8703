"""From a step's tensors to tokens: eager for prefill, a recorded graph for decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from runtime import batch
from runtime.batch import Counts, Layout
from runtime.errors import RequestRefused
from runtime.graphs import Graph, Record
from runtime.kernels.base import LayerCache, StepInputs
from runtime.sampler import SamplingInputs, logprob, pick
from runtime.scheduler import Work

Forward = Callable[[StepInputs, Sequence[LayerCache]], torch.Tensor]
"""(a step's inputs, one cache a layer) -> fp32 logits [S, V]."""

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Decode steps are padded up to one of these many sequences: one graph each."""

CONTEXTS = (1024, 4096, 16384, 65536, 131072)
"""...and to one of these bounds of the context, because the bound chooses how attention is split over the chip."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: Graph
    laid: Layout
    buffer: torch.Tensor  # what the graph reads: every step is copied into it
    inputs: StepInputs


@dataclass(frozen=True, slots=True)
class _Choice:
    """How a step samples, known on the host. ``inside``: so that a graph can do it; the rest is rare and done after it."""

    greedy: bool
    nucleus: bool
    logprobs: bool
    masked: bool

    @property
    def inside(self) -> bool:
        return not (self.nucleus or self.logprobs or self.masked)


class Launched:
    """A step under way on the device: ``tokens`` waits for it."""

    def __init__(self, works: Sequence[Work], picked: torch.Tensor, logprobs: torch.Tensor | None) -> None:
        self.works = works
        self.picked = picked  # int64 [S], on the device
        self._picked = _to_host(picked)
        self._logprobs = None if logprobs is None else _to_host(logprobs)
        self._done: torch.cuda.Event | None = None
        if picked.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._done.record()

    def tokens(self) -> tuple[list[int], list[float] | None]:
        """Return a token for each sampled row, in order, and their log-probabilities if anybody asks for them."""
        if self._done is not None:
            self._done.synchronize()
        return self._picked.tolist(), None if self._logprobs is None else self._logprobs.tolist()


class Runner:
    """Owns the caches and the graphs of one model on one device.

    Sequences use all pages of ``caches`` but the last, which is for padding. ``record`` None: no graphs. All is launched on
    one stream, in order: a page that is given to another sequence is written by it after all that was launched before.
    """

    def __init__(
        self,
        forward: Forward,
        caches: Sequence[LayerCache],
        *,
        page_tokens: int,
        vocabulary: int,
        device: torch.device,
        record: Record | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._forward = forward
        self._caches = caches
        self._page_tokens = page_tokens
        self._device = device
        self._record = record
        self._recorded: dict[tuple[int, int, int, str], _Recorded] = {}
        self._spare_page = caches[0].keys.shape[0] - 1

    def launch(self, works: Sequence[Work], after: Launched | None = None) -> Launched:
        """Start a step. ``after``: the step under way whose tokens, still unknown to the host, this one computes.

        Raises RequestRefused where a request's mask is unusable; nothing was launched then.
        """
        with torch.inference_mode():
            counts = batch.exact(works, self._page_tokens)
            choice = _choice(works)
            mask = _mask(works, self._vocabulary) if choice.masked else None
            if self._record is not None and _is_recorded(works, counts):
                return self._replay(self._record, works, counts, choice, mask, after)
            laid = batch.layout(counts)
            host = self._pack(works, laid)
            buffer = self._upload(host)
            inputs = batch.step_inputs(buffer, laid)
            if after is not None:
                inputs.token_ids.copy_(after.picked)
            logits = self._forward(inputs, self._caches)
            if not counts.samples:
                return Launched(works, logits.new_empty(0, dtype=torch.int64), None)
            if self._device.type == "mps":  # has no float64
                buffer, logits = host, logits.cpu()
            return self._sampled(works, logits, batch.sampling_inputs(buffer, laid), choice, mask)

    def _sampled(
        self,
        works: Sequence[Work],
        logits: torch.Tensor,
        sampling: SamplingInputs,
        choice: _Choice,
        mask: torch.Tensor | None,
    ) -> Launched:
        on_device = None if mask is None else mask.to(logits.device)
        picked = pick(logits, replace(sampling, greedy=choice.greedy, nucleus=choice.nucleus, mask=on_device))
        return Launched(works, picked, logprob(logits, picked) if choice.logprobs else None)

    def _pack(self, works: Sequence[Work], laid: Layout) -> torch.Tensor:
        new = _pinned if self._device.type == "cuda" else batch.host_buffer
        return batch.pack(works, laid, page_tokens=self._page_tokens, spare_page=self._spare_page, new_buffer=new)

    def _upload(self, host: torch.Tensor) -> torch.Tensor:
        # The allocator of pinned memory gives a block out again only after the copies from it are done.
        return host.to(self._device, non_blocking=True)

    def _replay(
        self,
        record: Record,
        works: Sequence[Work],
        counts: Counts,
        choice: _Choice,
        mask: torch.Tensor | None,
        after: Launched | None,
    ) -> Launched:
        sequences = next(size for size in BATCHES if size >= counts.sequences)
        context = next(size for size in CONTEXTS if size >= counts.max_context_len)
        gives = "logits" if not choice.inside else "greedy" if choice.greedy else "sampled"
        key = (sequences, counts.max_query_len, context, gives)
        found = self._recorded.get(key)
        if found is None:
            found = self._recorded[key] = self._new_graph(record, *key)
        rows = counts.samples
        found.buffer.copy_(self._pack(works, found.laid), non_blocking=True)
        if after is not None:
            found.inputs.token_ids[:rows].copy_(after.picked)
        found.graph.replay()
        output = found.graph.output[:rows]
        if choice.inside:
            # The next replay writes the output again: what outlives it is a copy.
            return Launched(works, output.clone(), None)
        sampling = batch.sampling_inputs(found.buffer, found.laid)
        sampling = replace(
            sampling,
            temperature=sampling.temperature[:rows],
            top_p=sampling.top_p[:rows],
            uniform=sampling.uniform[:rows],
        )
        return self._sampled(works, output, sampling, choice, mask)

    def _new_graph(self, record: Record, sequences: int, query: int, context: int, gives: str) -> _Recorded:
        """Record a step of ``sequences`` sequences with ``query`` new tokens each and contexts up to ``context``."""
        rows = sequences * query
        counts = Counts(rows, sequences, -(-context // self._page_tokens), rows, query, context)
        laid = batch.layout(counts)
        buffer = self._upload(self._pack([], laid))
        inputs = batch.step_inputs(buffer, laid)
        sampling = replace(batch.sampling_inputs(buffer, laid), greedy=gives == "greedy")

        def work() -> torch.Tensor:
            logits = self._forward(inputs, self._caches)
            return logits if gives == "logits" else pick(logits, sampling)

        return _Recorded(record(work), laid, buffer, inputs)


def _is_recorded(works: Sequence[Work], counts: Counts) -> bool:
    """Whether a graph stands for such a step: plain decode of up to so many sequences, or one sequence with a guess."""
    if counts.max_context_len > CONTEXTS[-1] or any(work.samples != work.count for work in works):
        return False
    return counts.sequences == 1 or (counts.max_query_len == 1 and counts.sequences <= BATCHES[-1])


def _choice(works: Sequence[Work]) -> _Choice:
    """Say how a plan's rows are sampled."""
    requests = [work.sequence.request for work in works if work.samples]
    return _Choice(
        greedy=all(request.sampling.temperature == 0 for request in requests),
        nucleus=any(request.sampling.top_p < 1 for request in requests),
        logprobs=any(request.sampling.logprobs for request in requests),
        masked=any(request.mask is not None for request in requests),
    )


def _mask(works: Sequence[Work], vocabulary: int) -> torch.Tensor | None:
    """Ask the requests' masks: bool [S, V] on the host, or None where all may be sampled."""
    whole = torch.ones(sum(work.samples for work in works), vocabulary, dtype=torch.bool)
    row, any_forbidden = 0, False
    for work in works:
        request = work.sequence.request
        if work.samples and request.mask is not None:
            allowed = request.mask(work.sequence.tokens[len(request.prompt) :])
            if allowed is not None:
                whole[row] = _allowed(request.id, allowed, vocabulary)
                any_forbidden = True
        row += work.samples
    return whole if any_forbidden else None


def _allowed(request_id: str, allowed: bytes, vocabulary: int) -> torch.Tensor:
    if len(allowed) != vocabulary:
        raise RequestRefused(
            f"the mask of request {request_id!r} has {len(allowed)} bytes: it needs one for each of {vocabulary} tokens"
        )
    if not any(allowed):
        raise RequestRefused(f"the mask of request {request_id!r} forbids every token: nothing can be sampled")
    return torch.frombuffer(bytearray(allowed), dtype=torch.uint8) != 0


def _pinned(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy to the host, pinned so that it runs beside the device's next work."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
