"""A step's buffer: what is in it, where it lies, and what padding may touch."""

from __future__ import annotations

from array import array
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import batch
from runtime.batch import ALIGNMENT, Counts
from runtime.request import Request, Sampling
from runtime.sampler import uniform
from runtime.scheduler import Sequence, Work

PAGE = 4
SPARE = 99


def work(pages: list[int], tokens: list[int], start: int, samples: int, draft: tuple[int, ...] = ()) -> Work:
    request = Request("x", tuple(tokens), 100, sampling=Sampling(0.5, 0.9, seed=len(tokens)))
    sequence = Sequence(request, tokens, computed=start, pages=array("i", pages))
    return Work(sequence, start, len(tokens) + len(draft) - start, samples, 3, draft)


@given(st.data())
def test_every_row_is_where_a_plain_loop_puts_it(data: st.DataObject) -> None:
    works, page = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        length = data.draw(st.integers(1, 14))
        start = data.draw(st.integers(0, length - 1))
        draft = tuple(data.draw(st.lists(st.integers(100, 120), max_size=3)))
        samples = 1 + len(draft) if draft or data.draw(st.booleans()) else 0
        held = -(-(length + len(draft)) // PAGE) + data.draw(st.integers(0, 1))
        works.append(work(list(range(page, page + held)), list(range(length)), start, samples, draft))
        page += held
    laid = batch.layout(batch.exact(works, PAGE))
    buffer = batch.pack(works, laid, page_tokens=PAGE, spare_page=SPARE)
    inputs, sampling = batch.step_inputs(buffer, laid), batch.sampling_inputs(buffer, laid)
    row = sample = 0
    for index, each in enumerate(works):
        assert int(inputs.query_start[index]) == row
        assert int(inputs.context_len[index]) == each.start + each.count
        written = [*each.sequence.tokens, *each.draft]
        for position in range(each.start, each.start + each.count):
            assert int(inputs.token_ids[row]) == written[position]
            assert int(inputs.positions[row]) == position
            assert int(inputs.slots[row]) == each.sequence.pages[position // PAGE] * PAGE + position % PAGE
            row += 1
        for offset in range(each.samples):
            assert int(inputs.sample_rows[sample]) == row - each.samples + offset
            assert float(sampling.uniform[sample]) == uniform(len(each.sequence.tokens), 3 + offset)
            assert sampling.temperature[sample] == 0.5
            sample += 1
        used = -(-(each.start + each.count) // PAGE)
        assert inputs.page_table[index, :used].tolist() == list(each.sequence.pages[:used])
    assert int(inputs.query_start[-1]) == row == len(inputs.token_ids)
    assert sample == len(inputs.sample_rows)


@given(st.integers(0, 3), st.integers(1, 6))
def test_padding_writes_to_the_spare_page_only(own: int, query: int) -> None:
    query = query if own == 0 else 1
    works = [work([index], [5], 0, 1) for index in range(own)]
    counts = Counts(4 * query, 4, 3, 4 * query, query, 12)
    laid = batch.layout(counts)
    inputs = batch.step_inputs(batch.pack(works, laid, page_tokens=PAGE, spare_page=SPARE), laid)
    assert (inputs.slots[own:] // PAGE == SPARE).all()
    assert inputs.context_len[own:].tolist() == [query] * (4 - own)
    assert inputs.query_start.tolist() == [query * index for index in range(5)]
    assert inputs.sample_rows.tolist() == list(range(4 * query))


@given(st.integers(1, 11), st.integers(0, 1))
def test_rows_of_nobody_write_to_the_spare_page_only(length: int, samples: int) -> None:
    """A prompt alone in its step, padded: its own rows are as without padding."""
    own = work([5, 6, 7], list(range(length)), 0, samples)
    laid = batch.layout(Counts(16, 1, 9, samples, 16, 99))
    inputs = batch.step_inputs(batch.pack([own], laid, page_tokens=PAGE, spare_page=SPARE), laid)
    plain_laid = batch.layout(batch.exact([own], PAGE))
    plain = batch.step_inputs(batch.pack([own], plain_laid, page_tokens=PAGE, spare_page=SPARE), plain_laid)
    assert (inputs.slots[length:] // PAGE == SPARE).all()
    for name in ("token_ids", "slots", "positions"):
        assert getattr(inputs, name)[:length].tolist() == getattr(plain, name).tolist()
    for name in ("query_start", "context_len", "sample_rows"):
        assert getattr(inputs, name).tolist() == getattr(plain, name).tolist()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_every_tensor_begins_where_triton_wants_it(tokens: int, sequences: int, pages: int, samples: int) -> None:
    laid = batch.layout(Counts(tokens, sequences, pages, samples, 1, 1))
    assert all(part.start % ALIGNMENT == 0 for part in laid.slices.values())
    inputs = batch.step_inputs(torch.zeros(laid.nbytes, dtype=torch.uint8), laid)
    assert inputs.page_table.shape == (sequences, pages)
    ends = sorted((part.start, part.stop) for part in laid.slices.values())
    assert all(stop <= following for (_, stop), (following, _) in pairwise(ends))
