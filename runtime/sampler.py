"""From logits to tokens, on the device, batched.

A token is picked by inverting the cumulative distribution at one uniform random number per row. That number depends only on the
request's seed and the token's index, so a request gives the same tokens whatever else is in the batch, also after a
preemption.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from runtime.kernels import reference
from runtime.kernels.base import Sample


def uniform(seed: int, index: int) -> float:
    """Return the request's random number for its token ``index``, in [0, 1): 53 bits of a hash of both."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """How to sample each of the S rows. ``nucleus`` is a host value, so that it needs no synchronization."""

    temperature: torch.Tensor  # float32 [S]; 0 picks the most likely token
    top_p: torch.Tensor  # float32 [S]
    uniform: torch.Tensor  # float64 [S], in [0, 1)
    nucleus: bool = False  # some row has top_p < 1
    mask: torch.Tensor | None = None  # uint8 [S, ceil(V / 8)]: bit t % 8 of byte t // 8 is 0 where token t is forbidden


def pick(logits: torch.Tensor, inputs: SamplingInputs, sample: Sample = reference.sample) -> torch.Tensor:
    """Return int64 [S]: one token for each row of fp32 logits [S, V].

    A forbidden token (mask) has probability 0. Top-p keeps the most likely tokens up to and including the one that
    reaches the threshold (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if inputs.mask is not None:
        logits = logits.masked_fill(_forbidden(inputs.mask, logits.shape[-1]), -torch.inf)
    picked = sample(logits, inputs.temperature, inputs.uniform)
    if inputs.nucleus:  # sums in another order, so only for rows with top_p: a token must not depend on other rows
        asks = (inputs.top_p < 1) & (inputs.temperature > 0)
        picked = torch.where(asks, _nucleus(logits, inputs), picked)
    return picked


def _forbidden(mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return the forbidden tokens of a bit mask as bool [S, V]."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (mask[:, :, None].bitwise_right_shift(places).bitwise_and_(1) == 0).flatten(1)[:, :vocabulary]


def logprob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return fp32 [S]: the log-probability of each row's token at temperature 1."""
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return chosen - torch.logsumexp(logits, dim=-1)


def _nucleus(logits: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    temperature = torch.where(inputs.temperature == 0, 1.0, inputs.temperature)
    ordered, order = reference.tempered(logits, temperature).sort(dim=-1, descending=True, stable=True)
    running = ordered.double().cumsum(dim=-1)
    threshold = inputs.top_p[:, None].double() * running[:, -1:]
    kept = ordered.masked_fill(running - ordered >= threshold, 0.0)
    return order.gather(-1, reference.invert(kept, inputs.uniform)[:, None])[:, 0]
