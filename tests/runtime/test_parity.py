"""fp32 logits against transformers' GptOssForCausalLM, and a plausible mistake for every part that must be noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from runtime.kernels import reference
from runtime.kernels.base import Kernels, LayerCache, Mxfp4, Shapes, StepInputs
from runtime.kernels.reference import reference_kernels
from runtime.model import rope
from runtime.model.checkpoint import load_weights, open_checkpoint
from runtime.model.config import ModelConfig
from runtime.model.transformer import Transformer, build_transformer
from runtime.model.weights import LayerWeights, Layout
from tests.runtime.ragged import run_chunks

IDS = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(1)).tolist()
TOLERANCE = 1e-5
NOTICED = 1e-4  # a mistake must cost ten times the tolerance at least


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.fixture(scope="module")
def golden(tiny_checkpoints: dict[Layout, Path]) -> torch.Tensor:
    """What transformers says, eager and in fp32, having read the Hugging Face layout itself."""
    import transformers  # slow to load, and needed by this module alone

    model = transformers.GptOssForCausalLM.from_pretrained(
        tiny_checkpoints[Layout.HUGGING_FACE],
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    assert logits.dtype is torch.float32
    return logits


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("chunks", [[60], [1] * 60, [15, 1, 16, 17, 11]], ids=["whole", "one by one", "chunked"])
def test_fp32_logits_agree_with_transformers(
    layout: Layout, chunks: list[int], tiny_checkpoints: dict[Layout, Path], golden: torch.Tensor
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[layout])
    assert checkpoint.layout is layout
    weights = load_weights(checkpoint, torch.device("cpu"), torch.float32)
    model = build_transformer(checkpoint.config, weights, reference_kernels(), positions=64)
    assert distance(run_chunks(model, IDS, chunks), golden) < TOLERANCE


def test_bf16_is_near_and_no_more(tiny_checkpoints: dict[Layout, Path], golden: torch.Tensor) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints[Layout.ORIGINAL])
    weights = load_weights(checkpoint, torch.device("cpu"), torch.bfloat16)
    model = build_transformer(checkpoint.config, weights, reference_kernels(), positions=64)
    assert TOLERANCE < distance(run_chunks(model, IDS, [60]), golden) < 5e-2


# Each mistake below turns a right model into one that a plausible misreading would have built.


def sizes(**changes: object) -> Callable[[Transformer], Transformer]:
    def mistake(model: Transformer) -> Transformer:
        config = replace(model.config, **changes)  # type: ignore[arg-type]
        return build_transformer(config, model.weights, model.kernels, positions=64)

    return mistake


def kernels(change: Callable[[Kernels], Kernels]) -> Callable[[Transformer], Transformer]:
    return lambda model: replace(model, kernels=change(model.kernels))


def layers(change: Callable[[LayerWeights], LayerWeights]) -> Callable[[Transformer], Transformer]:
    def mistake(model: Transformer) -> Transformer:
        return replace(model, weights=replace(model.weights, layers=tuple(map(change, model.weights.layers))))

    return mistake


def table(change: Callable[[ModelConfig], torch.Tensor]) -> Callable[[Transformer], Transformer]:
    return lambda model: replace(model, rope=change(model.config))


def truncated_edges(config: ModelConfig) -> torch.Tensor:
    half = config.head_dim // 2
    plane = torch.arange(half, dtype=torch.float64)
    low = math.floor(rope.edge(config, config.rope_beta_fast))
    high = math.ceil(rope.edge(config, config.rope_beta_slow))
    ramp = ((plane - low) / (high - low)).clamp(0, 1)
    frequency = config.rope_theta ** (-plane / half)
    angles = torch.arange(64)[:, None] * ((1 - ramp) * frequency + ramp * frequency / config.rope_factor)
    return (torch.cat((angles.cos(), angles.sin()), 1) * rope.concentration(config)).float()


def swap_nibbles(weight: Mxfp4) -> Mxfp4:
    return replace(weight, blocks=(weight.blocks >> 4) | (weight.blocks << 4))


def concatenated_gate(model: Transformer) -> Transformer:
    def up(t: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        order = torch.arange(2 * shapes.intermediate).view(2, -1).T.flatten()
        wrong = Mxfp4(weight.blocks[:, order], weight.scales[:, order])
        return reference.experts_up(t, ids, wrong, bias[:, order], shapes)

    return replace(model, kernels=replace(model.kernels, experts_up=up))


def lower_clamp_on_the_gate_too(model: Transformer) -> Transformer:
    return with_swiglu(model, lambda gate, up: (gate.clamp(-1.0, 7.0), up.clamp(-7.0, 7.0) + 1))


def without_plus_one(model: Transformer) -> Transformer:
    return with_swiglu(model, lambda gate, up: (gate.clamp(max=7.0), up.clamp(-7.0, 7.0)))


def with_swiglu(
    model: Transformer, parts: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> Transformer:
    def up(t: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        result = torch.empty(*ids.shape, shapes.intermediate)
        for row in range(t.shape[0]):
            for choice, expert in enumerate(ids[row].tolist()):
                matrix = reference.decode_mxfp4(weight.blocks[expert], weight.scales[expert])
                u = functional.linear(t[row], matrix, bias[expert])
                gate, linear = parts(u[0::2], u[1::2])
                result[row, choice] = gate * torch.sigmoid(shapes.swiglu_alpha * gate) * linear
        return result

    return replace(model, kernels=replace(model.kernels, experts_up=up))


def the_right_swiglu(model: Transformer) -> Transformer:
    return with_swiglu(model, lambda gate, up: (gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1))


def with_rope_pairs(model: Transformer, order: torch.Tensor) -> Transformer:
    """Permute the planes of every head before the half-split rotation: the pairs of another convention."""

    def attend(
        qkv: torch.Tensor,
        table: torch.Tensor,
        sinks: torch.Tensor,
        cache: LayerCache,
        inputs: StepInputs,
        window: int | None,
        shapes: Shapes,
    ) -> torch.Tensor:
        rotated = shapes.query_heads + shapes.kv_heads
        heads = qkv.view(qkv.shape[0], -1, shapes.head_dim).clone()
        heads[:, :rotated] = heads[:, :rotated][:, :, order]
        return reference.attend(heads.view_as(qkv), table, sinks, cache, inputs, window, shapes)

    return replace(model, kernels=replace(model.kernels, attend=attend))


def interleaved_rope(model: Transformer) -> Transformer:
    order = torch.arange(model.config.head_dim).view(-1, 2).T.flatten()
    return with_rope_pairs(model, order)


def kv_head_by_modulo(model: Transformer) -> Transformer:
    def attend(
        qkv: torch.Tensor,
        table: torch.Tensor,
        sinks: torch.Tensor,
        cache: LayerCache,
        inputs: StepInputs,
        window: int | None,
        shapes: Shapes,
    ) -> torch.Tensor:
        group = shapes.query_heads // shapes.kv_heads
        order = torch.arange(shapes.query_heads).view(group, shapes.kv_heads).T.flatten()
        heads = qkv.view(qkv.shape[0], -1, shapes.head_dim).clone()
        heads[:, : shapes.query_heads] = heads[:, order]
        out = reference.attend(heads.view_as(qkv), table, sinks[order], cache, inputs, window, shapes)
        back = torch.empty_like(order)
        back[order] = torch.arange(shapes.query_heads)
        return out.view(qkv.shape[0], -1, shapes.head_dim)[:, back].reshape(out.shape)

    return replace(model, kernels=replace(model.kernels, attend=attend))


def softmax_before_top_k(
    x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normalised, ids, _ = reference.route(x, gain, weight, bias, shapes)
    everything = functional.linear(normalised, weight, bias).softmax(-1)
    return normalised, ids, everything.gather(1, ids.long())


def down_bias_outside_the_weighting(
    activated: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    weight: Mxfp4,
    bias: torch.Tensor,
    x: torch.Tensor,
    shapes: Shapes,
) -> torch.Tensor:
    bare = reference.experts_down(activated, ids, weights, weight, torch.zeros_like(bias), x, shapes)
    return bare + bias[ids.long()].sum(1)


def without_the_attention_gain(
    x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
) -> torch.Tensor:
    return reference.norm_qkv(x, torch.ones_like(gain), weight, bias, shapes)


MISTAKES: dict[str, Callable[[Transformer], Transformer]] = {
    "kv head by modulo": kv_head_by_modulo,
    "windows on odd layers": sizes(sliding=(False, True, False, True)),
    "window ignored": sizes(sliding=(False,) * 4),
    "window one too long": sizes(window=17),
    "window one too short": sizes(window=15),
    "interleaved RoPE": interleaved_rope,
    "no YaRN": sizes(rope_factor=1.0),
    "no concentration": table(lambda c: rope.rope_table(c, 64, torch.device("cpu")) / rope.concentration(c)),
    "YaRN edges truncated": table(truncated_edges),
    "YaRN betas swapped in": sizes(rope_beta_slow=1.1),
    "theta 100000": sizes(rope_theta=100_000.0),
    "high nibble first": layers(lambda w: replace(w, up=swap_nibbles(w.up), down=swap_nibbles(w.down))),
    "scale bias 126": layers(lambda w: replace(w, up=replace(w.up, scales=w.up.scales + 1))),
    "gate and linear concatenated": concatenated_gate,
    "no plus one": without_plus_one,
    "gate clamped below too": lower_clamp_on_the_gate_too,
    "no clamp": sizes(swiglu_limit=1e9),
    "clamp at 6": sizes(swiglu_limit=6.0),
    "alpha 1.0": sizes(swiglu_alpha=1.0),
    "alpha of GELU": sizes(swiglu_alpha=1.5957),
    "no sinks": layers(lambda w: replace(w, sinks=torch.full_like(w.sinks, -1e9))),
    "sinks scaled": layers(lambda w: replace(w, sinks=w.sinks / 4)),
    "softmax before top-k": kernels(lambda k: replace(k, route=softmax_before_top_k)),
    "down bias outside the weighting": kernels(lambda k: replace(k, experts_down=down_bias_outside_the_weighting)),
    "attention gain lost": kernels(lambda k: replace(k, norm_qkv=without_the_attention_gain)),
    "epsilon 1e-2": sizes(norm_eps=1e-2),
    "three experts a token": sizes(experts_per_token=3),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_plausible_mistake_is_noticed(name: str, tiny_model: Transformer, golden: torch.Tensor) -> None:
    assert distance(run_chunks(MISTAKES[name](tiny_model), IDS, [60]), golden) > NOTICED


def test_the_rewritten_parts_are_right_where_nothing_is_changed(tiny_model: Transformer, golden: torch.Tensor) -> None:
    """The mistakes above are built on a second SwiGLU: it must be the right one when nothing is wrong."""
    assert distance(run_chunks(the_right_swiglu(tiny_model), IDS, [60]), golden) < TOLERANCE


def test_skipping_the_cached_keys_is_noticed(tiny_model: Transformer, golden: torch.Tensor) -> None:
    """What upstream's kernel does with a cache that is not empty: the second chunk starts as if it were the first."""
    halves = [run_chunks(tiny_model, part, [30]) for part in (IDS[:30], IDS[30:])]
    assert distance(halves[0], golden[:30]) < TOLERANCE
    assert distance(halves[1], golden[30:]) > NOTICED
