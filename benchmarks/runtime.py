"""How fast the runtime's kernels are on this GPU, next to the time that the memory needs for their bytes.

    python benchmarks/runtime.py --model 20b [--parts kernels,decode,batch,prefill] [--json FILE] [--tune up=8:128 ...]

Random weights at the true shapes are made on the GPU. Every kernel is first compared with the reference on fresh inputs;
where one is wrong nothing is timed and the exit status is 1. Times are of CUDA-graph replays, medians of five groups;
a kernel's is the mean over all layers in one graph, so that no weight is still in the cache when it is read again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.kernel_cases import attend_case, every_case, open_lab  # noqa: E402
from runtime.engine import make_caches  # noqa: E402
from runtime.kernels.base import Kernels, LayerCache, StepInputs  # noqa: E402
from runtime.kernels.fast import triton_kernels  # noqa: E402
from runtime.kernels.launch import Tuning  # noqa: E402
from runtime.model.config import ModelConfig, gpt_oss_20b, gpt_oss_120b  # noqa: E402
from runtime.model.random_weights import random_weights  # noqa: E402
from runtime.model.transformer import Transformer, build_transformer, forward  # noqa: E402
from runtime.spans import Span, pages_of, span_inputs  # noqa: E402
from runtime.timing import LIMITS, Timing, time_graph  # noqa: E402

READ_BYTES_PER_S = 3.10e12  # what an H100 of this kind was measured to read
MODELS = {"20b": gpt_oss_20b, "120b": gpt_oss_120b}
PAGE = 64  # as the engine has it
EDGES = (
    [Span(0, 1)],
    [Span(126, 1)],
    [Span(127, 1)],
    [Span(128, 1)],
    [Span(129, 1)],
    [Span(1023, 1)],
    [Span(5000, 1), Span(0, 1), Span(63, 1), Span(64, 1), Span(700, 1), Span(15, 1), Span(16, 1)],
    [Span(4000, 8)],
    [Span(0, 300)],
    [Span(1000, 257)],
    [Span(127, 129), Span(0, 1), Span(511, 3), Span(2000, 17)],
)


def check(config: ModelConfig, run: Kernels, device: torch.device, seed: int) -> dict[str, float]:
    """Compare every kernel with the reference; the errors, attention's under two names."""
    lab = open_lab(config.shapes(), device, torch.bfloat16, seed)
    errors = every_case(lab, run, (1, 2, 8, 9, 64, 129, 300, 1500))
    for name, window in (("attend_full", None), ("attend_window", config.window)):
        errors[name] = max(attend_case(lab, run, spans, PAGE, window) for spans in EDGES)
    return errors


def wrong(errors: dict[str, float]) -> list[str]:
    return [name for name, error in errors.items() if not error <= LIMITS.get(name, LIMITS["attend"])]


def context_inputs(model: Transformer, spans: Sequence[Span]) -> tuple[StepInputs, list[LayerCache]]:
    """A step over the spans, and caches with random keys and values everywhere."""
    lab = open_lab(model.shapes, model.device, model.dtype, 5)
    pages = pages_of(spans, PAGE)
    inputs = span_inputs(spans, PAGE, pages, lab.generator)
    inputs.token_ids.copy_(lab.integers(model.config.vocabulary, inputs.token_ids.shape[0]))
    caches = make_caches(model.config.layers, pages, model.shapes, PAGE, model.dtype, model.device)
    for cache in caches:
        cache.keys.normal_()
        cache.values.normal_()
    return inputs, caches


def step_time(model: Transformer, spans: Sequence[Span], replays: int = 20) -> Timing:
    """Time one whole step, embedding to the greedy choice of the next token, which is fed back."""
    inputs, caches = context_inputs(model, spans)
    temperature = torch.zeros(len(spans), device=model.device)
    uniform = torch.zeros(len(spans), dtype=torch.float64, device=model.device)

    def work() -> None:
        chosen = model.kernels.sample(forward(model, inputs, caches), temperature, uniform)
        if chosen.shape == inputs.token_ids.shape:
            inputs.token_ids.copy_(chosen)

    return time_graph(work, replays)


