"""YaRN's numbers, tested directly: rounded edges cost less than bf16 noise, so no comparison of logits in bf16 can."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from runtime.errors import CheckpointError
from runtime.model.config import gpt_oss_20b
from runtime.model.rope import concentration, edge, inverse_frequencies, rope_table
from runtime.model.tiny import tiny_config

CPU = torch.device("cpu")
REAL = {0: 1.0, 8: 5.081327e-2, 9: 3.170570e-2, 12: 6.794959e-3, 16: 4.564840e-4, 17: 1.293187e-4, 18: 3.830881e-5}


def test_the_edges_of_the_real_models_are_not_rounded() -> None:
    config = gpt_oss_20b()
    assert edge(config, 32.0) == pytest.approx(8.092779, abs=5e-7)
    assert edge(config, 1.0) == pytest.approx(17.398025, abs=5e-7)


@pytest.mark.parametrize(("plane", "value"), [*REAL.items(), (31, 3.023511e-7)])
def test_the_frequencies_of_the_real_models(plane: int, value: float) -> None:
    assert inverse_frequencies(gpt_oss_20b())[plane].item() == pytest.approx(value, rel=2e-7)


def test_the_concentration_of_the_real_models() -> None:
    assert concentration(gpt_oss_20b()) == pytest.approx(1.346573590, abs=5e-10)


def test_the_edges_of_the_tiny_model() -> None:
    config = tiny_config()
    assert (round(edge(config, 32.0), 2), round(edge(config, 1.0), 2)) == (2.02, 4.35)


def test_a_factor_of_one_is_plain_rope() -> None:
    config = replace(gpt_oss_20b(), rope_factor=1.0)
    plain = torch.tensor([150_000 ** (-2 * i / 64) for i in range(32)], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequencies(config), plain)
    assert concentration(config) == 1.0


@pytest.mark.parametrize(
    "changes", [{"head_dim": 4}, {"rope_beta_slow": 32.0}, {"initial_context_tokens": 100}, {"rope_theta": 10.0}]
)
def test_a_ramp_outside_the_planes_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(CheckpointError, match="ramp"):
        inverse_frequencies(replace(gpt_oss_20b(), **changes))  # type: ignore[arg-type]


def test_the_table_is_cosines_then_sines_with_the_concentration_in() -> None:
    config = gpt_oss_20b()
    table = rope_table(config, 100, CPU)
    assert table.shape == (100, 64)
    assert table.dtype is torch.float32
    for position, plane in [(0, 0), (1, 0), (99, 9), (42, 17)]:
        angle = position * inverse_frequencies(config)[plane].item()
        assert table[position, plane].item() == pytest.approx(1.346573590 * math.cos(angle), abs=1e-6)
        assert table[position, 32 + plane].item() == pytest.approx(1.346573590 * math.sin(angle), abs=1e-6)


def test_the_table_is_exact_at_the_end_of_the_context() -> None:
    config = gpt_oss_20b()
    table = rope_table(config, config.context_tokens, CPU)
    assert table.shape[0] == 131_072
    angle = math.fmod(131_071.0, 2 * math.pi)
    assert table[-1, 0].item() == pytest.approx(concentration(config) * math.cos(angle), abs=1e-6)


def test_the_frequencies_are_those_of_transformers() -> None:
    from transformers import GptOssConfig  # slow to load
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](GptOssConfig())
    torch.testing.assert_close(inverse_frequencies(gpt_oss_20b()).float(), frequencies, rtol=1e-6, atol=0)
    assert factor == pytest.approx(concentration(gpt_oss_20b()))
