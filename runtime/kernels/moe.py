"""Router and experts for a few tokens: one warp loads a few rows of a chosen expert and multiplies them in registers.

Nothing is sorted, gathered or scattered: each program reads the expert ids of its token from device memory. The down
projection sums over the chosen experts itself, so no partial results are written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from runtime.kernels.base import Mxfp4, Shapes
from runtime.kernels.dense import TILE, linear, load_gain, load_tiles, multiply_tiles, norm
from runtime.kernels.launch import Device, wait_and_release
from runtime.kernels.mxfp4 import (
    PACKED_SCALE,
    after_dots,
    block_dots,
    from_pair,
    packed_place,
    paired_place,
    scale_value,
)

TILED_ROUTE_TOKENS = 64
WORDS = 128  # columns of a tile: each lane of a warp reads 16 bytes, one block of 32 values


@triton.jit
def swiglu(gate, up, limit, alpha):
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    return gate / (1.0 + tl.exp(-alpha * gate)) * (up + 1.0)


LANES = tl.constexpr(32)
TAKEN = tl.constexpr(-(2**31))


@triton.jit
def _ordered(score):
    """Return fp32 scores as int32 keys of the same order, in which -0.0 equals 0.0."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _key_tile(scores, e, EXPERTS: tl.constexpr):
    score = tl.load(scores + e, mask=e < EXPERTS, other=float("-inf"), cache_modifier=".cg")
    key = _ordered(tl.where(score == score, score, float("-inf")))
    return (tl.where(e < EXPERTS, key, TAKEN),)


@triton.jit
def _without(keys, e, taken):
    return (tl.where(e == taken, TAKEN, keys),)


@triton.jit
def choose(scores, ids, weights, TOP: tl.constexpr, EXPERTS: tl.constexpr):
    """Store the TOP best of ``scores`` [EXPERTS] at ids and weights: best first, the lower id first if two are equal.

    NaN is ranked like -inf, so that TOP different experts are chosen whatever the input is.

    The maximum is taken TOP times. The scores are compared as integers of the same order, because a warp finds the maximum of
    32 integers in one instruction. They are held as tiles of 32, so that every warp holds all of them and none waits for another.
    """
    TILES: tl.constexpr = (EXPERTS + LANES - 1) // LANES
    lane = tl.arange(0, LANES)
    keys = _key_tile(scores, lane, EXPERTS)
    for n in tl.static_range(1, TILES):
        keys = keys + _key_tile(scores, lane + n * LANES, EXPERTS)
    chosen = tl.zeros((LANES,), tl.int32)
    shares = tl.zeros((LANES,), tl.float32)
    best, total = 0.0, 0.0
    for k in tl.static_range(TOP):
        highest = keys[0]
        for n in tl.static_range(1, TILES):
            highest = tl.maximum(highest, keys[n])
        top = tl.max(highest, axis=0)
        lowest = tl.where(keys[0] == top, lane, EXPERTS)
        for n in tl.static_range(1, TILES):
            lowest = tl.minimum(lowest, tl.where(keys[n] == top, lane + n * LANES, EXPERTS))
        e = tl.min(lowest, axis=0)
        left = _without(keys[0], lane, e)
        for n in tl.static_range(1, TILES):
            left = left + _without(keys[n], lane + n * LANES, e)
        keys = left
        score = tl.where(top < 0, top ^ 0x7FFFFFFF, top).to(tl.float32, bitcast=True)  # the reverse of _ordered
        if k == 0:
            best = tl.where(score == float("-inf"), 0.0, score)
        share = tl.exp(score - best)
        total += share
        chosen = tl.where(lane == k, e, chosen)
        shares = tl.where(lane == k, share, shares)
    tl.store(ids + lane, chosen, mask=lane < TOP)
    tl.store(weights + lane, shares / total, mask=lane < TOP)


