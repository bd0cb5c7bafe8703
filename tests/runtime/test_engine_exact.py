"""The engine over the real arithmetic, fp32 on a tiny model: whatever the schedule, exactly the same tokens.

The truth is the plainest use of the model: the whole prompt in one step, then one token a step, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from runtime.engine import Engine, EngineOptions, open_engine
from runtime.model.transformer import Transformer
from runtime.request import Request, Sampling, TokenOut
from runtime.scheduler import Limits
from tests.runtime.arithmetic import ByRule, Foretold, always
from tests.runtime.ragged import run_chunks

PAGE = 16


@pytest.fixture(scope="module")
def model(tiny_model: Transformer) -> Transformer:
    return tiny_model


def greedy(model: Transformer, prompt: Sequence[int], count: int) -> list[int]:
    """The truth: every token from a cold cache, the whole context in one step."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(run_chunks(model, tokens, [len(tokens)])[-1].argmax()))
    return tokens[len(prompt) :]


def engine(model: Transformer, pages: int = 64, **limits: Any) -> Engine:
    config = model.config
    page_bytes = 2 * config.layers * PAGE * config.kv_heads * config.head_dim * 4
    limits_ = replace(Limits(context_tokens=400), **limits)
    return open_engine(model, EngineOptions(page_tokens=PAGE, cache_bytes=pages * page_bytes, limits=limits_))


def drain(engine_: Engine, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        engine_.add(request)
    while not engine_.idle:
        for out in engine_.step():
            outs[out.id].append(out)
    return outs


def prompt(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())


LENGTHS = (1, 15, 16, 17, 31, 33, 50)  # around the page, which is also the window
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def truth(model: Transformer) -> dict[str, list[int]]:
    return {str(length): greedy(model, prompt(length, length), 20) for length in LENGTHS}


@pytest.mark.parametrize(
    ("name", "pages", "limits"),
    [
        ("batched", 64, {}),
        ("one by one", 64, {"sequences": 1}),
        ("chunked", 64, {"step_tokens": 5}),
        ("chunks of one token", 64, {"step_tokens": 1}),
        ("preempted", 8, {}),
        ("preempted and chunked", 8, {"step_tokens": 7}),
    ],
)
def test_every_schedule_gives_the_true_tokens(
    model: Transformer, truth: dict[str, list[int]], name: str, pages: int, limits: dict[str, int]
) -> None:
    tested = engine(model, pages, **limits)
    outs = drain(tested, [Request(str(n), prompt(n, n), 20, sampling=GREEDY) for n in LENGTHS])
    assert {key: [out.token for out in each] for key, each in outs.items()} == truth
    assert (tested.scheduler.preemptions > 0) == name.startswith("preempted")


def test_the_window_ends_with_the_table_of_rotations(tiny_model: Transformer) -> None:
    """A position behind it would be an error here and, on a GPU, whatever lies there in memory."""
    short = replace(tiny_model, rope=tiny_model.rope[:30])
    outs = drain(engine(short), [Request("x", prompt(1, 20), 50, sampling=GREEDY)])["x"]
    assert [out.token for out in outs] == greedy(tiny_model, prompt(1, 20), 10)
    assert outs[-1].finish == "length"


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 32, 47, 49])
def test_a_cached_prefix_of_any_length_gives_the_true_tokens(
    model: Transformer, truth: dict[str, list[int]], cut: int
) -> None:
    tested = engine(model)
    whole = prompt(50, 50)
    drain(tested, [Request("warm", whole[:cut], 1, sampling=GREEDY)])
    outs = drain(tested, [Request("x", whole, 20, sampling=GREEDY)])["x"]
    assert [out.token for out in outs] == truth["50"]
    assert outs[0].cached_tokens == cut // PAGE * PAGE


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=5), Sampling(0.7, 0.9, seed=6)])
def test_guessing_changes_no_token(model: Transformer, sampling: Sampling) -> None:
    """Guesses are forced (a 1-gram, whatever they earn) on a text that repeats, alone, so that most steps verify one."""
    request = Request("x", prompt(3, 9) * 5, 40, sampling=sampling)
    plain, guessed = (engine(model, speculation=always(draft)) for draft in (0, 5))
    seen = []
    launch = guessed.runner.launch
    guessed.runner.launch = lambda works, *rest: seen.extend(w.draft for w in works) or launch(works, *rest)
    outs = [[out.token for out in drain(each, [request])["x"]] for each in (plain, guessed)]
    assert outs[0] == outs[1]
    assert any(seen)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=5), Sampling(0.7, 0.9, seed=6)])
