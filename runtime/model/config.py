"""The sizes of a gpt-oss model, read from either form of its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.kernels.base import Shapes

Json = Mapping[str, Any]

# Far above any real model, and far below what a damaged file could request.
MOST = 1 << 24
MOST_LAYERS = 1024
MOST_HEAD_DIM = 4096
MOST_WEIGHTS = 1 << 48  # in the experts of one layer
MOST_NUMBER = 1e30  # for values that need not be integers

# Every key of the original form. The reference implementation passes the file straight to a dataclass, so an unknown key is an error.
ORIGINAL_KEYS = frozenset(
    {
        "num_hidden_layers",
        "num_experts",
        "experts_per_token",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "swiglu_limit",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "initial_context_length",
        "rope_theta",
        "rope_scaling_factor",
        "rope_ntk_alpha",
        "rope_ntk_beta",
    }
)
# Keys of the Hugging Face form that affect the computation; each is read or checked below.
HF_KEYS = frozenset(
    {
        "model_type",
        "num_hidden_layers",
        "num_local_experts",
        "num_experts_per_tok",
        "experts_per_token",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "swiglu_limit",
        "swiglu_alpha",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "layer_types",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rms_norm_eps",
        "hidden_act",
        "attention_bias",
        "tie_word_embeddings",
        "max_position_embeddings",
        "initial_context_length",
        "quantization_config",
    }
)
# Keys of the Hugging Face form that do not affect inference.
HF_IGNORED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes of a model. ``sliding`` says for each layer whether it attends only to the last ``window`` tokens."""

    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    vocabulary: int
    window: int
    sliding: tuple[bool, ...]
    context_tokens: int  # the longest sequence that the positional encoding supports
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0  # YaRN's scaling factor; 1 or less is plain RoPE
    rope_beta_slow: float = 1.0  # frequencies with fewer rotations over the initial context are scaled fully
    rope_beta_fast: float = 32.0  # … and those with more are not scaled
    initial_context_tokens: int = 4096
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    norm_eps: float = 1e-5

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.sliding)

    def layer_window(self, layer: int) -> int | None:
        """Return the window of a layer in tokens, including the token itself, or None for full attention."""
        return self.window if self.sliding[layer] else None

    def shapes(self) -> Shapes:
        """Return the sizes that the kernels need."""
        return Shapes(
            hidden=self.hidden,
            intermediate=self.intermediate,
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            vocabulary=self.vocabulary,
            window=self.window,
            swiglu_limit=self.swiglu_limit,
            swiglu_alpha=self.swiglu_alpha,
            norm_eps=self.norm_eps,
        )


def gpt_oss(layers: int, experts: int) -> ModelConfig:
    """Return the published sizes; the two models differ only in layers and experts."""
    return ModelConfig(
        hidden=2880,
        intermediate=2880,
        query_heads=64,
        kv_heads=8,
        head_dim=64,
        experts=experts,
        experts_per_token=4,
        vocabulary=201_088,
        window=128,
        sliding=alternating(layers),
        context_tokens=131_072,
    )


def gpt_oss_20b() -> ModelConfig:
    """Return the sizes of gpt-oss-20b."""
    return gpt_oss(layers=24, experts=32)


def gpt_oss_120b() -> ModelConfig:
    """Return the sizes of gpt-oss-120b."""
    return gpt_oss(layers=36, experts=128)


def alternating(layers: int) -> tuple[bool, ...]:
    """Return gpt-oss's pattern: even layers (counted from 0) use a sliding window, odd ones full attention."""
    return tuple(layer % 2 == 0 for layer in range(layers))


def read_json(path: Path) -> Json:
    """Read a file with one JSON object. Raises CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: a checkpoint needs its {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def read_config(path: Path) -> ModelConfig:
    """Read a config.json of either form. Raises CheckpointError, which names the file and the wrong key."""
    data = read_json(path)
    try:
        return parse_config(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_config(data: Json) -> ModelConfig:
    """Read either form; only Hugging Face's has ``model_type``. Raises CheckpointError, which names the wrong key."""
    config = _hugging_face(data) if "model_type" in data else _original(data)
    return _checked(config)


