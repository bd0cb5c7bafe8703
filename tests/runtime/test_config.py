"""Both forms of config.json: the same sizes out, and every wrong key named."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointError
from runtime.model.config import (
    HF_IGNORED,
    HF_KEYS,
    ORIGINAL_KEYS,
    ModelConfig,
    gpt_oss_20b,
    gpt_oss_120b,
    hugging_face_json,
    original_json,
    parse_config,
    read_config,
)
from runtime.model.memory import weights_bytes
from runtime.model.rope import inverse_frequencies
from runtime.model.tiny import tiny_config

# As the reference's own files have them.
ORIGINAL_20B: dict[str, Any] = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}
# As transformers writes them.
HF_120B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0",
    "use_cache": True,
    "vocab_size": 201088,
}


def test_the_original_form() -> None:
    assert parse_config(ORIGINAL_20B) == gpt_oss_20b()


def test_the_hugging_face_form() -> None:
    assert parse_config(HF_120B) == gpt_oss_120b()


def test_the_form_of_transformers_5() -> None:
    newer = {key: value for key, value in HF_120B.items() if key not in {"rope_scaling", "rope_theta"}}
    newer["rope_parameters"] = {**HF_120B["rope_scaling"], "rope_theta": 150000}
    assert parse_config(newer) == gpt_oss_120b()


def test_what_transformers_itself_writes_is_read(tmp_path: Path) -> None:
    from transformers import GptOssConfig  # slow to load

    GptOssConfig().save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json") == gpt_oss_120b()


@pytest.mark.parametrize("config", [gpt_oss_20b(), gpt_oss_120b(), tiny_config()], ids=["20b", "120b", "tiny"])
@pytest.mark.parametrize("form", [original_json, hugging_face_json])
def test_what_is_written_reads_back(config: ModelConfig, form: Any) -> None:
    assert parse_config(json.loads(json.dumps(form(config)))) == config


def test_only_the_limit_of_the_swiglu_may_be_absent() -> None:
    assert parse_config({k: v for k, v in ORIGINAL_20B.items() if k != "swiglu_limit"}).swiglu_limit == 7.0
    for key in ORIGINAL_KEYS - {"swiglu_limit"}:
        with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
            parse_config({k: v for k, v in ORIGINAL_20B.items() if k != key})


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "num_local_experts", "num_experts_per_tok", "vocab_size", "hidden_size", "sliding_window"],
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        parse_config({k: v for k, v in HF_120B.items() if k != key})


@pytest.mark.parametrize("form", [ORIGINAL_20B, HF_120B], ids=["original", "hugging_face"])
def test_an_unknown_key_is_named(form: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="unknown key 'attention_bais'"):
        parse_config({**form, "attention_bais": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"layer_types": ["sliding_attention"]}, "1 entries for 36 layers"),
        ({"layer_types": ["local"] * 36}, "layer_types must be"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope type is 'llama3'"),
        ({"rope_scaling": {**HF_120B["rope_scaling"], "truncate": True}}, "truncate must be false"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, "truncate must be false"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False}},
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "truncate": False}}, "factor is missing"),
        ({"rope_scaling": {**HF_120B["rope_scaling"], "mscale": 2.0}}, "unknown rope setting 'mscale'"),
        ({"experts_per_token": 8}, "experts_per_token is 8"),
        ({"initial_context_length": 8192}, "initial_context_length is 8192"),
        ({"hidden_size": 2881}, "hidden_size must be a multiple of 32"),
        ({"intermediate_size": 100}, "intermediate_size must be a multiple of 32"),
        ({"num_attention_heads": 63}, "multiple of num_key_value_heads"),
        ({"head_dim": 63}, "head_dim must be even"),
        ({"num_local_experts": 2}, "more experts per token"),
        ({"hidden_size": "2880"}, "hidden_size is '2880'"),
        ({"hidden_size": 2880.5}, "whole number"),
        ({"hidden_size": True}, "positive number"),
        ({"vocab_size": -1}, "positive number"),
        ({"vocab_size": float("nan")}, "positive number"),
        ({"rope_theta": 1}, "rope_theta must be above 1"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn': a JSON object"),
        ({"quantization_config": ["mxfp4"]}, "quantization_config is .* a JSON object"),
        ({"layer_types": [["sliding_attention"]] * 36}, "layer_types must be"),
        ({"hidden_size": 10**400}, "hidden_size is 1000.*: a positive number"),
        ({"rope_theta": 1e308}, "positive number"),
        ({"head_dim": 1 << 24}, "head_dim is .* at most 4096"),
        ({"num_attention_heads": 1 << 20}, r"num_attention_heads \* head_dim must be at most"),
        ({"hidden_size": 1 << 24, "num_local_experts": 1 << 24}, "more weights than any memory holds"),
        ({"max_position_embeddings": 1 << 25}, "max_position_embeddings is .* at most"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_config({**HF_120B, **changes})


@pytest.mark.parametrize("factor", [1e12, 1e308])
def test_a_context_that_no_memory_holds_is_refused(factor: float) -> None:
    with pytest.raises(CheckpointError, match="rope_scaling_factor"):
        parse_config({**ORIGINAL_20B, "rope_scaling_factor": factor})


def test_windows_follow_the_layer_types() -> None:
    reversed_types = HF_120B["layer_types"][::-1]
    config = parse_config({**HF_120B, "layer_types": reversed_types})
    assert [config.layer_window(layer) for layer in range(4)] == [None, 128, None, 128]
    assert [gpt_oss_20b().layer_window(layer) for layer in range(4)] == [128, None, 128, None]


def test_a_file_that_is_not_a_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_config(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_config(path)
    path.write_text('{"hidden_size": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: key"):
        read_config(path)


def test_no_key_is_both_read_and_ignored() -> None:
    assert not HF_KEYS & HF_IGNORED


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10**6)
    | st.sampled_from([1 << 24, 1 << 63, 10**400])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    form=st.sampled_from([ORIGINAL_20B, HF_120B]),
    nested=st.booleans(),
    data=st.data(),
    value=ANYTHING,
)
@settings(max_examples=300, deadline=None)
def test_any_value_under_any_key_is_read_or_refused_by_name(
    form: dict[str, Any], nested: bool, data: st.DataObject, value: object
) -> None:
    changed = copy.deepcopy(form)
    part = changed["rope_scaling"] if nested and "rope_scaling" in changed else changed
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = value
    with contextlib.suppress(CheckpointError):
        config = parse_config(changed)
        assert len(inverse_frequencies(config)) == config.head_dim // 2
        assert weights_bytes(replace(config, sliding=config.sliding[:1]), torch.bfloat16) < 1 << 60
