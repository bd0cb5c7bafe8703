from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.report.plots import MOST_BINS, Bar, Stack, bars, bin_edges, columns, histogram, nice_above, nice_step
from tests.agent.report.test_html import read

values = st.lists(
    st.one_of(st.integers(0, 10**7).map(float), st.floats(0, 1e6, allow_nan=False)), min_size=1, max_size=50
)


@given(values)
def test_every_value_falls_into_one_bin(found: list[float]) -> None:
    edges = bin_edges(found)
    assert edges == sorted(set(edges))
    assert all(sum(low <= value < high for low, high in pairwise(edges)) == 1 for value in found)
    assert 2 <= len(edges) <= max(MOST_BINS + 2, 20)


@given(values)
def test_the_counts_of_a_histogram_are_those_of_the_values(found: list[float]) -> None:
    tips = re.findall(r"<title>[^<]*: (\d+)</title>", histogram("t", found, str))
    assert sum(map(int, tips)) == len(found)


@pytest.mark.parametrize(
    ("found", "edges"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]),
        ([0.0, 0.0], [0.0, 1.0]),
        ([10.0, 20.0, 90.0], [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]),
        ([3.0, 3.0, 3.0, 4000.0], [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]),
        ([], []),
    ],
)
def test_edges_are_numbers_that_people_read(found: list[float], edges: list[float]) -> None:
    assert bin_edges(found) == pytest.approx(edges)


def test_bars_are_as_long_as_their_values() -> None:
    shown = bars("Title", [Bar("a <b>", 10, 20, "done"), Bar("c", 5, 20, "wrong")])
    assert [tag[1]["class"] for tag in read(shown).tags if tag[0] == "rect"] == ["bar done", "bar wrong"]
    first, second = (float(width) for width in re.findall(r'width="([\d.]+)%" height="18"', shown))
    assert first == 2 * second
    assert "10 (50%)" in shown
    assert "5 (25%)" in shown
    assert 'aria-label="Title: a &lt;b&gt; 10, c 5"' in shown


def test_columns_are_stacked_without_gaps() -> None:
    shown = columns("T", [Stack("one", (("a", 1.0), ("b", 3.0), ("c", 0.0))), Stack("two", ())], str, [("a", "A")])
    boxes = [
        (float(y), float(height)) for y, height in re.findall(r'y="([\d.]+)" width="[^"]*" height="([\d.]+)"', shown)
    ]
    (low, low_height), (high, high_height) = boxes
    assert high + high_height == pytest.approx(low, abs=0.2)
    assert high_height == pytest.approx(3 * low_height, abs=0.4)
    assert "2 columns, the highest 4.0" in shown


def test_a_chart_of_nothing_is_a_chart() -> None:
    assert "<svg" in columns("T", [], str, [])
    assert "<svg" in histogram("T", [], str)
    assert "<svg" in bars("T", [])


@pytest.mark.parametrize(("value", "nice"), [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (7.0, 10.0), (1001.0, 2000.0)])
def test_numbers_for_an_axis(value: float, nice: float) -> None:
    assert nice_above(value) == pytest.approx(nice)


@pytest.mark.parametrize(("value", "step"), [(0.0, 1), (0.2, 1), (1.5, 2), (33.3, 50)])
def test_steps_are_whole(value: float, step: int) -> None:
    assert nice_step(value) == step
