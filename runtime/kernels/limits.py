"""Which model sizes the Triton kernels support: checked when a model is built, instead of a compiler error in the first step."""

from __future__ import annotations

from runtime.kernels.base import Shapes
from runtime.kernels.mxfp4 import PAIRED

HEAD_DIMS = (32, 64)  # each half fills a matrix instruction; for larger ones sizes.py underestimates shared memory
MOST_SHARERS = 16  # query heads per key head: the rows of a matrix instruction
MOST_WIDTH = 8192  # a block holds a row of the residual stream in registers
MOST_EXPERTS = 1024  # a warp holds a token's scores
MOST_CHOSEN = 8  # a warp holds rows of this many experts
MOST_VOCABULARY = 1 << 20  # a block holds the sums of a row's parts


def refusal(shapes: Shapes, *, compiled: bool) -> str | None:
    """Return which size of a model the kernels do not support, and what they support; None if they support the model.

    In Triton's interpreter they also support heads that do not fill a matrix instruction.
    """
    sharers = shapes.query_heads // shapes.kv_heads
    head = (
        (shapes.head_dim in HEAD_DIMS, f"{' or '.join(map(str, HEAD_DIMS))}")
        if compiled
        else (_is_power(shapes.head_dim), "a power of two")
    )
    rules = (
        ("hidden size", shapes.hidden, *_rows(shapes.hidden)),
        ("intermediate size", shapes.intermediate, *_rows(shapes.intermediate)),
        ("head size", shapes.head_dim, *head),
        ("number of key heads", shapes.kv_heads, _is_power(shapes.kv_heads), "a power of two"),
        (
            "number of query heads for each key head",
            sharers,
            _is_power(sharers) and sharers <= MOST_SHARERS,
            f"a power of two up to {MOST_SHARERS}",
        ),
        ("number of experts", shapes.experts, shapes.experts <= MOST_EXPERTS, f"up to {MOST_EXPERTS}"),
        (
            "number of experts per token",
            shapes.experts_per_token,
            shapes.experts_per_token <= MOST_CHOSEN,
            f"up to {MOST_CHOSEN}",
        ),
        ("vocabulary", shapes.vocabulary, shapes.vocabulary <= MOST_VOCABULARY, f"up to {MOST_VOCABULARY}"),
    )
    for name, size, holds, taken in rules:
        if not holds:
            return f"its {name} is {size}, and they support {taken}"
    return None


def _rows(width: int) -> tuple[bool, str]:
    return width % PAIRED == 0 and width <= MOST_WIDTH, f"multiples of {PAIRED} up to {MOST_WIDTH}"


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
