"""Matrix products with bf16 weights, fused with the norm before them and the residual addition after them.

Up to ``Tuning.gemv_tokens`` tokens, a block loads a few rows of the weight into registers once and multiplies them with every
token (a gemv): its time is the time to read the weight. More tokens use tensor cores, and a long prompt uses cuBLAS.

A gemv folds the norm: with s = 1 / sqrt(mean(x^2) + eps), W @ (x * s * g) = s * (W @ (x * g)), so one pass over x gives both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from runtime.kernels.launch import Device, wait_and_release

TILED_TOKENS = 128
MANY_ROWS = 32768  # an unembedding
TILE = 1024  # columns: four warps of 32 lanes read 16 bytes each


@triton.jit
def load_tiles(start, inside, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Load rows that begin at ``start`` [ROWS], where ``inside`` [ROWS] is true, one tile of columns at a time."""
    tiles = ()
    for first in tl.static_range(0, WIDTH, TILE):
        k = first + tl.arange(0, TILE)
        tiles = tiles + (
            tl.load(
                start[:, None] + k[None, :],
                mask=inside[:, None] & (k < WIDTH)[None, :],
                other=0.0,
                eviction_policy="evict_first",
            ),
        )  # type: ignore[assignment]
    return tiles


@triton.jit
def load_gain(gain, WIDTH: tl.constexpr, TILE: tl.constexpr):
    tiles = ()
    for first in tl.static_range(0, WIDTH, TILE):
        k = first + tl.arange(0, TILE)
        tiles = tiles + (tl.load(gain + k, mask=k < WIDTH, other=0.0),)  # type: ignore[assignment]
    return tiles


@triton.jit
def multiply_tiles(
    x, tiles, gains, eps, WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr
):
    """Return the products [ROWS] of loaded rows with the token at x, and the norm's scale, which is still to be applied."""
    products = tl.zeros((ROWS, TILE), tl.float32)
    squares = tl.zeros((TILE,), tl.float32)
    for first in tl.static_range(0, WIDTH, TILE):
        k = first + tl.arange(0, TILE)
        part = tl.load(x + k, mask=k < WIDTH, other=0.0).to(tl.float32)
        if NORM:
            squares += part * part
            part = part * gains[first // TILE].to(tl.float32)
        products += tiles[first // TILE].to(tl.float32) * part[None, :]
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
    return tl.sum(products, axis=1), scale


@triton.jit
def _gemv_kernel(
    x,
    gain,
    weight,
    bias,
    residual,
    out,
    tokens,
    rows,
    eps,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    tiles = load_tiles(weight + row.to(tl.int64) * WIDTH, real, WIDTH, TILE)
    gains = ()
    if NORM:
        gains = load_gain(gain, WIDTH, TILE)
    offset = tl.zeros((ROWS,), tl.float32)
    if BIAS:
        offset += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    wait_and_release(DEPENDENT)
    for token in range(tokens):
        total, scale = multiply_tiles(x + token * WIDTH, tiles, gains, eps, WIDTH, TILE, ROWS, NORM)
        total = total * scale + offset
        place = tl.cast(token, tl.int64) * rows + row
        if RESIDUAL:
            total += tl.load(residual + place, mask=real, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=real)


@triton.jit
def _tiled_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    tokens,
    rows,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_and_release(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row_in, token_in = row < rows, token < tokens
    from_x = x + token.to(tl.int64)[:, None] * WIDTH
    from_weight = weight + row.to(tl.int64)[None, :] * WIDTH
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in tl.range(0, WIDTH, STEP):
        k = start + tl.arange(0, STEP)
        inside = k < WIDTH
        tile = tl.load(from_x + k[None, :], mask=token_in[:, None] & inside[None, :], other=0.0)
        w = tl.load(from_weight + k[:, None], mask=row_in[None, :] & inside[:, None], other=0.0)
        total = tl.dot(tile, w.to(tile.dtype), total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + row, mask=row_in, other=0.0).to(tl.float32)[None, :]
    inside = token_in[:, None] & row_in[None, :]
    place = token.to(tl.int64)[:, None] * rows + row[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_kernel(x, gain, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    k = tl.arange(0, BLOCK)
    inside = k < WIDTH
    g = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    wait_and_release(DEPENDENT)
    row = tl.program_id(0).to(tl.int64) * WIDTH
    wide = tl.load(x + row + k, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    tl.store(out + row + k, (wide * scale * g).to(out.dtype.element_ty), mask=inside)


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float, device: Device) -> torch.Tensor:
    """Return rms(x; gain) of rows [T, H], rounded once to x's dtype."""
    out = torch.empty_like(x)
    width = x.shape[1]
    _norm_kernel[(x.shape[0],)](x, gain, out, eps, width, triton.next_power_of_2(width), **device.options(4))
    return out


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    device: Device,
    *,
    bias: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return residual + (rms(x; gain) or x) @ weight.T + bias as [T, out] in ``dtype`` (by default x's).

    x [T, in], weight [out, in], bias [out], gain [in], residual [T, out]; all contiguous.
    """
    tokens, width = x.shape
    rows = weight.shape[0]
    dtype = dtype or x.dtype
    if tokens > TILED_TOKENS and x.is_cuda and dtype == x.dtype:
        normalised = x if gain is None else norm(x, gain, eps, device)
        if residual is None:
            return functional.linear(normalised, weight, bias)
        out = torch.addmm(residual, normalised, weight.t())
        return out if bias is None else out.add_(bias)
    out = torch.empty(tokens, rows, dtype=dtype, device=x.device)
    flags = {"BIAS": bias is not None, "RESIDUAL": residual is not None}
    # An argument that a flag disables still needs a pointer: x is passed as a placeholder.
    ends = (x if bias is None else bias, x if residual is None else residual, out, tokens, rows)
    sizes = device.tuning
    if tokens <= sizes.gemv_tokens:
        block, registers = sizes.gemv if width <= 3 * TILE else sizes.wide_gemv
        _gemv_kernel[(triton.cdiv(rows, block),)](
            x,
            x if gain is None else gain,
            weight,
            *ends,
            eps,
            width,
            TILE,
            block,
            **flags,
            NORM=gain is not None,
            **device.options(4, registers=registers),
        )
        return out
    if gain is not None:
        x = norm(x, gain, eps, device)
    block_tokens = min(64, max(16, triton.next_power_of_2(tokens)))
    block_rows, step, warps, stages = sizes.tiled if rows < MANY_ROWS else (128, 64, 4, 4)
    _tiled_kernel[(triton.cdiv(rows, block_rows), triton.cdiv(tokens, block_tokens))](
        x,
        weight,
        *ends,
        width,
        block_tokens,
        block_rows,
        min(step, triton.next_power_of_2(width)),
        **flags,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        **device.options(warps, stages=stages),
    )
    return out
