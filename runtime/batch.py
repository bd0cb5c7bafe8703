"""From a plan to a step's tensors. All of them are in one buffer, so that a step needs only one copy to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.kernels.base import StepInputs
from runtime.sampler import SamplingInputs, uniform
from runtime.scheduler import Work

NewBuffer = Callable[[int], torch.Tensor]
"""(bytes) -> uint8 tensor on the host; pinned if its copy to the device should be asynchronous."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The sizes of a step: tokens T, sequences B, page columns P, rows to sample S, and the two bounds known on the host."""

    tokens: int
    sequences: int
    pages: int
    samples: int
    max_query_len: int
    max_context_len: int


ALIGNMENT = 16  # bytes: for tensors aligned otherwise Triton compiles every kernel again

_KINDS = {
    "token_ids": (np.int64, torch.int64),
    "slots": (np.int64, torch.int64),
    "sample_rows": (np.int64, torch.int64),
    "uniform": (np.float64, torch.float64),
    "positions": (np.int32, torch.int32),
    "query_start": (np.int32, torch.int32),
    "context_len": (np.int32, torch.int32),
    "page_table": (np.int32, torch.int32),
    "temperature": (np.float32, torch.float32),
    "top_p": (np.float32, torch.float32),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The position of each tensor of a step in its buffer, in bytes."""

    counts: Counts
    nbytes: int
    slices: dict[str, slice]


def layout(counts: Counts) -> Layout:
    """Return the layout of a step's buffer."""
    sizes = {
        "token_ids": counts.tokens,
        "slots": counts.tokens,
        "sample_rows": counts.samples,
        "uniform": counts.samples,
        "positions": counts.tokens,
        "query_start": counts.sequences + 1,
        "context_len": counts.sequences,
        "page_table": counts.sequences * counts.pages,
        "temperature": counts.samples,
        "top_p": counts.samples,
    }
    widths = [sizes[name] * kind.itemsize for name, (_, kind) in _KINDS.items()]
    starts = [0, *accumulate(-(-width // ALIGNMENT) * ALIGNMENT for width in widths)]
    slices = {name: slice(start, start + width) for name, start, width in zip(_KINDS, starts, widths, strict=False)}
    return Layout(counts, starts[-1], slices)


def exact(works: Sequence[Work], page_tokens: int) -> Counts:
    """Return the counts of a plan without padding."""
    longest = max(work.start + work.count for work in works)
    return Counts(
        tokens=sum(work.count for work in works),
        sequences=len(works),
        pages=-(-longest // page_tokens),
        samples=sum(work.samples for work in works),
        max_query_len=max(work.count for work in works),
        max_context_len=longest,
    )


def host_buffer(nbytes: int) -> torch.Tensor:
    """Return an unpinned buffer."""
    return torch.empty(nbytes, dtype=torch.uint8)


def pack(
    works: Sequence[Work], laid: Layout, *, page_tokens: int, spare_page: int, new_buffer: NewBuffer = host_buffer
) -> torch.Tensor:
    """Write a plan into a new host buffer, uint8 [nbytes].

    A step may be padded to the size of a captured graph. Padding sequences share the tokens beyond the plan; if there are no
    padding sequences, those tokens belong to none. The keys and values of padding are written to ``spare_page``, which no
    sequence uses. Tokens that are not known yet are left 0.
    """
    counts = laid.counts
    whole = new_buffer(laid.nbytes)
    buffer = whole.numpy()
    buffer.fill(0)
    parts = {name: buffer[laid.slices[name]].view(kind) for name, (kind, _) in _KINDS.items()}
    table = parts["page_table"].reshape(counts.sequences, counts.pages)
    known: list[int] = []
    for row, work in enumerate(works):
        pages = np.frombuffer(work.sequence.pages, dtype=np.int32)[: counts.pages]
        table[row, : len(pages)] = pages
        known += work.sequence.tokens[work.start : work.start + work.count - len(work.draft)]
        known += work.draft
    table[len(works) :] = spare_page
    parts["token_ids"][: len(known)] = known
    lengths, starts, samples = _shares(works, counts)
    _place(parts, table, lengths, starts, samples, page_tokens)
    parts["slots"][sum(lengths) :] = spare_page * page_tokens
    rows = [(work.sequence.request.sampling, work.index + offset) for work in works for offset in range(work.samples)]
    parts["temperature"][: len(rows)] = [sampling.temperature for sampling, _ in rows]
    parts["top_p"][: len(rows)] = [sampling.top_p for sampling, _ in rows]
    parts["uniform"][: len(rows)] = [uniform(sampling.seed or 0, index) for sampling, index in rows]
    return whole


def _shares(works: Sequence[Work], counts: Counts) -> tuple[list[int], list[int], list[int]]:
    """Return new tokens, first position and samples of each sequence: first the plan's, then the padding's."""
    lengths = [work.count for work in works]
    starts = [work.start for work in works]
    samples = [work.samples for work in works]
    spare = counts.sequences - len(works)
    if spare:
        lengths += [(counts.tokens - sum(lengths)) // spare] * spare
        samples += [(counts.samples - sum(samples)) // spare] * spare
    return lengths, starts + [0] * spare, samples


def _place(
    parts: dict[str, NDArray[np.generic]],
    table: NDArray[np.generic],
    lengths: list[int],
    starts: list[int],
    samples: list[int],
    page_tokens: int,
) -> None:
    """Write the tensors that follow from each sequence's new tokens (lengths), first position and samples."""
    count, start, sampled = (np.array(each, dtype=np.int64) for each in (lengths, starts, samples))
    ends = np.cumsum(count)
    # The offset of each row in its sequence: 0, 1, …, starting again for each sequence.
    offset = np.arange(ends[-1]) - np.repeat(ends - count, count)
    position = np.repeat(start, count) + offset
    row = np.repeat(np.arange(len(lengths)), count)
    parts["positions"][: ends[-1]] = position
    parts["slots"][: ends[-1]] = (
        table[row, position // page_tokens].astype(np.int64) * page_tokens + position % page_tokens
    )
    parts["context_len"][:] = start + count
    parts["query_start"][1:] = ends
    last = np.cumsum(sampled)
    parts["sample_rows"][: last[-1]] = np.repeat(ends - last, sampled) + np.arange(last[-1])


def step_inputs(buffer: torch.Tensor, laid: Layout) -> StepInputs:
    """View a buffer (on any device) as a step's tensors."""
    counts = laid.counts
    return StepInputs(
        token_ids=_view(buffer, laid, "token_ids"),
        positions=_view(buffer, laid, "positions"),
        slots=_view(buffer, laid, "slots"),
        query_start=_view(buffer, laid, "query_start"),
        context_len=_view(buffer, laid, "context_len"),
        page_table=_view(buffer, laid, "page_table").view(counts.sequences, counts.pages),
        sample_rows=_view(buffer, laid, "sample_rows"),
        max_query_len=counts.max_query_len,
        max_context_len=counts.max_context_len,
    )


def sampling_inputs(buffer: torch.Tensor, laid: Layout) -> SamplingInputs:
    """View a buffer as the sampling parameters of its rows; ``nucleus`` and ``mask`` are off unless set by ``replace``."""
    return SamplingInputs(
        _view(buffer, laid, "temperature"), _view(buffer, laid, "top_p"), _view(buffer, laid, "uniform")
    )


def _view(buffer: torch.Tensor, laid: Layout, name: str) -> torch.Tensor:
    return buffer[laid.slices[name]].view(_KINDS[name][1])
