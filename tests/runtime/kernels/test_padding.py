"""A prompt padded to the size of a graph: rows that belong to nobody change nothing in those that belong to somebody."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
import torch

from benchmarks.kernel_cases import open_lab
from runtime import batch
from runtime.batch import Counts
from runtime.engine import make_caches
from runtime.kernels.base import LayerCache, Shapes
from runtime.kernels.open import open_kernels
from runtime.model.transformer import Transformer, forward
from runtime.request import Request
from runtime.scheduler import Sequence, Work
from runtime.spans import Span, span_inputs

PAGE = 16
PAGES = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = Shapes(64, 96, 8, 2, 16, 8, 4, 300, 16)


def logits(model: Transformer, start: int, count: int, padded: int, filling: float) -> torch.Tensor:
    """The last row's logits of the second of two chunks, over a cache whose unwritten places hold ``filling``."""
    pages = array("i", range(PAGES - 1))
    prompt = tuple(torch.randint(0, 256, (start + count,), generator=torch.Generator().manual_seed(1)).tolist())
    sequence = Sequence(Request("x", prompt, 1), list(prompt), pages=pages)
    caches = make_caches(model.config.layers, PAGES, model.shapes, PAGE, model.dtype, model.device)
    for cache in caches:
        cache.keys.fill_(filling)
        cache.values.fill_(filling)
    chunks = [(0, start, start)] if start else []
    for first, tokens, size in [*chunks, (start, count, padded)]:
        laid = batch.layout(Counts(size, 1, PAGES, 1, size, PAGE * PAGES))
        host = batch.pack([Work(sequence, first, tokens, 1, 0)], laid, page_tokens=PAGE, spare_page=PAGES - 1)
        rows = forward(model, batch.step_inputs(host.to(model.device), laid), caches)
    return rows


@pytest.mark.parametrize(("start", "count", "padded"), [(0, 5, 16), (0, 33, 48), (20, 17, 32)])
def test_rows_of_nobody_change_no_logit(tiny_model: Transformer, start: int, count: int, padded: int) -> None:
    plain = logits(tiny_model, start, count, count, 0.0)
    for filling in (0.0, float("nan")):
        torch.testing.assert_close(logits(tiny_model, start, count, padded, filling), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, SHAPES.window], ids=["full", "window"])
def test_rows_of_nobody_change_nothing_in_attention(window: int | None) -> None:
    """The other kernels of the record compute row by row; this one is told which rows are whose."""
    lab = open_lab(SHAPES, DEVICE, torch.float32, 7)
    span = Span(19, 21)
    plain = span_inputs([span], 8, 8, lab.generator)
    extra = 11
    padded = replace(
        plain,
        positions=torch.cat((plain.positions, plain.positions.new_zeros(extra))),
        slots=torch.cat((plain.slots, plain.slots.new_zeros(extra))),  # page 0 is nobody's
        max_query_len=span.count + extra,
        max_context_len=400,
    )
    keys, values = (lab.normal(8, 8, SHAPES.kv_heads, SHAPES.head_dim) for _ in range(2))
    qkv = lab.normal(span.count + extra, (SHAPES.query_heads + 2 * SHAPES.kv_heads) * SHAPES.head_dim)
    qkv[span.count :] = float("nan")
    rope, sinks = lab.normal(span.start + span.count, SHAPES.head_dim), lab.normal(SHAPES.query_heads)
    run = open_kernels("triton", DEVICE)
    caches = [LayerCache(keys.clone(), values.clone()) for _ in range(2)]
    expected = run.attend(qkv[: span.count], rope, sinks, caches[0], plain, window, SHAPES)
    found = run.attend(qkv, rope, sinks, caches[1], padded, window, SHAPES)
    torch.testing.assert_close(found[: span.count], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[0].keys[1:], caches[1].keys[1:])
    assert torch.equal(caches[0].values[1:], caches[1].values[1:])
