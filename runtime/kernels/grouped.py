"""Experts for many tokens: a grouped matrix product on tensor cores, with MXFP4 decoded on the fly.

Up to ``LOCAL_PAIRS`` (token, choice) pairs, each block finds the rows of its expert by itself, in registers; above that, pairs
are first sorted by expert on the device. Neither way synchronizes with the host. The activated tokens and the outputs of the
second matrix are stored in the order of the pairs, so no gather is needed afterwards: a last kernel adds each token's K rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from runtime.kernels.base import Mxfp4, Shapes
from runtime.kernels.launch import Device, wait_and_release
from runtime.kernels.moe import swiglu
from runtime.kernels.mxfp4 import after_tiles, decode_tile, from_pair

LOCAL_PAIRS = 512
ORDER_CHUNK = 2048


@triton.jit
def _rows_product(
    x,
    source,
    valid,
    expert,
    column,
    pairs,
    blocks,
    scales,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply rows ``source`` of x [.., WIDTH] with columns of the expert's matrix: fp32 [TOKENS, COLUMNS].

    The compiler prefetches activations and words some iterations ahead, but not the scales, because their loads are too
    narrow; so the scales of the next iteration are loaded here. That removes the 8-bit load of this iteration, from which the
    compiler infers that a thread should hold eight neighbouring values (``computeOrigBitWidth``). A fully masked load replaces it.
    """
    words = blocks.to(tl.pointer_type(tl.int32)) + (expert * OUT + column)[:, None] * (WIDTH // 8)
    bytes_ = scales + (expert * OUT + column)[:, None] * (WIDTH // 32)
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    real = (column < OUT)[:, None]
    groups = tl.arange(0, STEP // 32)
    s = tl.load(bytes_ + groups[None, :], mask=real & (groups < WIDTH // 32)[None, :], other=0)
    for start in tl.range(0, WIDTH, STEP):
        k = start + tl.arange(0, STEP)
        word = start // 8 + tl.arange(0, STEP // 8)
        group = (start + STEP) // 32 + groups
        following = tl.load(bytes_ + group[None, :], mask=real & (group < WIDTH // 32)[None, :], other=0)
        tile = tl.load(x + source[:, None] * WIDTH + k[None, :], mask=valid[:, None] & (k < WIDTH)[None, :], other=0.0)
        w = tl.load(words + word[None, :], mask=real & (word < WIDTH // 8)[None, :], other=0)
        nothing = tl.load(bytes_ + groups[None, :], mask=real & (groups[None, :] < -pairs), other=0)
        matrix = decode_tile(w, s | nothing, COLUMNS, STEP // 8, PAIRS, tile.dtype)
        total = tl.dot(tile, tl.trans(matrix), total, input_precision=PRECISION)
        s = following
    return total * after_tiles(PAIRS)


@triton.jit
def _grouped_kernel(
    x,
    ids,
    order,
    starts,
    blocks,
    scales,
    bias,
    out,
    pairs,
    limit,
    alpha,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    SHARED: tl.constexpr,  # how many pairs share one row of x
    ALL: tl.constexpr,  # number of pairs, rounded up, if every block finds its rows itself; 0 if the pairs are sorted
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    ACTIVATE: tl.constexpr,
    PAIRS: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_and_release(DEPENDENT)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if ACTIVATE:
        # Gate and up columns in the order in which activated tokens are stored, so that the stores are contiguous.
        column = 2 * from_pair(column // 2) + column % 2
    slot = tl.arange(0, TOKENS)
    if ALL > 0:
        expert = tl.program_id(1)
        first = tl.program_id(2) * TOKENS
        j = tl.arange(0, ALL)
        mine = tl.load(ids + j, mask=j < pairs, other=-1) == expert
        count = tl.sum(mine.to(tl.int32), axis=0)
    else:
        # The tiles of TOKENS pairs are numbered expert by expert; the grid is an upper bound of their number.
        e = tl.arange(0, EXPERTS_BLOCK)
        begin = tl.load(starts + e, mask=e < EXPERTS, other=0)
        end = tl.load(starts + e + 1, mask=e < EXPERTS, other=0)
        last = tl.cumsum((end - begin + TOKENS - 1) // TOKENS, axis=0)
        tile = tl.program_id(1)
        expert = tl.sum((last <= tile).to(tl.int32), axis=0)
        is_mine = e == expert
        before = tl.sum(tl.where(is_mine, last - (end - begin + TOKENS - 1) // TOKENS, 0), axis=0)
        first = (tile - before) * TOKENS
        count = tl.sum(tl.where(is_mine, end - begin, 0), axis=0)
        at = tl.sum(tl.where(is_mine, begin, 0), axis=0) + first + slot
        pair = tl.load(order + at, mask=first + slot < count, other=0)
    if first < count:
        if ALL > 0:  # only here: half of the blocks of a batch of 32 have no rows, three quarters of one of 64
            rank = tl.cumsum(mine.to(tl.int32), axis=0) - 1
            found = (rank[None, :] == (first + slot)[:, None]) & mine[None, :]
            pair = tl.sum(tl.where(found, j[None, :], 0), axis=1)
        valid = first + slot < count
        of = pair.to(tl.int64)
        total = _rows_product(
            x,
            of // SHARED,
            valid,
            expert.to(tl.int64),
            column,
            pairs,
            blocks,
            scales,
            WIDTH,
            OUT,
            TOKENS,
            COLUMNS,
            STEP,
            PAIRS,
            PRECISION,
        )
        real = column < OUT
        total += tl.load(bias + expert.to(tl.int64) * OUT + column, mask=real, other=0.0).to(tl.float32)[None, :]
        if ACTIVATE:
            gate, up = tl.split(tl.reshape(total, (TOKENS, COLUMNS // 2, 2)))
            half = tl.program_id(0) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            place = out + of[:, None] * (OUT // 2) + half[None, :]
            value = swiglu(gate, up, limit, alpha).to(out.dtype.element_ty)
            tl.store(place, value, mask=valid[:, None] & (half < OUT // 2)[None, :])
        else:
            place = out + of[:, None] * OUT + column[None, :]
            tl.store(place, total.to(out.dtype.element_ty), mask=valid[:, None] & real[None, :])


@triton.jit
def _combine_kernel(
    y,
    weights,
    residual,
    gain,
    out,
    normalised,
    eps,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Add up one token's experts and its residual stream, and normalise the sum as ``norm`` does in dense.py."""
    token = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < WIDTH
    if NORM:
        g = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    wait_and_release(DEPENDENT)
    total = tl.load(residual + token * WIDTH + k, mask=inside, other=0.0).to(tl.float32)
    for choice in tl.static_range(TOP):
        share = tl.load(weights + token * TOP + choice)
        row = y + (token * TOP + choice) * WIDTH
        total += share * tl.load(row + k, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + token * WIDTH + k, rounded, mask=inside)
    if NORM:
        wide = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
        tl.store(normalised + token * WIDTH + k, (wide * scale * g).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _order_kernel(ids, order, starts, pairs, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr):
    """One program per expert: count the pairs of all lower experts, then write its own pairs from that position on."""
    expert = tl.program_id(0)
    wait_and_release(DEPENDENT)
    lower = tl.zeros((CHUNK,), tl.int32)
    for first in tl.range(0, pairs, CHUNK):
        j = first + tl.arange(0, CHUNK)
        lower += (tl.load(ids + j, mask=j < pairs, other=expert) < expert).to(tl.int32)
    at = tl.sum(lower, axis=0)
    tl.store(starts + expert, at)
    for first in tl.range(0, pairs, CHUNK):
        j = first + tl.arange(0, CHUNK)
        mine = (tl.load(ids + j, mask=j < pairs, other=-1) == expert).to(tl.int32)
        tl.store(order + at + tl.cumsum(mine, axis=0) - 1, j, mask=mine == 1)
        at += tl.sum(mine, axis=0)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts + expert + 1, at)


def sort_pairs(ids: torch.Tensor, experts: int, device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs sorted by expert, int32 [T K], and where each expert's pairs begin, int32 [E + 1]."""
    order = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=ids.device)
    _order_kernel[(experts,)](ids, order, starts, ids.numel(), ORDER_CHUNK, **device.options(8))
    return order, starts


def _product(
    x: torch.Tensor,
    ids: torch.Tensor,
    weight: Mxfp4,
    bias: torch.Tensor,
    out: torch.Tensor,
    shapes: Shapes,
    device: Device,
    *,
    shared: int,
    activate: bool,
) -> None:
    """Run the grouped product of every pair's row (row pair // shared of x) with its expert's matrix."""
    pairs = ids.numel()
    experts, rows = weight.scales.shape[:2]
    width = x.shape[-1]
    if pairs <= LOCAL_PAIRS:
        order = starts = ids
        tile = device.tuning.batch_tile if activate else device.tuning.batch_down
        block_tokens, columns, step, warps, stages, registers = tile
        # An expert has at most one pair per token.
        grid = (triton.cdiv(rows, columns), experts, triton.cdiv(ids.shape[0], block_tokens))
        every = triton.next_power_of_2(pairs)
    else:
        order, starts = sort_pairs(ids, experts, device)
        tile = device.tuning.prompt_tile if pairs > 64 * experts else device.tuning.chunk_tile
        block_tokens, columns, step, warps, stages, registers = tile
        grid = (triton.cdiv(rows, columns), triton.cdiv(pairs, block_tokens) + experts - 1, 1)
        every = 0
    _grouped_kernel[grid](
        x,
        ids,
        order,
        starts,
        weight.blocks,
        weight.scales,
        bias,
        out,
        pairs,
        shapes.swiglu_limit,
        shapes.swiglu_alpha,
        width,
        rows,
        experts,
        triton.next_power_of_2(experts),
        shared,
        every,
        block_tokens,
        columns,
        step,
        activate,
        device.packed_decode and x.dtype == torch.bfloat16,
        "ieee" if x.dtype == torch.float32 else "tf32",
        **device.options(warps, stages=stages, registers=registers),
    )


def experts_up(
    normalised: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes, device: Device
) -> torch.Tensor:
    """Normalised [T, H] -> activated [T, K, I], both in paired order."""
    out = torch.empty(*ids.shape, shapes.intermediate, dtype=normalised.dtype, device=normalised.device)
    _product(normalised, ids, weight, bias, out, shapes, device, shared=ids.shape[1], activate=True)
    return out


def experts_down(
    activated: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    weight: Mxfp4,
    bias: torch.Tensor,
    x: torch.Tensor,
    gain: torch.Tensor | None,
    shapes: Shapes,
    device: Device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activated [T, K, I], in paired order -> x + the weighted sum over the chosen experts, [T, H]; and rms(that; gain).

    Without a gain, the second result is the first.
    """
    tokens, top = ids.shape
    y = torch.empty(tokens, top, shapes.hidden, dtype=x.dtype, device=x.device)
    _product(activated, ids, weight, bias, y, shapes, device, shared=1, activate=False)
    out = torch.empty_like(x)
    normalised = out if gain is None else torch.empty_like(x)
    _combine_kernel[(tokens,)](
        y,
        weights,
        x,
        x if gain is None else gain,  # a pointer is needed also where it is not used
        out,
        normalised,
        shapes.norm_eps,
        shapes.hidden,
        top,
        triton.next_power_of_2(shapes.hidden),
        gain is not None,
        **device.options(8),
    )
    return out, normalised