def kernel_times(
    model: Transformer, spans: Sequence[Span], only: Sequence[str] = (), replays: int = 20
) -> dict[str, tuple[Timing, float]]:
    """Time each kernel (or ``only`` some) over all layers: seconds a launch, and the bytes it must read."""
    config, s, run, layers = model.config, model.shapes, model.kernels, model.weights.layers
    inputs, caches = context_inputs(model, spans)
    batch, context = sum(span.count for span in spans), spans[0].start + spans[0].count
    lab = open_lab(s, model.device, model.dtype, 6)
    x = lab.normal(batch, s.hidden)
    qkv = run.norm_qkv(x, layers[0].attention_gain, layers[0].qkv_weight, layers[0].qkv_bias, s)
    attended = lab.normal(batch, s.query_heads * s.head_dim)
    routed = [run.route(x, w.mlp_gain, w.router_weight, w.router_bias, s) for w in layers]
    ids = [lab.choices(batch) for _ in layers]
    activated = run.experts_up(routed[0][0], ids[0], layers[0].up, layers[0].up_bias, s)
    full = [n for n in range(config.layers) if config.layer_window(n) is None]
    sliding = [n for n in range(config.layers) if config.layer_window(n) is not None]

    def attend(number: int) -> torch.Tensor:
        window = config.layer_window(number)
        return run.attend(qkv, model.rope, layers[number].sinks, caches[number], inputs, window, s)

    distinct = sum(len(set(row.flatten().tolist())) for row in ids) / len(ids)
    expert = distinct * s.intermediate * s.hidden * 4.25 / 8
    row_bytes = 2 * s.kv_heads * s.head_dim * 2 * len(spans)
    works: dict[str, tuple[Sequence[int], Callable[[int], object], float]] = {
        "norm_qkv": (
            range(config.layers),
            lambda n: run.norm_qkv(x, layers[n].attention_gain, layers[n].qkv_weight, layers[n].qkv_bias, s),
            layers[0].qkv_weight.nbytes,
        ),
        "attend_window": (sliding, attend, min(context, config.window) * row_bytes),
        "attend_full": (full, attend, context * row_bytes),
        "project": (
            range(config.layers),
            lambda n: run.project(attended, layers[n].out_weight, layers[n].out_bias, x),
            layers[0].out_weight.nbytes,
        ),
        "route": (
            range(config.layers),
            lambda n: run.route(x, layers[n].mlp_gain, layers[n].router_weight, layers[n].router_bias, s),
            layers[0].router_weight.nbytes,
        ),
        "experts_up": (
            range(config.layers),
            lambda n: run.experts_up(routed[n][0], ids[n], layers[n].up, layers[n].up_bias, s),
            2 * expert,
        ),
        "experts_down": (
            range(config.layers),
            lambda n: run.experts_down(activated, ids[n], routed[n][2], layers[n].down, layers[n].down_bias, x, s),
            expert,
        ),
        "unembed": (
            range(2),
            lambda _: run.unembed(x, model.weights.final_gain, model.weights.unembedding, s),
            model.weights.unembedding.nbytes,
        ),
    }
    times = {}
    for name, (numbers, launch, size) in works.items():
        if only and name not in only:
            continue
        timing = time_graph(lambda numbers=numbers, launch=launch: [launch(n) for n in numbers], replays)
        count = len(numbers)
        times[name] = (Timing(timing.median_s / count, timing.low_s / count, timing.high_s / count), size)
    return times


