"""The reference kernels in plain torch, on any device: every faster kernel is compared with them.

Each function computes in fp32, whatever the storage dtype is, and rounds once, at its return (and where a fused
kernel has to round too: the normalised tokens, the rotated queries and keys, the activated experts). With fp32 tensors
nothing is rounded. MXFP4 is decoded only for the experts that the step uses, one expert at a time.

The loops over sequences and experts read counts back to the host, so these kernels cannot be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from runtime.kernels.base import Kernels, LayerCache, Mxfp4, Shapes, StepInputs

# Rows of queries scored at a time, and rows of the unembedding multiplied at a time: they bound the memory.
QUERY_ROWS = 128
VOCABULARY_ROWS = 16384

# The sixteen values of E2M1: sign, two bits of exponent, one of mantissa. Code 8 is minus zero.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SCALE_BIAS = 127

CHUNK = 128  # tokens a chunk of the running sum in ``invert``: gpt-oss's vocabulary is 1571 of them


def reference_kernels() -> Kernels:
    """Return the plain torch record."""
    return Kernels(
        name="reference",
        norm_qkv=norm_qkv,
        attend=attend,
        project=project,
        route=route,
        experts_up=experts_up,
        experts_down=experts_down,
        unembed=unembed,
        sample=sample,
    )


def decode_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Decode uint8 blocks [..., G, 16] with scales [..., G] to fp32 [..., G * 32], exactly.

    Low nibble first: byte b of a block holds values 2b and 2b + 1. Value = FP4_VALUES[code] * 2^(scale - 127); both
    factors come from tables, because ``ldexp`` on a GPU computes a power that need not be exact.
    """
    codes = torch.tensor(FP4_VALUES, dtype=torch.float32, device=blocks.device)
    byte = torch.arange(256, device=blocks.device)
    pairs = torch.stack((codes[byte & 15], codes[byte >> 4]), dim=1)  # [256, 2]
    powers = torch.tensor(
        [2.0 ** (exponent - SCALE_BIAS) for exponent in range(255)] + [float("nan")],
        dtype=torch.float32,
        device=blocks.device,
    )
    values = pairs.index_select(0, blocks.reshape(-1).int()).view(*scales.shape, 32)
    scale = powers.index_select(0, scales.reshape(-1).int()).view(*scales.shape, 1)
    return values.mul_(scale).flatten(-2)


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Return rms(x; gain) [T, H] in x's dtype, rounded after the gain."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * gain.float()).to(x.dtype)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x @ weight.T + bias in fp32."""
    return functional.linear(x.float(), weight.float(), None if bias is None else bias.float())