def test_what_a_drafter_says_changes_no_token(model: Transformer, sampling: Sampling) -> None:
    """It is right at first and then wrong, then right again."""
    request = Request("x", prompt(3, 20), 40, sampling=sampling)
    truth = [out.token or 0 for out in drain(engine(model, speculation=always(0)), [request])["x"]]
    drafter = Foretold([token + (10 < place < 20) for place, token in enumerate(truth)])
    tested = engine(model, speculation=always(5))
    seen: list[int] = []
    launch = tested.runner.launch
    tested.runner.launch = lambda works, *rest: seen.extend(len(w.draft) for w in works) or launch(works, *rest)
    assert [out.token for out in drain(tested, [replace(request, drafter=drafter)])["x"]] == truth
    assert seen.count(5) >= 4
    assert drafter.taken == truth[: len(drafter.taken)]


EVEN = bytes([0b01010101]) * 32  # of 256 tokens


def even() -> ByRule:
    return ByRule(lambda _: EVEN, lambda _: False)


@st.composite
def asked(draw: st.DrawFn) -> Request:
    seed = draw(st.integers(0, 1))
    text = (*prompt(seed, draw(st.sampled_from([1, 16, 33, 48]))), *prompt(seed + 9, draw(st.integers(0, 6))))
    stop = draw(st.frozensets(st.integers(0, 255), max_size=40))
    mask = draw(st.sampled_from([None, even]))
    return Request("", text, draw(st.integers(1, 8)), stop, Sampling(0.0, logprobs=True), mask)


def test_any_interleaving_is_told_what_the_plain_path_says(tiny_model: Transformer) -> None:
    """Requests arrive in waves, over shared prefixes and few pages; one is aborted; some are masked, some guessed for."""

    @settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(
        waves=st.lists(st.lists(asked(), min_size=1, max_size=3), min_size=1, max_size=2),
        pages=st.integers(6, 12),
        step_tokens=st.sampled_from([20, 2048]),
        draft=st.sampled_from([0, 4]),
        aborted=st.integers(0, 20),
    )
    def told(waves: list[list[Request]], pages: int, step_tokens: int, draft: int, aborted: int) -> None:
        tested = engine(tiny_model, pages, step_tokens=step_tokens, speculation=always(draft))
        waiting = [[replace(r, id=f"{a}.{b}") for b, r in enumerate(wave)] for a, wave in enumerate(waves)]
        requests = [request for wave in waiting for request in wave]
        got: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
        steps = 0
        while waiting or not tested.idle:
            if waiting and (tested.idle or steps % 4 == 0):
                for request in waiting.pop(0):
                    tested.add(request)
            cancelled = tested.abort("0.0") if steps == aborted else None
            for out in (*tested.step(), *([cancelled] if cancelled else [])):
                got[out.id].append(out)
            tested.scheduler.pool.check()
            steps += 1
        for request in requests:
            check(tiny_model, request, got[request.id])

    told()


def check(model: Transformer, request: Request, outs: Sequence[TokenOut]) -> None:
    """Compare a greedy request's tokens and log-probabilities with the plain path: a cold cache, alone, all in one step."""
    assert [out.finish for out in outs[:-1]] == [None] * (len(outs) - 1)
    tokens = [out.token for out in outs if out.token is not None]
    rows = run_chunks(model, [*request.prompt, *tokens], [len(request.prompt) + len(tokens)])[len(request.prompt) - 1 :]
    for row, out in zip(rows, outs, strict=False):
        if out.token is not None:
            assert out.token == (int(row.argmax()) if request.mask is None else 2 * int(row[::2].argmax()))
            assert out.logprob == pytest.approx(float(row.log_softmax(-1)[out.token]), abs=1e-4)
    match outs[-1].finish:
        case "stop":
            assert [token in request.stop for token in tokens] == [False] * (len(tokens) - 1) + [True]
        case "length":
            assert len(tokens) == request.max_tokens
        case finish:
            assert (request.id, finish) == ("0.0", "cancelled")


def test_sampled_tokens_repeat_over_schedules(model: Transformer) -> None:
    requests = [Request(str(n), prompt(n, n), 25, sampling=Sampling(1.0, 0.95, seed=n)) for n in LENGTHS]
    runs = [drain(engine(model, pages, **limits), requests) for pages, limits in ((64, {}), (8, {"step_tokens": 6}))]
    first, second = ({key: [out.token for out in outs] for key, outs in run.items()} for run in runs)
    assert first == second
    assert any(first[str(n)] != first["1"] for n in LENGTHS)
