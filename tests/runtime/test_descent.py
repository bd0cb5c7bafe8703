"""Coordinate descent over made-up kernels and a made-up clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.descent import GAIN, Left, Sizes, Step, descend, share

START = {"tile": 1, "warps": 4}


@dataclass
class Made:
    """A bench whose seconds are a function of the sizes; ``noise`` multiplies them, a round after another."""

    seconds: Callable[[Sizes], float]
    left: dict[object, str] = field(default_factory=dict)
    falls: dict[object, str] = field(default_factory=dict)  # only in the race
    noise: Sequence[tuple[float, float]] = ((1.0, 1.0),)
    prepared: list[tuple[str, Sizes]] = field(default_factory=list)
    raced: list[object] = field(default_factory=list)

    def prepare(self, name: str, sizes: Sizes) -> None:
        self.prepared.append((name, sizes))
        if sizes[name] in self.left:
            raise Left(self.left[sizes[name]])

    def race(self, name: str, present: Sizes, candidate: Sizes) -> list[tuple[float, float]]:
        self.raced.append(candidate[name])
        if candidate[name] in self.falls:
            raise Left(self.falls[candidate[name]])
        return [(self.seconds(present) * a, self.seconds(candidate) * b) for a, b in self.noise]


class Ticks:
    """A clock that goes on by a second each time somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def run(
    bench: Made, candidates: dict[str, list[object]], start: Sizes = START, **more: object
) -> tuple[list[Step], Sizes]:
    steps = list(descend(start, candidates, bench, **more))  # type: ignore[arg-type]
    return [step for step, _ in steps], steps[-1][1]


def test_the_best_of_each_field_is_found_and_the_next_field_starts_from_it() -> None:
    cost = {(1, 4): 8.0, (2, 4): 6.0, (4, 4): 5.0, (8, 4): 7.0, (4, 8): 4.0, (1, 8): 9.0}
    bench = Made(lambda sizes: cost[sizes["tile"], sizes["warps"]])
    steps, sizes = run(bench, {"tile": [1, 2, 4, 8], "warps": [4, 8]})
    assert sizes == {"tile": 4, "warps": 8}
    assert steps == [
        Step("tile", 1, 4, {2: 0.75, 4: 5 / 6, 8: 1.4}, {}, 0),
        Step("warps", 4, 8, {8: 0.8}, {}, 0),
    ]
    assert START == {"tile": 1, "warps": 4}


def test_what_is_there_is_not_tried_again() -> None:
    bench = Made(lambda _: 1.0)
    run(bench, {"tile": [1, 1, 2]})
    assert bench.raced == [2]


@pytest.mark.parametrize(
    ("factor", "wins"), [(1 - GAIN - 1e-6, True), (1 - GAIN + 1e-6, False), (1.0, False), (1.5, False)]
)
def test_only_what_is_faster_by_more_than_the_spread_wins(factor: float, wins: bool) -> None:
    bench = Made(lambda sizes: 1.0 if sizes["tile"] == 1 else factor)
    assert run(bench, {"tile": [2]})[1]["tile"] == (2 if wins else 1)


def test_drift_does_not_decide() -> None:
    """The machine gets twice as slow on the way: each round compares what ran side by side."""
    drift = [(1.0 + n / 4, 1.0 + n / 4) for n in range(5)]
    bench = Made(lambda sizes: 1.0 if sizes["tile"] == 1 else 0.9, noise=drift)
    steps, sizes = run(bench, {"tile": [2]})
    assert sizes["tile"] == 2
    assert steps[0].tried[2] == pytest.approx(0.9)


def test_a_round_that_was_disturbed_does_not_decide() -> None:
    bench = Made(lambda _: 1.0, noise=[(1.0, 1.0), (5.0, 1.0), (1.0, 1.0), (1.0, 1.0), (5.0, 1.0)])
    assert run(bench, {"tile": [2]})[1] == START


def test_what_does_not_compile_or_is_wrong_never_wins() -> None:
    bench = Made(lambda sizes: 1.0 / sizes["tile"], {8: "OutOfResources", 4: "wrong"}, {16: "no memory"})  # type: ignore[operator]
    steps, sizes = run(bench, {"tile": [8, 4, 16, 2]})
    assert sizes["tile"] == 2
    assert steps[0].left == {8: "OutOfResources", 4: "wrong", 16: "no memory"}
    assert bench.raced == [16, 2]


def test_the_first_sizes_must_do() -> None:
    bench = Made(lambda _: 1.0, left={1: "does not compile"})
    with pytest.raises(Left, match="does not compile"):
        run(bench, {"tile": [2]})


def test_every_candidate_is_prepared_on_top_of_what_has_won() -> None:
    bench = Made(lambda sizes: 1.0 / sizes["tile"])  # type: ignore[operator]
    run(bench, {"tile": [2], "warps": [8]})
    assert bench.prepared == [
        ("tile", {"tile": 1, "warps": 4}),
        ("tile", {"tile": 2, "warps": 4}),
        ("warps", {"tile": 2, "warps": 4}),
        ("warps", {"tile": 2, "warps": 8}),
    ]


def test_when_the_time_is_over_what_has_won_stays() -> None:
    bench = Made(lambda sizes: 1.0 / sizes["tile"])  # type: ignore[operator]
    steps, sizes = run(bench, {"tile": [2, 3, 4], "warps": [8, 16]}, limit_s=3.5, clock=Ticks())
    assert sizes == {"tile": 3, "warps": 4}
    assert steps == [Step("tile", 1, 3, {2: 0.5, 3: 2 / 3}, {}, 1), Step("warps", 4, 4, {}, {}, 2)]
    assert [name for name, _ in bench.prepared] == ["tile"] * 3


@given(st.permutations(range(1, 9)), st.lists(st.floats(0.1, 10.0), min_size=8, max_size=8), st.sets(st.integers(2, 8)))
def test_nothing_that_could_win_is_beyond_the_spread(order: list[int], cost: list[float], broken: set[int]) -> None:
    bench = Made(lambda sizes: cost[int(str(sizes["tile"])) - 1], left=dict.fromkeys(broken, "wrong"))
    (_, sizes), *_ = [(step, sizes) for step, sizes in descend({"tile": 1}, {"tile": order}, bench)]
    assert sizes["tile"] not in broken
    chosen = cost[int(str(sizes["tile"])) - 1]
    assert all(cost[n - 1] > chosen * (1 - GAIN) ** 2 for n in set(order) - broken)


def test_a_share_is_the_median_of_the_rounds() -> None:
    assert share([(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)]) == 1.0