def _original(data: Json) -> ModelConfig:
    _known(data, ORIGINAL_KEYS)
    factor = _number(data, "rope_scaling_factor")
    initial = _count(data, "initial_context_length")
    return ModelConfig(
        hidden=_count(data, "hidden_size"),
        intermediate=_count(data, "intermediate_size"),
        query_heads=_count(data, "num_attention_heads"),
        kv_heads=_count(data, "num_key_value_heads"),
        head_dim=_count(data, "head_dim", MOST_HEAD_DIM),
        experts=_count(data, "num_experts"),
        experts_per_token=_count(data, "experts_per_token"),
        vocabulary=_count(data, "vocab_size"),
        window=_count(data, "sliding_window"),
        sliding=alternating(_count(data, "num_hidden_layers", MOST_LAYERS)),
        context_tokens=int(initial * max(factor, 1.0)),
        rope_theta=_number(data, "rope_theta"),
        rope_factor=factor,
        rope_beta_slow=_number(data, "rope_ntk_alpha"),
        rope_beta_fast=_number(data, "rope_ntk_beta"),
        initial_context_tokens=initial,
        swiglu_limit=_number(data, "swiglu_limit", 7.0),
    )


def _hugging_face(data: Json) -> ModelConfig:
    if data["model_type"] != "gpt_oss":
        raise CheckpointError(f"model_type is {data['model_type']!r}: this runtime runs gpt_oss only")
    _known(data, HF_KEYS | HF_IGNORED)
    _fixed(data, "hidden_act", "silu")
    _fixed(data, "attention_bias", True)
    _fixed(data, "tie_word_embeddings", False)
    method = _object(data, "quantization_config", {"quant_method": "mxfp4"}).get("quant_method")
    if method != "mxfp4":
        raise CheckpointError(f"quantization_config.quant_method is {method!r}: only mxfp4 is supported")
    rope = _rope(data)
    layers = _count(data, "num_hidden_layers", MOST_LAYERS)
    config = ModelConfig(
        hidden=_count(data, "hidden_size"),
        intermediate=_count(data, "intermediate_size"),
        query_heads=_count(data, "num_attention_heads"),
        kv_heads=_count(data, "num_key_value_heads"),
        head_dim=_count(data, "head_dim", MOST_HEAD_DIM),
        experts=_count(data, "num_local_experts"),
        experts_per_token=_count(data, "num_experts_per_tok"),
        vocabulary=_count(data, "vocab_size"),
        window=_count(data, "sliding_window"),
        sliding=_layer_types(data.get("layer_types"), layers),
        context_tokens=_count(data, "max_position_embeddings"),
        rope_theta=_number(rope, "rope_theta"),
        rope_factor=_number(rope, "factor", 1.0),
        rope_beta_slow=_number(rope, "beta_slow", 1.0),
        rope_beta_fast=_number(rope, "beta_fast", 32.0),
        initial_context_tokens=_initial_context(data, rope),
        swiglu_limit=_number(data, "swiglu_limit", 7.0),
        swiglu_alpha=_number(data, "swiglu_alpha", 1.702),
        norm_eps=_number(data, "rms_norm_eps", 1e-5),
    )
    # The published files repeat these two under their names in the original form.
    _fixed(data, "experts_per_token", config.experts_per_token)
    _fixed(data, "initial_context_length", config.initial_context_tokens)
    return config


def _rope(data: Json) -> Json:
    """Return the RoPE settings, theta included: from ``rope_parameters`` (transformers 5) or from the older form."""
    scaling = _object(data, "rope_parameters", _object(data, "rope_scaling", {"rope_type": "default"}))
    rope = {"rope_theta": data.get("rope_theta", 150_000.0), **scaling}
    kind = rope.get("rope_type", rope.get("type"))
    known = {"rope_type", "type", "rope_theta", "factor", "beta_fast", "beta_slow", "truncate"}
    unknown = rope.keys() - known - {"original_max_position_embeddings"}
    if unknown:
        raise CheckpointError(f"unknown rope setting {sorted(unknown)[0]!r}")
    if kind == "default":
        return {"rope_theta": rope["rope_theta"]}
    if kind != "yarn":
        raise CheckpointError(f"rope type is {kind!r}: only yarn and default are supported")
    if rope.get("truncate", True) is not False:
        raise CheckpointError("rope setting truncate must be false: gpt-oss does not round the edges of YaRN's ramp")
    if "factor" not in rope:
        raise CheckpointError("rope setting factor is missing")
    return rope