def norm_qkv(
    x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
) -> torch.Tensor:
    """Normalise and project: [T, H] -> [T, (Nq + 2 Nk) D], all query heads first, then keys, then values."""
    return linear(norm(x, gain, shapes.norm_eps), weight, bias).to(x.dtype)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate heads [T, N, D] by rows of the RoPE table [T, D] = cos | sin: half-split pairs, not interleaved ones."""
    cos, sin = table[:, None, :].chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    sinks: torch.Tensor,
    cache: LayerCache,
    inputs: StepInputs,
    window: int | None,
    shapes: Shapes,
) -> torch.Tensor:
    """Apply RoPE, write keys and values to the cache, and attend to everything each token may see: -> [T, Nq * D]."""
    tokens = qkv.shape[0]
    heads, kv_heads, width = shapes.query_heads, shapes.kv_heads, shapes.head_dim
    by_head = qkv.view(tokens, heads + 2 * kv_heads, width)
    query, key, value = by_head[:, :heads], by_head[:, heads : heads + kv_heads], by_head[:, heads + kv_heads :]
    table = rope[inputs.positions.long()]
    query, key = rotate(query, table), rotate(key, table)
    cache.keys.view(-1, kv_heads, width).index_copy_(0, inputs.slots, key.to(cache.keys.dtype))
    cache.values.view(-1, kv_heads, width).index_copy_(0, inputs.slots, value.to(cache.values.dtype))

    result = torch.empty_like(query)
    starts, contexts = inputs.query_start.tolist(), inputs.context_len.tolist()
    for sequence, context in enumerate(contexts):
        start, end = starts[sequence], starts[sequence + 1]
        for first in range(start, end, QUERY_ROWS):
            rows = slice(first, min(first + QUERY_ROWS, end))
            position = context - end + rows.start  # of the first row; the last token is at position context - 1
            keys, values, oldest = _visible(
                cache, inputs.page_table[sequence], position, context - end + rows.stop, window
            )
            result[rows] = _softmax_attention(query[rows], keys, values, sinks, position, oldest, window)
    return result.view(tokens, heads * width)


def _visible(
    cache: LayerCache, pages: torch.Tensor, position: int, stop: int, window: int | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return keys and values [oldest, stop) of one sequence, and oldest. Reads only what was written."""
    page_size = cache.keys.shape[1]
    oldest = 0 if window is None else max(0, position - window + 1)
    first_page = oldest // page_size
    used = pages[first_page : -(-stop // page_size)].long()
    span = slice(oldest - first_page * page_size, stop - first_page * page_size)
    return cache.keys[used].flatten(0, 1)[span], cache.values[used].flatten(0, 1)[span], oldest


def _softmax_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor,
    position: int,
    oldest: int,
    window: int | None,
) -> torch.Tensor:
    """Attend from query [R, Nq, D] at ``position``… to keys [C, Nk, D] at ``oldest``…; rows of p sum to less than 1."""
    rows, heads, width = query.shape
    kv_heads = keys.shape[1]
    grouped = query.float().view(rows, kv_heads, heads // kv_heads, width)  # blocked: head j reads kv head j // group
    scores = torch.einsum("rngd,cnd->ngrc", grouped, keys.float()) * width**-0.5
    behind = torch.arange(position, position + rows, device=query.device)[:, None] - torch.arange(
        oldest, oldest + keys.shape[0], device=query.device
    )
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    scores = scores.masked_fill(hidden, float("-inf"))
    sink = sinks.float().view(kv_heads, heads // kv_heads, 1, 1).expand(-1, -1, rows, 1)  # neither scaled nor rotated
    weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("ngrc,cnd->rngd", weights, values.float()).reshape(rows, heads, width).to(query.dtype)


def project(attended: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the residual stream x + attended @ weight.T + bias."""
    return (x.float() + linear(attended, weight, bias)).to(x.dtype)


def route(
    x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shapes: Shapes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the experts of each token, best first, the lower id first if two are equal; softmax over the chosen ones only."""
    normalised = norm(x, gain, shapes.norm_eps)
    logits, order = linear(normalised, weight, bias).sort(dim=-1, descending=True, stable=True)
    count = shapes.experts_per_token
    return normalised, order[:, :count].int(), logits[:, :count].softmax(dim=-1)


def experts_up(
    normalised: torch.Tensor, ids: torch.Tensor, weight: Mxfp4, bias: torch.Tensor, shapes: Shapes
) -> torch.Tensor:
    """Multiply by the chosen experts' first matrix and activate: -> [T, K, I]."""
    result = normalised.new_empty(*ids.shape, shapes.intermediate)
    for expert in sorted(set(ids.flatten().tolist())):
        token, choice = torch.where(ids == expert)
        decoded = decode_mxfp4(weight.blocks[expert], weight.scales[expert])
        result[token, choice] = swiglu(linear(normalised[token], decoded, bias[expert]), shapes).to(result.dtype)
    return result


def swiglu(u: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Return gate * sigmoid(alpha * gate) * (up + 1) of interleaved rows [..., 2I]; the gate is clamped above only."""
    gate = u[..., 0::2].clamp(max=shapes.swiglu_limit)
    up = u[..., 1::2].clamp(min=-shapes.swiglu_limit, max=shapes.swiglu_limit)
    return gate * torch.sigmoid(shapes.swiglu_alpha * gate) * (up + 1)


def experts_down(
    activated: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    weight: Mxfp4,
    bias: torch.Tensor,
    x: torch.Tensor,
    shapes: Shapes,  # noqa: ARG001 - every kernel of the record gets the shapes
) -> torch.Tensor:
    """Multiply by the chosen experts' second matrix, weight (bias included), sum, and add to the residual stream."""
    result = x.float()
    if result is x:
        result = x.clone()
    for expert in sorted(set(ids.flatten().tolist())):
        token, choice = torch.where(ids == expert)
        decoded = decode_mxfp4(weight.blocks[expert], weight.scales[expert])
        output = linear(activated[token, choice], decoded, bias[expert])
        result.index_add_(0, token, output * weights[token, choice, None].float())
    return result.to(x.dtype)


def unembed(x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Normalise rows [S, H] and return fp32 logits [S, V]."""
    normalised = norm(x, gain, shapes.norm_eps)
    logits = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    for first in range(0, weight.shape[0], VOCABULARY_ROWS):
        rows = slice(first, first + VOCABULARY_ROWS)
        logits[:, rows] = linear(normalised, weight[rows])
    return logits


def sample(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Pick a token for each row of logits [S, V], as ``Sample`` says."""
    cold = temperature == 0
    picked = invert(tempered(logits, torch.where(cold, 1.0, temperature)), uniform)
    return torch.where(cold, logits.argmax(dim=-1), picked)


def tempered(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Return exp((logit - largest) / temperature) [S, V], not normalised: ``invert`` needs only their proportions."""
    return (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None]).exp_()


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the index of the first token at which the running sum of weights [S, V] exceeds uniform * their sum.

    In a single running sum over 201,088 tokens the tail would be lost to rounding, so there are two levels: fp32 sums of
    short chunks with a float64 running sum over them, then a float64 running sum inside the chunk that was found.
    """
    missing = -weights.shape[-1] % CHUNK
    whole = functional.pad(weights, (0, missing)) if missing else weights
    chunks = whole.reshape(len(weights), whole.shape[-1] // CHUNK, CHUNK)
    sums = chunks.sum(dim=-1).double()
    running = sums.cumsum(dim=-1)
    target = uniform[:, None] * running[:, -1:]
    chunk = _first_above(running, target)
    inside = (target - (running.gather(-1, chunk) - sums.gather(-1, chunk))).clamp_(min=0.0)  # rounding may go below
    meant = chunks.gather(1, chunk[:, :, None].expand(-1, 1, CHUNK))[:, 0]
    return chunk[:, 0] * CHUNK + _first_above(meant.double().cumsum(dim=-1), inside)[:, 0]


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return int64 [S, 1]: the first entry of a running sum that exceeds the target [S, 1]. Its weight is never 0.

    If rounding has put the target at or above the total, return the last entry with a weight above 0.
    """
    index = torch.searchsorted(running, target, right=True)
    last = torch.searchsorted(running, running[:, -1:].contiguous(), right=False)
    return torch.minimum(index, last)
