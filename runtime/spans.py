"""Synthetic steps for measurements and tests: new tokens of several sequences, over pages in random order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.kernels.base import StepInputs


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: ``count`` of them, after ``start`` cached ones."""

    start: int
    count: int


def pages_of(spans: Sequence[Span], page: int) -> int:
    """Return how many pages a cache needs for the spans: theirs, page 0, which no span uses, and a spare one."""
    return 2 + sum(-(-(span.start + span.count) // page) for span in spans)


def span_inputs(spans: Sequence[Span], page: int, pages: int, generator: torch.Generator) -> StepInputs:
    """Return a step over the spans, on the generator's device; token ids are 0, the last row of each span is sampled."""
    where = generator.device
    order = torch.randperm(pages - 1, generator=generator, device=where).add(1).tolist()
    width = max(-(-(span.start + span.count) // page) for span in spans)
    table, positions, slots, starts = [], [], [], [0]
    for span in spans:
        mine = [order.pop() for _ in range(-(-(span.start + span.count) // page))]
        table.append(mine + [0] * (width - len(mine)))
        for position in range(span.start, span.start + span.count):
            positions.append(position)
            slots.append(mine[position // page] * page + position % page)
        starts.append(len(positions))
    return StepInputs(
        token_ids=torch.zeros(len(positions), dtype=torch.int64, device=where),
        positions=torch.tensor(positions, dtype=torch.int32, device=where),
        slots=torch.tensor(slots, dtype=torch.int64, device=where),
        query_start=torch.tensor(starts, dtype=torch.int32, device=where),
        context_len=torch.tensor([span.start + span.count for span in spans], dtype=torch.int32, device=where),
        page_table=torch.tensor(table, dtype=torch.int32, device=where),
        sample_rows=torch.tensor(starts[1:], dtype=torch.int64, device=where) - 1,
        max_query_len=max(span.count for span in spans),
        max_context_len=max(span.start + span.count for span in spans),
    )
