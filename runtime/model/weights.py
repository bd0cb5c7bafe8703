"""A model's tensors, and their names in both checkpoint layouts.

Everything about checkpoints is derived from one table: for a layout, ``destinations`` maps each name to the tensor of the model
that it fills. Its keys are the required names, its shapes the required shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

import torch

from runtime.kernels.base import Mxfp4
from runtime.model.config import ModelConfig


class Layout(StrEnum):
    """The two naming schemes of checkpoints."""

    ORIGINAL = "original"
    HUGGING_FACE = "hugging_face"


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Gains and sinks are fp32, experts MXFP4, the rest is in the compute dtype."""

    attention_gain: torch.Tensor  # [H]
    qkv_weight: torch.Tensor  # [(Nq + 2 Nk) D, H]
    qkv_bias: torch.Tensor  # [(Nq + 2 Nk) D]
    sinks: torch.Tensor  # [Nq]
    out_weight: torch.Tensor  # [H, Nq D]
    out_bias: torch.Tensor  # [H]
    mlp_gain: torch.Tensor  # [H]
    router_weight: torch.Tensor  # [E, H]
    router_bias: torch.Tensor  # [E]
    up: Mxfp4  # [E, 2I, H]
    up_bias: torch.Tensor  # [E, 2I]
    down: Mxfp4  # [E, H, I]
    down_bias: torch.Tensor  # [E, H]


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a model, on one device."""

    embedding: torch.Tensor  # [V, H]
    layers: tuple[LayerWeights, ...]
    final_gain: torch.Tensor  # [H], fp32
    unembedding: torch.Tensor  # [V, H]


def allocate(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Weights:
    """Return uninitialized weights of the right shapes. On the device ``meta`` they take no memory."""

    def dense(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def wide(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    def mxfp4(rows: int, columns: int) -> Mxfp4:
        shape = (config.experts, rows, columns // 32)
        return Mxfp4(
            blocks=torch.empty((*shape, 16), dtype=torch.uint8, device=device),
            scales=torch.empty(shape, dtype=torch.uint8, device=device),
        )

    hidden, intermediate, experts = config.hidden, config.intermediate, config.experts
    queries = config.query_heads * config.head_dim
    qkv = queries + 2 * config.kv_heads * config.head_dim
    return Weights(
        embedding=dense(config.vocabulary, hidden),
        layers=tuple(
            LayerWeights(
                attention_gain=wide(hidden),
                qkv_weight=dense(qkv, hidden),
                qkv_bias=dense(qkv),
                sinks=wide(config.query_heads),
                out_weight=dense(hidden, queries),
                out_bias=dense(hidden),
                mlp_gain=wide(hidden),
                router_weight=dense(experts, hidden),
                router_bias=dense(experts),
                up=mxfp4(2 * intermediate, hidden),
                up_bias=dense(experts, 2 * intermediate),
                down=mxfp4(hidden, intermediate),
                down_bias=dense(experts, hidden),
            )
            for _ in range(config.layers)
        ),
        final_gain=wide(hidden),
        unembedding=dense(config.vocabulary, hidden),
    )


def destinations(weights: Weights, config: ModelConfig, layout: Layout) -> dict[str, torch.Tensor]:
    """Return, for every name in a layout, the tensor (or the rows of one) that it fills."""
    match layout:
        case Layout.ORIGINAL:
            return _original(weights)
        case Layout.HUGGING_FACE:
            return _hugging_face(weights, config)


def _original(weights: Weights) -> dict[str, torch.Tensor]:
    found = {
        "embedding.weight": weights.embedding,
        "norm.scale": weights.final_gain,
        "unembedding.weight": weights.unembedding,
    }
    for number, layer in enumerate(weights.layers):
        attention, mlp = f"block.{number}.attn", f"block.{number}.mlp"
        found |= {
            f"{attention}.norm.scale": layer.attention_gain,
            f"{attention}.qkv.weight": layer.qkv_weight,
            f"{attention}.qkv.bias": layer.qkv_bias,
            f"{attention}.sinks": layer.sinks,
            f"{attention}.out.weight": layer.out_weight,
            f"{attention}.out.bias": layer.out_bias,
            f"{mlp}.norm.scale": layer.mlp_gain,
            f"{mlp}.gate.weight": layer.router_weight,
            f"{mlp}.gate.bias": layer.router_bias,
            f"{mlp}.mlp1_weight.blocks": layer.up.blocks,
            f"{mlp}.mlp1_weight.scales": layer.up.scales,
            f"{mlp}.mlp1_bias": layer.up_bias,
            f"{mlp}.mlp2_weight.blocks": layer.down.blocks,
            f"{mlp}.mlp2_weight.scales": layer.down.scales,
            f"{mlp}.mlp2_bias": layer.down_bias,
        }
    return found


def _hugging_face(weights: Weights, config: ModelConfig) -> dict[str, torch.Tensor]:
    found = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.final_gain,
        "lm_head.weight": weights.unembedding,
    }
    keys_from = config.query_heads * config.head_dim
    values_from = keys_from + config.kv_heads * config.head_dim
    rows = {"q": slice(0, keys_from), "k": slice(keys_from, values_from), "v": slice(values_from, None)}
    for number, layer in enumerate(weights.layers):
        prefix = f"model.layers.{number}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        for letter, part in rows.items():
            found[f"{attention}.{letter}_proj.weight"] = layer.qkv_weight[part]
            found[f"{attention}.{letter}_proj.bias"] = layer.qkv_bias[part]
        found |= {
            f"{prefix}.input_layernorm.weight": layer.attention_gain,
            f"{attention}.sinks": layer.sinks,
            f"{attention}.o_proj.weight": layer.out_weight,
            f"{attention}.o_proj.bias": layer.out_bias,
            f"{prefix}.post_attention_layernorm.weight": layer.mlp_gain,
            f"{mlp}.router.weight": layer.router_weight,
            f"{mlp}.router.bias": layer.router_bias,
            f"{mlp}.experts.gate_up_proj_blocks": layer.up.blocks,
            f"{mlp}.experts.gate_up_proj_scales": layer.up.scales,
            f"{mlp}.experts.gate_up_proj_bias": layer.up_bias,
            f"{mlp}.experts.down_proj_blocks": layer.down.blocks,
            f"{mlp}.experts.down_proj_scales": layer.down.scales,
            f"{mlp}.experts.down_proj_bias": layer.down_bias,
        }
    return found


def size_bytes(weights: Weights) -> int:
    """Return the bytes of all tensors; also works on ``meta``."""
    return sum(tensor.nbytes for tensor in tensors(weights))


def tensors(weights: Weights) -> Iterator[torch.Tensor]:
    """Yield every tensor once."""
    yield from (weights.embedding, weights.final_gain, weights.unembedding)
    for layer in weights.layers:
        for field in fields(layer):
            match getattr(layer, field.name):
                case Mxfp4(blocks, scales):
                    yield from (blocks, scales)
                case tensor:
                    yield tensor
