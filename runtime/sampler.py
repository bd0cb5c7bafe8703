"""From logits to tokens, on the device, batched.

A token is picked by inverting the cumulative distribution at one uniform number a row. That number depends on the
request's seed and the token's index alone, so a request gives the same tokens whatever else is in the batch, and again after
a preemption. One running sum over 201,088 tokens would drown its tail in rounding and keep one processor busy, so it runs in
two levels: fp32 sums of short chunks, a float64 running sum of those, and a float64 running sum inside the chunk that is meant.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

CHUNK = 128  # tokens a chunk: gpt-oss's vocabulary is 1571 of them


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
    greedy: bool = False  # all rows have temperature 0
    nucleus: bool = False  # some row has top_p < 1
    mask: torch.Tensor | None = None  # uint8 [S, ceil(V / 8)]: bit t % 8 of byte t // 8 is 0 where token t is forbidden


def pick(logits: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """Return int64 [S]: one token for each row of fp32 logits [S, V].

    A forbidden token (mask) has probability 0. Top-p keeps the most likely tokens up to and including the one that
    reaches the threshold (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if inputs.mask is not None:
        logits = logits.masked_fill(_forbidden(inputs.mask, logits.shape[-1]), -torch.inf)
    chunks = _chunks(logits, -torch.inf)
    peaks = chunks.amax(dim=-1)
    largest, chunk = peaks.max(dim=-1, keepdim=True)
    best = chunk[:, 0] * CHUNK + _row(chunks, chunk).argmax(dim=-1)
    if inputs.greedy:
        return best
    cold = inputs.temperature == 0
    temperature = torch.where(cold, 1.0, inputs.temperature)
    # exp((x - max) / temperature), not normalised: what is drawn is a share of their sum.
    weights = (logits - largest).div_(temperature[:, None]).exp_()
    picked = _invert(weights, inputs.uniform)
    if inputs.nucleus:  # in another order, so only for those who ask: nobody's token may depend on the neighbours
        picked = torch.where(inputs.top_p < 1, _nucleus(weights, inputs), picked)
    return torch.where(cold, best, picked)


def _forbidden(mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return bool [S, V] of a mask in bits."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (mask[:, :, None].bitwise_right_shift(places).bitwise_and_(1) == 0).flatten(1)[:, :vocabulary]


def logprob(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return fp32 [S]: the log-probability of each row's token under the plain (temperature 1) distribution."""
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return chosen - torch.logsumexp(logits, dim=-1)


def _chunks(rows: torch.Tensor, filling: float) -> torch.Tensor:
    """View rows [S, V] as [S, V / CHUNK, CHUNK], filled up where V is no multiple of it."""
    missing = -rows.shape[-1] % CHUNK
    whole = pad(rows, (0, missing), value=filling) if missing else rows
    return whole.reshape(len(rows), whole.shape[-1] // CHUNK, CHUNK)


def _row(chunks: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
    """Return one chunk a row, [S, CHUNK]; ``chunk``: int64 [S, 1]."""
    return chunks.gather(1, chunk[:, :, None].expand(-1, 1, CHUNK))[:, 0]


def _invert(weights: torch.Tensor, uniform_: torch.Tensor) -> torch.Tensor:
    """Index of the first token at which the running sum of weights [S, V] exceeds uniform * their sum."""
    chunks = _chunks(weights, 0.0)
    sums = chunks.sum(dim=-1).double()
    running = sums.cumsum(dim=-1)
    target = uniform_[:, None] * running[:, -1:]
    chunk = _first_above(running, target)
    inside = (target - (running.gather(-1, chunk) - sums.gather(-1, chunk))).clamp_(min=0.0)  # rounding may go below
    return chunk[:, 0] * CHUNK + _first_above(_row(chunks, chunk).double().cumsum(dim=-1), inside)[:, 0]


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return int64 [S, 1]: the first entry of a running sum that is above the target [S, 1], so one with mass of its own.

    Where rounding put the target at the whole sum or above it, the last entry with mass is meant.
    """
    index = torch.searchsorted(running, target, right=True)
    last = torch.searchsorted(running, running[:, -1:].contiguous(), right=False)
    return torch.minimum(index, last)


def _nucleus(weights: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    running = ordered.double().cumsum(dim=-1)
    threshold = inputs.top_p[:, None].double() * running[:, -1:]
    kept = ordered.masked_fill(running - ordered >= threshold, 0.0)
    return order.gather(-1, _invert(kept, inputs.uniform)[:, None])[:, 0]
