"""The plain kernels against formulas written out a second time, one number after another, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels import reference
from runtime.kernels.base import LayerCache, Mxfp4, Shapes
from runtime.kernels.reference import FP4_VALUES, decode_mxfp4, reference_kernels
from tests.runtime.ragged import Span, step_inputs

SHAPES = Shapes(
    hidden=64,
    intermediate=32,
    query_heads=6,
    kv_heads=2,
    head_dim=8,
    experts=5,
    experts_per_token=3,
    vocabulary=50,
    window=4,
)
PAGE = 4


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_mxfp4(rows: int, columns: int, seed: int = 0) -> Mxfp4:
    generator = torch.Generator().manual_seed(seed)
    shape = (SHAPES.experts, rows, columns // 32)
    return Mxfp4(
        torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator),
        torch.randint(122, 128, shape, dtype=torch.uint8, generator=generator),
    )


class TestMxfp4:
    def test_low_nibble_first(self) -> None:
        block = torch.zeros(1, 16, dtype=torch.uint8)
        block[0, 0] = 0xF1  # low nibble 1: 0.5; high nibble 15: -6
        block[0, 15] = 0x70
        decoded = decode_mxfp4(block, torch.tensor([127], dtype=torch.uint8))
        assert decoded[:2].tolist() == [0.5, -6.0]
        assert decoded[30:].tolist() == [0.0, 6.0]

    def test_the_sixteen_values(self) -> None:
        block = torch.tensor([[2 * i + (2 * i + 1) * 16 for i in range(8)] * 2], dtype=torch.uint8)
        decoded = decode_mxfp4(block, torch.tensor([127], dtype=torch.uint8))
        assert decoded.tolist() == list(FP4_VALUES) * 2
        assert math.copysign(1.0, decoded[8].item()) == -1.0  # code 8 is minus zero

    @pytest.mark.parametrize(
        ("byte", "value"),
        [(0, 6 * 2.0**-127), (1, 6 * 2.0**-126), (126, 3.0), (127, 6.0), (128, 12.0), (252, 6 * 2.0**125)],
    )
    def test_the_scales_exactly(self, byte: int, value: float) -> None:
        block = torch.full((1, 16), 0x77, dtype=torch.uint8)
        decoded = decode_mxfp4(block, torch.tensor([byte], dtype=torch.uint8))
        assert decoded.unique().tolist() == [value]

    def test_254_overflows_and_255_is_no_number(self) -> None:
        block = torch.full((2, 16), 0x77, dtype=torch.uint8)
        decoded = decode_mxfp4(block, torch.tensor([254, 255], dtype=torch.uint8))
        assert decoded[:32].isinf().all()
        assert decoded[32:].isnan().all()

    @given(data=st.binary(min_size=64, max_size=64), scale=st.lists(st.integers(0, 250), min_size=4, max_size=4))
    @settings(max_examples=50, deadline=None)
    def test_any_bytes_decode_as_the_definition_says(self, data: bytes, scale: list[int]) -> None:
        blocks = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(2, 2, 16)
        scales = torch.tensor(scale, dtype=torch.uint8).view(2, 2)
        expected = [
            FP4_VALUES[nibble] * 2.0 ** (scale[index // 16] - 127)
            for index, byte in enumerate(data)
            for nibble in (byte & 15, byte >> 4)
        ]
        decoded = decode_mxfp4(blocks, scales)
        assert decoded.shape == (2, 64)
        assert decoded.flatten().tolist() == expected

    def test_transformers_decodes_the_same_bits(self) -> None:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # slow to load

        weight = random_mxfp4(16, 64)
        theirs = convert_moe_packed_tensors(weight.blocks, weight.scales)  # [E, in, out], bf16
        ours = decode_mxfp4(weight.blocks, weight.scales)
        assert torch.equal(ours.transpose(1, 2).to(torch.bfloat16), theirs)


class TestNorm:
    def test_the_formula(self) -> None:
        x, gain = random(3, 64, scale=5.0), random(64, seed=1)
        wide = x.double()
        expected = wide / (wide.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * gain.double()
        torch.testing.assert_close(reference.norm(x, gain, 1e-5).double(), expected, rtol=1e-6, atol=1e-6)

    def test_the_epsilon_matters_for_small_tokens(self) -> None:
        x = torch.full((1, 64), 1e-3)
        found = reference.norm(x, torch.ones(64), 1e-5)
        assert found[0, 0].item() == pytest.approx(1e-3 / math.sqrt(1e-6 + 1e-5), rel=1e-5)

    def test_it_rounds_once_after_the_gain(self) -> None:
        x, gain = random(4, 64).bfloat16(), random(64, seed=1)
        exact = reference.norm(x.float(), gain, 1e-5)
        assert torch.equal(reference.norm(x, gain, 1e-5), exact.bfloat16())


def attention_by_hand(qkv: torch.Tensor, rope: torch.Tensor, sinks: torch.Tensor, window: int | None) -> torch.Tensor:
    """One whole sequence, one query head and one key after another, in Python's floats."""
    tokens, width, half = qkv.shape[0], SHAPES.head_dim, SHAPES.head_dim // 2
    heads = qkv.double().view(tokens, -1, width).tolist()
    table = rope.double().tolist()

    def turned(vector: list[float], position: int) -> list[float]:
        cos, sin = table[position][:half], table[position][half:]
        first = [vector[i] * cos[i] - vector[i + half] * sin[i] for i in range(half)]
        second = [vector[i + half] * cos[i] + vector[i] * sin[i] for i in range(half)]
        return first + second

    group = SHAPES.query_heads // SHAPES.kv_heads
    out = torch.zeros(tokens, SHAPES.query_heads, width, dtype=torch.float64)
    for position in range(tokens):
        for head in range(SHAPES.query_heads):
            query = turned(heads[position][head], position)
            seen = [k for k in range(position + 1) if window is None or position - k < window]
            terms = {}
            for k in seen:
                key = turned(heads[k][SHAPES.query_heads + head // group], k)
                terms[k] = math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(width))
            total = sum(terms.values()) + math.exp(sinks[head].item())
            for k, term in terms.items():
                value = torch.tensor(heads[k][SHAPES.query_heads + SHAPES.kv_heads + head // group])
                out[position, head] += term / total * value
    return out.view(tokens, -1)


def empty_cache(pages: int, dtype: torch.dtype = torch.float32) -> LayerCache:
    shape = (pages, PAGE, SHAPES.kv_heads, SHAPES.head_dim)
    return LayerCache(torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype))


QKV_WIDTH = (SHAPES.query_heads + 2 * SHAPES.kv_heads) * SHAPES.head_dim
ROPE = torch.cat((random(64, 4, seed=5).cos(), random(64, 4, seed=5).sin()), 1) * 1.3
SINKS = random(SHAPES.query_heads, seed=6)


class TestAttend:
    @pytest.mark.parametrize("window", [None, 4, 1])
    @pytest.mark.parametrize("tokens", [1, 3, 4, 5, 9, 13])
    def test_a_whole_sequence(self, tokens: int, window: int | None) -> None:
        qkv = random(tokens, QKV_WIDTH)
        inputs = step_inputs([Span([0] * tokens, 0, [3, 1, 4, 2])], PAGE)
        found = reference.attend(qkv, ROPE, SINKS, empty_cache(5), inputs, window, SHAPES)
        torch.testing.assert_close(found.double(), attention_by_hand(qkv, ROPE, SINKS, window), rtol=1e-5, atol=1e-6)

    @given(
        lengths=st.lists(st.integers(1, 15), min_size=1, max_size=4),
        cuts=st.lists(st.integers(1, 15), min_size=4, max_size=4),
        window=st.sampled_from([None, 1, 3, 4, 5]),
    )
    @settings(max_examples=40, deadline=None)
    def test_ragged_batches_and_any_start_are_the_whole_sequence(
        self, lengths: list[int], cuts: list[int], window: int | None
    ) -> None:
        """Every sequence in two chunks at a place of its own, the chunks of all sequences in two shared steps."""
        whole = [random(length, QKV_WIDTH, seed=number) for number, length in enumerate(lengths)]
        pages = [[1 + number + 4 * column for column in range(4)] for number in range(len(lengths))]
        cache = empty_cache(20)
        parts: list[list[torch.Tensor]] = [[] for _ in lengths]
        cut = [min(cut, length) for cut, length in zip(cuts, lengths, strict=False)]
        for chunk in ([(0, c) for c in cut], list(zip(cut, lengths, strict=True))):
            active = [(n, start, stop) for n, (start, stop) in enumerate(chunk) if stop > start]
            if not active:
                continue
            inputs = step_inputs([Span([0] * (stop - start), start, pages[n]) for n, start, stop in active], PAGE)
            rows = torch.cat([whole[n][start:stop] for n, start, stop in active])
            out = reference.attend(rows, ROPE, SINKS, cache, inputs, window, SHAPES)
            for (n, _, _), part in zip(active, out.split([stop - start for _, start, stop in active]), strict=True):
                parts[n].append(part)
        for qkv, found in zip(whole, parts, strict=True):
            expected = attention_by_hand(qkv, ROPE, SINKS, window)
            torch.testing.assert_close(torch.cat(found).double(), expected, rtol=1e-5, atol=1e-6)

    def test_more_rows_than_are_scored_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        qkv = random(13, QKV_WIDTH)
        inputs = step_inputs([Span([0] * 13, 0, [1, 2, 3, 4])], PAGE)
        expected = reference.attend(qkv, ROPE, SINKS, empty_cache(5), inputs, 4, SHAPES)
        monkeypatch.setattr(reference, "QUERY_ROWS", 5)
        found = reference.attend(qkv, ROPE, SINKS, empty_cache(5), inputs, 4, SHAPES)
        torch.testing.assert_close(found, expected)

    def test_it_writes_rotated_keys_and_plain_values_to_their_slots_and_nowhere_else(self) -> None:
        qkv, cache = random(3, QKV_WIDTH), empty_cache(4)
        inputs = step_inputs([Span([0] * 3, 3, [2, 3])], PAGE)
        cache.keys[2, :3], cache.values[2, :3] = 0.0, 0.0
        reference.attend(qkv, ROPE, SINKS, cache, inputs, None, SHAPES)
        heads = qkv.view(3, -1, SHAPES.head_dim)
        written = torch.cat((cache.values[2, 3:], cache.values[3, :2]))
        assert torch.equal(written, heads[:, -SHAPES.kv_heads :])
        rotated = reference.rotate(heads[:, SHAPES.query_heads : -SHAPES.kv_heads], ROPE[3:6])
        assert torch.equal(torch.cat((cache.keys[2, 3:], cache.keys[3, :2])), rotated)
        assert cache.keys[3, 2:].isnan().all()
        assert cache.keys[:2].isnan().all()

    def test_a_large_sink_takes_everything(self) -> None:
        qkv = random(5, QKV_WIDTH)
        inputs = step_inputs([Span([0] * 5, 0, [1, 2])], PAGE)
        found = reference.attend(qkv, ROPE, torch.full((6,), 1e4), empty_cache(3), inputs, None, SHAPES)
        assert found.abs().max() == 0

    def test_large_scores_do_not_overflow(self) -> None:
        qkv = random(5, QKV_WIDTH, scale=100.0)
        inputs = step_inputs([Span([0] * 5, 0, [1, 2])], PAGE)
        found = reference.attend(qkv, ROPE, SINKS, empty_cache(3), inputs, None, SHAPES)
        assert found.isfinite().all()

    def test_bf16_is_the_rounding_of_fp32(self) -> None:
        qkv = random(9, QKV_WIDTH).bfloat16()
        inputs = step_inputs([Span([0] * 9, 0, [1, 2, 3])], PAGE)
        found = reference.attend(qkv, ROPE, SINKS, empty_cache(4, torch.bfloat16), inputs, 4, SHAPES)
        exact = reference.attend(qkv.float(), ROPE, SINKS, empty_cache(4), inputs, 4, SHAPES)
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


class TestExperts:
    def test_the_router_takes_the_best_and_weighs_the_chosen_only(self) -> None:
        x, gain, weight, bias = random(7, 64), random(64, seed=1), random(5, 64, seed=2), random(5, seed=3)
        normalised, ids, shares = reference.route(x, gain, weight, bias, SHAPES)
        for row in range(7):
            logits = (normalised[row].double() @ weight.double().T + bias.double()).tolist()
            best = sorted(range(5), key=lambda expert: -logits[expert])[:3]
            assert ids[row].tolist() == best
            terms = [math.exp(logits[expert]) for expert in best]
            assert shares[row].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-5)
        assert (ids.dtype, shares.dtype) == (torch.int32, torch.float32)

    def test_equal_logits_go_to_the_lower_id(self) -> None:
        _, ids, shares = reference.route(random(2, 64), torch.ones(64), torch.zeros(5, 64), torch.zeros(5), SHAPES)
        assert ids.tolist() == [[0, 1, 2]] * 2
        torch.testing.assert_close(shares, torch.full((2, 3), 1 / 3))

    @pytest.mark.parametrize(
        ("gate", "up", "expected"),
        [
            (1.0, 2.0, 1 / (1 + math.exp(-1.702)) * 3),
            (9.0, 0.0, 7 / (1 + math.exp(-1.702 * 7))),  # the gate is clamped above …
            (-9.0, 0.0, -9 / (1 + math.exp(1.702 * 9))),  # … and not below
            (1.0, 20.0, 1 / (1 + math.exp(-1.702)) * 8),  # the other half on both sides
            (1.0, -20.0, 1 / (1 + math.exp(-1.702)) * -6),
        ],
    )
    def test_swiglu_one_number_at_a_time(self, gate: float, up: float, expected: float) -> None:
        found = reference.swiglu(torch.tensor([gate, up, 0.0, 0.0]), SHAPES)
        assert found[0].item() == pytest.approx(expected, rel=1e-6)
        assert found[1].item() == 0.0

    def test_both_matrices_of_the_chosen_experts(self) -> None:
        x, t = random(6, 64), random(6, 64, seed=1)
        up, down = random_mxfp4(64, 64, seed=2), random_mxfp4(64, 32, seed=3)
        up_bias, down_bias = random(5, 64, seed=4), random(5, 64, seed=5)
        ids = torch.tensor([[0, 1, 2], [4, 0, 3], [2, 4, 1], [0, 1, 2], [3, 1, 0], [1, 2, 4]], dtype=torch.int32)
        shares = random(6, 3, seed=6).softmax(1)
        activated = reference.experts_up(t, ids, up, up_bias, SHAPES)
        assert activated.shape == (6, 3, 32)
        found = reference.experts_down(activated, ids, shares, down, down_bias, x, SHAPES)
        for row in range(6):
            expected = x[row].double()
            for choice, expert in enumerate(ids[row].tolist()):
                first = decode_mxfp4(up.blocks[expert], up.scales[expert]).double()
                second = decode_mxfp4(down.blocks[expert], down.scales[expert]).double()
                u = first @ t[row].double() + up_bias[expert].double()
                gate, linear = u[0::2].clamp(max=7), u[1::2].clamp(-7, 7)
                a = gate / (1 + (-1.702 * gate).exp()) * (linear + 1)
                torch.testing.assert_close(activated[row, choice].double(), a, rtol=1e-5, atol=1e-5)
                expected = expected + shares[row, choice].double() * (second @ a + down_bias[expert].double())
            torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-4)

    def test_the_residual_stream_that_was_given_is_not_touched(self) -> None:
        x = random(2, 64)
        before = x.clone()
        ids, shares = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
        weight = random_mxfp4(64, 32)
        reference.experts_down(random(2, 1, 32), ids, shares, weight, torch.ones(5, 64), x, SHAPES)
        assert torch.equal(x, before)

    def test_only_the_experts_in_use_are_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[torch.Size] = []

        def counting(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            decoded.append(blocks.shape)
            return decode_mxfp4(blocks, scales)

        monkeypatch.setattr(reference, "decode_mxfp4", counting)
        ids = torch.tensor([[3, 1], [1, 3]], dtype=torch.int32)
        reference.experts_up(random(2, 64), ids, random_mxfp4(64, 64), torch.zeros(5, 64), SHAPES)
        assert decoded == [torch.Size((64, 2, 16))] * 2


class TestProjections:
    def test_the_heads_come_queries_first(self) -> None:
        x, weight, bias = random(3, 64), random(QKV_WIDTH, 64, seed=1), random(QKV_WIDTH, seed=2)
        found = reference.norm_qkv(x, torch.ones(64), weight, bias, SHAPES)
        expected = reference.norm(x, torch.ones(64), 1e-5).double() @ weight.double().T + bias.double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    def test_the_projection_adds_the_residual_stream(self) -> None:
        attended, weight, bias, x = random(3, 48), random(64, 48, seed=1), random(64, seed=2), random(3, 64, seed=3)
        expected = x.double() + attended.double() @ weight.double().T + bias.double()
        found = reference.project(attended, weight, bias, x)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("rows", [7, 25, 50, 51])
    def test_unembedding_in_slices_is_unembedding(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reference, "VOCABULARY_ROWS", rows)
        x, gain, weight = random(2, 64), random(64, seed=1), random(50, 64, seed=2)
        expected = reference.norm(x, gain, 1e-5).double() @ weight.double().T
        found = reference.unembed(x, gain, weight, SHAPES)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    def test_logits_stay_fp32_in_bf16(self) -> None:
        found = reference.unembed(random(2, 64).bfloat16(), torch.ones(64), random(50, 64, seed=2).bfloat16(), SHAPES)
        assert found.dtype is torch.float32
        assert not torch.equal(found, found.bfloat16().float())


def test_the_record_is_complete_and_named() -> None:
    kernels = reference_kernels()
    assert kernels.name == "reference"
    assert replace(kernels, name="x").attend is reference.attend
