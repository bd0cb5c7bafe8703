"""Policy without tensors: the books balance, everybody ends, and nobody reads what was not written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RequestRefused
from runtime.lookup import Speculation
from runtime.pages import ROOT, PagePool
from runtime.request import Request, Sampling, TokenOut
from runtime.scheduler import Limits, Scheduler, Work
from tests.runtime.arithmetic import always

PAGE = 4
NEVER = Speculation(draft_tokens=0)


def model(context: list[int]) -> int:
    """A 'model' that often repeats what it said three tokens ago, so that guesses are sometimes right."""
    digest = hash(tuple(context))
    return context[-3] if len(context) > 3 and digest % 8 else digest % 50


class Cache:
    """What a real cache would contain: the token that was written to each slot, and a check on every read."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], int] = {}

    def run(self, works: list[Work]) -> list[int]:
        """Write the step's tokens, then read each sequence's context back; the 'model' is a hash of that context."""
        for work in works:
            sequence = work.sequence
            written = [*sequence.tokens, *work.draft]
            for position in range(work.start, work.start + work.count):
                self.slots[sequence.pages[position // PAGE], position % PAGE] = written[position]
        sampled = []
        for work in works:
            sequence = work.sequence
            end = work.start + work.count
            context = [self.slots[sequence.pages[p // PAGE], p % PAGE] for p in range(end)]
            assert context == [*sequence.tokens, *work.draft][:end], "a step reads keys of other tokens than its own"
            sampled += [model(context[:upto]) for upto in range(end - work.samples + 1, end + 1)]
        return sampled


def drive(
    scheduler: Scheduler, requests: list[Request], aborts: dict[int, str] | None = None, cache: Cache | None = None
) -> dict[str, list[TokenOut]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        scheduler.add(request)
    cache = cache or Cache()
    for index in range(5000):
        if scheduler.idle:
            break
        out = scheduler.abort(aborts[index]) if aborts and index in aborts else None
        if out is not None:
            outs[out.id].append(out)
        works = scheduler.plan()
        assert works or scheduler.idle, "work is left and nothing is planned"
        assert sum(work.count for work in works) <= scheduler.limits.step_tokens
        assert len({id(work.sequence) for work in works}) == len(works)
        assert all(work.count > 0 for work in works)
        scheduler.pool.check()
        for out in scheduler.record(works, cache.run(works)):
            outs[out.id].append(out)
        scheduler.pool.check()
    assert scheduler.idle, "some request never ends"
    assert scheduler.pool.available == scheduler.pool.total, "pages leak"
    return outs


def tokens(outs: list[TokenOut]) -> list[int | None]:
    return [out.token for out in outs]


prompts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=24).map(tuple), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(prompts, st.integers(8, 20), st.integers(1, 40), st.integers(1, 8), st.integers(1, 20), st.integers(0, 5))
def test_any_schedule_gives_the_tokens_that_one_by_one_gives(
    batch: list[tuple[int, ...]], pages: int, step_tokens: int, sequences: int, max_tokens: int, draft_tokens: int
) -> None:
    requests = [Request(str(i), prompt, max_tokens, frozenset({7})) for i, prompt in enumerate(batch)]
    limits = Limits(step_tokens, sequences, 48, always(draft_tokens, 2))
    alone: dict[str, list[int | None]] = {}
    for request in requests:
        roomy = Scheduler(PagePool(64, PAGE), Limits(1 << 20, 64, 48, NEVER))
        alone[request.id] = tokens(drive(roomy, [request])[request.id])
    together = drive(Scheduler(PagePool(pages, PAGE), limits), requests)
    for request in requests:
        got = tokens(together[request.id])
        # A small pool may end a request earlier ("length"); what it gave until then is the same.
        assert got == alone[request.id][: len(got)]
        last = together[request.id][-1]
        assert last.finish is not None
        assert [out.finish for out in together[request.id][:-1]] == [None] * (len(got) - 1)
        if len(request.prompt) + len(alone[request.id]) < pages * PAGE:
            assert got == alone[request.id]


@settings(max_examples=150, deadline=None)
@given(prompts, st.integers(8, 16), st.dictionaries(st.integers(0, 30), st.integers(0, 7).map(str), max_size=6))
def test_aborts_at_any_time_leak_nothing(batch: list[tuple[int, ...]], pages: int, aborts: dict[int, str]) -> None:
    requests = [Request(str(i), prompt, 12) for i, prompt in enumerate(batch)]
    outs = drive(Scheduler(PagePool(pages, PAGE), Limits(8, 4, 48)), requests, aborts)
    assert all(out[-1].finish in {"length", "cancelled"} for out in outs.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30).map(tuple), min_size=1, max_size=8))
def test_a_prompt_takes_from_the_cache_all_pages_that_somebody_filled(batch: list[tuple[int, ...]]) -> None:
    scheduler = Scheduler(PagePool(200, PAGE), Limits(context_tokens=48, speculation=always(3)))
    cache = Cache()
    filled: set[tuple[int, ...]] = {()}
    for index, prompt in enumerate(batch):
        outs = drive(scheduler, [Request(str(index), prompt, 5)], cache=cache)[str(index)]
        known = [length for length in range(0, len(prompt), PAGE) if prompt[:length] in filled]
        assert {out.cached_tokens for out in outs} == {max(known)}
        computed = (*prompt, *tokens(outs)[:-1])  # the last one was sampled and never ran
        filled |= {computed[:length] for length in range(PAGE, len(computed) + 1, PAGE)}  # type: ignore[misc]


def test_a_second_turn_computes_only_what_is_new() -> None:
    scheduler = Scheduler(PagePool(32, PAGE), Limits())
    first = Request("1", tuple(range(17)), 3)
    outs = drive(scheduler, [first])["1"]
    assert outs[-1].cached_tokens == 0
    history = first.prompt + tuple(out.token for out in outs if out.token is not None)
    scheduler.add(Request("2", (*history, 99, 98), 1))
    (work,) = scheduler.plan()
    # 19 of the 20 tokens have keys (the last sampled one never ran), so 4 whole pages of 4 are known.
    assert (work.start, work.count) == (16, 6)


def test_a_cached_prompt_still_computes_its_last_token() -> None:
    scheduler = Scheduler(PagePool(32, PAGE), Limits())
    drive(scheduler, [Request("1", tuple(range(8)), 1)])
    scheduler.add(Request("2", tuple(range(8)), 1))
    (work,) = scheduler.plan()
    assert (work.start, work.count, work.samples) == (4, 4, 1)


def test_attempts_in_parallel_share_their_prefix() -> None:
    scheduler = Scheduler(PagePool(32, PAGE), Limits())
    prompt = tuple(range(16))
    drive(scheduler, [Request("warm", prompt, 1)])
    for index in range(3):
        scheduler.add(Request(str(index), (*prompt, 50 + index), 8))
    works = scheduler.plan()
    shared = {tuple(work.sequence.pages[:4]) for work in works}
    assert len(shared) == 1
    assert scheduler.pool.total - scheduler.pool.available == 4 + 3


def test_the_same_prompt_computed_twice_at_once_still_extends_the_trie() -> None:
    """Two sequences fill the same pages at the same time: the second's own pages are not listed, its longer tail is."""
    pool = PagePool(16, PAGE)
    a, b = pool.take(), pool.take()
    assert a is not None
    assert b is not None
    key = pool.publish(a, ROOT, (1, 2, 3, 4))
    assert pool.publish(b, ROOT, (1, 2, 3, 4)) == key
    c = pool.take()
    assert c is not None
    pool.publish(c, key, (5, 6, 7, 8))
    pool.release([b, c])
    pool.release([a])
    pool.check()
    assert pool.match((1, 2, 3, 4, 5, 6, 7, 8, 9))[0] == [a, c]


def test_the_tail_is_taken_before_the_prefix() -> None:
    pool = PagePool(3, PAGE)
    pages = [pool.take() for _ in range(3)]
    key = ROOT
    for index, page in enumerate(pages):
        assert page is not None
        key = pool.publish(page, key, (index,) * 4)
    pool.release([page for page in pages if page is not None])
    assert pool.take() == pages[2]
    assert len(pool.match((0, 0, 0, 0, 1, 1, 1, 1, 2))[0]) == 2


def test_decoding_does_not_wait_behind_a_long_prompt() -> None:
    scheduler = Scheduler(PagePool(64, PAGE), Limits(step_tokens=8))
    scheduler.add(Request("old", (1, 2), 50))
    scheduler.record(scheduler.plan(), [5])
    scheduler.add(Request("long", tuple(range(100)), 1))
    for _ in range(5):
        works = scheduler.plan()
        assert [(w.sequence.request.id, w.count) for w in works] == [("old", 1), ("long", 7)]
        scheduler.record(works, [5])


def test_the_youngest_gives_way_and_comes_back() -> None:
    scheduler = Scheduler(PagePool(4, PAGE), Limits())
    outs = drive(scheduler, [Request("a", (1,) * 5, 8), Request("b", (2,) * 5, 8)])
    assert scheduler.preemptions > 0
    assert [len(o) for o in outs.values()] == [8, 8]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request("x", (1,) * 48, 1), "window"),
        (Request("x", (1,) * 32, 1), "cache holds"),
    ],
)
def test_what_can_never_run_is_refused(request_: Request, says: str) -> None:
    scheduler = Scheduler(PagePool(8, PAGE), Limits(context_tokens=48))
    with pytest.raises(RequestRefused, match=says):
        scheduler.add(request_)


