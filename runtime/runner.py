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
    sampling: SamplingInputs
    logits: torch.Tensor
    picked: torch.Tensor


class Runner:
    """Owns the caches and the graphs of one model on one device.

    ``pages`` cache pages of ``page_tokens`` tokens can be used by sequences; one more is for padding.
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
        self._graphs: dict[tuple[int, int, bool], _Graph] | None = {} if graphs and device.type == "cuda" else None
        self._spare_page = caches[0].keys.shape[0] - 1

    def run(self, works: Sequence[Work], mask: torch.Tensor | None = None) -> tuple[list[int], list[float]]:
        """Compute a plan; return a token and its log-probability for each work that samples, in order.

        Log-probabilities are empty unless some request asks for them. ``mask``: bool [S, V], False forbids a token.
        """
        with torch.inference_mode():
            counts = batch.exact(works, self._page_tokens)
            sampled = [work for work in works if work.samples]
            sampling = _sampling(sampled, mask)
            if self._graphs is not None and counts.max_query_len == 1 and counts.sequences <= BATCHES[-1]:
                logits, picked = self._replay(works, counts, sampling)
            else:
                buffer = batch.pack(works, self._page_tokens, counts, self._spare_page)
                logits = self._forward(batch.unpack(self._to_device(buffer), counts), self._caches)
                picked = pick(logits, _on(sampling, self._device)) if sampled else logits.new_empty(0)
            logprobs: list[float] = []
            if any(work.sequence.request.sampling.logprobs for work in sampled):
                logprobs = logprob(logits[: len(sampled)], picked[: len(sampled)]).tolist()
            return [int(token) for token in picked[: len(sampled)].tolist()], logprobs

    def logits(self, works: Sequence[Work]) -> torch.Tensor:
        """Compute a plan eagerly and return the fp32 logits [S, V] of the works that sample."""
        with torch.inference_mode():
            counts = batch.exact(works, self._page_tokens)
            buffer = batch.pack(works, self._page_tokens, counts, self._spare_page)
            return self._forward(batch.unpack(self._to_device(buffer), counts), self._caches)

    def _to_device(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self._device, non_blocking=True)

    def _replay(
        self, works: Sequence[Work], counts: Counts, sampling: SamplingInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._graphs is not None
        sequences = next(size for size in BATCHES if size >= counts.sequences)
        context = next((size for size in CONTEXTS if size >= counts.max_context_len), CONTEXTS[-1])
        # Top-p and masks are rare and keep the graph from being one shape: those steps pick outside of it.
        inside = sampling.mask is None and not sampling.nucleus
        key = (sequences, context, inside and sampling.greedy)
        found = self._graphs.get(key) or self._capture(*key)
        found.buffer.copy_(batch.pack(works, self._page_tokens, found.counts, self._spare_page), non_blocking=True)
        rows = counts.samples
        found.sampling.temperature[:rows].copy_(sampling.temperature, non_blocking=True)
        found.sampling.uniform[:rows].copy_(sampling.uniform, non_blocking=True)
        found.graph.replay()
        if inside:
            return found.logits, found.picked
        return found.logits, pick(found.logits[:rows], _on(sampling, self._device))

    def _capture(self, sequences: int, context: int, greedy: bool) -> _Graph:
        """Capture a decode step of ``sequences`` sequences with contexts up to ``context`` tokens."""
        assert self._graphs is not None
        pages = -(-context // self._page_tokens)
        counts = Counts(sequences, sequences, pages, sequences, 1, context)
        buffer = self._to_device(batch.pack([], self._page_tokens, counts, self._spare_page))
        sampling = SamplingInputs(
            torch.ones(sequences, device=self._device),
            torch.ones(sequences, device=self._device),
            torch.zeros(sequences, dtype=torch.float64, device=self._device),
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
        captured = _Graph(graph, counts, buffer, sampling, logits, picked)
        self._graphs[sequences, context, greedy] = captured
        return captured


def _sampling(sampled: Sequence[Work], mask: torch.Tensor | None) -> SamplingInputs:
    """How the rows of a plan are sampled, on the host."""
    settings = [work.sequence.request.sampling for work in sampled]
    return SamplingInputs(
        temperature=torch.tensor([each.temperature for each in settings], dtype=torch.float32),
        top_p=torch.tensor([each.top_p for each in settings], dtype=torch.float32),
        uniform=torch.tensor(
            [uniform(work.sequence.request.sampling.seed or 0, work.sequence.sampled) for work in sampled],
            dtype=torch.float64,
        ),
        greedy=all(each.temperature == 0 for each in settings),
        nucleus=any(each.top_p < 1 for each in settings),
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
