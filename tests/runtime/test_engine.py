"""Batch, runner, engine and worker over a model that is all arithmetic on what the cache says, so every slip shows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import runner
from runtime.errors import DoesNotFit, EngineStopped, RequestRefused
from runtime.kernels.base import LayerCache, StepInputs
from runtime.lookup import H100_COSTS, Speculation
from runtime.request import Request, Sampling, TokenOut
from runtime.runner import Launched
from runtime.scheduler import Work
from runtime.worker import Worker
from tests.runtime.arithmetic import VOCABULARY, ByRule, Recorder, always, bits, drain, engine, room, tokens, truth


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
    assert worker.stopped is None
    with pytest.raises(EngineStopped, match="device-side assert"):
        list(worker.stream(Request("x", (1,), 3)))
    assert worker.stopped == "the engine stopped: device-side assert"
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


def test_a_mask_is_asked_before_each_token_and_obeyed() -> None:
    masks: list[ByRule] = []

    def new() -> ByRule:
        masks.append(
            ByRule(lambda sampled: None if len(sampled) < 2 else bits({7, 11 + len(sampled)}), lambda _: False)
        )
        return masks[-1]

    masked = Request("m", (1, 2, 3), 8, sampling=Sampling(2.0, seed=1, logprobs=True), mask=new)
    beside = Request("b", (4, 5), 12, sampling=Sampling(2.0, seed=2))
    outs = drain(engine(recorder=Recorder()), [masked, beside])
    assert all(out.token in {7, 11 + place} for place, out in enumerate(outs["m"]) if place >= 2)
    assert masks[0].asked == list(range(8))
    assert masks[0].sampled == tokens(outs["m"])
    assert tokens(outs["m"]) == truth(masked, 200)
    assert tokens(outs["b"]) == truth(beside, 200)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_forbids_nothing_changes_nothing(temperature: float) -> None:
    plain = Request("x", (1, 2, 3), 40, sampling=Sampling(temperature, seed=9))
    everything = bits(range(VOCABULARY))
    for masked in (
        replace(plain, mask=lambda: ByRule(lambda _: everything, lambda _: False)),
        replace(plain, mask=lambda: ByRule(lambda _: None, lambda _: False)),
        replace(plain, mask=lambda: ByRule(lambda _: None, lambda _: True)),
    ):
        assert drain(engine(recorder=Recorder()), [masked]) == drain(engine(recorder=Recorder()), [plain])


class Watched:
    """A runner that writes down what is launched: how many steps ahead, how many with guesses, how many unsampled."""

    def __init__(self, runner_: runner.Runner) -> None:
        self.runner = runner_
        self.ahead = self.guessed = self.unsampled = self.steps = 0

    def launch(self, works: Sequence[Work], after: Launched | None = None) -> Launched:
        launched = self.runner.launch(works, after)
        self.steps += 1
        self.ahead += after is not None
        self.guessed += any(work.draft for work in works)
        self.unsampled += launched.left is not None
        return launched

    def sample(self, launched: Launched) -> None:
        self.runner.sample(launched)


def watch(request: Request, speculation: Speculation) -> tuple[Watched, list[int | None]]:
    watched = engine(recorder=Recorder(), speculation=speculation)
    watched.runner = spy = Watched(watched.runner)  # type: ignore[assignment]  # it only launches and samples
    return spy, tokens(drain(watched, [request])[request.id])


def test_masked_steps_are_launched_ahead_and_free_ones_sampled_with_them() -> None:
    free_up_to_20 = ByRule(lambda sampled: None if len(sampled) < 20 else bits({3, len(sampled)}), lambda n: n < 20)
    request = Request("x", (1, 2, 3), 40, sampling=Sampling(2.0, seed=9), mask=lambda: free_up_to_20)
    spy, got = watch(request, Speculation(draft_tokens=0))
    assert spy.steps == 40
    assert spy.ahead == 39, "a mask holds no step back"
    assert spy.unsampled == 20, "those that are masked, and no other"
    assert got == truth(replace(request, mask=lambda: ByRule(free_up_to_20.rule, free_up_to_20.free)), 200)


def test_guesses_go_on_under_a_mask() -> None:
    seeded = Request("x", (1, 2, 3, 1, 2, 3), 60, sampling=Sampling(seed=1))
    three = replace(seeded, mask=lambda: ByRule(lambda _: bits({1, 2, 3}), lambda _: False))
    guessing, got = watch(three, always(5))
    plain, same = watch(three, Speculation(draft_tokens=0))
    assert got == same == truth(three, 200)
    assert guessing.guessed > 0
    assert guessing.steps < plain.steps, "some guess was right"


@pytest.mark.parametrize(
    ("allowed", "says"),
    [(bytes(13), "forbids every token"), (b"\1" * 5, "has 5 bytes: 13 hold a bit for each of 97 tokens")],
)
def test_an_unusable_mask_ends_the_engine_by_name(allowed: bytes, says: str) -> None:
    worker = Worker(engine())
    with pytest.raises(EngineStopped, match=says):
        list(worker.stream(Request("x", (1,), 3, mask=lambda: ByRule(lambda _: allowed, lambda _: False))))
    worker.close()


@pytest.mark.parametrize("token", [-1, VOCABULARY, 200_000])
def test_a_token_of_another_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(RequestRefused, match=f"token id {token} and the model's vocabulary ends at 96"):
        engine().add(Request("x", (1, token, 2), 3))


@pytest.mark.parametrize("draft", [0, 7])
def test_recorded_steps_give_the_truth_also_beyond_the_last_bound(monkeypatch: pytest.MonkeyPatch, draft: int) -> None:
    """Padded batches, a table as wide as the bound, results that the next replay ruins, eager where no graph reaches."""
    monkeypatch.setattr(runner, "BATCHES", (1, 4, 6))
    monkeypatch.setattr(runner, "CONTEXTS", (8, 24, 60))
    recorder = Recorder()
    speculation = always(draft)
    samplings = (Sampling(0.0), Sampling(1.0, seed=1), Sampling(1.0, 0.6, seed=2), Sampling(1.0, seed=3, logprobs=True))
    tested = engine(recorder=recorder, speculation=speculation)
    for count in (1, 2, 5, 7):
        requests = [
            Request(f"{count}.{i}", tuple(range(i, i + 3)), 70 if i % 2 else 30, sampling=samplings[(count + i) % 4])
            for i in range(count)
        ]
        outs = drain(tested, requests)
        assert {r.id: tokens(outs[r.id]) for r in requests} == {r.id: truth(r, room(tested)) for r in requests}
    assert recorder.replays > 100
    assert len(recorder.graphs) > 8


@pytest.mark.parametrize(("step_tokens", "all_replayed"), [(2048, False), (13, False), (40, True)])
def test_prepared_prompts_give_the_truth(monkeypatch: pytest.MonkeyPatch, step_tokens: int, all_replayed: bool) -> None:
    """Prompts and chunks of them, padded by rows of nobody, cold and behind a cached prefix; beyond the last size, eager."""
    monkeypatch.setattr(runner, "PROMPTS", (4, 6, 16, 40))
    recorder = Recorder()
    tested = engine(recorder=recorder, step_tokens=step_tokens, speculation=Speculation(0))
    while tested.prepare():
        assert not recorder.replays
    recorder.replays = 0  # those that timed guesses
    steps = 0
    launch = tested.runner.launch

    def counting(works: list[Work], *rest: Launched) -> Launched:
        nonlocal steps
        steps += 1
        return launch(works, *rest)

    monkeypatch.setattr(tested.runner, "launch", counting)
    for start in (0, 30):
        for length in (1, 2, 4, 5, 16, 17, 39, 40, 41, 90):
            text = tuple(7 * index % VOCABULARY for index in range(start))
            request = Request(f"{start}.{length}", (*text, *(length,) * length), 3, sampling=Sampling(1.0, seed=1))
            assert tokens(drain(tested, [request])[request.id]) == truth(request, 200)
    assert (recorder.replays == steps) == all_replayed
    assert recorder.replays > 40
    before = steps - recorder.replays
    for sampling in (Sampling(0.0), Sampling(1.0, 0.6, seed=2), Sampling(1.0, seed=3, logprobs=True)):
        for mask in (None, lambda: ByRule(lambda _: bits({3, 7, 90}), lambda _: False)):
            request = Request("x", tuple(range(20)), 3, sampling=sampling, mask=mask)
            assert tokens(drain(tested, [request])["x"]) == truth(request, 200)
    if all_replayed:
        assert steps - recorder.replays == before, "the same graphs, however they are sampled"


def test_frequent_steps_of_prompts_beside_decode_are_recorded_and_give_the_truth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody prepares anything here: prompts arrive while others decode, alone, in chunks and several at a time."""
    monkeypatch.setattr(runner, "PROMPTS", (4, 8, 16))
    monkeypatch.setattr(runner, "MIXED", (2, 5))
    monkeypatch.setattr(runner, "OFTEN", 2)
    recorder = Recorder()
    tested = engine(recorder=recorder, step_tokens=12, sequences=5, speculation=Speculation(0))
    samplings = (Sampling(0.0), Sampling(1.0, seed=1), Sampling(2.0, seed=2), Sampling(1.0, 0.6, seed=3))
    requests = [
        Request(
            str(i),
            tuple((i * 31 + place) % VOCABULARY for place in range(1 + i * 7 % 23)),
            9,
            sampling=samplings[3 if i % 20 == 0 else i % 3],
        )
        for i in range(60)
    ]
    got: dict[str, list[int | None]] = {request.id: [] for request in requests}
    waiting = list(requests)
    while waiting or not tested.idle:
        for _ in range(min(len(waiting), len(waiting) % 7 // 3)):
            tested.add(waiting.pop())
        if tested.idle:
            tested.add(waiting.pop())
        for out in tested.step():
            got[out.id].append(out.token)
    assert got == {request.id: truth(request, 200) for request in requests}
    sizes = [size.counts for size in tested.runner._recorded if size.counts.max_query_len > 1]
    assert {counts.sequences for counts in sizes} >= {2, 5}
    assert all(counts.tokens in (4, 8, 16) for counts in sizes)
    assert all(
        size.picks for size in tested.runner._recorded if size.counts.sequences in (2, 5) and size.counts in sizes
    )


def test_what_a_guess_costs_is_measured_once_unless_it_is_given() -> None:
    for costs in (None, ((4, 1.5), (8, 2.0))):
        tested = engine(recorder=Recorder(), speculation=Speculation(costs=costs))
        assert tested.scheduler.guess_costs == (costs or H100_COSTS)
        while tested.prepare():
            pass
        measured = tested.scheduler.guess_costs
        assert not tested.prepare()
        assert tested.scheduler.guess_costs is measured
        if costs is None:
            assert tuple(tokens for tokens, _ in measured) == runner.GUESSES
            assert all(cost > 0 for _, cost in measured)
            assert measured != H100_COSTS
        else:
            assert measured == costs
        request = Request("x", (1, 2, 3, 4, 5) * 4, 20, sampling=Sampling(0.0))
        assert tokens(drain(tested, [request])["x"]) == truth(request, 200)


def test_a_thread_prepares_while_nobody_asks() -> None:
    recorder = Recorder()
    worker = Worker(engine(recorder=recorder))
    request = Request("x", (1, 2, 3, 4, 5), 6, sampling=Sampling(seed=1))
    assert tokens(list(worker.stream(request))) == truth(request, 200)
    worker.close()
    assert len(recorder.graphs) > 1


def test_a_graph_is_prepared_after_an_abort_left_a_step_that_nobody_sampled() -> None:
    tested = engine(recorder=Recorder())
    for _ in range(2):
        tested.add(Request("gone", (1, 2, 3), 9, mask=lambda: ByRule(lambda _: bits({3, 7}), lambda _: False)))
        tested.step()
        tested.step()
        tested.abort("gone")
        assert tested.prepare()
        request = Request("x", (4, 5), 6, sampling=Sampling(seed=1))
        assert tokens(drain(tested, [request])["x"]) == truth(request, 200)


def test_no_graph_is_prepared_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "has_room", lambda self: False)
    recorder = Recorder()
    tested = engine(recorder=recorder)
    assert not tested.prepare()
    request = Request("x", (1, 2, 3, 4, 5), 6, sampling=Sampling(seed=1))
    assert tokens(drain(tested, [request])["x"]) == truth(request, 200)
    assert recorder.graphs, "decode is recorded all the same"


def test_guesses_leave_the_distribution_as_it_is() -> None:
    """Independent draws from one known distribution, most of them verified guesses: the counts are those it predicts."""
    weights = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])

    def fixed(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
        return weights.log().expand(len(inputs.sample_rows), -1)

    for top_p, kept in ((1.0, 6), (0.75, 3)):
        tested = engine(speculation=always(5))
        tested.runner._forward = fixed
        tested.vocabulary = 6
        drafted = 0
        launch = tested.runner.launch

        def counting(works: list[Work], *rest: Launched) -> Launched:
            nonlocal drafted
            drafted += sum(len(work.draft) for work in works)
            return launch(works, *rest)  # noqa: B023 - used before the next round

        tested.runner.launch = counting  # type: ignore[method-assign]
        counts = torch.zeros(6)
        for seed in range(25):
            request = Request("x", (0, 1, 2, 3, 0, 1, 0), 100, sampling=Sampling(1.0, top_p, seed))
            for out in drain(tested, [request])["x"]:
                assert out.token is not None
                counts[out.token] += 1
        expected = weights[:kept] / weights[:kept].sum() * 2500
        assert drafted > 2500
        assert counts[kept:].sum() == 0
        assert float(((counts[:kept] - expected) ** 2 / expected).sum()) < 25  # five degrees: p < 0.0002


def test_an_id_used_again_at_once_gets_nothing_of_the_stream_before() -> None:
    """The engine is in the middle of a step of the first stream when the second takes its id."""
    inside, go_on = threading.Event(), threading.Event()
    tested = engine()
    real = tested.runner._forward

    def gated(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
        if inputs.positions.tolist() == [6]:
            inside.set()
            assert go_on.wait(30)
        return real(inputs, caches)

    tested.runner._forward = gated
    worker = Worker(tested)
    first = worker.stream(Request("x", (1, 2, 3), 150, sampling=Sampling(0.0)))
    next(first)
    assert inside.wait(30)
    first.close()
    second = Request("x", (9, 8), 6, sampling=Sampling(1.0, seed=4))
    got: list[TokenOut] = []
    reader = threading.Thread(target=lambda: got.extend(worker.stream(second)))
    reader.start()
    go_on.set()
    reader.join(30)
    worker.close()
    assert tokens(got) == truth(second, 200)
    assert {out.id for out in got} == {"x"}


def test_who_never_reads_holds_nobody_up() -> None:
    worker = Worker(engine())
    sleeper = worker.stream(Request("sleeper", (1,), 150))
    next(sleeper)
    request = Request("x", (2,), 30, sampling=Sampling(seed=1))
    assert tokens(list(worker.stream(request))) == truth(request, 200)
    assert len(list(sleeper)) == 149
    worker.close()


def test_no_memory_left_in_a_step_says_what_to_do() -> None:
    def failing(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    tested = engine()
    tested.runner._forward = failing
    worker = Worker(tested)
    with pytest.raises(EngineStopped, match=r"give the cache less.*2.00 GiB"):
        list(worker.stream(Request("x", (1,), 3)))
    worker.close()


@pytest.mark.parametrize("where", ["launch", "sample", "tokens"])
def test_a_fault_in_one_step_leaves_the_books_in_order(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever steps the engine itself may try again: what was planned is planned anew, wherever the fault was."""
    tested = engine()
    owner = Launched if where == "tokens" else runner.Runner
    real, faults = getattr(owner, where), iter([False, False, True, False, True])

    def now_and_then(*given: object) -> object:
        if next(faults, False):
            raise RuntimeError("a cosmic ray")
        return real(*given)

    monkeypatch.setattr(owner, where, now_and_then)
    requests = [Request(str(i), (i, i), 12, sampling=Sampling(seed=i)) for i in range(3)]
    for request in requests:
        tested.add(request)
    got: dict[str, list[int | None]] = {request.id: [] for request in requests}
    seen = 0
    while not tested.idle:
        try:
            for out in tested.step():
                got[out.id].append(out.token)
        except RuntimeError:
            seen += 1
        tested.scheduler.pool.check()
    assert seen == 2
    assert got == {request.id: truth(request, 200) for request in requests}