def test_an_id_runs_once_at_a_time() -> None:
    scheduler = Scheduler(PagePool(8, PAGE), Limits())
    scheduler.add(Request("x", (1,), 1))
    with pytest.raises(RequestRefused, match="already running"):
        scheduler.add(Request("x", (2,), 1))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_sampling_options_are_checked_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestRefused, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"prompt": ()}, {"max_tokens": 0}])
def test_requests_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestRefused):
        Request(**{"id": "x", "prompt": (1,), "max_tokens": 1, **wrong})  # type: ignore[arg-type]


def test_copied_text_takes_fewer_steps_and_gives_the_same_tokens() -> None:
    class Echo(Cache):
        steps = 0

        def run(self, works: list[Work]) -> list[int]:
            self.steps += 1
            sampled = []
            for work in works:
                written = [*work.sequence.tokens, *work.draft]
                end = work.start + work.count
                sampled += [written[upto - 20] for upto in range(end - work.samples + 1, end + 1)]
            return sampled

    taken, steps = [], []
    for speculation in (NEVER, always(7)):
        scheduler = Scheduler(PagePool(64, PAGE), Limits(speculation=speculation))
        scheduler.add(Request("copy", tuple(range(100, 120)), 64))
        echo, outs = Echo(), []
        while not scheduler.idle:
            works = scheduler.plan()
            outs += scheduler.record(works, echo.run(works))
        taken.append(tokens(outs))
        steps.append(echo.steps)
    assert taken[0] == taken[1] == [100 + i % 20 for i in range(64)]
    assert steps[0] == 64
    assert steps[1] <= 4 + 64 // 8 + 1


def test_a_page_let_go_twice_is_an_error() -> None:
    pool = PagePool(2, PAGE)
    page = pool.take()
    assert page is not None
    pool.release([page])
    with pytest.raises(ValueError, match="but not held"):
        pool.release([page])
