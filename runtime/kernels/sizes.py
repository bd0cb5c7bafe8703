"""What the numbers of Tuning mean, which values the kernels accept, and how they are reduced to fit a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from runtime.kernels.launch import Tuning

Numbers = tuple[int, ...]

PARTS: Mapping[str, tuple[str, ...]] = {
    "route": ("rows", "warps"),
    "gemv": ("rows", "registers"),
    "wide_gemv": ("rows", "registers"),
    "up": ("rows", "registers"),
    "down": ("rows", "registers"),
    "gemv_tokens": ("tokens",),
    "pair_tokens": ("tokens",),
    "decode": ("keys", "warps", "warps"),
    "decode_splits": ("parts",),
    "decode_waves": ("parts",),
    "prompt_waves": ("parts",),
    "prompt": ("keys", "warps", "rows"),
    "tiled": ("rows", "step", "warps", "stages"),
    "batch_tile": ("rows", "columns", "step", "warps", "stages", "registers"),
    "batch_down": ("rows", "columns", "step", "warps", "stages", "registers"),
    "chunk_tile": ("rows", "columns", "step", "warps", "stages", "registers"),
    "prompt_tile": ("rows", "columns", "step", "warps", "stages", "registers"),
}
"""What the numbers of each field are, in order."""

RANGES: Mapping[str, tuple[int, int]] = {
    "rows": (1, 256),
    "columns": (32, 256),
    "step": (64, 512),
    "keys": (16, 256),
    "warps": (1, 16),
    "stages": (1, 8),
    "registers": (24, 255),
    "parts": (1, 64),
    "tokens": (1, 64),  # for more tokens the router does not pack activations
}
"""The smallest and the largest value of each number."""

LEAST: Mapping[str, Numbers] = {  # of fields that need more: two rows make a pair, sixteen fill a matrix instruction
    "up": (2, 24),
    "prompt": (16, 1, 16),
    "tiled": (16, 32, 1, 1),
    "batch_tile": (16, 32, 64, 1, 1, 24),
    "batch_down": (16, 32, 64, 1, 1, 24),
    "chunk_tile": (16, 32, 64, 1, 1, 24),
    "prompt_tile": (16, 32, 64, 1, 1, 24),
}
MOST: Mapping[
    str, Numbers
] = {  # of fields that allow less: their rows must divide those of every model (see limits.py)
    "up": (128, 255),
    "down": (64, 255),
}
_POWERS = frozenset({"rows", "columns", "step", "keys", "warps"})  # must be powers of two
_WARPS: Mapping[str, int] = {"gemv": 4, "wide_gemv": 4, "up": 1, "down": 1}  # of fields without a number for them
_LANES = 32
_KEY_BYTES = 2 * 2 * 64  # a key and a value in bf16
_DECODE_ROWS = 32  # most query rows of a block of decode attention
_DENSE_TOKENS = 64  # most tokens of a block of a dense product


def numbers_of(value: object) -> Numbers:
    """Return a field's value as a tuple, even if it is a single number."""
    match value:
        case tuple():
            return value
        case int():
            return (value,)
        case _:
            raise TypeError(f"{value!r} is not a size")


def takes(name: str, numbers: tuple[object, ...]) -> bool:
    """Whether the kernels accept these numbers for a field."""
    parts = PARTS[name]
    return len(numbers) == len(parts) and all(
        type(number) is int and least <= number <= most and not (part in _POWERS and number & (number - 1))
        for part, number, least, most in zip(parts, numbers, least_of(name), most_of(name), strict=True)
    )


def least_of(name: str) -> Numbers:
    """Return the smallest numbers of a field."""
    return LEAST.get(name, tuple(RANGES[part][0] for part in PARTS[name]))


def most_of(name: str) -> Numbers:
    """Return the largest numbers of a field."""
    return MOST.get(name, tuple(RANGES[part][1] for part in PARTS[name]))


def shared_bytes(name: str, numbers: Numbers) -> int:
    """Return an upper bound of the shared memory of a block of a field's kernels, in bf16; 0 for kernels that need little.

    Shared memory holds the loads in flight (Triton keeps as many as there are stages, or one less) and matrices that change
    their layout. tests/runtime/kernels/test_compile.py compares this with the compiler's numbers.
    """
    match name:
        case "decode":
            return 2 * numbers[0] * _KEY_BYTES + 2 * _DECODE_ROWS * max(numbers[0], 64)
        case "prompt":
            return 2 * numbers[0] * _KEY_BYTES + 2 * numbers[2] * max(numbers[0], 64)
        case "tiled":
            rows, step, _, stages = numbers
            return max(stages * 2 * step * (_DENSE_TOKENS + rows), 4 * _DENSE_TOKENS * rows)
        case "batch_tile" | "batch_down" | "chunk_tile" | "prompt_tile":
            rows, columns, step, _, stages, _ = numbers
            loads = stages * step * (2 * rows + columns // 2 + columns // 32)
            return max(loads + 2 * step * columns, 4 * rows * columns) + 2048
        case _:
            return 0


def fits(name: str, numbers: Numbers, shared: int, registers: int) -> bool:
    """Whether a block of a field's kernels has enough of ``shared`` bytes and ``registers``."""
    return shared_bytes(name, numbers) <= shared and _registers(name, numbers) <= registers


def _registers(name: str, numbers: Numbers) -> int:
    """Return the registers of a block, if the field has a number of registers per thread; otherwise 0."""
    said = dict(zip(PARTS[name], numbers, strict=True))
    return said.get("registers", 0) * _LANES * said.get("warps", _WARPS.get(name, 1))


def fitted(tuning: Tuning, shared: int, registers: int) -> Tuning:
    """Reduce sizes where necessary, so that every kernel fits into ``shared`` bytes and ``registers`` per block.

    Stages are reduced first (one load in flight less), then the longest side of a tile is halved.
    """
    changed: dict[str, object] = {}
    for name, value in asdict(tuning).items():
        numbers = numbers_of(value)
        while not fits(name, numbers, shared, registers):
            smaller = _smaller(name, numbers, shared)
            if smaller == numbers:  # the smallest sizes: this GPU has less than any that these kernels support
                break
            numbers = smaller
        if numbers != numbers_of(value):
            changed[name] = numbers
    return replace(tuning, **changed)  # type: ignore[arg-type]  # as many numbers as the field has


def _smaller(name: str, numbers: Numbers, shared: int) -> Numbers:
    """Return a field's numbers reduced by one step; unchanged if they are the smallest."""
    parts, least, found = PARTS[name], least_of(name), list(numbers)
    if shared_bytes(name, numbers) <= shared:  # so the registers are what does not fit
        at = parts.index("registers")
        found[at] = max(least[at], found[at] - 8)
        return tuple(found)
    if "stages" in parts and numbers[parts.index("stages")] > 2:
        found[parts.index("stages")] -= 1
        return tuple(found)
    sides = [
        at for at, part in enumerate(parts) if part in {"rows", "columns", "step", "keys"} and found[at] > least[at]
    ]
    if sides:
        longest = max(sides, key=lambda at: found[at])
        found[longest] //= 2
    return tuple(found)
