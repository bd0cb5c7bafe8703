"""Random weights of any shape, generated on the device: for measurements, where only shapes and types matter."""

from __future__ import annotations

import torch

from runtime.kernels.base import Mxfp4
from runtime.model.config import ModelConfig
from runtime.model.memory import require_weights
from runtime.model.weights import Weights, allocate

# The root mean square of the sixteen MXFP4 values is 2.93: with scales of 2^-8 … 2^-6 the weights are of the order of 0.02.
SCALE_BYTES = (119, 121)


def random_weights(config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Weights:
    """Return random weights: gains of 1, a router that uses all experts evenly, dense matrices that preserve the norm, valid MXFP4.

    The same seed gives the same weights on the same kind of device. Raises DoesNotFit.
    """
    require_weights(config, device, dtype)
    weights = allocate(config, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(tensor: torch.Tensor) -> None:
        tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)

    def small(tensor: torch.Tensor) -> None:
        tensor.normal_(0.0, 0.02, generator=generator)

    def mxfp4(weight: Mxfp4) -> None:
        weight.blocks.random_(0, 256, generator=generator)
        weight.scales.random_(SCALE_BYTES[0], SCALE_BYTES[1] + 1, generator=generator)

    weights.embedding.normal_(0.0, 1.0, generator=generator)
    weights.final_gain.fill_(1.0)
    matrix(weights.unembedding)
    for layer in weights.layers:
        layer.attention_gain.fill_(1.0)
        layer.mlp_gain.fill_(1.0)
        layer.sinks.normal_(0.0, 1.0, generator=generator)
        for weight in (layer.qkv_weight, layer.out_weight, layer.router_weight):
            matrix(weight)
        for bias in (layer.qkv_bias, layer.out_bias, layer.up_bias, layer.down_bias):
            small(bias)
        layer.router_bias.zero_()
        mxfp4(layer.up)
        mxfp4(layer.down)
    return weights


def separate_experts(weights: Weights, seed: int = 3) -> None:
    """Give the routers biases so far apart that rounding never changes their choice: for comparing whole models in bf16.

    With an even router, some token's fourth and fifth expert always score within rounding of each other, and with random weights
    another expert changes the output completely (20b shapes, 200 tokens: the logits of two correct computations differ by 0.76
    relative; with separate experts by 0.03).
    """
    generator = torch.Generator(weights.embedding.device).manual_seed(seed)
    for layer in weights.layers:
        layer.router_bias.normal_(0.0, 10.0, generator=generator)
