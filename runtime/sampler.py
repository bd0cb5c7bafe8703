"""From logits to tokens, on the device, batched.

A token is picked by inverting the cumulative distribution at one uniform number a row. That number depends on the
request's seed and the token's index alone, so a request gives the same tokens whatever else is in the batch, and again after
a preemption. The cumulative sum runs in float64: in float32 the tail of 201,088 tokens would drown in rounding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def uniform(seed: int, index: int) -> float:
    """Return the request's random number for its token ``index``, in [0, 1): 53 bits of a hash of both."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """How each of the S rows is to be sampled. ``greedy`` and ``nucleus`` are known on the host, so nothing waits."""

    temperature: torch.Tensor  # float32 [S]; 0 picks the most likely token
    top_p: torch.Tensor  # float32 [S]
    uniform: torch.Tensor  # float64 [S], in [0, 1)
    greedy: bool  # all rows have temperature 0
    nucleus: bool  # some row has top_p < 1
    mask: torch.Tensor | None = None  # bool [S, V]; False forbids a token


def pick(logits: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """Return int64 [S]: one token for each row of fp32 logits [S, V].

    A forbidden token (mask) has probability 0. Top-p keeps the most likely tokens up to and including the one that
    reaches the threshold (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if inputs.mask is not None:
        logits = logits.masked_fill(~inputs.mask, -torch.inf)
    best = logits.argmax(dim=-1)
    if inputs.greedy:
        return best
    cold = inputs.temperature == 0
    temperature = torch.where(cold, torch.ones_like(inputs.temperature), inputs.temperature)
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    picked = _nucleus(probabilities, inputs) if inputs.nucleus else _invert(probabilities, inputs.uniform)
    return torch.where(cold, best, picked)


def logprob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return fp32 [S]: the log-probability of each row's token under the plain (temperature 1) distribution."""
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return chosen - torch.logsumexp(logits, dim=-1)


def _invert(probabilities: torch.Tensor, uniform_: torch.Tensor) -> torch.Tensor:
    """Index of the first token at which the cumulative probability exceeds uniform * total."""
    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniform_[:, None] * cumulative[:, -1:]
    # right=True skips tokens of probability 0: the first entry strictly above the target has mass of its own.
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # uniform * total can round up to total itself; the last token with mass is then meant.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(index, last)


def _nucleus(probabilities: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(dim=-1) - ordered.double()
    kept = ordered.masked_fill(before >= inputs.top_p[:, None].double(), 0.0)
    return order.gather(-1, _invert(kept, inputs.uniform)[:, None])[:, 0]
