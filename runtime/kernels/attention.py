"""Attention over the paged cache: one kernel for prompts, chunks, drafts and decode steps.

A block holds the query rows of a few tokens, for all the query heads that share a key head, so a key is read once for
eight heads. It iterates from the oldest key that its first token may see (keys before the window are skipped, not masked) to the
newest one that its last token may see. Long contexts are split: each part writes an unnormalised sum. In a decode step the last
block to finish combines them, with the sink, in the same launch; the many rows of a draft or a prompt have a kernel for that.

A decode step rotates its own key in registers, attends to it there and also writes it to the cache; steps with longer
queries write all new keys first, in a separate kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from runtime.kernels.base import LayerCache, Shapes, StepInputs
from runtime.kernels.launch import Device, wait_and_release

LOG2_E = tl.constexpr(1.4426950408889634)
MERGED = 128  # rows times parts of a program that combines them
DRAFT_TOKENS = 32  # up to so many new tokens of a sequence, a block has at most DRAFT_ROWS rows
DRAFT_ROWS = 64  # more would spill registers


@triton.jit
def rotate(first, second, cos, sin, DTYPE: tl.constexpr):
    """Apply RoPE to half-split pairs and round once, to the dtype of the cache."""
    return (first * cos - second * sin).to(DTYPE), (second * cos + first * sin).to(DTYPE)


@triton.jit
def _write_kernel(
    qkv,
    rope,
    keys,
    values,
    positions,
    slots,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Rotate the new keys of one token and write them and its values to the cache."""
    token = tl.program_id(0).to(tl.int64)
    wait_and_release(DEPENDENT)
    HALF: tl.constexpr = DIM // 2
    d = tl.arange(0, HALF)
    head = tl.arange(0, KV_HEADS)
    turn = rope + tl.load(positions + token).to(tl.int64) * DIM + d
    cos, sin = tl.load(turn)[None, :], tl.load(turn + HALF)[None, :]
    source = qkv + token * (QUERY_HEADS + 2 * KV_HEADS) * DIM
    key = source + (QUERY_HEADS + head)[:, None] * DIM + d[None, :]
    first, second = rotate(
        tl.load(key).to(tl.float32), tl.load(key + HALF).to(tl.float32), cos, sin, keys.dtype.element_ty
    )
    place = tl.load(slots + token) * (KV_HEADS * DIM) + head[:, None] * DIM + d[None, :]
    tl.store(keys + place, first)
    tl.store(keys + place + HALF, second)
    value = key + KV_HEADS * DIM
    tl.store(values + place, tl.load(value))
    tl.store(values + place + HALF, tl.load(value + HALF))


