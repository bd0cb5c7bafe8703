"""The transformer: from token ids and paged caches to logits, with a given record of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.errors import RuntimeFault
from runtime.kernels.base import Kernels, LayerCache, Shapes, StepInputs
from runtime.model.config import ModelConfig
from runtime.model.rope import rope_table
from runtime.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Transformer:
    """A model ready to run: weights, kernels and the RoPE table, all on one device."""

    config: ModelConfig
    shapes: Shapes
    weights: Weights
    kernels: Kernels
    rope: torch.Tensor  # fp32 [positions, D]

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its computation and its cache."""
        return self.weights.embedding.dtype


def require_kernels(config: ModelConfig, kernels: Kernels) -> None:
    """Raise RuntimeFault if the kernels do not support a model's sizes."""
    if (refusal := kernels.refusal(config.shapes())) is not None:
        raise RuntimeFault(f"the {kernels.name} kernels do not run this model: {refusal}. Use the reference kernels")


def build_transformer(
    config: ModelConfig, weights: Weights, kernels: Kernels, positions: int | None = None
) -> Transformer:
    """Build a model. ``positions`` is the length of the RoPE table (None: the whole context).

    Raises RuntimeFault if the kernels do not support the model's sizes.
    """
    require_kernels(config, kernels)
    count = config.context_tokens if positions is None else positions
    rope = rope_table(config, count, weights.embedding.device)
    return Transformer(config, config.shapes(), weights, kernels, rope)


@torch.no_grad()
def forward(model: Transformer, inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
    """Run one step: write the caches and return fp32 logits [S, V] of the rows ``inputs.sample_rows``.

    No value is read back to the host here, so with kernels that read none either, a step can be captured in a CUDA graph and
    replayed on other inputs of the same shape. Raises RuntimeFault if a kernel does not run on the device.
    """
    try:
        return _forward(model, inputs, caches)
    except model.kernels.unfit as error:
        raise RuntimeFault(
            f"the {model.kernels.name} kernels do not run on {model.device}: {type(error).__name__}: {error}. "
            "Use the reference kernels"
        ) from error


def _forward(model: Transformer, inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
    run, shapes, weights = model.kernels, model.shapes, model.weights
    x = weights.embedding.index_select(0, inputs.token_ids)
    across = run.across if x.shape[0] > run.packed_tokens else None
    normalised_x: torch.Tensor | None = None
    following = (*weights.layers[1:], None)
    for number, (layer, after, cache) in enumerate(zip(weights.layers, following, caches, strict=True)):
        window = model.config.layer_window(number)
        if across is None or normalised_x is None:
            qkv = run.norm_qkv(x, layer.attention_gain, layer.qkv_weight, layer.qkv_bias, shapes)
        else:
            qkv = across.qkv(normalised_x, layer.qkv_weight, layer.qkv_bias)
        attended = run.attend(qkv, model.rope, layer.sinks, cache, inputs, window, shapes)
        x = run.project(attended, layer.out_weight, layer.out_bias, x)
        normalised, ids, shares = run.route(x, layer.mlp_gain, layer.router_weight, layer.router_bias, shapes)
        activated = run.experts_up(normalised, ids, layer.up, layer.up_bias, shapes)
        experts = activated, ids, shares, layer.down, layer.down_bias
        if across is None or after is None:
            x = run.experts_down(*experts, x, shapes)
        else:
            x, normalised_x = across.experts_down(*experts, x, after.attention_gain, shapes)
    if (
        not inputs.sample_rows.numel()
    ):  # a chunk of a prompt: skip the unembedding, a quarter of the bytes that a token reads
        return x.new_empty(0, shapes.vocabulary, dtype=torch.float32)
    if x.shape[0] > 1:  # a single row needs no gather, and one launch less is measurable
        x = x.index_select(0, inputs.sample_rows)
    return run.unembed(x, weights.final_gain, weights.unembedding, shapes)
