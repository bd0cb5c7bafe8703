"""YaRN: the rotary frequencies and the table of cosines and sines.

Peng et al. 2023 (YaRN, arXiv 2309.00071), as gpt-oss was trained with it: the edges of the ramp are *not* rounded to
whole dimensions. At short contexts, rounded edges change the output by less than bf16 noise, so only a test of the
numbers below can detect them.
"""

from __future__ import annotations

import math

import torch

from runtime.errors import CheckpointError
from runtime.model.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Return the angle per position in each of the head_dim / 2 planes, in radians, float64 [D / 2].

    f_i = theta^(2i/D); edge(n) = (D/2) ln(initial / (2 pi n)) / ln(theta); ramp_i rises from 0 at edge(beta_fast) to 1
    at edge(beta_slow); the result is (1 - ramp_i) / f_i + ramp_i / (factor f_i). With a factor of 1 or less: 1 / f_i.

    Raises CheckpointError if the edges are out of order or outside the dimensions.
    """
    half = config.head_dim // 2
    plane = torch.arange(half, dtype=torch.float64)
    plain = config.rope_theta ** (-plane / half)
    if config.rope_factor <= 1.0:
        return plain
    low, high = edge(config, config.rope_beta_fast), edge(config, config.rope_beta_slow)
    if not 0 < low < high < half - 1:
        raise CheckpointError(
            f"YaRN's ramp from {low:.3f} to {high:.3f} does not lie within the {half} planes of head_dim "
            f"{config.head_dim}: rope_theta, the betas or the initial context are wrong"
        )
    ramp = ((plane - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - ramp) * plain + ramp * plain / config.rope_factor


def edge(config: ModelConfig, rotations: float) -> float:
    """Return the plane (a real number) that makes ``rotations`` rotations over the initial context."""
    periods = config.initial_context_tokens / (rotations * 2.0 * math.pi)
    return config.head_dim / 2 * math.log(periods) / math.log(config.rope_theta)


def concentration(config: ModelConfig) -> float:
    """Return YaRN's factor on cosines and sines: 0.1 ln(factor) + 1."""
    return 0.1 * math.log(config.rope_factor) + 1.0 if config.rope_factor > 1.0 else 1.0


def rope_table(config: ModelConfig, positions: int, device: torch.device) -> torch.Tensor:
    """Return fp32 [positions, D] = cos | sin, each times the concentration.

    Angles are computed in float64 on the host: in fp32 the product is off by 0.004 radians at position 131,000.
    """
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * inverse_frequencies(config)
    table = torch.cat((angles.cos(), angles.sin()), dim=1) * concentration(config)
    return table.to(torch.float32).to(device)