@triton.jit
def load_keys(
    keys,
    values,
    table,
    at,
    low,
    high,
    kv_head,
    d,
    all_d,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Load keys (their two halves, transposed) and values at positions ``at``…, as far as they lie in [low, high)."""
    k = at + tl.arange(0, KEYS)
    there = (k < high) & (k >= low)
    page = tl.load(table + k // PAGE, mask=there, other=0).to(tl.int64)
    place = (page * PAGE + k % PAGE) * (KV_HEADS * DIM) + kv_head * DIM
    # Masked loads, because masking scores later is not enough: unwritten memory may hold infinity, and 0 * inf is NaN.
    k0 = tl.load(keys + place[None, :] + d[:, None], mask=there[None, :], other=0.0)
    k1 = tl.load(keys + place[None, :] + DIM // 2 + d[:, None], mask=there[None, :], other=0.0)
    v = tl.load(values + place[:, None] + all_d[None, :], mask=there[:, None], other=0.0)
    return there, k0, k1, v


@triton.jit
def attend_tile(q0, q1, k0, k1, v, seen, top, weight, total, SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """Add one tile of keys to the online softmax: highest score, sum of weights, weighted sum."""
    score = tl.dot(q0, k0, input_precision=PRECISION)
    score = tl.dot(q1, k1, score, input_precision=PRECISION) * SCALE
    score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, axis=1))
    # A row may have seen no key yet: -inf - -inf would be NaN.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(score - base[:, None])
    fade = tl.exp2(top - base)
    weight = weight * fade + tl.sum(p, axis=1)
    total = tl.dot(p.to(v.dtype), v, total * fade[:, None], input_precision=PRECISION)
    return higher, weight, total


@triton.jit
def key_range(context, before, TOKENS: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr, DECODE: tl.constexpr):
    """Return the positions of the keys that a block's tokens may see: low, and the end; and where the first tile of keys begins."""
    low = 0
    if WINDOW > 0:
        low = tl.maximum(before - WINDOW + 1, 0)
    high = tl.minimum(before + TOKENS, context)
    if DECODE:
        high = context - 1
    return low, high, low if DECODE else low // KEYS * KEYS


@triton.jit
def part_span(keys, SPLITS: tl.constexpr, KEYS: tl.constexpr):
    """Return how many keys a part of a context has, in whole tiles. Where there are few keys, the last parts have none."""
    return tl.cdiv(tl.cdiv(keys, KEYS), SPLITS) * KEYS


@triton.jit
def _attend_kernel(
    qkv,
    rope,
    sinks,
    keys,
    values,
    slots,
    query_start,
    context_len,
    page_table,
    out,
    sums,
    tops,
    counters,
    table_width,
    blocks,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    DECODE: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    ROWS: tl.constexpr = TOKENS * GROUP
    HALF: tl.constexpr = DIM // 2
    WIDTH: tl.constexpr = (QUERY_HEADS + 2 * KV_HEADS) * DIM
    sequence = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    start = tl.load(query_start + sequence)
    length = tl.load(query_start + sequence + 1) - start
    context = tl.load(context_len + sequence)
    row = tl.arange(0, ROWS)
    d = tl.arange(0, HALF)
    all_d = tl.arange(0, DIM)
    head = kv_head * GROUP + row % GROUP
    before = context - length + block * TOKENS  # position of the block's first token
    low, high, first = key_range(context, before, TOKENS, WINDOW, KEYS, DECODE)
    if SPLITS > 1:
        span = part_span(high - first, SPLITS, KEYS)
        first += part * span
        high = tl.minimum(high, first + span)
    table = page_table + sequence.to(tl.int64) * table_width
    if DECODE:
        # Older keys were written in earlier steps: their first tile is loaded while the previous kernel still drains.
        there, k0, k1, v = load_keys(
            keys, values, table, first, low, high, kv_head, d, all_d, KV_HEADS, DIM, PAGE, KEYS
        )
    inside = block * TOKENS + row // GROUP < length
    token = (start + block * TOKENS + row // GROUP).to(tl.int64)
    position = before + row // GROUP
    turn = rope + position.to(tl.int64)[:, None] * DIM + d[None, :]
    cos = tl.load(turn, mask=inside[:, None], other=0.0)
    sin = tl.load(turn + HALF, mask=inside[:, None], other=0.0)
    sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
    if DECODE:
        own_turn = rope + tl.maximum(context - 1, 0).to(tl.int64) * DIM + d  # a padding row has an empty context
        own_cos = tl.load(own_turn)
        own_sin = tl.load(own_turn + HALF)
    wait_and_release(DEPENDENT)
    has_work = block * TOKENS < length
    if SPLITS > 1 and not DECODE:
        has_work = has_work & (first < high)
    if has_work:
        if DECODE:
            # The token's own key and value are loaded together with its query, not after it.
            own = qkv + start.to(tl.int64) * WIDTH + (QUERY_HEADS + kv_head) * DIM
            own0 = tl.load(own + d).to(tl.float32)
            own1 = tl.load(own + HALF + d).to(tl.float32)
            new_value = tl.load(own + KV_HEADS * DIM + all_d)
            own_place = tl.load(slots + start) * (KV_HEADS * DIM) + kv_head * DIM
        query = qkv + token[:, None] * WIDTH + head[:, None] * DIM + d[None, :]
        q0, q1 = rotate(
            tl.load(query, mask=inside[:, None], other=0.0).to(tl.float32),
            tl.load(query + HALF, mask=inside[:, None], other=0.0).to(tl.float32),
            cos,
            sin,
            keys.dtype.element_ty,
        )

        top = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, DIM), tl.float32)
        if DECODE:
            # It comes from registers, not from the cache; the first part handles it.
            new0, new1 = rotate(own0, own1, own_cos, own_sin, keys.dtype.element_ty)
            score = tl.sum(q0.to(tl.float32) * new0.to(tl.float32)[None, :], axis=1)
            score += tl.sum(q1.to(tl.float32) * new1.to(tl.float32)[None, :], axis=1)
            top = tl.where(part == 0, score * (SCALE * LOG2_E), top)
            weight = tl.where(part == 0, 1.0, weight)
            total = tl.where(part == 0, new_value.to(tl.float32)[None, :], total)
            if part == 0:
                tl.store(keys + own_place + d, new0)
                tl.store(keys + own_place + HALF + d, new1)
                tl.store(values + own_place + all_d, new_value)
            top, weight, total = attend_tile(
                q0, q1, k0, k1, v, there[None, :], top, weight, total, SCALE * LOG2_E, PRECISION
            )
            first += KEYS
        for at in tl.range(first, high, KEYS):
            there, k0, k1, v = load_keys(
                keys, values, table, at, low, high, kv_head, d, all_d, KV_HEADS, DIM, PAGE, KEYS
            )
            seen = there[None, :]
            if not DECODE:
                k = at + tl.arange(0, KEYS)
                seen = seen & (k[None, :] <= position[:, None])
                if WINDOW > 0:
                    seen = seen & (position[:, None] - k[None, :] < WINDOW)
            top, weight, total = attend_tile(q0, q1, k0, k1, v, seen, top, weight, total, SCALE * LOG2_E, PRECISION)

        place = out + token[:, None] * (QUERY_HEADS * DIM) + head[:, None] * DIM + all_d[None, :]
        if SPLITS == 1:
            higher = tl.maximum(top, sink)
            weight = weight * tl.exp2(top - higher) + tl.exp2(sink - higher)
            total = total * (tl.exp2(top - higher) / weight)[:, None]
            tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None])
        else:
            task = tl.program_id(0) * KV_HEADS + kv_head
            mine = (task * SPLITS).to(tl.int64) * ROWS
            tl.store(tops + (mine + part * ROWS + row) * 2, top, mask=inside)
            tl.store(tops + (mine + part * ROWS + row) * 2 + 1, weight, mask=inside)
            tl.store(sums + (mine + part * ROWS + row)[:, None] * DIM + all_d[None, :], total, mask=inside[:, None])
        if SPLITS > 1 and DECODE:  # otherwise there are too many rows for one block: _merge_kernel combines their parts
            tl.debug_barrier()
            if tl.atomic_add(counters + task, 1, sem="acq_rel") == SPLITS - 1:
                tl.store(counters + task, 0)
                higher = sink
                for other in tl.static_range(SPLITS):
                    theirs = tops + (mine + other * ROWS + row) * 2
                    higher = tl.maximum(higher, tl.load(theirs, mask=inside, other=0.0, cache_modifier=".cg"))
                weight = tl.exp2(sink - higher)
                total = tl.zeros((ROWS, DIM), tl.float32)
                for other in tl.static_range(SPLITS):
                    theirs = mine + other * ROWS + row
                    share = tl.exp2(tl.load(tops + theirs * 2, mask=inside, other=0.0, cache_modifier=".cg") - higher)
                    weight += share * tl.load(tops + theirs * 2 + 1, mask=inside, other=0.0, cache_modifier=".cg")
                    part_sum = tl.load(
                        sums + theirs[:, None] * DIM + all_d[None, :],
                        mask=inside[:, None],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    total += share[:, None] * part_sum
                total = total / weight[:, None]
                tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _merge_kernel(
    sums,
    tops,
    sinks,
    query_start,
    context_len,
    out,
    blocks,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    TOGETHER: tl.constexpr,  # rows of a program
    DEPENDENT: tl.constexpr,
):
    """Combine the parts of a few rows, and the sink."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    ROWS: tl.constexpr = TOKENS * GROUP
    sequence = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    kv_head = tl.program_id(1)
    start = tl.load(query_start + sequence)
    length = tl.load(query_start + sequence + 1) - start
    context = tl.load(context_len + sequence)
    row = tl.program_id(2) * TOGETHER + tl.arange(0, TOGETHER)
    head = kv_head * GROUP + row % GROUP
    token = block * TOKENS + row // GROUP
    inside = token < length
    _, high, first = key_range(context, context - length + block * TOKENS, TOKENS, 0, KEYS, False)
    span = part_span(high - first, SPLITS, KEYS)
    part = tl.arange(0, SPLITS)
    there = inside[:, None] & (first + part * span < high)[None, :]
    d = tl.arange(0, DIM)
    sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
    task = (tl.program_id(0) * KV_HEADS + kv_head).to(tl.int64)
    entry = (task * SPLITS + part[None, :]) * ROWS + row[:, None]
    wait_and_release(DEPENDENT)
    top = tl.load(tops + entry * 2, mask=there, other=float("-inf"))
    weight = tl.load(tops + entry * 2 + 1, mask=there, other=0.0)
    total = tl.load(sums + entry[:, :, None] * DIM + d[None, None, :], mask=there[:, :, None], other=0.0)
    higher = tl.maximum(tl.max(top, axis=1), sink)
    share = tl.exp2(top - higher[:, None])
    whole = tl.sum(share * weight, axis=1) + tl.exp2(sink - higher)
    value = tl.sum(share[:, :, None] * total, axis=1) / whole[:, None]
    place = out + (start + token).to(tl.int64)[:, None] * (QUERY_HEADS * DIM) + head[:, None] * DIM + d[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=inside[:, None])


def attend(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    sinks: torch.Tensor,
    cache: LayerCache,
    inputs: StepInputs,
    window: int | None,
    shapes: Shapes,
    device: Device,
) -> torch.Tensor:
    """Apply RoPE, write keys and values to the cache, and attend: -> [T, Nq * D]."""
    tokens = qkv.shape[0]
    heads, kv_heads, width = shapes.query_heads, shapes.kv_heads, shapes.head_dim
    group = heads // kv_heads
    decode = inputs.max_query_len == 1
    if not decode:
        _write_kernel[(tokens,)](
            qkv,
            rope,
            cache.keys,
            cache.values,
            inputs.positions,
            inputs.slots,
            heads,
            kv_heads,
            width,
            **device.options(1),
        )
    # A matrix instruction needs at least 16 rows; 128 use it well.
    sizes = device.tuning
    most_rows = min(sizes.prompt[2], DRAFT_ROWS) if inputs.max_query_len <= DRAFT_TOKENS else sizes.prompt[2]
    per_block = max(1, 16 // group, min(most_rows // group, triton.next_power_of_2(inputs.max_query_len)))
    blocks = triton.cdiv(inputs.max_query_len, per_block)
    sequences = inputs.context_len.shape[0]
    few = per_block * group <= 32
    step_keys = sizes.decode[0] if few else sizes.prompt[0]
    reach = inputs.max_context_len if window is None else min(window + inputs.max_query_len, inputs.max_context_len)
    splits = _splits(sequences * blocks * kv_heads, triton.cdiv(reach, step_keys), window, device, few=few)
    one_step = reach <= splits * step_keys
    warps = (sizes.decode[1] if one_step else sizes.decode[2]) if few else sizes.prompt[1]
    rows = per_block * group
    out = torch.empty(tokens, heads * width, dtype=qkv.dtype, device=qkv.device)
    if splits > 1:
        tasks = sequences * blocks * kv_heads * splits * rows
        sums = torch.empty(tasks, width, dtype=torch.float32, device=qkv.device)
        tops = torch.empty(tasks, 2, dtype=torch.float32, device=qkv.device)
    else:
        sums = tops = out
    _attend_kernel[(sequences * blocks, kv_heads, splits)](
        qkv,
        rope,
        sinks,
        cache.keys,
        cache.values,
        inputs.slots,
        inputs.query_start,
        inputs.context_len,
        inputs.page_table,
        out,
        sums,
        tops,
        device.counters,
        inputs.page_table.shape[1],
        blocks,
        width**-0.5,
        window or 0,
        heads,
        kv_heads,
        width,
        cache.keys.shape[1],
        per_block,
        step_keys,
        splits,
        decode,
        "ieee" if qkv.dtype == torch.float32 else "tf32",
        **device.options(warps, stages=3),
    )
    if splits > 1 and not decode:
        together = max(1, MERGED // splits)
        _merge_kernel[(sequences * blocks, kv_heads, triton.cdiv(rows, together))](
            sums,
            tops,
            sinks,
            inputs.query_start,
            inputs.context_len,
            out,
            blocks,
            heads,
            kv_heads,
            width,
            per_block,
            step_keys,
            splits,
            together,
            **device.options(4),
        )
    return out


def _splits(blocks: int, steps: int, window: int | None, device: Device, *, few: bool) -> int:
    """Return into how many parts to split a context, a power of two: enough blocks to fill the device.

    The window is never split: its one or two steps take less time than combining parts. A prompt has many blocks, but a few
    more blocks than SMs take twice as long as exactly as many, so prompts after a long context are split too.
    """
    sizes = device.tuning
    waves = sizes.decode_waves if few else sizes.prompt_waves
    if window is not None or (few and blocks >= device.processors):
        return 1
    fill = device.processors * waves // blocks
    wanted = min(steps, fill, sizes.decode_splits)
    return 1 << max(0, wanted.bit_length() - 1)
