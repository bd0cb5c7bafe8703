"""The sampling kernel against the reference on the same random numbers, and where only one answer is right."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels import reference
from runtime.kernels.base import Sample
from runtime.kernels.open import open_kernels
from runtime.sampler import uniform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAST = 1.0 - 2.0**-53


@pytest.fixture(scope="module")
def sample() -> Sample:
    return open_kernels("triton", DEVICE).sample


def numbers(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([uniform(seed, row) for row in range(rows)], dtype=torch.float64, device=DEVICE)


def heats(rows: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((rows,), value, device=DEVICE)


# One part, its edge, some of them, and the true size: 196 whole parts and 384 tokens.
@pytest.mark.parametrize("vocabulary", [1, 97, 1023, 1024, 1025, 5000, 201_088])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_it_picks_what_the_reference_picks(sample: Sample, vocabulary: int, temperature: float) -> None:
    rows = 16 if vocabulary < 10_000 else 2
    torch.manual_seed(vocabulary)
    logits = (torch.randn(rows, vocabulary) * 3).to(DEVICE)
    logits[:, torch.rand(vocabulary) < 0.3] = -torch.inf
    logits[:, vocabulary // 2] = 0.5
    args = (logits, heats(rows, temperature), numbers(rows))
    picked, expected = sample(*args), reference.sample(*args)
    assert picked.dtype == torch.int64
    # Rounding may move the edge between two tokens, and a number may fall there: once in thousands.
    assert int((picked != expected).sum()) <= (0 if temperature == 0 else 1)
    assert logits.gather(-1, picked[:, None]).isfinite().all()


def test_a_cold_row_beside_warm_ones_and_no_row_depends_on_its_neighbours(sample: Sample) -> None:
    torch.manual_seed(1)
    logits = torch.randn(12, 3000).to(DEVICE)
    heat = torch.tensor([0.0, 1.0, 2.0] * 4, device=DEVICE)
    together = sample(logits, heat, numbers(12))
    assert together[::3].tolist() == logits[::3].argmax(-1).tolist()
    for row in range(12):
        one = slice(row, row + 1)
        assert sample(logits[one], heat[one], numbers(12)[one]).tolist() == together[one].tolist()


def test_the_lowest_of_equal_tokens_is_the_most_likely(sample: Sample) -> None:
    logits = torch.zeros(1, 4000, device=DEVICE)
    logits[0, [1500, 700, 3999, 701]] = 2.0
    assert sample(logits, heats(1, 0.0), numbers(1)).tolist() == [700]


@pytest.mark.parametrize("u", [0.0, 0.5, LAST])
@pytest.mark.parametrize("only", [[0], [1024], [2999], [1023, 1024], [5, 2047, 2048]])
def test_only_tokens_with_mass_are_picked_also_at_the_ends(sample: Sample, u: float, only: list[int]) -> None:
    """Whole parts are forbidden here, the first and the last among them."""
    logits = torch.full((1, 3000), -torch.inf, device=DEVICE)
    logits[0, only] = torch.arange(len(only), device=DEVICE) * 0.1
    number = torch.tensor([u], dtype=torch.float64, device=DEVICE)
    ends = {0.0: only[0], LAST: only[-1]}
    picked = sample(logits, heats(1), number).item()
    assert picked == ends.get(u, picked)
    assert picked in only


def test_the_tail_of_a_flat_distribution_is_reached(sample: Sample) -> None:
    """Every token is equally likely, so the number says which: to the token, through 201,088 of them."""
    vocabulary = 201_088
    number = torch.tensor([0.25, LAST], dtype=torch.float64, device=DEVICE)
    picked = sample(torch.zeros(2, vocabulary, device=DEVICE), heats(2), number)
    assert picked.tolist() == (number * vocabulary).long().clamp(max=vocabulary - 1).tolist()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy, which warns of NaN
@pytest.mark.parametrize("filling", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_pick_a_token_that_exists(
    sample: Sample, filling: float, temperature: float
) -> None:
    for spoilt in (slice(0, None), slice(1030, 1040)):
        logits = torch.randn(2, 2500, generator=torch.Generator().manual_seed(5)).to(DEVICE)
        logits[:, spoilt] = filling
        picked = sample(logits, heats(2, temperature), numbers(2))
        assert all(0 <= token < 2500 for token in picked.tolist())


def test_it_can_be_launched_again_at_once(sample: Sample) -> None:
    """The counters of the last block are back at zero."""
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    first = sample(logits, heats(3), numbers(3)).tolist()
    assert all(sample(logits, heats(3), numbers(3)).tolist() == first for _ in range(3))
