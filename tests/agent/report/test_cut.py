from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.report.cut import cost_bytes, cut
from agent.report.run_body import LEAST_BYTES, MOST_BYTES, room_bytes
from tests.agent.report.hostile import texts


@given(texts.map(lambda text: text * 20), st.integers(10, 2000))
def test_a_cut_text_fits_and_counts_what_is_gone(text: str, most: int) -> None:
    found = cut(text, most)
    assert cost_bytes(found.head) + cost_bytes(found.tail) <= most
    assert text.startswith(found.head)
    assert text.endswith(found.tail)
    assert len(found.head) + found.left_out_chars + len(found.tail) == len(text)
    assert (found.left_out_chars == 0) == (cost_bytes(text) <= most)


def test_a_cut_is_made_at_line_ends() -> None:
    found = cut("".join(f"line {number}\n" for number in range(1000)), 600)
    assert found.head.endswith("\n")
    assert found.tail.startswith("line ")
    assert len(found.tail) > len(found.head)


@given(st.lists(st.integers(0, 50_000), max_size=60), st.integers(10_000, 1_000_000))
def test_room_is_shared_so_that_all_texts_fit(costs: list[int], budget: int) -> None:
    room = room_bytes(costs, budget)
    assert sum(min(cost, room) for cost in costs) <= max(budget, LEAST_BYTES * len(costs))
    if sum(costs) <= budget:
        assert room == MOST_BYTES


def test_short_texts_leave_their_room_to_long_ones() -> None:
    assert room_bytes([100] * 9 + [100_000], 10_000) == 9100
