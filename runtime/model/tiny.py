"""A tiny gpt-oss model for tests and demonstrations: it has every part of the computation, and an error in any part is visible."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.model.checkpoint import save_weights
from runtime.model.config import ModelConfig, alternating
from runtime.model.random_weights import random_weights
from runtime.model.weights import Layout, Weights

HARMONY_VOCABULARY = 201_088


def tiny_config(vocabulary: int = 256, layers: int = 4, window: int = 16) -> ModelConfig:
    """Return tiny sizes that expose mistakes which the real sizes would hide.

    head_dim is not 64, kv_heads squared is not query_heads, queries are wider than hidden, and intermediate differs
    from hidden. With ``HARMONY_VOCABULARY`` it has harmony's ids; its weights then take 52 MB in bf16.
    """
    return ModelConfig(
        hidden=64,
        intermediate=128,
        query_heads=8,
        kv_heads=2,
        head_dim=16,
        experts=8,
        experts_per_token=4,
        vocabulary=vocabulary,
        window=window,
        sliding=alternating(layers),
        context_tokens=131_072,
    )


def tiny_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Return random bf16 weights on the CPU in which gains, biases, sinks and clamps all matter."""
    weights = random_weights(config, torch.device("cpu"), torch.bfloat16, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weights.final_gain.normal_(1.0, 0.2, generator=generator)
    for layer in weights.layers:
        for gain in (layer.attention_gain, layer.mlp_gain):
            gain.normal_(1.0, 0.2, generator=generator)
        for bias in (layer.qkv_bias, layer.out_bias, layer.router_bias, layer.up_bias, layer.down_bias):
            bias.normal_(0.0, 0.5, generator=generator)
        layer.sinks.normal_(1.0, 1.0, generator=generator)
        layer.up.scales.add_(4)  # so that activations reach the clamp at 7 …
        layer.down.scales.sub_(3)  # … without dominating the residual stream, where bf16 errors would accumulate
    # Gains and sinks are fp32 in memory but bf16 on disk: round them here, so that saving does not change them.
    for tensor in (
        weights.final_gain,
        *(t for layer in weights.layers for t in (layer.attention_gain, layer.mlp_gain, layer.sinks)),
    ):
        tensor.copy_(tensor.to(torch.bfloat16))
    return weights


def write_tiny(
    directory: Path,
    layout: Layout = Layout.HUGGING_FACE,
    config: ModelConfig | None = None,
    seed: int = 0,
    shards: int = 1,
) -> ModelConfig:
    """Write a tiny checkpoint in a layout and return its sizes. The same seed gives the same model in both layouts."""
    chosen = tiny_config() if config is None else config
    save_weights(tiny_weights(chosen, seed), chosen, directory, layout, shards)
    return chosen