def _initial_context(data: Json, rope: Json) -> int:
    if "original_max_position_embeddings" in rope:
        return _count(rope, "original_max_position_embeddings")
    if "factor" in rope:
        raise CheckpointError("rope setting original_max_position_embeddings is missing")
    return _count(data, "max_position_embeddings")


def _layer_types(value: object, layers: int) -> tuple[bool, ...]:
    if value is None:
        return alternating(layers)
    if not isinstance(value, list) or any(kind not in (SLIDING, FULL) for kind in value):
        raise CheckpointError(f"layer_types must be a list of {SLIDING} and {FULL}")
    if len(value) != layers:
        raise CheckpointError(f"layer_types has {len(value)} entries for {layers} layers")
    return tuple(kind == SLIDING for kind in value)


def _checked(config: ModelConfig) -> ModelConfig:
    """Raise CheckpointError for sizes that no gpt-oss model can have, so that kernels need not check them."""
    rules = (
        (config.query_heads % config.kv_heads == 0, "num_attention_heads must be a multiple of num_key_value_heads"),
        (config.head_dim % 2 == 0, "head_dim must be even"),
        (config.query_heads * config.head_dim <= MOST, f"num_attention_heads * head_dim must be at most {MOST}"),
        (config.hidden % 32 == 0, "hidden_size must be a multiple of 32 (an MXFP4 block)"),
        (config.intermediate % 32 == 0, "intermediate_size must be a multiple of 32 (an MXFP4 block)"),
        (config.experts_per_token <= config.experts, "more experts per token than experts"),
        (
            config.experts * config.intermediate * config.hidden <= MOST_WEIGHTS,
            "hidden_size, intermediate_size and the number of experts give more weights than any memory holds",
        ),
        (config.context_tokens <= MOST, f"initial_context_length * rope_scaling_factor must be at most {MOST}"),
        (config.rope_theta > 1.0, "rope_theta must be above 1"),
    )
    for holds, message in rules:
        if not holds:
            raise CheckpointError(message)
    return config


def _known(data: Json, keys: frozenset[str]) -> None:
    unknown = sorted(data.keys() - keys)
    if unknown:
        raise CheckpointError(f"unknown key {', '.join(map(repr, unknown))}: it might change what the model computes")


def _fixed(data: Json, key: str, value: object) -> None:
    if data.get(key, value) != value:
        raise CheckpointError(f"{key} is {data[key]!r}: only {value!r} is supported")


def _object(data: Json, key: str, default: Json) -> Json:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} is {value!r}: a JSON object is needed")
    return value


def _number(data: Json, key: str, default: float | None = None) -> float:
    value = data.get(key, default)
    if value is None:
        raise CheckpointError(f"key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_NUMBER:
        raise CheckpointError(f"{key} is {value!r:.40}: a positive number is needed")
    return float(value)


def _count(data: Json, key: str, most: int = MOST) -> int:
    value = _number(data, key)
    if value != int(value) or value > most:
        raise CheckpointError(f"{key} is {value!r}: a whole number of at most {most} is needed")
    return int(value)


def original_json(config: ModelConfig) -> dict[str, Any]:
    """Return the original form of a config. It cannot express another alpha, epsilon or pattern of windows."""
    return {
        "num_hidden_layers": config.layers,
        "num_experts": config.experts,
        "experts_per_token": config.experts_per_token,
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "sliding_window": config.window,
        "initial_context_length": config.initial_context_tokens,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.rope_factor,
        "rope_ntk_alpha": config.rope_beta_slow,
        "rope_ntk_beta": config.rope_beta_fast,
    }


def hugging_face_json(config: ModelConfig) -> dict[str, Any]:
    """Return the Hugging Face form of a config, like that of the published checkpoints."""
    harmony = config.vocabulary > 200_002  # a smaller vocabulary lacks harmony's special tokens
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "eos_token_id": 200_002 if harmony else None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "layer_types": [SLIDING if sliding else FULL for sliding in config.sliding],
        "max_position_embeddings": config.context_tokens,
        "num_attention_heads": config.query_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "num_local_experts": config.experts,
        "pad_token_id": 199_999 if harmony else None,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": config.rope_factor,
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "original_max_position_embeddings": config.initial_context_tokens,
            "truncate": False,
        },
        "rope_theta": config.rope_theta,
        "sliding_window": config.window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "vocab_size": config.vocabulary,
    }
