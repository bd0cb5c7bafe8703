"""Guesses by prompt lookup: what they say, how long they are, and when there are none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.lookup import H100_COSTS, Costs, Lookup, Speculation
from runtime.runner import GUESSES

FREE: Costs = ((9, 0.01),)
SOURCE = list(range(100, 160))


def lookup(costs: Costs = FREE, draft_tokens: int = 8, ngram: int = 3, index_tokens: int = 1024) -> Lookup:
    return Lookup(Speculation(draft_tokens, ngram, costs, index_tokens), costs)


def ready(made: Lookup, prompt: Sequence[int]) -> Lookup:
    """Have all of the prompt indexed."""
    for _ in range(3):
        made.draft(prompt)
    return made


def write(made: Lookup, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, int]:
    """Let a model that says ``answer`` be guessed for: cost in plain steps, and guesses made."""
    tokens, end = list(prompt), len(prompt) + len(answer)
    truth = [*prompt, *answer]
    cost, guesses = 0.0, 0
    while len(tokens) < end:
        guess = made.draft(tokens)
        right = 0
        while right < len(guess) and len(tokens) + right + 1 < end and guess[right] == truth[len(tokens) + right]:
            right += 1
        tokens += truth[len(tokens) : len(tokens) + right + 1]
        guesses += bool(guess)
        cost += next(c for n, c in ((1, 1.0), *made.costs) if n > len(guess))
    return cost, guesses


def test_it_goes_on_as_the_text_did_before() -> None:
    made = ready(lookup(), SOURCE)
    assert made.draft([*SOURCE, 1, 2, 110, 111, 112]) == tuple(range(113, 121))


def test_the_latest_place_counts_and_a_text_may_repeat_itself() -> None:
    text = [1, 2, 3, 7, 8, 1, 2, 3, 9, 1, 2, 3]
    assert ready(lookup(draft_tokens=4), text).draft(text)[:2] == (9, 1)
    again = [1, 2, 3] * 4
    assert ready(lookup(), again).draft(again) == (1, 2, 3, 1, 2, 3, 1, 2)


@pytest.mark.parametrize(("broken", "goes_on"), [([5], 116), ([5, 117, 118, 119, 5], 121)])
def test_a_copy_is_followed_on_after_a_token_in_place_of_another(broken: list[int], goes_on: int) -> None:
    """As where a line of a patch is indented by one more space."""
    made = ready(lookup(), SOURCE)
    tokens = [*SOURCE, 1, 2, 111, 112, 113, 114]
    assert made.draft(tokens)[0] == 115
    tokens += [5]
    assert made.draft(tokens)[0] == 116
    tokens += [116]
    assert made.draft(tokens)[0] == 117


def test_it_learns_that_a_token_stands_before_a_line_and_not_in_place_of_its_first() -> None:
    """As the minus sign does."""
    made = ready(lookup(), SOURCE)
    tokens = [*SOURCE, 1, 2, 111, 112, 113, 114]
    made.draft(tokens)
    tokens += [5]
    assert made.draft(tokens)[0] == 116, "nothing is known of it yet"
    tokens += [115, 116, 117, 118]
    assert made.draft(tokens)[0] == 119
    tokens += [5]
    assert made.draft(tokens)[0] == 119
    tokens += [119]
    assert made.draft(tokens)[0] == 120


def test_a_copy_that_breaks_twice_is_given_up() -> None:
    made = ready(lookup(), SOURCE)
    tokens = [*SOURCE, 1, 2, 111, 112, 113, 114]
    made.draft(tokens)
    tokens += [5]
    assert made.draft(tokens)
    tokens += [6]
    assert made.draft(tokens) == ()


def test_guesses_grow_while_they_are_right_and_end_while_they_are_not() -> None:
    costs = H100_COSTS
    long = list(range(1000, 1600))
    cost, guesses = write(ready(lookup(costs, 31), long), long, [1, 2, *long[50:550]])
    assert cost < 502 / 4, "copying costs less than a quarter"
    assert guesses < 50
    # Every three tokens were seen, and what follows is never what followed.
    triples = [token for n in range(200) for token in (7, 8, 9, *range(2000 + 9 * n, 2009 + 9 * n))]
    made = ready(lookup(costs, 31), triples[:40])
    cost, guesses = write(made, triples[:40], triples[40:])
    assert cost < len(triples[40:]) * 1.06
    assert guesses < 10


def test_where_verifying_is_too_dear_nothing_is_guessed() -> None:
    long = list(range(1000, 1600))
    assert write(ready(lookup(((4, 4.1), (8, 8.3)), 7), long), long, long[50:400]) == (350, 0)


def test_no_guesses_where_none_are_wanted() -> None:
    assert lookup(draft_tokens=0).draft([1, 2, 3] * 10) == ()


def test_a_long_prompt_is_indexed_in_pieces() -> None:
    made = lookup(ngram=2, index_tokens=10)
    text = [*range(100, 130), 100, 101]
    assert made.draft(text)[:2] == (102, 103)  # the repeated beginning was in the first piece
    assert len(made.seen) == 10
    for _ in range(5):
        made.draft(text)
    assert len(made.seen) == len(text) - 2


def test_the_engine_has_a_graph_for_each_size_that_has_a_price() -> None:
    assert tuple(tokens for tokens, _ in H100_COSTS) == GUESSES
    assert Speculation().draft_tokens < GUESSES[-1]


tiny = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(tiny, tiny, st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 3), st.integers(1, 8))
def test_whatever_the_text_a_guess_is_of_its_tokens_and_asking_twice_is_asking_once(
    prompt: list[int], answer: list[int], steps: list[int], ngram: int, draft_tokens: int
) -> None:
    """The answer comes in pieces of any size, as plain and verifying steps give it."""
    once, twice = (lookup(H100_COSTS, draft_tokens, ngram) for _ in range(2))
    tokens, said = list(prompt), 0
    for step in range(len(answer)):
        guess = once.draft(tokens)
        assert len(guess) <= draft_tokens
        assert set(guess) <= set(tokens)
        assert twice.draft(tokens) == twice.draft(tokens) == guess
        piece = answer[said : said + steps[step % len(steps)]]
        tokens += piece
        said += len(piece)
