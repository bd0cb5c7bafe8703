"""MXFP4 in registers: eight 4-bit values per 32-bit word, one scale byte per four words.

A value has one sign bit, two exponent bits and one mantissa bit: the top bits of an fp16 or bf16 number, except that the
exponent's bias is 1. So shifting the bits into place gives value * 2^-14 in fp16 and value * 2^-126 in bf16 and fp32, including
subnormals, and one exact multiplication by a power of two gives the value.

**Packed order** is how activations are stored for the gemv. Decoding a word with values k .. k+7 yields them in pairs
(k, k+4), (k+1, k+5), (k+2, k+6), (k+3, k+7), so element k = 8 w + 4 h + j of a row of width n is stored at j n/4 + 2 w + h and a
pair is one 32-bit load. Packed activations are fp16, multiplied by 16: products with value * 2^-14 are then normal numbers for
|x| from 1/16 up, and nothing overflows for |x| below 2,700 (normalised tokens are below 54 times their gain, activated
ones below 57). Sums of sixteen products are kept in fp16 pairs, longer ones in fp32: the error is 4e-4 of the result's
norm on random data, a fifth of what rounding the operands to bf16 costs.

**Paired order** is for tensor cores. Two neighbouring words are decoded at a time, so that a register holds the corresponding
values of both and is an operand of the matrix instruction without shuffles. Which thread holds what follows from the layout that
Triton gives a matrix of 8-bit loads: eight neighbours per thread. So within 64 elements (eight words), element
k = 16 m + 8 l + 4 h + j is stored at 32 h + 8 m + 2 j + l. Paired activations are in the model's dtype; their width is a multiple of 64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PACKED_SCALE = tl.constexpr(16.0)
# The missing factor 2^14 of the fp16 pattern, divided by the factor of packed activations.
AFTER_PAIRS = tl.constexpr(2.0**14 / 16.0)
PAIRED = 64  # elements of a group in paired order
AFTER_TILES = tl.constexpr(2.0**64)
TWO_126 = tl.constexpr(2.0**126)


def from_paired(paired: torch.Tensor) -> torch.Tensor:
    """Return paired activations [..., n] in natural order."""
    halves = paired.unflatten(-1, (-1, 2, 4, 4, 2))  # h, m, j, l
    restored: torch.Tensor = halves.movedim((-1, -4), (-3, -2)).reshape(paired.shape)  # m, l, h, j
    return restored


def from_packed(packed: torch.Tensor) -> torch.Tensor:
    """Return packed activations [..., n] in natural order and magnitude, in fp32."""
    width = packed.shape[-1]
    planes = packed.float().reshape(*packed.shape[:-1], 4, width // 8, 2)
    restored: torch.Tensor = planes.movedim(-3, -1).reshape(packed.shape) / PACKED_SCALE.value
    return restored


@triton.jit
def packed_place(k, WIDTH: tl.constexpr):
    """Return the position of element k in a packed row of WIDTH elements."""
    return (k % 4) * (WIDTH // 4) + (k // 8) * 2 + (k // 4) % 2


@triton.jit
def paired_place(k):
    """Return the position of element k in a paired row."""
    return k // 64 * 64 + k // 4 % 2 * 32 + k // 16 % 4 * 8 + k % 4 * 2 + k // 8 % 2


@triton.jit
def from_pair(place):
    """Return which element is stored at a position of a paired row."""
    return place // 64 * 64 + place // 8 % 4 * 16 + place % 2 * 8 + place // 32 % 2 * 4 + place // 2 % 4


@triton.jit
def scale_value(byte):
    """Return 2^(byte - 127) in fp32; byte 0 gives a subnormal. (255 means NaN and is refused when a checkpoint is loaded.)"""
    wide = byte.to(tl.int32)
    return tl.where(wide == 0, 1 << 22, wide << 23).to(tl.float32, bitcast=True)


@triton.jit
def value_of(codes):
    """Return the fp32 values of the low four bits of each code."""
    codes = codes.to(tl.uint32)
    bits = ((codes & 8) << 28) | ((codes & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * TWO_126


@triton.jit
def _pair_products(w, x0, x1, x2, x3):
    """Return eight products, summed in two fp16 lanes: the bits of each value are shifted into place under two masks."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, a;
        shl.b32 s, $1, 12; and.b32 s, s, 0x80008000; shl.b32 a, $1, 9; lop3.b32 a, a, 0x0E000E00, s, 0xEA;
        mul.f16x2 $0, a, $2;
        shl.b32 s, $1, 8; and.b32 s, s, 0x80008000; shl.b32 a, $1, 5; lop3.b32 a, a, 0x0E000E00, s, 0xEA;
        fma.rn.f16x2 $0, a, $3, $0;
        shl.b32 s, $1, 4; and.b32 s, s, 0x80008000; shl.b32 a, $1, 1; lop3.b32 a, a, 0x0E000E00, s, 0xEA;
        fma.rn.f16x2 $0, a, $4, $0;
        and.b32 s, $1, 0x80008000; shr.u32 a, $1, 3; lop3.b32 a, a, 0x0E000E00, s, 0xEA;
        fma.rn.f16x2 $0, a, $5, $0;
        }""",
        "=&r,r,r,r,r,r",
        [w, x0, x1, x2, x3],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _add_pairs(a, b):
    return tl.inline_asm_elementwise("add.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _sum_of_pair(a):
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 lo, hi;
        .reg .f32 f, g;
        mov.b32 {lo, hi}, $1;
        cvt.f32.f16 f, lo; cvt.f32.f16 g, hi; add.f32 $0, f, g;
        }""",
        "=f,r",
        [a],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def block_dots(w, x, word, inside, ROWS: tl.constexpr, WORDS: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr):
    """Multiply words [ROWS, WORDS] with a packed row x and sum over each block of 32: fp32 [ROWS, WORDS / 4].

    ``word`` [WORDS] are the columns, ``inside`` [WORDS] tells which of them exist. The caller multiplies by the block's scale and,
    at the end, by ``after_dots``.
    """
    if PAIRS:
        pairs = x.to(tl.pointer_type(tl.int32))
        x0 = tl.load(pairs + word, mask=inside, other=0)
        x1 = tl.load(pairs + WIDTH // 8 + word, mask=inside, other=0)
        x2 = tl.load(pairs + WIDTH // 4 + word, mask=inside, other=0)
        x3 = tl.load(pairs + 3 * (WIDTH // 8) + word, mask=inside, other=0)
        products = _pair_products(w, x0[None, :], x1[None, :], x2[None, :], x3[None, :])
        return _sum_of_pair(tl.reduce(tl.reshape(products, (ROWS, WORDS // 4, 4)), 2, _add_pairs))
    else:
        total = tl.zeros((ROWS, WORDS), tl.float32)
        for j in tl.static_range(4):
            place = x + j * (WIDTH // 4) + 2 * word
            low = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            high = tl.load(place + 1, mask=inside, other=0.0).to(tl.float32)
            total += value_of(w >> (4 * j)) * low[None, :] + value_of(w >> (4 * j + 16)) * high[None, :]
        return tl.sum(tl.reshape(total, (ROWS, WORDS // 4, 4)), axis=2)


@triton.jit
def after_dots(PAIRS: tl.constexpr):
    """Return the factor by which a sum of ``block_dots`` is still to be multiplied."""
    if PAIRS:
        return AFTER_PAIRS
    else:
        return 1.0 / PACKED_SCALE


@triton.jit
def _decode_words(w, scale):
    """Return the eight values of each word times 2^-64 in bf16, two words at a time. ``scale``: a power of two as bf16 bits."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, a, z, l, h, p;
        mov.b32 z, 0x80008000;
        prmt.b32 l, $8, $9, 0x5410; prmt.b32 h, $8, $9, 0x7632; prmt.b32 p, $10, $11, 0x5410;
        shl.b32 s, l, 12; and.b32 s, s, z; shl.b32 a, l, 6; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $0, a, p, z;
        shl.b32 s, l, 8; and.b32 s, s, z; shl.b32 a, l, 2; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $1, a, p, z;
        shl.b32 s, l, 4; and.b32 s, s, z; shr.u32 a, l, 2; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $2, a, p, z;
        and.b32 s, l, z; shr.u32 a, l, 6; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $3, a, p, z;
        shl.b32 s, h, 12; and.b32 s, s, z; shl.b32 a, h, 6; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $4, a, p, z;
        shl.b32 s, h, 8; and.b32 s, s, z; shl.b32 a, h, 2; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $5, a, p, z;
        shl.b32 s, h, 4; and.b32 s, s, z; shr.u32 a, h, 2; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $6, a, p, z;
        and.b32 s, h, z; shr.u32 a, h, 6; lop3.b32 a, a, 0x01C001C0, s, 0xEA; fma.rn.bf16x2 $7, a, p, z;
        }""",
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r",
        [w, scale],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def after_tiles(PAIRS: tl.constexpr):
    """Return the factor by which a product with ``decode_tile`` is still to be multiplied."""
    if PAIRS:
        return AFTER_TILES
    else:
        return 1.0


@triton.jit
def decode_tile(w, scales, ROWS: tl.constexpr, WORDS: tl.constexpr, PAIRS: tl.constexpr, DTYPE: tl.constexpr):
    """Decode words [ROWS, WORDS] with scale bytes [ROWS, WORDS / 4] to [ROWS, 8 WORDS] in paired order."""
    if PAIRS:
        # One multiplication instead of two: the bit pattern lacks a factor of 2^126, which together with a scale above 2 exceeds
        # the range of bf16, so 2^64 of it is left to ``after_tiles``. Weights are then normal numbers for scales from 2^-61 to 2^65;
        # larger scales give infinity, which stays visible in every sum.
        power = tl.minimum(scales.to(tl.int32) + 62, 255) * 0x0080
        bits = tl.reshape(tl.broadcast_to(power[:, :, None], (ROWS, WORDS // 4, 4)), (ROWS, WORDS))
        v0, v1, v2, v3, v4, v5, v6, v7 = _decode_words(w, bits)
    else:
        power = tl.broadcast_to(scale_value(scales)[:, :, None], (ROWS, WORDS // 4, 4))
        power = tl.reshape(power, (ROWS, WORDS))
        v0 = (value_of(w) * power).to(DTYPE)
        v1 = (value_of(w >> 4) * power).to(DTYPE)
        v2 = (value_of(w >> 8) * power).to(DTYPE)
        v3 = (value_of(w >> 12) * power).to(DTYPE)
        v4 = (value_of(w >> 16) * power).to(DTYPE)
        v5 = (value_of(w >> 20) * power).to(DTYPE)
        v6 = (value_of(w >> 24) * power).to(DTYPE)
        v7 = (value_of(w >> 28) * power).to(DTYPE)
    # tl.join makes its second operand the lowest bit of the index: words and values become (group, m, l, value).
    low = tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), (ROWS, WORDS // 8, 4, 2, 4))
    high = tl.reshape(tl.join(tl.join(v4, v6), tl.join(v5, v7)), (ROWS, WORDS // 8, 4, 2, 4))
    both = tl.permute(tl.join(low, high), (0, 1, 5, 2, 4, 3))  # group, h, m, j, l
    return tl.reshape(both, (ROWS, WORDS * 8)).to(DTYPE)
