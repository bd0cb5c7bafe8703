"""From logits to tokens in one launch: each block reads one part of a row; the last block to finish picks the token.

Each part writes its largest logit, the index of that logit, and the sum of its weights relative to it. The last block brings
these sums to one scale and finds the part of the picked token by a float64 running sum; the logits of that part are read again,
which by then are in the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from runtime.kernels.launch import Device, wait_and_release

PART = 1024  # tokens per block: 197 blocks for gpt-oss's vocabulary


@triton.jit
def _first_above(weights, target, i, SIZE: tl.constexpr):
    """Return the index ``i`` of the first float64 weight [SIZE] at which the running sum exceeds the target. Its weight is never 0.

    If rounding has put the target at or above the total, return the last one with a weight above 0; if there is none, 0.
    """
    massive = weights > 0
    above = massive & (tl.cumsum(weights, axis=0) > target)
    last = tl.max(tl.where(massive, i, 0), axis=0)
    return tl.minimum(tl.min(tl.where(above, i, SIZE), axis=0), last)


@triton.jit
def _sample_kernel(
    logits,
    temperature,
    uniform,
    out,
    peaks,
    places,
    sums,
    counters,
    vocabulary,
    parts,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token = tl.arange(0, PART)
    heat = tl.load(temperature + row)
    cold = heat == 0
    heat = tl.where(cold, 1.0, heat)
    wait_and_release(DEPENDENT)
    at = part * PART + token
    x = tl.load(logits + row * vocabulary + at, mask=at < vocabulary, other=float("-inf"))
    peak = tl.max(x, axis=0)
    # A mask may forbid a whole part: -inf - -inf would be NaN.
    base = tl.where(peak == float("-inf"), 0.0, peak)
    mine = row * parts + part
    tl.store(peaks + mine, peak)
    # A NaN peak equals no logit: keep the token id in range whatever the input is.
    tl.store(places + mine, tl.min(tl.where(x == peak, at, vocabulary - 1), axis=0))
    tl.store(sums + mine, tl.sum(tl.exp((x - base) / heat), axis=0))
    tl.debug_barrier()
    if tl.atomic_add(counters + row, 1, sem="acq_rel") == parts - 1:
        tl.store(counters + row, 0)
        p = tl.arange(0, PARTS)
        there = p < parts
        top = tl.load(peaks + row * parts + p, mask=there, other=float("-inf"), cache_modifier=".cg")
        highest = tl.max(top, axis=0)
        if cold:
            first = tl.minimum(tl.min(tl.where(top == highest, p, PARTS), axis=0), parts - 1)
            tl.store(out + row, tl.load(places + row * parts + first, cache_modifier=".cg").to(tl.int64))
        else:
            base = tl.where(highest == float("-inf"), 0.0, highest)
            sum_ = tl.load(sums + row * parts + p, mask=there, other=0.0, cache_modifier=".cg")
            share = (sum_ * tl.exp((top - base) / heat)).to(tl.float64)
            target = tl.load(uniform + row) * tl.sum(share, axis=0)
            meant = _first_above(share, target, p, PARTS)
            inside = target - tl.sum(tl.where(p < meant, share, 0.0), axis=0)
            at = meant * PART + token
            x = tl.load(logits + row * vocabulary + at, mask=at < vocabulary, other=float("-inf"), cache_modifier=".cg")
            weight = tl.exp((x - base) / heat).to(tl.float64)
            tl.store(out + row, (meant * PART + _first_above(weight, inside, token, PART)).to(tl.int64))


def sample(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor, device: Device) -> torch.Tensor:
    """Pick a token for each row of fp32 logits [S, V]: int64 [S]."""
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, PART)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    peaks, sums = torch.empty(2, rows, parts, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    _sample_kernel[(parts, rows)](
        logits,
        temperature,
        uniform,
        out,
        peaks,
        places,
        sums,
        device.counters,
        vocabulary,
        parts,
        PART,
        triton.next_power_of_2(parts),
        **device.options(4),
    )
    return out
