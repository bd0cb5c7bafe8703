"""Every Triton kernel against the reference: interpreted on the CPU in fp32 and fp16, compiled in bf16 where a GPU is.

The interpreter shows logic, masks and edges; types, layouts and races only a GPU shows (benchmarks/runtime.py runs the same
cases there, at the true shapes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from zlib import crc32

import pytest
import torch

from benchmarks import kernel_cases
from benchmarks.kernel_cases import Lab, open_lab
from runtime.kernels import mxfp4
from runtime.kernels.base import Kernels, LayerCache, Shapes
from runtime.kernels.fast import triton_kernels
from runtime.kernels.launch import Tuning
from runtime.kernels.open import open_kernels
from runtime.kernels.reference import decode_mxfp4
from runtime.spans import Span, span_inputs

# Nothing is a power of two that need not be, no two sizes are equal, and head_dim is not the model's.
TINY = Shapes(64, 128, 8, 2, 16, 8, 4, 300, 16)
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = Shapes(192, 320, 16, 2, 64, 8, 4, 300, 16) if ON_GPU else TINY
# fp32 shows exactness; the half type shows where a kernel rounds. The interpreter's bf16 dot is wrong, so fp16 there.
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3} if ON_GPU else {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    # A GPU is faster with small blocks, the interpreter by ten times with few: what is computed is the same.
    return open_kernels("triton", DEVICE) if ON_GPU else triton_kernels(DEVICE, Tuning(up=(64, 255), down=(32, 255)))


@pytest.fixture(params=LIMITS, ids=str)
def lab(request: pytest.FixtureRequest) -> Lab:
    return open_lab(
        SHAPES, DEVICE, request.param, crc32(request.node.name.encode())
    )  # each case its own, always the same


def close(lab: Lab, *errors: float) -> None:
    assert max(errors) <= LIMITS[lab.dtype], f"{errors} from seed {lab.generator.initial_seed()}"


# One token, the last of the gemv, the first of the tensor cores, more than a tile of them.
@pytest.mark.parametrize("tokens", [1, 2, 3, 70])
def test_norm_and_projections_are_the_references(lab: Lab, kernels: Kernels, tokens: int) -> None:
    close(lab, kernel_cases.norm_qkv_case(lab, kernels, tokens), kernel_cases.project_case(lab, kernels, tokens))


@pytest.mark.parametrize("tokens", [1, 9, 66])
def test_the_router_chooses_what_the_reference_chooses(lab: Lab, kernels: Kernels, tokens: int) -> None:
    close(lab, kernel_cases.route_case(lab, kernels, tokens))


# Gemv, its limit, the experts' own search for their rows, and (from 129 tokens on) sorted pairs.
@pytest.mark.parametrize("tokens", [1, 8, 9, 131])
def test_experts_are_the_references(lab: Lab, kernels: Kernels, tokens: int) -> None:
    close(lab, *kernel_cases.experts_case(lab, kernels, tokens))


@pytest.mark.parametrize("tokens", [1, 10])
def test_unembedding_is_the_references(lab: Lab, kernels: Kernels, tokens: int) -> None:
    close(lab, kernel_cases.unembed_case(lab, kernels, tokens))


SPANS = {
    "first token": [Span(0, 1)],
    "page is full": [Span(7, 1)],
    "page is new": [Span(8, 1)],
    "window is full": [Span(15, 1)],
    "window moves": [Span(16, 1)],
    "window has moved": [Span(17, 1)],
    "ragged decode over several parts": [Span(200, 1), Span(0, 1), Span(63, 1), Span(64, 1), Span(65, 1)],
    "prompt": [Span(0, 21)],
    "chunk within a page": [Span(9, 5)],
    "chunk over pages and blocks": [Span(60, 37)],
    "prompt, decode, draft": [Span(0, 19), Span(129, 1), Span(127, 4)],
}


@pytest.mark.parametrize("window", [None, SHAPES.window], ids=["full", "window"])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
def test_attention_is_the_references_wherever_it_starts(
    lab: Lab, kernels: Kernels, spans: list[Span], window: int | None
) -> None:
    close(lab, kernel_cases.attend_case(lab, kernels, spans, 8, window))


DRAFTS = {
    "draft": [Span(300, 5)],
    "short context": [Span(3, 2)],
    "more tokens than a block": [Span(290, 21)],
    "several": [Span(300, 5), Span(0, 3), Span(140, 20)],
}


@pytest.mark.parametrize("bound", [0, 600, 4096])
@pytest.mark.parametrize("spans", DRAFTS.values(), ids=DRAFTS)
def test_parts_without_keys_are_left_out(lab: Lab, kernels: Kernels, spans: list[Span], bound: int) -> None:
    """A graph's grid is for its longest context: what the parts of a shorter one do not write is NaN here."""
    close(lab, kernel_cases.attend_case(lab, kernels, spans, 8, None, bound))


def test_a_record_can_be_used_again_at_once(kernels: Kernels) -> None:
    """The counters of the last block are back at zero: the second launch chooses and adds up like the first."""
    lab = open_lab(SHAPES, DEVICE, next(iter(LIMITS)), 3)
    for _ in range(3):
        close(
            lab,
            kernel_cases.route_case(lab, kernels, 2),
            kernel_cases.attend_case(lab, kernels, [Span(150, 1)], 8, None),
        )


def test_equal_scores_give_the_lower_expert(kernels: Kernels) -> None:
    x = torch.ones(1, SHAPES.hidden, device=DEVICE)
    weight = torch.zeros(SHAPES.experts, SHAPES.hidden, device=DEVICE)
    bias = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 0.0, 2.0], device=DEVICE)
    _, ids, weights = kernels.route(x, torch.ones(SHAPES.hidden, device=DEVICE), weight, bias, SHAPES)
    assert ids.tolist() == [[1, 3, 7, 0]]
    assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("experts", [8, 64, 65, 128])
