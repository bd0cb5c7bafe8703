"""The engine under whatever order of requests, aborts and steps: everybody gets exactly what they would get alone.

The device is the CPU, or one that does everything as late as it can; steps are launched ahead, recorded as graphs that ruin each
other's results, guessed ahead, preempted in tiny pools; and the truth is computed without any of it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.request import Request, Sampling, TokenOut
from tests.runtime.arithmetic import (
    PAGE,
    VOCABULARY,
    ByRule,
    Foretold,
    Recorder,
    always,
    bits,
    engine,
    logits_of,
    room,
    truth,
)

ALL = bits(range(VOCABULARY))
ODD = bits(range(1, VOCABULARY, 2))
LOW = bits(range(20))


def alternating() -> ByRule:
    """Forbid nothing first, then even tokens, then those from 20 up, and so on."""
    return ByRule(lambda sampled: (None, ODD, LOW)[len(sampled) % 3], lambda _: False)


def here_and_there() -> ByRule:
    """Forbid in stretches, and know where they begin; inside of them by what was sampled last."""
    return ByRule(
        lambda sampled: None if len(sampled) % 8 < 5 else ODD if sampled[-1] % 3 else LOW, lambda n: n % 8 < 5
    )


def nothing() -> ByRule:
    """Forbid nothing, in one way or the other."""
    return ByRule(lambda sampled: (None, ALL)[sum(sampled) % 2], lambda _: False)


class Machine(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(9, 24),
        step_tokens=st.sampled_from([1, 3, 8, 1000]),
        sequences=st.integers(1, 5),
        draft=st.sampled_from([0, 1, 5]),
        slow=st.booleans(),
        graphs=st.booleans(),
    )
    def begin(self, pages: int, step_tokens: int, sequences: int, draft: int, slow: bool, graphs: bool) -> None:
        self.engine = engine(
            pages,
            slow=slow,
            recorder=Recorder() if graphs else None,
            step_tokens=step_tokens,
            sequences=sequences,
            context_tokens=48,
            speculation=always(draft),
        )
        self.requests: dict[str, Request] = {}
        self.truth: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.cached: dict[str, int] = {}
        self.computed: list[list[int]] = []  # what ran under ids that were used again
        self.serial = 0

    @rule(
        prompt=st.lists(st.integers(0, 3), min_size=1, max_size=20).map(tuple),
        max_tokens=st.integers(1, 14),
        stop=st.frozensets(st.integers(0, 96), max_size=20),
        sampling=st.sampled_from(
            [Sampling(0.0), Sampling(1.0, seed=3), Sampling(2.0, 0.7, 4), Sampling(1, 1, 5, True)]
        ),
        mask=st.sampled_from([None, None, alternating, here_and_there, nothing]),
        wrong=st.none() | st.lists(st.sampled_from([-1, 0, 5, VOCABULARY, 1 << 40])),
        again=st.booleans(),
    )
    def add(self, prompt, max_tokens, stop, sampling, mask, wrong, again) -> None:  # type: ignore[no-untyped-def]
        name = str(self.serial)
        if again and self.ended:
            name = next(iter(self.ended))  # an id may be used again once its request has ended
            del self.ended[name]
            self.computed.append([*self.requests[name].prompt, *self.got[name]])
            self.cached.pop(name, None)
        self.serial += 1
        self.requests[name] = request = Request(name, prompt, max_tokens, stop, sampling, mask)
        self.got[name] = []
        self.truth[name] = truth(request, room(self.engine))
        # Some requests have a drafter that knows the answer, up to where it is wrong or mad.
        drafter = None if wrong is None else Foretold([*self.truth[name][: len(wrong) + 2], *wrong])
        self.engine.add(replace(request, drafter=drafter))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        out = self.engine.abort(name)
        assert (out is None) == (name in self.ended)
        if out is not None:
            assert (out.id, out.token, out.finish) == (name, None, "cancelled")
            self.ended[name] = "cancelled"

    @precondition(lambda self: self.engine.idle)
    @rule(times=st.integers(1, 40))
    def prepare(self, times: int) -> None:
        """Have some graphs recorded beforehand: prompts and chunks of them are replayed from here on."""
        while times and self.engine.prepare():
            times -= 1

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            for out in self.engine.step():
                assert out.id not in self.ended, "a token after the end"
                assert out.token is not None
                self.is_told_right(out)
                self.got[out.id].append(out.token)
                if out.finish is not None:
                    self.ended[out.id] = out.finish
            self.engine.scheduler.pool.check()

    def is_told_right(self, out: TokenOut) -> None:
        """Check what comes beside a token: its log-probability, and how much of the prompt came from the cache."""
        request = self.requests[out.id]
        context = (*request.prompt, *self.got[out.id])
        assert out.token is not None
        assert (out.logprob is not None) == request.sampling.logprobs
        if out.logprob is not None:
            assert out.logprob == pytest.approx(float(logits_of(context).log_softmax(-1)[out.token]), abs=1e-4)
        if out.id not in self.cached:
            prefix = list(request.prompt[: out.cached_tokens])
            others = ([*self.requests[name].prompt, *got] for name, got in self.got.items() if name != out.id)
            assert not prefix or any(other[: len(prefix)] == prefix for other in (*self.computed, *others))
            assert out.cached_tokens < len(request.prompt)
            self.cached[out.id] = out.cached_tokens
        assert out.cached_tokens == self.cached[out.id], "it says how the request began, and so never changes"

    @invariant()
    def everybody_gets_the_truth(self) -> None:
        for name, got in self.got.items():
            expected = self.truth[name]
            assert got == expected[: len(got)]
            if name in self.ended and self.ended[name] != "cancelled":
                stopped = expected[-1] in self.requests[name].stop
                assert (got, self.ended[name]) == (expected, "stop" if stopped else "length")

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if self.engine.idle:
                break
            self.step(1)
        assert self.engine.idle, "some request never ends"
        assert set(self.ended) == set(self.requests)
        self.everybody_gets_the_truth()
        pool = self.engine.scheduler.pool
        pool.check()
        assert pool.available == pool.total, "pages leak"
        assert pool.page_tokens == PAGE


TestMachine = Machine.TestCase
# Not shrunk: that takes minutes, and the history that failed is printed and repeats.
TestMachine.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, phases=[Phase.reuse, Phase.generate]
)
