"""Each kernel of a record against the reference's, on fresh random inputs with poisoned outputs.

Used by the tests (tiny shapes, interpreted on the CPU) and by benchmarks/runtime.py (true shapes on a GPU), so that what is
timed is what was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from runtime.kernels import mxfp4
from runtime.kernels.base import Kernels, LayerCache, Mxfp4, Shapes
from runtime.kernels.reference import norm as reference_norm
from runtime.kernels.reference import reference_kernels
from runtime.spans import Span, pages_of, span_inputs
from runtime.timing import distance, poisoned

SHAPES_20B = Shapes(2880, 2880, 64, 8, 64, 32, 4, 201_088, 128)
SHAPES_120B = Shapes(2880, 2880, 64, 8, 64, 128, 4, 201_088, 128)


@dataclass(frozen=True)
class Lab:
    """Where the cases run: one random generator, one device, one dtype."""

    shapes: Shapes
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *size: int, std: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        values = torch.randn(*size, generator=self.generator, device=self.device, dtype=torch.float32)
        return (values * std + mean).to(dtype or self.dtype)

    def integers(self, high: int, *size: int, dtype: torch.dtype = torch.int64, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, size, generator=self.generator, device=self.device).to(dtype)

    def mxfp4(self, rows: int, width: int) -> Mxfp4:
        experts = self.shapes.experts
        blocks = torch.empty(experts, rows, width // 32, 16, dtype=torch.uint8, device=self.device)
        for expert in blocks:  # one at a time: a random int64 needs eight times the memory
            expert.copy_(self.integers(256, *expert.shape, dtype=torch.uint8))
        return Mxfp4(blocks, self.integers(122, experts, rows, width // 32, dtype=torch.uint8, low=117))

    def choices(self, tokens: int) -> torch.Tensor:
        scores = torch.rand(tokens, self.shapes.experts, generator=self.generator, device=self.device)
        return scores.topk(self.shapes.experts_per_token, dim=-1).indices.int()


def open_lab(shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int) -> Lab:
    return Lab(shapes, device, dtype, torch.Generator(device).manual_seed(seed))


def norm_qkv_case(lab: Lab, run: Kernels, tokens: int) -> float:
    s = lab.shapes
    rows = (s.query_heads + 2 * s.kv_heads) * s.head_dim
    args = (
        lab.normal(tokens, s.hidden, std=3.0),
        lab.normal(s.hidden, std=0.2, mean=1.0, dtype=torch.float32),
        lab.normal(rows, s.hidden, std=s.hidden**-0.5),
        lab.normal(rows),
        s,
    )
    with poisoned():
        out = run.norm_qkv(*args)
    return distance(out, reference_kernels().norm_qkv(*args))


def project_case(lab: Lab, run: Kernels, tokens: int) -> float:
    s = lab.shapes
    width = s.query_heads * s.head_dim
    args = (
        lab.normal(tokens, width),
        lab.normal(s.hidden, width, std=width**-0.5),
        lab.normal(s.hidden),
        lab.normal(tokens, s.hidden),
    )
    with poisoned():
        out = run.project(*args)
    return distance(out, reference_kernels().project(*args))


def unembed_case(lab: Lab, run: Kernels, tokens: int) -> float:
    s = lab.shapes
    args = (
        lab.normal(tokens, s.hidden, std=3.0),
        lab.normal(s.hidden, std=0.2, mean=1.0, dtype=torch.float32),
        lab.normal(s.vocabulary, s.hidden, std=s.hidden**-0.5),
        s,
    )
    with poisoned():
        out = run.unembed(*args)
    return distance(out, reference_kernels().unembed(*args))


def natural(activations: torch.Tensor, tokens_like: torch.Tensor, run: Kernels) -> torch.Tensor:
    """Undo the record's own order of activations."""
    packed = activations.shape[0] <= run.packed_tokens
    return mxfp4.from_packed(activations) if packed else mxfp4.from_paired(activations).to(tokens_like.dtype)


def route_case(lab: Lab, run: Kernels, tokens: int) -> float:
    """The distance of the normalised tokens and of the weights; infinite where a clearly worse expert was chosen."""
    s = lab.shapes
    args = (
        lab.normal(tokens, s.hidden, std=3.0),
        lab.normal(s.hidden, std=0.2, mean=1.0, dtype=torch.float32),
        lab.normal(s.experts, s.hidden, std=s.hidden**-0.5),
        lab.normal(s.experts),
        s,
    )
    with poisoned():
        normalised, ids, weights = run.route(*args)
    truth, true_ids, _ = reference_kernels().route(*args)
    errors = [distance(natural(normalised, truth, run), truth)]
    if not bool(((ids >= 0) & (ids < s.experts)).all()) or any(len(set(row)) != len(row) for row in ids.tolist()):
        return float("inf")
    # Two scores closer than the rounding of the normalised token may change places, or the last of them its expert.
    scores = (truth.float() @ args[2].float().t() + args[3].float()).gather(1, ids.long())
    true_scores = (truth.float() @ args[2].float().t() + args[3].float()).gather(1, true_ids.long())
    slack = 1e-4 if lab.dtype == torch.float32 else 3e-2
    if float((scores - true_scores).abs().max()) > slack:
        return float("inf")
    errors.append(distance(weights, scores.softmax(dim=-1)))
    return max(errors)