@pytest.mark.parametrize("tokens", [1, 70])
def test_experts_are_chosen_in_order_however_many_there_are(kernels: Kernels, experts: int, tokens: int) -> None:
    shapes = replace(SHAPES, experts=experts)
    lab = open_lab(shapes, DEVICE, torch.float32, 7)
    for bias in (lab.normal(experts), lab.integers(3, experts).float()):
        x, gain = lab.normal(tokens, shapes.hidden), torch.ones(shapes.hidden, device=DEVICE)
        _, ids, weights = kernels.route(x, gain, torch.zeros(experts, shapes.hidden, device=DEVICE), bias, shapes)
        best = bias.sort(descending=True, stable=True)
        assert (ids == best.indices[:4].int()).all()
        torch.testing.assert_close(weights, best.values[:4].softmax(0).expand(tokens, 4))


SPOILT = {
    "NaN": lambda bias: bias.fill_(float("nan")),
    "NaN among others": lambda bias: bias.index_fill_(0, torch.arange(0, len(bias), 2, device=DEVICE), float("nan")),
    "all but one are -inf": lambda bias: bias.index_fill_(0, torch.arange(1, len(bias), device=DEVICE), float("-inf")),
    "signed zeros": lambda bias: bias.mul_(0.0),
    "huge": lambda bias: bias.mul_(1e38),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy, which warns of NaN
@pytest.mark.parametrize("experts", [8, 100])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_whatever_the_scores_are_different_experts_are_chosen(
    kernels: Kernels, spoil: Callable[[torch.Tensor], torch.Tensor], experts: int
) -> None:
    bias = spoil(open_lab(SHAPES, DEVICE, torch.float32, 5).normal(experts))
    weight = torch.zeros(experts, SHAPES.hidden, device=DEVICE)
    gain = torch.ones(SHAPES.hidden, device=DEVICE)
    shapes = replace(SHAPES, experts=experts)
    _, ids, _ = kernels.route(torch.zeros(1, SHAPES.hidden, device=DEVICE), gain, weight, bias, shapes)
    ranked = torch.where(bias.isnan(), float("-inf"), bias).sort(descending=True, stable=True)
    assert ids.tolist() == [ranked.indices[:4].tolist()]


def test_a_padding_row_has_no_token_and_no_position(kernels: Kernels) -> None:
    """A graph's row that no sequence uses: the other rows are as without it."""
    lab = open_lab(SHAPES, DEVICE, torch.float32, 10)
    plain = span_inputs([Span(19, 1)], 8, 8, lab.generator)
    padded = replace(
        plain,
        query_start=torch.tensor([0, 1, 1], dtype=torch.int32, device=DEVICE),
        context_len=torch.tensor([20, 0], dtype=torch.int32, device=DEVICE),
        page_table=torch.cat((plain.page_table, torch.zeros_like(plain.page_table))),
    )
    s = SHAPES
    keys, values = (lab.normal(8, 8, s.kv_heads, s.head_dim) for _ in range(2))
    qkv = lab.normal(1, (s.query_heads + 2 * s.kv_heads) * s.head_dim)
    rope, sinks = lab.normal(20, s.head_dim), lab.normal(s.query_heads)
    found, expected = (
        kernels.attend(qkv, rope, sinks, LayerCache(keys.clone(), values.clone()), inputs, None, s)
        for inputs in (padded, plain)
    )
    torch.testing.assert_close(found, expected)


def paired_place(k):
    """As mxfp4.paired_place says, in plain Python or torch."""
    return k // 64 * 64 + k // 4 % 2 * 32 + k // 16 % 4 * 8 + k % 4 * 2 + k // 8 % 2


def test_packed_order_is_a_permutation_that_is_undone() -> None:
    width = 128
    k = torch.arange(width)
    place = (k % 4) * (width // 4) + (k // 8) * 2 + (k // 4) % 2  # as packed_place says, in plain torch
    packed = torch.empty(width)
    packed[place] = k * 16.0
    assert mxfp4.from_packed(packed).tolist() == k.tolist()
    paired = torch.empty(width)
    paired[paired_place(k)] = k * 1.0
    assert mxfp4.from_paired(paired).tolist() == k.tolist()


@pytest.mark.parametrize("scale", [0, 1, 118, 127, 150])
def test_every_code_is_decoded_under_every_scale(kernels: Kernels, scale: int) -> None:
    """One-hot tokens read the matrix back through the down projection, value by value."""
    experts, rows, width = SHAPES.experts, SHAPES.hidden, SHAPES.intermediate
    lab = open_lab(SHAPES, DEVICE, torch.float32, 4)
    down = lab.mxfp4(rows, width)
    down.blocks.view(experts, -1)[:, :256] = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    down.scales.fill_(scale)
    tokens = 9  # the least that go over tensor cores
    activated = torch.zeros(tokens, 4, width, device=DEVICE)
    ids = torch.arange(4, dtype=torch.int32, device=DEVICE).expand(tokens, 4).contiguous()
    share = torch.zeros(tokens, 4, device=DEVICE)
    for token in range(tokens):
        k = 7 * token
        activated[token, token % 4, paired_place(k)] = 1.0
        share[token, token % 4] = 1.0
    out = kernels.experts_down(
        activated,
        ids,
        share,
        down,
        torch.zeros(experts, rows, device=DEVICE),
        torch.zeros(tokens, rows, device=DEVICE),
        SHAPES,
    )
    truth = decode_mxfp4(down.blocks, down.scales)
    for token in range(tokens):
        torch.testing.assert_close(out[token], truth[token % 4, :, 7 * token], rtol=0, atol=0)
