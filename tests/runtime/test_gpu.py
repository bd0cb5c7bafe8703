"""The engine on a GPU: recorded steps, steps launched ahead, padding, preemption and guesses change no token.

A small random model in bf16 over the Triton kernels. bf16 kernels for one token and for many round differently, so the truth is not
another schedule's tokens but the logits of one plain prefill: each greedy token must be the largest there, within rounding.
Where the shapes of the steps are the same (graphs or none, ahead or not) the tokens must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from runtime import runner
from runtime.commands import all_logits
from runtime.engine import Engine, EngineOptions, open_engine
from runtime.graphs import CudaRecorder
from runtime.kernels import reference
from runtime.kernels.open import open_kernels
from runtime.local import open_worker
from runtime.lookup import Speculation
from runtime.model.config import gpt_oss_20b
from runtime.model.random_weights import random_weights, separate_experts
from runtime.model.tiny import write_tiny
from runtime.model.transformer import Transformer, build_transformer
from runtime.request import Request, Sampling, TokenOut
from runtime.runner import GUESSES
from runtime.sampler import uniform
from runtime.scheduler import Limits
from runtime.scheduler import Sequence as Running
from runtime.worker import Worker
from tests.runtime.arithmetic import ByRule, always

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no CUDA device here; an H100 runs these by hand"
    ),
]

GREEDY = Sampling(temperature=0.0)
PLAIN = Speculation(draft_tokens=0)
ROUNDING = 0.15  # of a row's standard deviation
LENGTHS = (1, 63, 64, 65, 127, 128, 129, 300, 1010, 1500)  # around the page, the window, and the first bound of a graph


@pytest.fixture(scope="module")
def model() -> Iterator[Transformer]:
    device = torch.device("cuda")
    config = replace(gpt_oss_20b(), sliding=gpt_oss_20b().sliding[:2])
    weights = random_weights(config, device, torch.bfloat16, 1)
    separate_experts(weights)
    yield build_transformer(config, weights, open_kernels("triton", device), positions=8192)
    torch.cuda.empty_cache()


def prompt(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 199_000, (length,), generator=generator).tolist())


REQUESTS = [Request(str(length), prompt(length, length), 40, sampling=GREEDY) for length in LENGTHS]


def engine(model: Transformer, *, pages: int = 512, graphs: bool = True, **limits: object) -> Engine:
    config = model.config
    page_bytes = 2 * config.layers * 64 * config.kv_heads * config.head_dim * 2
    carried = replace(Limits(context_tokens=8192, speculation=PLAIN), **limits)  # type: ignore[arg-type]
    return open_engine(model, EngineOptions(cache_bytes=pages * page_bytes, limits=carried, graphs=graphs))


def drain(engine_: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        engine_.add(request)
    while not engine_.idle:
        for out in engine_.step():
            outs[out.id].append(out)
    engine_.scheduler.pool.check()
    return {name: [out.token for out in each if out.token is not None] for name, each in outs.items()}


def without_ahead(engine_: Engine) -> Engine:
    engine_.scheduler.ahead = lambda works: []  # type: ignore[method-assign]
    return engine_


def worst(model: Transformer, request: Request, tokens: Sequence[int]) -> float:
    """How far the worst of greedy tokens is below the largest logit of one plain prefill, in standard deviations."""
    assert len(tokens) == request.max_tokens
    rows = torch.cat([rows.clone() for rows in all_logits(model, [*request.prompt, *tokens][:-1], 256)])
    rows = rows[len(request.prompt) - 1 :]
    chosen = rows.gather(-1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0]
    return float(((rows.max(-1).values - chosen) / rows.std(-1)).max())


def test_graphs_and_steps_ahead_give_the_tokens_of_eager_steps(model: Transformer) -> None:
    # One at a time the shapes are the same whatever launches them: the tokens are too, exactly.
    runs = [
        [drain(made, [request]) for request in REQUESTS]
        for made in (
            engine(model),
            without_ahead(engine(model)),
            engine(model, graphs=False),
            without_ahead(engine(model, graphs=False)),
        )
    ]
    assert runs[0] == runs[1]
    assert runs[2] == runs[3]
    for run in (runs[0], runs[2]):
        for request, outs in zip(REQUESTS, run, strict=True):
            assert worst(model, request, outs[request.id]) < ROUNDING


@pytest.mark.parametrize("graphs", [True, False])
def test_masks_are_obeyed_and_asked_while_the_device_computes(model: Transformer, graphs: bool) -> None:
    """Five tokens free, five of the first 800, and so on: launched ahead or not, the same; beside others, still obeyed."""
    low = b"\xff" * 100 + bytes(model.config.vocabulary // 8 - 100)

    def masked(request: Request) -> Request:
        rule = partial(ByRule, lambda said: low if len(said) % 10 >= 5 else None, lambda count: count % 10 < 5)
        return replace(request, sampling=Sampling(seed=7), mask=rule)

    alone = [
        [drain(made, [masked(request)]) for request in REQUESTS]
        for made in (engine(model, graphs=graphs), without_ahead(engine(model, graphs=graphs)))
    ]
    assert alone[0] == alone[1]
    together = drain(engine(model, graphs=graphs), [masked(r) if at % 2 else r for at, r in enumerate(REQUESTS)])
    held = [outs[r.id] for r, outs in zip(REQUESTS, alone[0], strict=True)]
    held += [together[request.id] for request in REQUESTS[1::2]]
    for ids in held:
        assert len(ids) == 40
        assert all(token < 800 for at, token in enumerate(ids) if at % 10 >= 5)
    for request in REQUESTS[::2]:
        assert worst(model, request, together[request.id]) < ROUNDING


@pytest.mark.parametrize(
    ("pages", "limits"),
    [
        (512, {}),
        (512, {"sequences": 3}),
        (512, {"step_tokens": 100}),
        (36, {}),
        (36, {"step_tokens": 70}),
        (512, {"speculation": always(7), "sequences": 1}),
    ],
)
def test_every_schedule_gives_the_largest_logit(model: Transformer, pages: int, limits: dict[str, object]) -> None:
    made = engine(model, pages=pages, **limits)
    for round_ in range(2):  # the second with the prefixes of the first, and with every graph recorded
        outs = drain(made, [replace(request, id=f"{round_}-{request.id}") for request in REQUESTS])
        for request in REQUESTS:
            assert worst(model, request, outs[f"{round_}-{request.id}"]) < ROUNDING
    assert (made.scheduler.preemptions > 0) == (pages == 36 and not limits)


def test_prompts_replayed_as_graphs_give_the_largest_logit(model: Transformer) -> None:
    made = engine(model)
    while made.prepare():
        pass
    assert [tokens for tokens, _ in made.scheduler.guess_costs] == list(GUESSES)
    assert all(0.9 < cost < 30 for _, cost in made.scheduler.guess_costs)
    for request in REQUESTS:
        assert worst(model, request, drain(made, [request])[request.id]) < ROUNDING
    start = prompt(7, 4000)
    for length in (1, 16, 17, 300, 1000, 2048, 2500):
        request = Request(f"turn {length}", (*start, *prompt(length, length)), 20, sampling=GREEDY)
        assert worst(model, request, drain(made, [request])[request.id]) < ROUNDING


def test_prompts_beside_decode_replayed_as_graphs_give_the_largest_logit(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "OFTEN", 0)
    for sequences in (3, 20):
        made = engine(model, sequences=sequences)
        outs = drain(made, REQUESTS)
        assert any(size.counts.sequences > 1 < size.counts.max_query_len for size in made.runner._recorded)
        for request in REQUESTS:
            assert worst(model, request, outs[request.id]) < ROUNDING


def test_sixty_four_at_a_time_beside_one_that_ends_and_one_that_is_aborted(model: Transformer) -> None:
    made = engine(model)
    requests = [Request(str(i), prompt(i, 5 + i), 12 + i % 9, sampling=GREEDY) for i in range(64)]
    late = Request("late", prompt(99, 200), 20, sampling=GREEDY)
    got: dict[str, list[int]] = {}
    for request in requests:
        made.add(request)
    steps = 0
    while not made.idle:
        for out in made.step():
            got.setdefault(out.id, []).append(out.token)  # type: ignore[arg-type]
        steps += 1
        if steps == 6:
            made.abort("7")
            made.add(late)
    for request in [*requests, late]:
        if request.id != "7":
            assert worst(model, request, got[request.id]) < ROUNDING


@pytest.mark.parametrize("right", [True, False])
def test_guesses_right_or_wrong_leave_the_largest_logits(model: Transformer, right: bool) -> None:
    """Random weights repeat nothing, so the guesses are handed in: what a plain run said, or never that."""
    request = Request("x", prompt(5, 200), 60, sampling=GREEDY)
    said = drain(engine(model), [request])["x"]
    made = engine(model)
    steps = 0

    def guess(sequence: Running) -> tuple[int, ...]:
        nonlocal steps
        steps += 1
        following = said[sequence.sampled : sequence.sampled + 7]
        return tuple(following if right else [token ^ 1 for token in following]) if len(following) == 7 else ()

    made.scheduler._guess = guess  # type: ignore[method-assign]
    outs = drain(made, [request])["x"]
    assert worst(model, request, outs) < ROUNDING
    # Verified together, tokens are rounded otherwise than one by one: where two are close the answer forks, and from there on
    # what a plain run said is wrong.
    forked = next((n for n, (a, b) in enumerate(zip(outs, said, strict=True)) if a != b), len(said))
    assert steps <= forked / 8 + len(said) - forked + 2 if right else steps > 50


def test_seeds_repeat_through_graphs_and_ahead(model: Transformer) -> None:
    for sampling in (Sampling(1.0, seed=4), Sampling(1.0, 0.9, seed=4), Sampling(0.8, seed=4, logprobs=True)):
        request = Request("x", prompt(1, 100), 60, sampling=sampling)
        runs = [drain(made, [request])["x"] for made in (engine(model), without_ahead(engine(model)))]
        assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_the_sampler_inside_a_graph_picks_what_the_host_picks(name: str) -> None:
    """Logits that change between replays, at the true vocabulary: the same tokens as on the CPU but for rounding at an edge."""
    rows, vocabulary = 64, 201_088
    sample = open_kernels(name, torch.device("cuda")).sample
    logits = torch.zeros(rows, vocabulary, device="cuda")
    heat = torch.tensor([0.0, 1.0, 0.7, 1.3] * (rows // 4))
    numbers = torch.zeros(rows, dtype=torch.float64, device="cuda")
    on_device = heat.to("cuda")
    graph = CudaRecorder(torch.device("cuda"))(lambda: sample(logits, on_device, numbers))
    same = 0
    for seed in range(20):
        fresh = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
        chosen = torch.tensor([uniform(seed, row) for row in range(rows)], dtype=torch.float64)
        logits.copy_(fresh)
        numbers.copy_(chosen)
        graph.replay()
        expected = reference.sample(fresh, heat, chosen)
        assert graph.output.cpu()[::4].tolist() == expected[::4].tolist()
        same += int((graph.output.cpu() == expected).sum())
    assert same >= 0.99 * 20 * rows


def test_threads_stream_at_a_time(model: Transformer) -> None:
    worker = Worker(engine(model))
    streams = [worker.stream(request) for request in REQUESTS]
    got: dict[str, list[int]] = {request.id: [] for request in REQUESTS}
    while streams:
        for stream in list(streams):
            out = next(stream, None)
            if out is None:
                streams.remove(stream)
            elif out.token is not None:
                got[out.id].append(out.token)
    worker.close()
    for request in REQUESTS:
        assert worst(model, request, got[request.id]) < ROUNDING


def test_the_plain_kernels_run_on_a_gpu_too_launch_by_launch(tmp_path: Path) -> None:
    """`--backend torch` on a GPU: what they do on the host cannot be recorded, so nothing is."""
    folder = tmp_path / "model"
    write_tiny(folder, config=replace(gpt_oss_20b(), sliding=gpt_oss_20b().sliding[:2], vocabulary=2048))
    prompt = tuple(range(60))
    said = []
    for kernels in ("reference", "triton"):
        worker, _ = open_worker(str(folder), kernels=kernels, cache_bytes=64 << 20, context_tokens=512)
        said.append([out.token for out in worker.stream(Request("r", prompt, 24, sampling=GREEDY))])
        worker.close()
    assert all(len(tokens) == 24 for tokens in said)
    assert said[0][0] == said[1][0]  # bf16 rounds differently from there on
