"""Batch, runner, engine and worker over a model that is all arithmetic on what the cache says, so every slip shows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine import Engine, EngineOptions
from runtime.errors import DoesNotFit, EngineStopped, RequestRefused
from runtime.kernels.base import LayerCache, StepInputs
from runtime.request import Request, Sampling, TokenOut
from runtime.scheduler import Limits
from runtime.worker import Worker

VOCABULARY = 97
PAGE = 4


def forward(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
    """Write (token, position) to the cache, read each sequence's context back, and answer with a hash of it."""
    cache = caches[0].keys.view(-1, 2)
    cache[inputs.slots] = torch.stack([inputs.token_ids, inputs.positions], -1).to(cache.dtype)
    logits = torch.zeros(len(inputs.sample_rows), VOCABULARY)
    for sample, row in enumerate(inputs.sample_rows.tolist()):
        sequence = int(torch.searchsorted(inputs.query_start, row, right=True)) - 1
        length = int(inputs.positions[row]) + 1
        slots = inputs.page_table[sequence, torch.arange(length) // PAGE] * PAGE + torch.arange(length) % PAGE
        context = cache[slots.long()].long()
        assert context[:, 1].tolist() == list(range(length)), "positions in the cache are not 0, 1, 2, …"
        digest = hash(tuple(context[:, 0].tolist()))
        logits[sample] = torch.arange(VOCABULARY).mul(digest % 89 + 1).remainder(VOCABULARY) / 30
    return logits


def engine(cache_pages: int = 64, **limits: int) -> Engine:
    return Engine(
        forward,
        lambda pages: [LayerCache(torch.zeros(pages, PAGE, 1, 2), torch.zeros(0))],
        page_bytes=1000,
        vocabulary=VOCABULARY,
        device=torch.device("cpu"),
        options=EngineOptions(
            page_tokens=PAGE, cache_bytes=cache_pages * 1000, limits=replace(Limits(context_tokens=200), **limits)
        ),
    )


def drain(engine_: Engine, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        engine_.add(request)
    while not engine_.idle:
        for out in engine_.step():
            outs[out.id].append(out)
    return outs


def tokens(outs: Sequence[TokenOut]) -> list[int | None]:
    return [out.token for out in outs]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=20).map(tuple), min_size=1, max_size=6),
    st.integers(12, 30),
    st.integers(1, 30),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([1.0, 0.8]),
)
def test_batched_chunked_and_preempted_is_one_by_one(
    prompts: list[tuple[int, ...]], pages: int, step_tokens: int, temperature: float, top_p: float
) -> None:
    requests = [
        Request(str(i), prompt, 10, frozenset({5}), Sampling(temperature, top_p, seed=i))
        for i, prompt in enumerate(prompts)
    ]
    alone = {request.id: tokens(drain(engine(), [request])[request.id]) for request in requests}
    together = drain(engine(pages, step_tokens=step_tokens), requests)
    assert {name: tokens(outs) for name, outs in together.items()} == alone


def test_cached_is_cold() -> None:
    warm = engine()
    prompt = tuple(range(30))
    first = drain(warm, [Request("1", prompt, 8, sampling=Sampling(seed=1))])["1"]
    longer = (*prompt, *(out.token for out in first if out.token is not None), 1, 2, 3)
    second = Request("2", longer, 8, sampling=Sampling(seed=2))
    again = drain(warm, [second])["2"]
    assert again[0].cached_tokens == 36
    assert tokens(again) == tokens(drain(engine(), [second])["2"])


def test_seeds_repeat_and_differ() -> None:
    hot = Sampling(temperature=2.0)
    request = Request("x", (1, 2, 3), 30, sampling=replace(hot, seed=7))
    one, two = (tokens(drain(engine(), [request])["x"]) for _ in range(2))
    other = tokens(drain(engine(), [replace(request, sampling=replace(hot, seed=8))])["x"])
    unseeded = [tokens(drain(engine(), [replace(request, sampling=hot)])["x"]) for _ in range(2)]
    assert one == two
    assert one != other
    assert unseeded[0] != unseeded[1]


def test_logprobs_only_for_those_who_ask() -> None:
    asks = Request("a", (1, 2), 4, sampling=Sampling(seed=1, logprobs=True))
    outs = drain(engine(), [asks, Request("b", (3,), 4)])
    assert all(out.logprob is not None and out.logprob <= 0 for out in outs["a"])
    assert all(out.logprob is None for out in outs["b"])


def test_a_cache_that_holds_nothing_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DoesNotFit, match="give the cache more"):
        engine(cache_pages=1)


def test_threads_stream_at_a_time_and_get_what_they_would_alone() -> None:
    worker = Worker(engine())
    requests = [Request(str(i), (i, i + 1), 20, sampling=Sampling(seed=i)) for i in range(8)]
    got: dict[str, list[int | None]] = {}

    def ask(request: Request) -> None:
        got[request.id] = tokens(list(worker.stream(request)))

    threads = [threading.Thread(target=ask, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert got == {request.id: tokens(drain(engine(), [request])[request.id]) for request in requests}


def test_closing_a_stream_gives_its_pages_back() -> None:
    engine_ = engine()
    worker = Worker(engine_)
    stream = worker.stream(Request("long", (1,), 190))
    next(stream)
    stream.close()
    # The next request runs after the abort was taken in, for the inbox is in order.
    assert list(worker.stream(Request("next", (2,), 3)))[-1].finish == "length"
    worker.close()
    assert engine_.idle
    assert engine_.scheduler.pool.available == engine_.scheduler.pool.total


def test_a_refusal_reaches_the_one_who_asked() -> None:
    worker = Worker(engine())
    with pytest.raises(RequestRefused, match="window"):
        list(worker.stream(Request("x", (1,) * 300, 1)))
    assert len(list(worker.stream(Request("y", (1,), 2)))) == 2
    worker.close()


def test_one_id_streams_once_at_a_time() -> None:
    worker = Worker(engine())
    stream = worker.stream(Request("x", (1,), 100))
    next(stream)
    with pytest.raises(RequestRefused, match="already running"):
        next(worker.stream(Request("x", (1,), 100)))
    assert next(stream).finish is None  # the first one goes on
    stream.close()
    worker.close()


def test_a_fault_in_a_step_ends_every_stream_by_name() -> None:
    def failing(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
        raise RuntimeError("device-side assert")

    engine_ = engine()
    engine_.runner._forward = failing
    worker = Worker(engine_)
    with pytest.raises(EngineStopped, match="device-side assert"):
        list(worker.stream(Request("x", (1,), 3)))
    with pytest.raises(EngineStopped, match="device-side assert"):
        list(worker.stream(Request("y", (1,), 3)))
    worker.close()


def test_closing_ends_streams_and_later_requests() -> None:
    worker = Worker(engine())
    stream = worker.stream(Request("x", (1,), 190))
    next(stream)
    worker.close()
    with pytest.raises(EngineStopped, match="closed"):
        list(stream)
    with pytest.raises(EngineStopped, match="closed"):
        next(worker.stream(Request("y", (1,), 3)))
    worker.close()