def show_kernels(title: str, times: dict[str, tuple[Timing, float]]) -> None:
    print(f"\n{title}\n{'kernel':14} {'MB':>8} {'floor us':>9} {'us':>8} {'TB/s':>6}  low-high")
    for name, (timing, size) in times.items():
        us = timing.median_s * 1e6
        print(
            f"{name:14} {size / 1e6:8.2f} {size / READ_BYTES_PER_S * 1e6:9.2f} {us:8.2f} {size / timing.median_s / 1e12:6.2f}"
            f"  {timing.low_s * 1e6:.2f}-{timing.high_s * 1e6:.2f}"
        )


def show_step(title: str, timing: Timing, tokens: int) -> None:
    low, high = tokens / timing.high_s, tokens / timing.low_s
    print(
        f"{title:32} {timing.median_s * 1e3:8.3f} ms {tokens / timing.median_s:10.1f} tokens/s [{low:.1f}-{high:.1f}]"
    )


def tuned(pairs: Sequence[str]) -> Tuning:
    """Read ``name=value`` pairs, a value being a number or numbers with colons between them; an unknown name is an error."""
    sizes = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        numbers = tuple(int(number) for number in value.split(":"))
        sizes[name] = numbers if len(numbers) > 1 else numbers[0]
    return dataclasses.replace(Tuning(), **sizes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="20b")
    parser.add_argument("--parts", default="kernels,decode,batch,prefill")
    parser.add_argument("--tune", nargs="*", default=[], help="sizes of Tuning to replace, as name=value")
    parser.add_argument(
        "--vary", nargs="*", default=[], help="name=a,b,c: time the kernels at batch 1 under each value"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.parts.split(",")
    device = torch.device("cuda")
    config = MODELS[options.model]()
    tuning = tuned(options.tune)
    run = triton_kernels(device, tuning)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(
        f"{options.model} on {torch.cuda.get_device_name()}, {versions}, {datetime.now(UTC):%Y-%m-%d}, seed {options.seed}"
    )
    results: dict[str, object] = {"model": options.model, "versions": versions, "tuning": dataclasses.asdict(tuning)}
    errors = check(config, run, device, options.seed)
    results["errors"] = errors
    print("  ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    if bad := wrong(errors):
        print(f"wrong, so nothing is timed: {', '.join(bad)}")
        return 1
    torch.cuda.empty_cache()
    began = time.perf_counter()
    weights = random_weights(config, device, torch.bfloat16, 1)
    torch.cuda.synchronize()
    print(f"weights made in {time.perf_counter() - began:.1f} s, {torch.cuda.memory_allocated() / 2**30:.1f} GiB")
    model = build_transformer(config, weights, run, positions=40_000)
    if "kernels" in parts:
        for batch, context in ((1, 1024), (1, 32768), (32, 1024)):
            times = kernel_times(model, [Span(context - 1, 1)] * batch)
            show_kernels(f"batch {batch}, context {context}", times)
            results[f"kernels_{batch}_{context}"] = {k: (dataclasses.asdict(t), size) for k, (t, size) in times.items()}
    for vary in options.vary:
        name, _, values = vary.partition("=")
        for value in values.split(","):
            other = triton_kernels(device, tuned([*options.tune, f"{name}={value}"]))
            times = kernel_times(dataclasses.replace(model, kernels=other), [Span(1023, 1)])
            print(f"{name}={value}: " + "  ".join(f"{k} {t.median_s * 1e6:.2f}" for k, (t, _) in times.items()))
    steps: list[tuple[str, Sequence[Span]]] = []
    if "decode" in parts:
        steps += [(f"batch 1, context {context}", [Span(context - 1, 1)]) for context in (1024, 8192, 32768)]
    if "batch" in parts:
        steps += [(f"batch {batch}, context 1024", [Span(1023, 1)] * batch) for batch in (2, 4, 8, 32, 64)]
    if "prefill" in parts:
        steps += [(f"prefill {count}", [Span(0, count)]) for count in (300, 2048, 8192)]
    for title, spans in steps:
        tokens = sum(span.count for span in spans)
        timing = step_time(model, spans, replays=20 if tokens <= 64 else 5)
        show_step(title, timing, tokens)
        results[title] = dataclasses.asdict(timing)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
