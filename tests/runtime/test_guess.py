"""Which draft is taken: from the sequence's own tokens or from its Drafter, how long, and when none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.guess import REFILL, Guesser
from runtime.lookup import H100_COSTS, Costs, Speculation
from tests.runtime.arithmetic import VOCABULARY, Foretold

PROMPT = tuple(range(20))
ANSWER = tuple(range(1000, 1400))


def guesser(drafter: Foretold | None, options: Speculation | None = None, costs: Costs = H100_COSTS) -> Guesser:
    return Guesser(options or Speculation(), costs, drafter, len(PROMPT), 1 << 20)


def write(made: Guesser, answer: Sequence[int], prompt: Sequence[int] = PROMPT) -> tuple[float, int]:
    """Let a model that says ``answer`` be guessed for: cost in plain steps, and tokens guessed."""
    tokens, truth = list(prompt), [*prompt, *answer]
    cost, guessed = 0.0, 0
    while len(tokens) < len(truth):
        draft = made.draft(tokens)
        following = truth[len(tokens) : len(tokens) + len(draft)]
        pairs = zip(draft, following, strict=False)
        right = next((n for n, (one, other) in enumerate(pairs) if one != other), len(following))
        tokens += truth[len(tokens) : len(tokens) + right + 1]
        cost += next(price for size, price in ((1, 1.0), *H100_COSTS) if size > len(draft))
        guessed += len(draft)
    return cost, guessed


def test_a_drafter_that_is_right_is_followed_in_long_drafts() -> None:
    drafter = Foretold(ANSWER)
    cost, _ = write(guesser(drafter), ANSWER)
    assert cost < len(ANSWER) / 4
    assert drafter.taken == list(ANSWER[: len(drafter.taken)])


def test_a_drafter_that_is_wrong_is_soon_left_alone() -> None:
    cost, guessed = write(guesser(Foretold([0] * len(ANSWER))), ANSWER)
    assert cost < len(ANSWER) * 1.05
    assert guessed < 100


def test_of_two_drafts_the_one_that_promises_more_is_taken() -> None:
    """The prompt holds the answer, so lookup is right; the drafter is wrong. Then the other way round."""
    copied = (*PROMPT, *ANSWER, *PROMPT)
    wrong = Foretold([0] * len(ANSWER))
    made = Guesser(Speculation(), H100_COSTS, wrong, len(copied), 1 << 20)
    assert write(made, ANSWER, copied)[0] < len(ANSWER) / 3
    misleading = (*PROMPT, *(token + (token % 4 == 0) for token in ANSWER), *PROMPT)
    made = Guesser(Speculation(), H100_COSTS, Foretold(ANSWER), len(misleading), 1 << 20)
    assert write(made, ANSWER, misleading)[0] < len(ANSWER) / 3


def test_a_kind_is_judged_by_itself() -> None:
    """Every other ten tokens come with a kind that is always wrong: drafts end before them."""

    class Two(Foretold):
        priors = {"good": 0.9, "bad": 0.9}  # noqa: RUF012

        def draft(self) -> list[tuple[int, str]]:
            at = len(self.taken)
            return [
                (token, "good") if place // 10 % 2 == 0 else (0, "bad")
                for place, token in enumerate(self.tokens[at:], at)
            ]

    made = guesser(Two(ANSWER))
    write(made, ANSWER[:300])
    tokens = [*PROMPT, *ANSWER[:303]]
    assert made.draft(tokens) == ANSWER[303:310]


def test_no_token_beyond_the_vocabulary_is_drafted() -> None:
    for mad in (-1, 500, 1 << 70):
        made = Guesser(Speculation(), ((9, 0.01),), Foretold([7, 8, mad, 9]), len(PROMPT), 500)
        assert made.draft(PROMPT) == (7, 8)


def test_a_long_answer_is_handed_over_in_pieces() -> None:
    """After a time in a batch, where nothing is guessed, thousands of tokens may be new."""
    drafter = Foretold(ANSWER)
    made = guesser(drafter, Speculation(index_tokens=100))
    assert made.draft([*PROMPT, *ANSWER[:250]]) == ()
    assert len(drafter.taken) == 100
    assert made.draft([*PROMPT, *ANSWER[:250]]) == ()
    assert made.draft([*PROMPT, *ANSWER[:250]])[:2] == ANSWER[250:252]


def test_a_drafter_is_not_asked_again_while_enough_is_expected() -> None:
    asked = []

    class Counting(Foretold):
        def draft(self) -> list[tuple[int, str]]:
            asked.append(len(self.taken))
            return super().draft()[:31]

    made = guesser(Counting(ANSWER))
    for said in range(60):
        made.draft([*PROMPT, *ANSWER[:said]])
    step = 31 - REFILL + 1
    assert asked == [0, step, 2 * step, 3 * step]


def test_no_drafts_where_none_are_wanted() -> None:
    drafter = Foretold(ANSWER)
    assert guesser(drafter, Speculation(draft_tokens=0)).draft(PROMPT) == ()
    assert guesser(drafter, costs=()).draft(PROMPT) == ()
    assert guesser(None).draft(PROMPT) == ()


@pytest.mark.parametrize("fails", ["take", "draft", "priors"])
def test_a_drafter_that_fails_is_told_of_and_left_alone(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    """It belongs to one request; the engine's thread serves all of them."""
    asked = []

    class Failing(Foretold):
        def take(self, token: int) -> None:
            if fails == "take" and len(self.taken) == 5:
                asked.append(token)
                raise UnicodeError("no such text")
            super().take(token)

        def draft(self) -> list[tuple[int, str]]:
            if fails == "take":
                return []
            asked.append(len(self.taken))
            if fails == "draft":
                raise IndexError("no such line")
            return [(token, "a kind without a prior") for token in ANSWER]

    copied = (*PROMPT, *ANSWER, *PROMPT)
    made = Guesser(Speculation(), H100_COSTS, Failing(ANSWER), len(copied), 1 << 20)
    plain = Guesser(Speculation(), H100_COSTS, None, len(copied), 1 << 20)
    assert write(made, ANSWER, copied) == write(plain, ANSWER, copied)
    assert len(asked) == 1
    assert [record.exc_info is not None for record in caplog.records] == [True]


wild = st.lists(st.integers(-2, VOCABULARY + 2), max_size=60)


@given(wild, st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 8), st.lists(st.integers(1, 9)))
def test_whatever_is_drafted_a_guess_is_short_and_of_the_vocabulary(
    drafted: list[int], answer: list[int], draft_tokens: int, steps: list[int]
) -> None:
    """The answer comes in pieces of any size; asking twice is asking once."""
    prompt = (1, 2, 3)
    made = Guesser(Speculation(draft_tokens, 1), H100_COSTS, Foretold(drafted), len(prompt), VOCABULARY)
    said = 0
    for step in (*steps, *[1] * len(answer)):
        guess = made.draft([*prompt, *answer[:said]])
        assert made.draft([*prompt, *answer[:said]]) == guess
        assert len(guess) <= draft_tokens
        assert all(0 <= token < VOCABULARY for token in guess)
        said = min(said + step, len(answer))
