"""The record of Triton kernels. Which kernel a step uses depends only on its number of tokens."""

from __future__ import annotations

from functools import partial

import torch

from runtime.kernels import attention, dense, grouped, limits, moe, sampling
from runtime.kernels.base import AcrossLayers, Kernels, LayerCache, Mxfp4, Shapes, StepInputs
from runtime.kernels.launch import REFUSED, Tuning, describe


def triton_kernels(on: torch.device, tuning: Tuning | None = None) -> Kernels:
    """Return the record for a CUDA device (or, under TRITON_INTERPRET=1, for the CPU).

    It owns counters on the device, so it can be used on one stream at a time. All its kernels can be captured in a CUDA graph.
    """
    device = describe(on, tuning)
    few_tokens = device.tuning.pair_tokens

    def norm_qkv(
        x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
    ) -> torch.Tensor:
        return dense.linear(x, weight, device, bias=bias, gain=gain, eps=shapes.norm_eps)

    def attend(
        qkv: torch.Tensor,
        rope: torch.Tensor,
        sinks: torch.Tensor,
        cache: LayerCache,
        inputs: StepInputs,
        window: int | None,
        shapes: Shapes,
    ) -> torch.Tensor:
        return attention.attend(qkv, rope, sinks, cache, inputs, window, shapes, device)

    def project(attended: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return dense.linear(attended, weight, device, bias=bias, residual=x)

    def route(
        x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return moe.route(x, gain, weight, bias, shapes, device, packed=x.shape[0] <= few_tokens)

    def experts_up(
        normalised: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes
    ) -> torch.Tensor:
        few = ids.shape[0] <= few_tokens
        return (moe.experts_up if few else grouped.experts_up)(normalised, ids, weight, bias, shapes, device)

    def experts_down(
        activated: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        weight: Mxfp4,
        bias: torch.Tensor,
        x: torch.Tensor,
        shapes: Shapes,
    ) -> torch.Tensor:
        if ids.shape[0] <= few_tokens:
            return moe.experts_down(activated, ids, weights, weight, bias, x, shapes, device)
        return grouped.experts_down(activated, ids, weights, weight, bias, x, None, shapes, device)[0]

    def qkv(normalised: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return dense.linear(normalised, weight, device, bias=bias)

    def unembed(x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        return dense.linear(x, weight, device, gain=gain, eps=shapes.norm_eps, dtype=torch.float32)

    def sample(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return sampling.sample(logits, temperature, uniform, device)

    return Kernels(
        name="triton",
        norm_qkv=norm_qkv,
        attend=attend,
        project=project,
        route=route,
        experts_up=experts_up,
        experts_down=experts_down,
        unembed=unembed,
        sample=sample,
        packed_tokens=few_tokens,
        refusal=partial(limits.refusal, compiled=on.type == "cuda"),
        unfit=REFUSED,
        across=AcrossLayers(partial(grouped.experts_down, device=device), qkv),
        recordable=True,
    )
