"""The sampler's distribution, tested statistically; its edges, exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from runtime.sampler import SamplingInputs, logprob, pick, uniform


def inputs(rows: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, mask: torch.Tensor | None = None):
    return SamplingInputs(
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.tensor([uniform(seed, index) for index in range(rows)], dtype=torch.float64),
        nucleus=top_p < 1,
        mask=mask,
    )


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """(X² - degrees) / sqrt(2 degrees): about standard normal when the sample follows the distribution."""
    used = expected > 5
    degrees = int(used.sum()) - 1
    statistic = float(((counts - expected)[used] ** 2 / expected[used]).sum())
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
def test_samples_follow_the_distribution(temperature: float, top_p: float) -> None:
    torch.manual_seed(1)
    vocabulary, n = 100, 40_000
    logits = torch.randn(vocabulary)
    p = torch.softmax(logits.double() / temperature, -1)
    order = p.argsort(descending=True)
    keep = torch.zeros(vocabulary, dtype=torch.bool)
    total = 0.0
    for token in order.tolist():  # the definition, one token at a time
        if total >= top_p:
            break
        keep[token] = True
        total += float(p[token])
    expected = torch.where(keep, p, 0.0)
    expected = expected / expected.sum() * n
    picked = pick(logits.expand(n, -1), inputs(n, temperature=temperature, top_p=top_p, seed=3))
    counts = torch.bincount(picked, minlength=vocabulary).double()
    assert counts[~keep].sum() == 0
    assert abs(chi_square(counts, expected)) < 4


def test_a_wrong_distribution_is_noticed() -> None:
    """The test above has teeth: the same counts against a slightly warmer distribution fail."""
    torch.manual_seed(1)
    logits = torch.randn(100) * 2
    counts = torch.bincount(pick(logits.expand(40_000, -1), inputs(40_000, seed=3)), minlength=100).double()
    warmer = torch.softmax(logits.double() / 1.1, -1) * 40_000
    assert chi_square(counts, warmer) > 20


def test_the_tail_of_a_large_vocabulary_is_reached() -> None:
    logits = torch.zeros(1, 201_088)
    rows = 200
    picked = pick(logits.expand(rows, -1), inputs(rows, seed=5)).double()
    assert abs(float(picked.mean()) / 201_087 - 0.5) < 0.1
    assert picked.max() > 200_000


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("nucleus", [False, True])
def test_the_ends_of_the_interval_pick_tokens_that_have_mass(u: float, nucleus: bool) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    given = SamplingInputs(
        torch.ones(1), torch.full((1,), 0.99), torch.tensor([u], dtype=torch.float64), nucleus=nucleus
    )
    assert pick(logits, given).item() in {1, 3}


def test_temperature_zero_is_greedy_also_beside_a_sampled_row() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]] * 200)
    temperature = torch.tensor([0.0, 3.0] * 100)
    given = SamplingInputs(
        temperature,
        torch.ones(200),
        torch.tensor([uniform(0, i) for i in range(200)], dtype=torch.float64),
    )
    picked = pick(logits, given)
    assert set(picked[::2].tolist()) == {1}
    assert set(picked[1::2].tolist()) == {0, 1, 2}


def test_a_mask_forbids() -> None:
    mask = torch.tensor([[0b1001_0001, 0b1111_1110]], dtype=torch.uint8).expand(500, -1)  # 0, 4, 7, 9 of ten
    logits = torch.tensor([[1.0, 9.0, 9.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0, 0.0]]).expand(500, -1)
    assert set(pick(logits, inputs(500, mask=mask)).tolist()) == {0, 4, 7, 9}
    assert set(pick(logits, inputs(500, mask=mask, temperature=0.0)).tolist()) == {0}
    assert set(pick(logits, inputs(500, mask=mask, top_p=0.4)).tolist()) == {0}


def test_a_mask_that_forbids_nothing_changes_nothing() -> None:
    torch.manual_seed(3)
    logits = torch.randn(50, 203)
    given = inputs(50, seed=4, top_p=0.9)
    everything = torch.full((50, 26), 0xFF, dtype=torch.uint8)
    assert pick(logits, replace(given, mask=everything)).tolist() == pick(logits, given).tolist()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(2)
    logits = torch.randn(6, 1000)
    together = pick(logits, inputs(6, seed=9))
    for row in range(6):
        alone = SamplingInputs(
            torch.ones(1),
            torch.ones(1),
            torch.tensor([uniform(9, row)], dtype=torch.float64),
        )
        assert pick(logits[row : row + 1], alone).item() == together[row].item()


def test_a_cut_off_row_changes_nothing_for_its_neighbours() -> None:
    """Top-p draws from the sorted tokens; those beside it who ask for no cut are drawn as if it were not there."""
    torch.manual_seed(6)
    logits = torch.randn(40, 300)
    alone = pick(logits, inputs(40, seed=2))
    cut = torch.where(torch.arange(40) % 2 == 0, 0.5, 1.0)
    beside = pick(logits, replace(inputs(40, seed=2), top_p=cut, nucleus=True))
    assert beside[1::2].tolist() == alone[1::2].tolist()
    assert beside[::2].tolist() == pick(logits, inputs(40, seed=2, top_p=0.5))[::2].tolist()


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 129, 1000])
@pytest.mark.parametrize("u", [0.0, 0.3, 1.0 - 2.0**-53])
def test_chunks_of_any_vocabulary_give_the_plain_inverse(vocabulary: int, u: float) -> None:
    """Against one running sum over the whole row, in float64."""
    torch.manual_seed(vocabulary)
    logits = torch.randn(50, vocabulary) * 3
    logits[:, torch.rand(vocabulary) < 0.3] = -torch.inf
    logits[:, vocabulary // 2] = 0.0
    given = replace(inputs(50), uniform=torch.full((50,), u, dtype=torch.float64))
    running = torch.softmax(logits.double(), -1).cumsum(-1)
    expected = (running <= u * running[:, -1:]).sum(-1)
    assert (pick(logits, given) - expected).abs().float().mean() < 0.05  # rounding may move the edge of a token
    assert logits.gather(-1, pick(logits, given)[:, None]).isfinite().all()


def test_uniform_numbers_differ_by_seed_and_index() -> None:
    numbers = [uniform(seed, index) for seed in range(100) for index in range(100)]
    assert len(set(numbers)) == 10_000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 10_000 - 0.5) < 0.02


def test_logprobs_are_of_the_plain_distribution() -> None:
    torch.manual_seed(4)
    logits = torch.randn(3, 50)
    tokens = torch.tensor([1, 7, 49])
    expected = torch.log_softmax(logits, -1)[torch.arange(3), tokens]
    torch.testing.assert_close(logprob(logits, tokens), expected)