def experts_case(
    lab: Lab, run: Kernels, tokens: int, weights: tuple[Mxfp4, Mxfp4] | None = None
) -> tuple[float, float]:
    """The distances of the activated tokens, and of what the second matrix adds to the residual stream.

    The second one includes the normalised sum, where the record has a kernel for that.
    """
    s = lab.shapes
    reference = reference_kernels()
    up, down = weights or (lab.mxfp4(2 * s.intermediate, s.hidden), lab.mxfp4(s.hidden, s.intermediate))
    up_bias = lab.normal(s.experts, 2 * s.intermediate)
    down_bias = lab.normal(s.experts, s.hidden)
    x = lab.normal(tokens, s.hidden)
    gain = lab.normal(s.hidden, std=0.2, mean=1.0, dtype=torch.float32)
    router = lab.normal(s.experts, s.hidden, std=s.hidden**-0.5), lab.normal(s.experts)
    with poisoned():
        normalised, ids, shares = run.route(x, gain, *router, s)
        activated = run.experts_up(normalised, ids, up, up_bias, s)
        out = run.experts_down(activated, ids, shares, down, down_bias, x, s)
        following = None
        if run.across is not None and tokens > run.packed_tokens:
            following = run.across.experts_down(activated, ids, shares, down, down_bias, x, gain, s)
    truth = reference.route(x, gain, *router, s)[0]
    true_activated = reference.experts_up(truth, ids, up, up_bias, s)
    true_out = reference.experts_down(true_activated, ids, shares, down, down_bias, x, s)
    added = distance(out.float() - x.float(), true_out.float() - x.float())
    if following is not None:
        same, next_normalised = following
        if not torch.equal(same, out):
            return float("inf"), float("inf")
        added = max(added, distance(next_normalised, reference_norm(out, gain, s.norm_eps)))
    return distance(natural(activated, x, run), true_activated), added


def attend_case(lab: Lab, run: Kernels, spans: Sequence[Span], page: int, window: int | None, bound: int = 0) -> float:
    """The largest distance of a single token's row; the cache must be as the reference leaves it, and NaN elsewhere.

    ``bound``: the longest context that the step is launched for, if that is longer than the spans' (a graph serves many).
    """
    s = lab.shapes
    pages = pages_of(spans, page)
    inputs = span_inputs(spans, page, pages, lab.generator)
    inputs = replace(inputs, max_context_len=max(bound, inputs.max_context_len))
    kinds = (pages, page, s.kv_heads, s.head_dim)
    keys, values = lab.normal(*kinds), lab.normal(*kinds)
    # What was never written is no number: positions at and beyond each sequence's start, and pages of nobody.
    written = torch.zeros(pages * page, dtype=torch.bool, device=lab.device)
    for row, span in enumerate(spans):
        place = torch.arange(span.start, device=lab.device)
        written[inputs.page_table[row].long()[place // page] * page + place % page] = True
    for tensor in (keys, values):
        tensor.view(-1, s.kv_heads, s.head_dim)[~written] = float("nan")
    caches = [LayerCache(keys.clone(), values.clone()) for _ in range(2)]
    tokens = inputs.positions.shape[0]
    qkv = lab.normal(tokens, (s.query_heads + 2 * s.kv_heads) * s.head_dim)
    angle = torch.rand(inputs.max_context_len, s.head_dim // 2, generator=lab.generator, device=lab.device) * 6.3
    rope = torch.cat((angle.cos(), angle.sin()), dim=-1) * 1.3
    sinks = lab.normal(s.query_heads, std=2.0)
    with poisoned():
        out = run.attend(qkv, rope, sinks, caches[0], inputs, window, s)
    truth = reference_kernels().attend(qkv, rope, sinks, caches[1], inputs, window, s)
    for mine, true in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        if not torch.equal(mine.isnan(), true.isnan()) or distance(mine.nan_to_num(), true.nan_to_num()) > 5e-3:
            return float("inf")
    heads = (tokens, s.query_heads, s.head_dim)
    error = (out.double() - truth.double()).view(heads).norm(dim=-1)
    scale = (
        truth.double().view(heads).norm(dim=-1).clamp_min(0.05 * float(truth.double().view(heads).norm(dim=-1).mean()))
    )
    value = float((error / scale).max())
    return value if value == value else float("inf")


def every_case(lab: Lab, run: Kernels, tokens: Sequence[int]) -> dict[str, float]:
    """The worst error of each kernel over token counts and, for attention, over the edges of window, page and block."""
    worst: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        worst[name] = max(worst.get(name, 0.0), value)

    simple: dict[str, Callable[[Lab, Kernels, int], float]] = {
        "norm_qkv": norm_qkv_case,
        "project": project_case,
        "route": route_case,
    }
    s = lab.shapes
    weights = lab.mxfp4(2 * s.intermediate, s.hidden), lab.mxfp4(s.hidden, s.intermediate)
    for count in tokens:
        for name, case in simple.items():
            note(name, case(lab, run, count))
        up, down = experts_case(lab, run, count, weights)
        note("experts_up", up)
        note("experts_down", down)
        if count <= 64:
            note("unembed", unembed_case(lab, run, count))
    return worst
