"""From a step's tensors to tokens: eager for prefill, a captured CUDA graph for decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from runtime import batch
from runtime.batch import Counts
from runtime.kernels.base import LayerCache, StepInputs
from runtime.sampler import SamplingInputs, logprob, pick, uniform
from runtime.scheduler import Work

Forward = Callable[[StepInputs, Sequence[LayerCache]], torch.Tensor]
"""(a step's inputs, one cache a layer) -> fp32 logits [S, V]."""

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Decode steps are padded up to one of these many sequences: one graph each."""

CONTEXTS = (1024, 4096, 16384, 65536, 131072)
"""...and to one of these bounds of the context, because the bound chooses how attention is split over the chip."""


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    counts: Counts
    buffer: torch.Tensor
    inputs: StepInputs
    sampling: SamplingInputs
    logits: torch.Tensor
    picked: torch.Tensor


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

    Sequences use all pages of ``caches`` but the last, which is for padding.
    """

    def __init__(
        self,
        forward: Forward,
        caches: Sequence[LayerCache],
        *,
        page_tokens: int,
        device: torch.device,
        graphs: bool,
    ) -> None:
        self._forward = forward
        self._caches = caches
        self._page_tokens = page_tokens
        self._device = device
        self._graphs: dict[tuple[int, int, int, bool], _Graph] | None = {} if graphs and device.type == "cuda" else None
        self._spare_page = caches[0].keys.shape[0] - 1

    def launch(
        self, works: Sequence[Work], after: Launched | None = None, mask: torch.Tensor | None = None
    ) -> Launched:
        """Start a step. ``after``: the step under way whose tokens, still unknown to the host, this one computes.

        ``mask``: bool [S, V] on the host, False forbids a token.
        """
        with torch.inference_mode():
            counts = batch.exact(works, self._page_tokens)
            sampling = _sampling(works, mask)
            if self._graphs is not None and _is_captured(works, counts):
                logits, picked = self._replay(works, counts, sampling, after)
            else:
                buffer = batch.pack(works, self._page_tokens, counts, self._spare_page)
                inputs = batch.unpack(self._upload(buffer), counts)
                if after is not None:
                    inputs.token_ids.copy_(after.picked)
                logits = self._forward(inputs, self._caches)
                on_device = _on(sampling, self._device)
                picked = pick(logits, on_device) if counts.samples else logits.new_empty(0, dtype=torch.int64)
            picked = picked[: counts.samples]
            asks = any(work.sequence.request.sampling.logprobs for work in works if work.samples)
            # The graph's own outputs are written again by the next step: what outlives this one is a copy.
            return Launched(works, picked.clone(), logprob(logits[: counts.samples], picked) if asks else None)

    def _upload(self, host: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def _replay(
        self, works: Sequence[Work], counts: Counts, sampling: SamplingInputs, after: Launched | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._graphs is not None
        sequences = next(size for size in BATCHES if size >= counts.sequences)
        context = next((size for size in CONTEXTS if size >= counts.max_context_len), CONTEXTS[-1])
        # Top-p and masks are rare and keep the graph from being one shape: those steps pick outside of it.
        inside = sampling.mask is None and not sampling.nucleus
        key = (sequences, counts.max_query_len, context, inside and sampling.greedy)
        found = self._graphs.get(key) or self._capture(*key)
        found.buffer.copy_(
            self._upload(batch.pack(works, self._page_tokens, found.counts, self._spare_page)), non_blocking=True
        )
        rows = counts.samples
        if after is not None:
            found.inputs.token_ids[:rows].copy_(after.picked)
        if not sampling.greedy:
            found.sampling.temperature[:rows].copy_(self._upload(sampling.temperature), non_blocking=True)
            found.sampling.uniform[:rows].copy_(self._upload(sampling.uniform), non_blocking=True)
        found.graph.replay()
        if inside:
            return found.logits, found.picked
        return found.logits, pick(found.logits[:rows], _on(sampling, self._device))

    def _capture(self, sequences: int, query: int, context: int, greedy: bool) -> _Graph:
        """Capture a step of ``sequences`` sequences with ``query`` new tokens each and contexts up to ``context``."""
        assert self._graphs is not None
        pages = -(-context // self._page_tokens)
        rows = sequences * query
        counts = Counts(rows, sequences, pages, rows, query, context)
        buffer = self._upload(batch.pack([], self._page_tokens, counts, self._spare_page))
        sampling = SamplingInputs(
            torch.ones(rows, device=self._device),
            torch.ones(rows, device=self._device),
            torch.zeros(rows, dtype=torch.float64, device=self._device),
            greedy=greedy,
            nucleus=False,
        )
        inputs = batch.unpack(buffer, counts)

        def work() -> tuple[torch.Tensor, torch.Tensor]:
            logits = self._forward(inputs, self._caches)
            return logits, pick(logits, sampling)

        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):  # compile and allocate outside of the capture
                work()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Graphs run one at a time, so they share their memory: later ones take the pool of the first.
        first = next(iter(self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=None if first is None else first.graph.pool()):
            logits, picked = work()
        captured = _Graph(graph, counts, buffer, inputs, sampling, logits, picked)
        self._graphs[sequences, query, context, greedy] = captured
        return captured


def _is_captured(works: Sequence[Work], counts: Counts) -> bool:
    """Whether a graph stands for such a step: plain decode of up to so many sequences, or one sequence with a guess."""
    if any(work.samples != work.count for work in works):
        return False
    return counts.sequences == 1 or (counts.max_query_len == 1 and counts.sequences <= BATCHES[-1])


def _sampling(works: Sequence[Work], mask: torch.Tensor | None) -> SamplingInputs:
    """How the rows of a plan are sampled, on the host."""
    rows = [(work.sequence.request.sampling, work.index + offset) for work in works for offset in range(work.samples)]
    return SamplingInputs(
        temperature=torch.tensor([each.temperature for each, _ in rows], dtype=torch.float32),
        top_p=torch.tensor([each.top_p for each, _ in rows], dtype=torch.float32),
        uniform=torch.tensor([uniform(each.seed or 0, index) for each, index in rows], dtype=torch.float64),
        greedy=all(each.temperature == 0 for each, _ in rows),
        nucleus=any(each.top_p < 1 for each, _ in rows),
        mask=mask,
    )


def _on(sampling: SamplingInputs, device: torch.device) -> SamplingInputs:
    return replace(
        sampling,
        temperature=sampling.temperature.to(device, non_blocking=True),
        top_p=sampling.top_p.to(device, non_blocking=True),
        uniform=sampling.uniform.to(device, non_blocking=True),
        mask=None if sampling.mask is None else sampling.mask.to(device, non_blocking=True),
    )


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy to the host, pinned so that it runs beside the device's next work."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
