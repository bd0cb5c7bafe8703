"""The names of dimensions used in all kernels, and the record of functions that make up a layer.

======  ==================================================================
T       tokens in this step, over all sequences, in the order of the batch
B       sequences in this step
S       rows whose logits are needed
H       hidden size (2880)
V       vocabulary (201088)
Nq, Nk  query heads (64), key/value heads (8)
D       head dimension (64)
E, K    experts (32 or 128), experts per token (4)
I       intermediate size (2880)
P       pages a sequence may have in this step (columns of the page table)
page    tokens per page of the cache
======  ==================================================================

Each function of the record is one fused kernel, so that the reference and the fast path can be compared function by function,
and a layer is six launches: norm_qkv, attend, project, route, experts_up, experts_down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes of a model that a kernel needs to know."""

    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    vocabulary: int
    window: int
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """One matrix per expert in MXFP4, in the checkpoint's own bytes.

    ``blocks``: uint8 [E, out, in/32, 16], low nibble first. ``scales``: uint8 [E, out, in/32], value 2^(byte - 127).
    """

    blocks: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tensors: a ragged batch of new tokens over a paged context. Passed as an argument, never global.

    A prompt, a chunk of one, a decode step and any mix of them differ only in the counts.
    """

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int32 [T], absolute position of each new token in its sequence
    slots: torch.Tensor  # int64 [T], page * page_size + offset in the cache where the token's key and value go
    query_start: (
        torch.Tensor
    )  # int32 [B + 1], first row of each sequence in [T]; from the last entry on, rows are padding
    context_len: torch.Tensor  # int32 [B], tokens of each sequence after this step
    page_table: torch.Tensor  # int32 [B, P], page ids; unused entries are 0
    sample_rows: torch.Tensor  # int64 [S], the rows of [T] whose logits are needed
    max_query_len: int  # longest run of new tokens of one sequence in this step (1: pure decode)
    max_context_len: int  # upper bound of context_len, known on the host


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values: each [pages, page, Nk, D], in the compute dtype."""

    keys: torch.Tensor
    values: torch.Tensor


Sample = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits fp32 [S,V], temperature fp32 [S], uniform fp64 [S] in [0, 1)) -> one token per row, int64 [S].

The first token at which the running sum of exp(logit / temperature) exceeds ``uniform`` times the total; at temperature 0 the
most likely one, and of equal ones the lowest id. A row's token does not depend on other rows; a logit of -inf is never picked.
"""


@dataclass(frozen=True, slots=True)
class AcrossLayers:
    """For steps of more than ``packed_tokens`` tokens: one launch less per layer, because what adds up a token's experts also
    normalises the sum for the next layer.

    ``experts_down`` takes the next layer's gain fp32 [H] before the shapes and returns x and normalised, both [T, H];
    ``qkv`` takes normalised, and the weight and bias of ``norm_qkv``.
    """

    experts_down: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, Mxfp4, torch.Tensor, torch.Tensor, torch.Tensor, Shapes],
        tuple[torch.Tensor, torch.Tensor],
    ]
    qkv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of a layer. x is the residual stream [T, H]; every function returns new tensors.

    ``attend`` also writes the new keys (after RoPE) and values into the cache, before it reads it. ``experts_up`` takes the
    normalised tokens that ``route`` returns, ``experts_down`` takes what ``experts_up`` returns: the format of both is internal
    to the record. In steps of up to ``packed_tokens`` tokens they are packed activations (see mxfp4.py), otherwise in x's dtype.
    """

    name: str
    # (x [T,H], gain [H] fp32, weight [(Nq+2Nk)D, H], bias) -> qkv [T, (Nq+2Nk)D]
    norm_qkv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Shapes], torch.Tensor]
    # (qkv, rope table fp32 [positions, D] = cos | sin with the concentration in, sinks [Nq], cache, inputs,
    #  window in tokens or None for full attention, shapes) -> [T, Nq*D]
    attend: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, LayerCache, StepInputs, int | None, Shapes], torch.Tensor
    ]
    # (attended [T, Nq*D], weight [H, Nq*D], bias [H], x) -> x + attended @ weight.T + bias
    project: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    # (x, gain, weight [E,H], bias [E], shapes) -> normalised [T,H], expert ids int32 [T,K], weights fp32 [T,K]
    route: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Shapes],
        tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ]
    # (normalised [T,H], ids [T,K], gate/linear weights [E, 2I, H], bias [E, 2I], shapes) -> activated [T,K,I]
    experts_up: Callable[[torch.Tensor, torch.Tensor, Mxfp4, torch.Tensor, Shapes], torch.Tensor]
    # (activated [T,K,I], ids, weights, down weights [E, H, I], bias [E, H], x, shapes) -> x + sum_k w_k y_k
    experts_down: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, Mxfp4, torch.Tensor, torch.Tensor, Shapes], torch.Tensor
    ]
    # (x rows [S,H], gain [H], weight [V,H], shapes) -> logits fp32 [S,V]
    unembed: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Shapes], torch.Tensor]
    sample: Sample
    packed_tokens: int = 0
    # Says which size of a model the kernels do not support, and what they support; None: they support the model.
    refusal: Callable[[Shapes], str | None] = lambda _: None
    # Errors raised if a kernel cannot be compiled for a device, or a block needs more resources than the device has.
    unfit: tuple[type[Exception], ...] = ()
    across: AcrossLayers | None = None  # None: every layer normalises its own input
    recordable: bool = False  # as a CUDA graph: no copy from the host and no synchronization inside
