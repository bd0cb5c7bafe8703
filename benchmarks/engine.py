"""How fast the whole engine is on this GPU: scheduling, graphs, sampling and the host's own work included.

    python -m benchmarks.engine [check decode batch prefix turns sampler trace guess load] [--model 20b] [--folder DIR] [--texts FILE]
    python -m benchmarks.engine host | simulate | texts        (these need no GPU; the last writes FILE, 0.4 MB, for `guess`)

Random weights at the true shapes are made on the GPU. First the engine's greedy tokens (recorded graphs, steps launched
ahead, chunked prefill, guesses) are checked: recomputed in one plain prefill, each must be within bf16 rounding of the largest
logit. Where one is not, nothing is timed and the exit status is 1. Times are of the host's clock around Engine.step().
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.engine_guess import kinds, show_measured, show_simulated, write_texts  # noqa: E402
from benchmarks.engine_host import show_host  # noqa: E402
from runtime.commands import all_logits  # noqa: E402
from runtime.engine import Engine, EngineOptions, open_engine  # noqa: E402
from runtime.graphs import CudaRecorder  # noqa: E402
from runtime.kernels import reference  # noqa: E402
from runtime.kernels.open import open_kernels  # noqa: E402
from runtime.model.checkpoint import load_weights, open_checkpoint, save_weights  # noqa: E402
from runtime.model.config import gpt_oss_20b, gpt_oss_120b  # noqa: E402
from runtime.model.random_weights import random_weights, separate_experts  # noqa: E402
from runtime.model.transformer import Transformer, build_transformer  # noqa: E402
from runtime.model.weights import Layout  # noqa: E402
from runtime.request import Request, Sampling, TokenOut  # noqa: E402
from runtime.scheduler import Limits  # noqa: E402
from runtime.scheduler import Sequence as Running  # noqa: E402

MODELS = {"20b": gpt_oss_20b, "120b": gpt_oss_120b}
NO_GPU: dict[str, Callable[[Path], None]] = {
    "host": lambda _: show_host(),
    "simulate": lambda _: show_simulated(),
    "texts": lambda file: write_texts(file, kinds()),
}
GREEDY = Sampling(temperature=0.0)
SAMPLED = Sampling(seed=1)
ROUNDING = 0.1  # of a logit row's standard deviation: how far below the largest a greedy token may be found


def prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(199_000), k=length))


def drain(engine: Engine, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while not engine.idle:
        for out in engine.step():
            outs[out.id].append(out)
    return outs


def worst_choice(model: Transformer, request: Request, tokens: Sequence[int]) -> float:
    """Recompute a greedy answer in plain chunks: how far its worst token is below the largest logit, in deviations."""
    ids = [*request.prompt, *tokens][:-1]
    found, start, first = [], 0, len(request.prompt) - 1
    for rows in all_logits(model, ids, 128):
        found.append(rows[max(first - start, 0) :].clone())
        start += len(rows)
    answers = torch.cat(found)
    chosen = answers.gather(-1, torch.tensor(tokens, device=answers.device)[:, None])[:, 0]
    return float(((answers.max(-1).values - chosen) / answers.std(-1)).max())


def guessed(engine: Engine, request: Request, said: Sequence[int]) -> list[int]:
    """The answer with guesses handed in: what was said, but every fifth token wrong."""
    guess = engine.scheduler._guess
    lengths = itertools.cycle((3, 7, 15, 2))

    def handed(sequence: Running) -> tuple[int, ...]:
        following = said[sequence.sampled : sequence.sampled + next(lengths)]
        return tuple(token ^ (place % 5 == 4) for place, token in enumerate(following, sequence.sampled))

    engine.scheduler._guess = handed  # type: ignore[method-assign]
    outs = drain(engine, [request])[request.id]
    engine.scheduler._guess = guess  # type: ignore[method-assign]
    return [out.token for out in outs if out.token is not None]


def check(model: Transformer, engine: Engine) -> float:
    separate_experts(model.weights)
    requests = [Request(f"c{n}", prompt(n, n), 24, sampling=GREEDY) for n in (1, 63, 64, 65, 127, 129, 700, 3000)]
    outs = drain(engine, requests)
    said = {request.id: [out.token for out in outs[request.id] if out.token is not None] for request in requests}
    plain = dataclasses.replace(model, kernels=open_kernels("reference", model.device))
    worst = max(worst_choice(plain, request, said[request.id]) for request in requests)
    for request in requests:
        worst = max(worst, worst_choice(plain, request, guessed(engine, request, said[request.id])))
    for layer in model.weights.layers:
        layer.router_bias.zero_()
    engine.scheduler.pool.clear()  # what the cache holds was computed with other routers
    return worst


def decode_rate(engine: Engine, batch: int, context: int, sampling: Sampling, steps: int = 128) -> list[float]:
    """Tokens a second over all sequences, three times, each after warm-up steps."""
    rates = []
    for repeat in range(3):
        for index in range(batch):
            mine = sampling if sampling.seed is None else replace(sampling, seed=index)
            engine.add(Request(f"d{repeat}-{index}", prompt(context, 1000 * repeat + index), steps + 40, sampling=mine))
        while engine.scheduler.waiting or any(s.sampled < 16 for s in engine.scheduler.running):
            engine.step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        count = sum(len(engine.step()) for _ in range(steps))
        torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - began))
        while not engine.idle:
            engine.step()
    return rates


def turns_rate(engine: Engine, conversations: int, turns: int = 8) -> list[float]:
    """Sampled tokens a second while as many agents talk at a time, out of step with each other; four times, the first warms up."""
    rates = []
    for repeat in range(4):
        texts = [list(prompt(1000 + 37 * n, 5000 * repeat + n)) for n in range(conversations)]
        left = [turns] * conversations
        for n, text in enumerate(texts):
            engine.add(Request(str(n), tuple(text), 10 + 50 * n // conversations, sampling=SAMPLED))
        torch.cuda.synchronize()
        began, sampled = time.perf_counter(), 0
        while not engine.idle:
            for out in engine.step():
                n, sampled = int(out.id), sampled + 1
                texts[n].append(out.token or 0)
                if out.finish is not None and left[n]:
                    left[n] -= 1
                    texts[n] += prompt(300, 100 * n + left[n])
                    engine.add(Request(str(n), tuple(texts[n]), 60, sampling=SAMPLED))
        rates.append(sampled / (time.perf_counter() - began))
    return rates[1:]


def first_token(engine: Engine, cached: int, new: int) -> list[float]:
    """Milliseconds from a request to its first token, with ``cached`` tokens of its prompt known."""
    times = []
    for repeat in range(5):
        start = prompt(cached, 77)
        drain(engine, [Request("warm", (*start, 1), 1, sampling=GREEDY)])
        request = Request("turn", (*start, *prompt(new, 100 + repeat)), 1, sampling=GREEDY)
        torch.cuda.synchronize()
        began = time.perf_counter()
        out = drain(engine, [request])["turn"][0]
        times.append((time.perf_counter() - began) * 1e3)
        assert out.cached_tokens >= cached - engine.scheduler.pool.page_tokens, out
    return times


def prepare(engine: Engine) -> None:
    """Record the graphs that a worker records while nobody asks, and say what they cost."""
    free = torch.cuda.mem_get_info()[0]
    began, count = time.perf_counter(), 0
    while engine.prepare():
        count += 1
    torch.cuda.synchronize()
    seconds, taken = time.perf_counter() - began, free - torch.cuda.mem_get_info()[0]
    print(f"{count} graphs prepared in {seconds:.1f} s, {taken / 2**20:.0f} MiB")


def show(title: str, values: Sequence[float], unit: str) -> None:
    print(f"{title:44} {statistics.median(values):10.1f} {unit} [{min(values):.1f}-{max(values):.1f}]", flush=True)


def load(model: Transformer, folder: Path) -> list[float]:
    """Seconds to load a checkpoint of this size whose files are in the page cache."""
    folder.mkdir(parents=True)
    save_weights(model.weights, model.config, folder, Layout.HUGGING_FACE, shards=4)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        load_weights(open_checkpoint(folder), model.device, model.dtype)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        torch.cuda.empty_cache()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["check", "decode", "batch", "prefix"])
    parser.add_argument("--model", choices=MODELS, default="20b")
    parser.add_argument(
        "--texts", type=Path, default=Path("engine-texts.json.gz"), help="what `texts` writes, `guess` reads"
    )
    parser.add_argument("--folder", type=Path, help="where `load` writes its checkpoint (13 GiB for 20b)")
    parser.add_argument("--page", type=int, default=64)
    given = parser.parse_args()
    parts = given.parts
    if unknown := set(parts) - {
        *NO_GPU,
        "check",
        "decode",
        "batch",
        "prefix",
        "turns",
        "sampler",
        "trace",
        "guess",
        "load",
    }:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    for part in (part for part in NO_GPU if part in parts):
        NO_GPU[part](given.texts)
    if set(parts) <= NO_GPU.keys():
        return 0
    device = torch.device("cuda")
    print(
        f"{given.model} engine on {torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__},"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )
    config = MODELS[given.model]()
    weights = random_weights(config, device, torch.bfloat16, 1)
    model = build_transformer(config, weights, open_kernels("auto", device))
    if "load" in parts and given.folder is not None:
        show("load, files in the page cache", load(model, given.folder), "s")
    options = EngineOptions(page_tokens=given.page, limits=Limits(step_tokens=8192))
    engine = open_engine(model, options)
    free, total = torch.cuda.mem_get_info()
    pool = engine.scheduler.pool
    print(
        f"kernels {model.kernels.name}; cache {pool.total * pool.page_tokens} tokens; "
        f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB in use"
    )
    prepare(engine)
    if "check" in parts:
        worst = check(model, engine)
        print(f"greedy tokens are within {worst:.4f} deviations of the largest logit")
        if not worst <= ROUNDING:
            print("wrong, so nothing is timed")
            return 1
    if "decode" in parts:
        for context in (1024, 8192, 32768):
            for name, sampling in (("greedy", GREEDY), ("temperature 1", SAMPLED)):
                show(f"batch 1, context {context}, {name}", decode_rate(engine, 1, context, sampling), "tokens/s")
    if "batch" in parts:
        for batch in (8, 32, 64):
            show(f"batch {batch}, context 1024, temperature 1", decode_rate(engine, batch, 1024, SAMPLED), "tokens/s")
    if "turns" in parts:
        for conversations in (8, 32):
            show(
                f"{conversations} conversations, 300 in and 60 out a turn",
                turns_rate(engine, conversations),
                "tokens/s",
            )
    if "sampler" in parts:
        show_sampler(model)
    if "trace" in parts:
        for name, sampling in (("greedy", GREEDY), ("temperature 1", SAMPLED)):
            show_trace(engine, 8192, name, sampling)
    if "guess" in parts:
        show_measured(engine, given.texts)
    if "prefix" in parts:
        for cached, new in ((30_000, 300), (0, 2048), (0, 8192)):
            name = f"first token, {cached} cached, {new} new"
            show(name, first_token(engine, cached, new) if cached else cold(engine, new), "ms")
    return 0


def gaps(events: Sequence[tuple[int, int, str]]) -> list[tuple[str, int, float, float]]:
    """Of (start, duration, name) in ns: for each name how often it came, its time, and how long nothing ran before it, in us."""
    found: dict[str, list[float]] = {}
    end = None
    for start, duration, name in sorted(events):
        entry = found.setdefault(name, [0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += duration / 1e3
        entry[2] += 0.0 if end is None else max(start - end, 0) / 1e3
        end = max(start + duration, end or 0)
    return sorted(((name, int(count), busy, idle) for name, (count, busy, idle) in found.items()), key=lambda e: -e[2])


def show_trace(engine: Engine, context: int, title: str, sampling: Sampling, steps: int = 32) -> None:
    """Where a decode step's time on the device goes, copies and waits included. Profiling itself slows the host."""
    engine.add(Request("trace", prompt(context, 9), steps + 60, sampling=sampling))
    for _ in range(20):
        engine.step()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    engine.abort("trace")
    events = [
        (event.start_ns(), event.duration_ns(), event.name())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    print(f"one step of {steps} at context {context}, {title}: times, us, us of nothing before")
    for name, count, busy, idle in gaps(events)[:40]:
        print(f"{name[:70]:70} {count / steps:6.1f} {busy / steps:9.2f} {idle / steps:9.2f}")


def show_sampler(model: Transformer) -> None:
    """Time one sampling in a graph, ours and plain torch's, on logits that a model of this size could give; compare first."""
    for rows in (1, 8, 64):
        logits = torch.randn(rows, model.config.vocabulary, device=model.device) * 3
        heat = torch.ones(rows, device=model.device)
        number = torch.rand(rows, dtype=torch.float64, device=model.device)
        kernels = {"one kernel": model.kernels.sample, "plain torch": reference.sample}
        picked = [sample(logits, heat, number) for sample in kernels.values()]
        differ = int((picked[0] != picked[1]).sum())
        assert differ <= rows // 32, f"{differ} of {rows} rows differ"
        for name, sample in kernels.items():
            graph = CudaRecorder(model.device)(functools.partial(sample, logits, heat, number))
            times = []
            for _ in range(5):
                torch.cuda.synchronize()
                began = time.perf_counter()
                for _ in range(200):
                    graph.replay()
                torch.cuda.synchronize()
                times.append((time.perf_counter() - began) / 200 * 1e6)
            show(f"sampling {rows} rows, {name}", times, "us")


def cold(engine: Engine, count: int) -> list[float]:
    """Milliseconds from a request of ``count`` unknown tokens to its first token."""
    times = []
    for repeat in range(5):
        request = Request("cold", prompt(count, 500 + repeat), 1, sampling=GREEDY)
        torch.cuda.synchronize()
        began = time.perf_counter()
        drain(engine, [request])
        times.append((time.perf_counter() - began) * 1e3)
    return times[1:]


if __name__ == "__main__":
    sys.exit(main())
