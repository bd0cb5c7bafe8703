"""From a plan to a step's tensors: all of them in one buffer, so that a step costs one copy to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from runtime.kernels.base import StepInputs
from runtime.scheduler import Work


@dataclass(frozen=True, slots=True)
class Counts:
    """How large a step is: tokens T, sequences B, page columns P, rows to sample S, and the two bounds the host knows."""

    tokens: int
    sequences: int
    pages: int
    samples: int
    max_query_len: int
    max_context_len: int


_FIELDS = ("token_ids", "slots", "sample_rows", "positions", "query_start", "context_len", "page_table")
_WIDE = frozenset({"token_ids", "slots", "sample_rows"})  # int64; the others are int32


def _sizes(counts: Counts) -> dict[str, int]:
    return {
        "token_ids": counts.tokens,
        "slots": counts.tokens,
        "sample_rows": counts.samples,
        "positions": counts.tokens,
        "query_start": counts.sequences + 1,
        "context_len": counts.sequences,
        "page_table": counts.sequences * counts.pages,
    }


def _slices(counts: Counts) -> dict[str, slice]:
    """Where each tensor lies in the buffer, in bytes: the int64 ones first, so that all are aligned."""
    widths = [size * (8 if name in _WIDE else 4) for name, size in _sizes(counts).items()]
    ends = list(accumulate(widths))
    return {name: slice(end - width, end) for name, width, end in zip(_FIELDS, widths, ends, strict=True)}


def nbytes(counts: Counts) -> int:
    """Size of the buffer of a step."""
    return sum(size * (8 if name in _WIDE else 4) for name, size in _sizes(counts).items())


def exact(works: Sequence[Work], page_tokens: int) -> Counts:
    """Return the counts of a plan without any padding."""
    return Counts(
        tokens=sum(work.count for work in works),
        sequences=len(works),
        pages=max(-(-(work.start + work.count) // page_tokens) for work in works),
        samples=sum(work.samples for work in works),
        max_query_len=max(work.count for work in works),
        max_context_len=max(work.start + work.count for work in works),
    )


def pack(
    works: Sequence[Work], page_tokens: int, counts: Counts, spare_page: int, into: torch.Tensor | None = None
) -> torch.Tensor:
    """Write a plan into a host buffer, uint8 [nbytes].

    Rows beyond the plan's own (a step padded to the size of a captured graph) are sequences whose keys and values go to
    ``spare_page``, which belongs to nobody. Tokens that are not known yet are left 0. ``into`` is a buffer
    of that size to use again, pinned where the copy to the device is to run beside other work.
    """
    whole = torch.empty(nbytes(counts), dtype=torch.uint8) if into is None else into
    buffer = whole.numpy()
    buffer.fill(0)
    parts = {name: buffer[part].view(np.int64 if name in _WIDE else np.int32) for name, part in _slices(counts).items()}
    table = parts["page_table"].reshape(counts.sequences, counts.pages)
    row = sample = 0
    for index, work in enumerate(works):
        sequence, end = work.sequence, work.start + work.count
        positions = np.arange(work.start, end)
        pages = np.asarray(sequence.pages, dtype=np.int64)
        rows = slice(row, row + work.count)
        known = [*sequence.tokens[work.start : end - len(work.draft)], *work.draft]
        parts["token_ids"][row : row + len(known)] = known
        parts["positions"][rows] = positions
        parts["slots"][rows] = pages[positions // page_tokens] * page_tokens + positions % page_tokens
        used = min(len(pages), counts.pages)
        table[index, :used] = pages[:used]
        parts["context_len"][index] = end
        row += work.count
        parts["query_start"][index + 1] = row
        parts["sample_rows"][sample : sample + work.samples] = range(row - work.samples, row)
        sample += work.samples
    spare = counts.sequences - len(works)
    each = (counts.tokens - row) // spare if spare else 0
    for index in range(len(works), counts.sequences):
        rows = slice(row, row + each)
        parts["positions"][rows] = range(each)
        parts["slots"][rows] = range(spare_page * page_tokens, spare_page * page_tokens + each)
        table[index, 0] = spare_page
        parts["context_len"][index] = each
        row += each
        parts["query_start"][index + 1] = row
        parts["sample_rows"][sample : sample + each] = range(row - each, row)
        sample += each
    return whole


def unpack(buffer: torch.Tensor, counts: Counts) -> StepInputs:
    """View a buffer (on any device) as a step's tensors."""
    parts = {
        name: buffer[part].view(torch.int64 if name in _WIDE else torch.int32) for name, part in _slices(counts).items()
    }
    return StepInputs(
        token_ids=parts["token_ids"],
        positions=parts["positions"],
        slots=parts["slots"],
        query_start=parts["query_start"],
        context_len=parts["context_len"],
        page_table=parts["page_table"].view(counts.sequences, counts.pages),
        sample_rows=parts["sample_rows"],
        max_query_len=counts.max_query_len,
        max_context_len=counts.max_context_len,
    )
