"""What sizes of a model the kernels take: the published ones, and each wrong one by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from runtime.errors import RuntimeFault
from runtime.kernels.fast import triton_kernels
from runtime.kernels.limits import MOST_VOCABULARY, refusal
from runtime.model.config import gpt_oss_20b, gpt_oss_120b
from runtime.model.tiny import tiny_config, tiny_weights
from runtime.model.transformer import build_transformer

SHAPES = gpt_oss_20b().shapes()


@pytest.mark.parametrize("config", [gpt_oss_20b(), gpt_oss_120b()], ids=["20b", "120b"])
def test_the_published_models_are_taken(config: object) -> None:
    for compiled in (True, False):
        assert refusal(config.shapes(), compiled=compiled) is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden": 2912}, "its hidden size is 2912, and they support multiples of 64 up to 8192"),
        ({"hidden": 16384}, "its hidden size is 16384"),
        ({"intermediate": 96}, "its intermediate size is 96"),
        ({"head_dim": 16}, "its head size is 16, and they support 32 or 64"),
        ({"head_dim": 24}, "its head size is 24"),
        ({"head_dim": 128}, "its head size is 128"),
        ({"kv_heads": 6, "query_heads": 48}, "its number of key heads is 6, and they support a power of two"),
        (
            {"query_heads": 24},
            "its number of query heads for each key head is 3, and they support a power of two up to 16",
        ),
        ({"kv_heads": 2}, "its number of query heads for each key head is 32"),
        ({"experts": 1025}, "its number of experts is 1025, and they support up to 1024"),
        ({"experts_per_token": 9}, "its number of experts per token is 9, and they support up to 8"),
        ({"vocabulary": MOST_VOCABULARY + 1}, "its vocabulary is 1048577"),
    ],
)
def test_a_size_that_they_do_not_take_is_named(changes: dict[str, int], says: str) -> None:
    said = refusal(replace(SHAPES, **changes), compiled=True)  # type: ignore[arg-type]
    assert said is not None
    assert said.startswith(says)


def test_interpreted_kernels_take_small_heads_but_no_odd_ones() -> None:
    assert refusal(replace(SHAPES, head_dim=16), compiled=False) is None
    assert refusal(replace(SHAPES, head_dim=24), compiled=False) is not None


def test_a_model_is_refused_when_it_is_put_together() -> None:
    config = replace(tiny_config(layers=1), head_dim=24)
    with pytest.raises(RuntimeFault, match="the triton kernels do not run this model: its head size is 24"):
        build_transformer(config, tiny_weights(config), triton_kernels(torch.device("cpu")), 8)