@triton.jit
def _route_kernel(
    x,
    gain,
    weight,
    bias,
    scores,
    normalised,
    ids,
    weights,
    counters,
    eps,
    EXPERTS: tl.constexpr,
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    SLICE: tl.constexpr,
    PACKED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    part = tl.program_id(0)
    token = tl.program_id(1)
    row = part * ROWS + tl.arange(0, ROWS)
    real = row < EXPERTS
    tiles = load_tiles(weight + row * WIDTH, real, WIDTH, TILE)
    gains = load_gain(gain, WIDTH, TILE)
    offset = tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    # This program's part of the normalised token.
    k = part * SLICE + tl.arange(0, SLICE)
    g = tl.load(gain + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    wait_and_release(DEPENDENT)
    source = x + token.to(tl.int64) * WIDTH
    mine = tl.load(source + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    total, scale = multiply_tiles(source, tiles, gains, eps, WIDTH, TILE, ROWS, True)
    tl.store(scores + token * EXPERTS + row, total * scale + offset, mask=real)
    value = mine * g * scale
    if PACKED:
        place = packed_place(k, WIDTH)
        value = value * PACKED_SCALE
    else:
        place = paired_place(k)
    tl.store(normalised + token.to(tl.int64) * WIDTH + place, value.to(normalised.dtype.element_ty), mask=k < WIDTH)
    # The last program of the token to finish chooses its experts.
    tl.debug_barrier()
    if tl.atomic_add(counters + token, 1, sem="acq_rel") == PARTS - 1:
        tl.store(counters + token, 0)
        choose(scores + token * EXPERTS, ids + token * TOP, weights + token * TOP, TOP, EXPERTS)


def route(
    x: torch.Tensor,
    gain: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shapes: Shapes,
    device: Device,
    *,
    packed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise, score and choose: normalised [T, H] (packed or paired), ids int32 [T, K], weights fp32 [T, K].

    Scores are computed from the unrounded normalised token, in the reference from the rounded one: the ids may differ if two
    scores are closer than that rounding.
    """
    tokens, width = x.shape
    if tokens > TILED_ROUTE_TOKENS:
        return _route_many(x, gain, weight, bias, shapes, device)
    experts, top = shapes.experts, shapes.experts_per_token
    rows, warps = device.tuning.route if tokens <= 16 else (8, 4)
    parts = triton.cdiv(experts, rows)
    kind = packed_dtype(x.dtype) if packed else x.dtype
    normalised = torch.empty(tokens, width, dtype=kind, device=x.device)
    scores = torch.empty(tokens, experts, dtype=torch.float32, device=x.device)
    ids = torch.empty(tokens, top, dtype=torch.int32, device=x.device)
    weights = torch.empty(tokens, top, dtype=torch.float32, device=x.device)
    _route_kernel[(parts, tokens)](
        x,
        gain,
        weight,
        bias,
        scores,
        normalised,
        ids,
        weights,
        device.counters,
        shapes.norm_eps,
        experts,
        top,
        width,
        TILE,
        rows,
        parts,
        triton.next_power_of_2(triton.cdiv(width, parts)),
        packed,
        **device.options(warps),
    )
    return normalised, ids, weights


@triton.jit
def _pair_kernel(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_and_release(DEPENDENT)
    k = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * WIDTH
    tl.store(out + row + k, tl.load(x + row + from_pair(k), mask=k < WIDTH, other=0.0), mask=k < WIDTH)


@triton.jit
def _choose_kernel(
    scores,
    ids,
    weights,
    EXPERTS: tl.constexpr,
    TOP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_and_release(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    choose(scores + token * EXPERTS, ids + token * TOP, weights + token * TOP, TOP, EXPERTS)


def _route_many(
    x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes, device: Device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do as ``route`` does, for a prompt: one kernel per stage, with the scores on tensor cores."""
    tokens, width = x.shape
    experts, top = shapes.experts, shapes.experts_per_token
    normalised = norm(x, gain, shapes.norm_eps, device)
    scores = linear(normalised, weight, device, bias=bias, dtype=torch.float32)
    ids = torch.empty(tokens, top, dtype=torch.int32, device=x.device)
    weights = torch.empty(tokens, top, dtype=torch.float32, device=x.device)
    _choose_kernel[(tokens,)](scores, ids, weights, experts, top, **device.options(1))
    paired = torch.empty_like(x)
    _pair_kernel[(tokens,)](normalised, paired, width, triton.next_power_of_2(width), **device.options(4))
    return paired, ids, weights


def packed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of packed activations: fp16, but fp32 for fp32 models, where nothing is rounded."""
    return torch.float32 if dtype == torch.float32 else torch.float16


@triton.jit
def _up_kernel(
    x,
    ids,
    blocks,
    scales,
    bias,
    out,
    limit,
    alpha,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    pair = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wait_and_release(DEPENDENT)
    expert = tl.load(ids + pair).to(tl.int64)
    tiles = load_rows(expert * OUT + row, blocks, scales, WIDTH, TILE)
    # Volatile, so that the compiler does not move the load to the addition, where nothing hides its latency.
    offset = tl.load(bias + expert * OUT + row, volatile=True).to(tl.float32)
    total = multiply_rows(x + (pair // TOP).to(tl.int64) * WIDTH, tiles, 0, WIDTH, ROWS, TILE, PAIRS)
    total += offset
    gate, up = tl.split(tl.reshape(total, (ROWS // 2, 2)))
    value = swiglu(gate, up, limit, alpha) * PACKED_SCALE
    k = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    place = packed_place(k, OUT // 2)
    tl.store(out + pair.to(tl.int64) * (OUT // 2) + place, value.to(out.dtype.element_ty))


@triton.jit
def load_rows(row, blocks, scales, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Load rows (numbered over all experts) of a matrix [.., WIDTH]: words and scales of each tile of columns in turn."""
    words = blocks.to(tl.pointer_type(tl.int32))
    tiles = ()
    for start in tl.static_range(0, WIDTH // 8, TILE):
        word = start + tl.arange(0, TILE)
        group = start // 4 + tl.arange(0, TILE // 4)
        w = tl.load(
            words + row[:, None] * (WIDTH // 8) + word[None, :],
            mask=(word < WIDTH // 8)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        s = tl.load(
            scales + row[:, None] * (WIDTH // 32) + group[None, :], mask=(group < WIDTH // 32)[None, :], other=0
        )
        tiles = tiles + (w, s)  # type: ignore[assignment]
    return tiles


@triton.jit
def multiply_rows(
    x,
    tiles,
    FROM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Multiply rows that ``load_rows`` loaded, from entry FROM of ``tiles`` on, with a packed row x: fp32 [ROWS]."""
    total = tl.zeros((ROWS, TILE // 4), tl.float32)
    for start in tl.static_range(0, WIDTH // 8, TILE):
        word = start + tl.arange(0, TILE)
        w = tiles[FROM + 2 * (start // TILE)]
        s = tiles[FROM + 2 * (start // TILE) + 1]
        total += block_dots(w, x, word, word < WIDTH // 8, ROWS, TILE, WIDTH, PAIRS) * scale_value(s)
    return tl.sum(total, axis=1) * after_dots(PAIRS)


def experts_up(
    normalised: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes, device: Device
) -> torch.Tensor:
    """Packed normalised [T, H] -> packed activated [T, K, I]."""
    tokens, top = ids.shape
    rows, registers = device.tuning.up
    out = torch.empty(tokens, top, shapes.intermediate, dtype=normalised.dtype, device=normalised.device)
    _up_kernel[(2 * shapes.intermediate // rows, tokens * top)](
        normalised,
        ids,
        weight.blocks,
        weight.scales,
        bias,
        out,
        shapes.swiglu_limit,
        shapes.swiglu_alpha,
        shapes.hidden,
        2 * shapes.intermediate,
        top,
        rows,
        WORDS,
        device.packed_decode and normalised.dtype == torch.float16,
        **device.options(1, registers=registers),
    )
    return out


@triton.jit
def _down_kernel(
    x,
    ids,
    weights,
    blocks,
    scales,
    bias,
    residual,
    out,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    token = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # The experts were chosen two launches ago, so their weights can be loaded while the previous kernel drains.
    tiles = ()
    for k in tl.static_range(TOP):
        expert = tl.load(ids + token * TOP + k).to(tl.int64)
        tiles = tiles + load_rows(expert * OUT + row, blocks, scales, WIDTH, TILE)
    # The shares, the biases and the residual stream are as old: at the end, nothing would hide their latency.
    place = token.to(tl.int64) * OUT + row
    total = tl.load(residual + place, cache_modifier=".cg").to(tl.float32)
    for k in tl.static_range(TOP):
        expert = tl.load(ids + token * TOP + k).to(tl.int64)
        share = tl.load(weights + token * TOP + k)
        total += share * tl.load(bias + expert * OUT + row).to(tl.float32)
    wait_and_release(DEPENDENT)
    STEPS: tl.constexpr = (WIDTH // 8 + TILE - 1) // TILE
    for k in tl.static_range(TOP):
        expert = tl.load(ids + token * TOP + k).to(tl.int64)
        share = tl.load(weights + token * TOP + k)
        source = x + (token * TOP + k).to(tl.int64) * WIDTH
        total += share * multiply_rows(source, tiles, 2 * STEPS * k, WIDTH, ROWS, TILE, PAIRS)
    tl.store(out + place, total.to(out.dtype.element_ty))


def experts_down(
    activated: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    weight: Mxfp4,
    bias: torch.Tensor,
    x: torch.Tensor,
    shapes: Shapes,
    device: Device,
) -> torch.Tensor:
    """Packed activated [T, K, I] -> x + the weighted sum over the chosen experts, [T, H]."""
    tokens, top = ids.shape
    rows, registers = device.tuning.down
    out = torch.empty_like(x)
    _down_kernel[(shapes.hidden // rows, tokens)](
        activated,
        ids,
        weights,
        weight.blocks,
        weight.scales,
        bias,
        x,
        out,
        shapes.intermediate,
        shapes.hidden,
        top,
        rows,
        WORDS,
        device.packed_decode and activated.dtype == torch.float16,
        **device.options(1, registers=registers),
    )
    return out
