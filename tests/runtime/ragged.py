"""Ragged batches for the tests of kernels and models: which tokens are new, where they stand, which pages they own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.engine import make_caches
from runtime.kernels.base import LayerCache, StepInputs
from runtime.model.transformer import Transformer, forward


@dataclass(frozen=True)
class Span:
    """The new tokens of one sequence: ``ids`` at ``start``…, over ``pages`` of the cache."""

    ids: Sequence[int]
    start: int
    pages: Sequence[int]


def step_inputs(spans: Sequence[Span], page_size: int, rows: Sequence[int] | None = None) -> StepInputs:
    """Build one step; ``rows`` None wants the logits of every row."""
    ids, positions, slots, starts, contexts = [], [], [], [0], []
    for span in spans:
        for offset, token in enumerate(span.ids):
            position = span.start + offset
            ids.append(token)
            positions.append(position)
            slots.append(span.pages[position // page_size] * page_size + position % page_size)
        starts.append(len(ids))
        contexts.append(span.start + len(span.ids))
    width = max(len(span.pages) for span in spans)
    table = [[*span.pages, *[0] * (width - len(span.pages))] for span in spans]
    return StepInputs(
        token_ids=torch.tensor(ids),
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_len=torch.tensor(contexts, dtype=torch.int32),
        page_table=torch.tensor(table, dtype=torch.int32),
        sample_rows=torch.tensor(range(len(ids)) if rows is None else rows),
        max_query_len=max(len(span.ids) for span in spans),
        max_context_len=max(contexts),
    )


def poisoned_caches(model: Transformer, pages: int, page_size: int) -> list[LayerCache]:
    """Caches full of NaN: whoever reads what was never written gives himself away."""
    caches = make_caches(model.config.layers, pages, model.shapes, page_size, model.dtype, model.device)
    for cache in caches:
        cache.keys.fill_(float("nan"))
        cache.values.fill_(float("nan"))
    return caches


def run_chunks(model: Transformer, ids: Sequence[int], chunks: Sequence[int], page_size: int = 8) -> torch.Tensor:
    """Run one sequence in chunks of the given sizes over pages in a mixed order: all logits [T, V]."""
    count = -(-len(ids) // page_size)
    pages = torch.randperm(count, generator=torch.Generator().manual_seed(count)).add(1).tolist()
    caches = poisoned_caches(model, count + 1, page_size)
    logits, start = [], 0
    for size in chunks:
        span = Span(ids[start : start + size], start, pages)
        logits.append(forward(model, step_inputs([span], page_size), caches))
        start += size
    assert start == len(ids)
    return torch.cat(logits)
