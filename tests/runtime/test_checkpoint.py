"""Checkpoints: every tensor accounted for, errors that name it, bytes that arrive as they are."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import CheckpointError, DoesNotFit
from runtime.model import checkpoint as module
from runtime.model.checkpoint import INDEX, detect_layout, load_weights, open_checkpoint, save_weights
from runtime.model.config import gpt_oss_20b, gpt_oss_120b, original_json
from runtime.model.memory import weights_bytes
from runtime.model.tiny import tiny_config, tiny_weights, write_tiny
from runtime.model.weights import Layout, allocate, destinations, size_bytes, tensors

CPU = torch.device("cpu")
META = torch.device("meta")
Tensors = dict[str, torch.Tensor]

# A layer's names and shapes at the published sizes (20b), written out: the reader and the writer share one table.
ORIGINAL_LAYER = {
    "attn.norm.scale": [2880],
    "attn.qkv.weight": [5120, 2880],
    "attn.qkv.bias": [5120],
    "attn.sinks": [64],
    "attn.out.weight": [2880, 4096],
    "attn.out.bias": [2880],
    "mlp.norm.scale": [2880],
    "mlp.gate.weight": [32, 2880],
    "mlp.gate.bias": [32],
    "mlp.mlp1_weight.blocks": [32, 5760, 90, 16],
    "mlp.mlp1_weight.scales": [32, 5760, 90],
    "mlp.mlp1_bias": [32, 5760],
    "mlp.mlp2_weight.blocks": [32, 2880, 90, 16],
    "mlp.mlp2_weight.scales": [32, 2880, 90],
    "mlp.mlp2_bias": [32, 2880],
}
HF_LAYER = {
    "input_layernorm.weight": [2880],
    "self_attn.q_proj.weight": [4096, 2880],
    "self_attn.q_proj.bias": [4096],
    "self_attn.k_proj.weight": [512, 2880],
    "self_attn.k_proj.bias": [512],
    "self_attn.v_proj.weight": [512, 2880],
    "self_attn.v_proj.bias": [512],
    "self_attn.sinks": [64],
    "self_attn.o_proj.weight": [2880, 4096],
    "self_attn.o_proj.bias": [2880],
    "post_attention_layernorm.weight": [2880],
    "mlp.router.weight": [32, 2880],
    "mlp.router.bias": [32],
    "mlp.experts.gate_up_proj_blocks": [32, 5760, 90, 16],
    "mlp.experts.gate_up_proj_scales": [32, 5760, 90],
    "mlp.experts.gate_up_proj_bias": [32, 5760],
    "mlp.experts.down_proj_blocks": [32, 2880, 90, 16],
    "mlp.experts.down_proj_scales": [32, 2880, 90],
    "mlp.experts.down_proj_bias": [32, 2880],
}
PUBLISHED = {
    Layout.ORIGINAL: (
        "block.",
        ORIGINAL_LAYER,
        {"embedding.weight": [201088, 2880], "norm.scale": [2880], "unembedding.weight": [201088, 2880]},
    ),
    Layout.HUGGING_FACE: (
        "model.layers.",
        HF_LAYER,
        {
            "model.embed_tokens.weight": [201088, 2880],
            "model.norm.weight": [2880],
            "lm_head.weight": [201088, 2880],
        },
    ),
}


@pytest.mark.parametrize("layout", list(Layout))
def test_the_names_and_shapes_are_the_published_ones(layout: Layout) -> None:
    prefix, layer, rest = PUBLISHED[layout]
    expected = {f"{prefix}{n}.{name}": shape for n in range(24) for name, shape in layer.items()} | rest
    config = gpt_oss_20b()
    found = destinations(allocate(config, META, torch.bfloat16), config, layout)
    assert {name: list(tensor.shape) for name, tensor in found.items()} == expected


def test_the_sizes_in_bytes_are_the_published_ones() -> None:
    gib = 1 << 30
    assert weights_bytes(gpt_oss_20b(), torch.bfloat16) / gib == pytest.approx(12.8, abs=0.05)
    assert weights_bytes(gpt_oss_120b(), torch.bfloat16) / gib == pytest.approx(60.8, abs=0.05)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("shards", [1, 4])
def test_what_was_saved_is_loaded_bit_for_bit(layout: Layout, shards: int, tmp_path: Path) -> None:
    config = tiny_config()
    saved = tiny_weights(config, seed=7)
    save_weights(saved, config, tmp_path, layout, shards)
    opened = open_checkpoint(tmp_path)
    assert (opened.layout, opened.config) == (layout, config)
    loaded = load_weights(opened, CPU, torch.bfloat16)
    for before, after in zip(tensors(saved), tensors(loaded), strict=True):
        assert after.dtype is before.dtype
        assert torch.equal(before, after)


def test_every_tensor_of_the_model_is_filled(
    tiny_checkpoints: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load into poisoned memory: what the table forgets would stay poisoned."""

    def poisoned(*args: object) -> object:
        weights = allocate(*args)  # type: ignore[arg-type]
        for tensor in tensors(weights):
            tensor.fill_(255 if tensor.dtype is torch.uint8 else float("nan"))
        return weights

    monkeypatch.setattr(module, "allocate", poisoned)
    for directory in tiny_checkpoints.values():
        monkeypatch.setattr(module, "_account", lambda *_: None)
        weights = load_weights(open_checkpoint(directory), CPU, torch.float32)
        for tensor in tensors(weights):
            assert not tensor.is_floating_point() or not tensor.isnan().any()
        for layer in weights.layers:
            assert max(int(layer.up.scales.max()), int(layer.down.scales.max())) < 255


def test_both_layouts_hold_the_same_model(tiny_checkpoints: dict[Layout, Path]) -> None:
    loaded = [load_weights(open_checkpoint(path), CPU, torch.float32) for path in tiny_checkpoints.values()]
    for first, second in zip(*map(tensors, loaded), strict=True):
        assert torch.equal(first, second)


def test_dense_tensors_take_the_dtype_and_mxfp4_stays_bytes(tiny_checkpoints: dict[Layout, Path]) -> None:
    path = tiny_checkpoints[Layout.ORIGINAL]
    weights = load_weights(open_checkpoint(path), CPU, torch.float32)
    stored = load_file(path / "model.safetensors")
    layer = weights.layers[0]
    assert layer.qkv_weight.dtype is torch.float32
    assert layer.sinks.dtype is layer.attention_gain.dtype is weights.final_gain.dtype is torch.float32
    assert torch.equal(layer.up.blocks, stored["block.0.mlp.mlp1_weight.blocks"])
    assert torch.equal(layer.down.scales, stored["block.0.mlp.mlp2_weight.scales"])


def test_norms_and_sinks_may_be_stored_in_fp32(tmp_path: Path) -> None:
    def widen(found: Tensors) -> None:
        for name in found:
            if name.endswith(("norm.scale", "sinks")):
                found[name] = found[name].float()

    spoil(tmp_path, widen)
    assert load_weights(open_checkpoint(tmp_path), CPU, torch.bfloat16).final_gain.dtype is torch.float32


def test_progress_is_told_in_bytes_and_ends_at_the_total(tiny_checkpoints: dict[Layout, Path]) -> None:
    told: list[tuple[int, int]] = []
    weights = load_weights(
        open_checkpoint(tiny_checkpoints[Layout.HUGGING_FACE]), CPU, torch.bfloat16, lambda *step: told.append(step)
    )
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {total for _, total in told} == {size_bytes(weights)}
    assert told[-1] == (size_bytes(weights), size_bytes(weights))


def spoil(directory: Path, change: Callable[[Tensors], None], layout: Layout = Layout.ORIGINAL) -> None:
    """Write a tiny checkpoint whose tensors ``change`` has had in its hands."""
    write_tiny(directory, layout, tiny_config(layers=2))
    path = directory / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda found: found.__delitem__(name)


def put(name: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda found: found.__setitem__(name, tensor)


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    return lambda found: found.__setitem__(new, found.pop(old))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("block.1.attn.sinks"), r"1 of 33 tensors are missing: block\.1\.attn\.sinks"),
        (put("block.2.attn.sinks", torch.zeros(8)), r"not of this model \(2 layers\): block\.2\.attn\.sinks"),
        (
            put("block.0.attn.sinks", torch.zeros(9)),
            r"block\.0\.attn\.sinks has shape \[9\], the config asks for \[8\]",
        ),
        (put("block.0.attn.sinks", torch.zeros(8, dtype=torch.int32)), r"block\.0\.attn\.sinks is of type I32"),
        (
            put("block.0.mlp.mlp2_weight.scales", torch.zeros(8, 64, 4)),
            r"block\.0\.mlp\.mlp2_weight\.scales is of type F32, not U8",
        ),
        (
            rename("block.0.mlp.mlp1_weight.blocks", "block.0.mlp.mlp1_weight_blocks"),
            r"missing: block\.0\.mlp\.mlp1_weight",
        ),
        (put("lm_head.weight", torch.zeros(256, 64)), r"mixes two layouts: '.*' belongs to the original one, 'lm_head"),
    ],
    ids=["missing", "extra", "misshapen", "wrong type", "scales as floats", "wrong joiner", "mixed"],
)
def test_a_wrong_tensor_is_named(change: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    spoil(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_experts_that_are_not_mxfp4_are_said_to_be_so(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    spoil(tmp_path, put(name, torch.zeros(8, 64, 192)), Layout.HUGGING_FACE)
    with pytest.raises(CheckpointError, match=f"not in MXFP4 .*{name}"):
        open_checkpoint(tmp_path)


def test_a_scale_byte_of_255_is_refused(tmp_path: Path) -> None:
    name = "block.1.mlp.mlp1_weight.scales"
    spoil(tmp_path, lambda found: found[name][3, 5].fill_(255))
    with pytest.raises(CheckpointError, match=f"{name} .* scale byte of 255"):
        load_weights(open_checkpoint(tmp_path), CPU, torch.bfloat16)


def test_a_scale_byte_of_254_is_let_through(tmp_path: Path) -> None:
    spoil(tmp_path, lambda found: found["block.1.mlp.mlp1_weight.scales"].fill_(254))
    assert int(load_weights(open_checkpoint(tmp_path), CPU, torch.bfloat16).layers[1].up.scales.min()) == 254


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path, Layout.ORIGINAL)
    save_file({"norm.scale": torch.zeros(64)}, tmp_path / "another.safetensors")
    with pytest.raises(
        CheckpointError, match=r"norm\.scale is in another\.safetensors and again in model\.safetensors"
    ):
        open_checkpoint(tmp_path)


def test_a_shard_that_the_index_promises_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "weight_map must map names to files"),
        *((json.dumps({"weight_map": odd}), "weight_map must map names to files") for odd in (3, {"a": 3}, {"a": []})),
    ],
)
def test_an_unreadable_index_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(original_json(tiny_config())), encoding="utf-8")
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"index\.json.* {message}"):
        open_checkpoint(tmp_path)


HEADER = {"norm.scale": {"dtype": "BF16", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1 << 62]}}


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (1 << 60, b"{}"),
        ((1 << 64) - 1, b"{}"),
        (None, b""),
        (None, b"[" * 100_000),
        (None, json.dumps(HEADER).encode()),
        (None, json.dumps(HEADER).replace("BF16", "B16").encode()),
    ],
    ids=["2^60", "2^64", "none", "deep", "huge", "of no type"],
)
def test_a_header_that_lies_is_refused_at_once(length: int | None, header: bytes, tmp_path: Path) -> None:
    """Nothing is allocated for what a header says that is there."""
    (tmp_path / "config.json").write_text(json.dumps(original_json(tiny_config())), encoding="utf-8")
    size = struct.pack("<Q", len(header) if length is None else length)
    (tmp_path / "model.safetensors").write_bytes(size + header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        open_checkpoint(tmp_path)


def test_links_into_a_cache_are_followed_and_a_dangling_one_is_named(tmp_path: Path) -> None:
    """As the hub's client lays a snapshot out: every file is a link to a blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    write_tiny(blobs, shards=2)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert open_checkpoint(snapshot).directory == snapshot
    (blobs / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors cannot be read .* incomplete"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_a_torn_shard_is_named(keep: int, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .* download is incomplete"):
        open_checkpoint(tmp_path)


def test_folders_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors"):
        open_checkpoint(tmp_path)
    save_file({"wte.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tensor has a name that gpt-oss uses: wte\.weight"):
        detect_layout(["wte.weight"])


def test_an_impossible_ramp_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    write_tiny(tmp_path, Layout.ORIGINAL, replace(tiny_config(), rope_beta_slow=32.0))
    with pytest.raises(CheckpointError, match="YaRN's ramp"):
        open_checkpoint(tmp_path)


def test_weights_kept_under_original_are_found(tmp_path: Path) -> None:
    write_tiny(tmp_path / "original", Layout.ORIGINAL)
    assert open_checkpoint(tmp_path).directory == tmp_path / "original"


def test_what_does_not_fit_is_refused_before_anything_is_allocated(
    tiny_checkpoints: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DoesNotFit("no room")

    monkeypatch.setattr(module, "require_weights", refuse)
    monkeypatch.setattr(module, "allocate", lambda *_: pytest.fail("allocated"))
    opened = module.Checkpoint(tiny_checkpoints[Layout.ORIGINAL], tiny_config(), Layout.ORIGINAL, {})
    with pytest.raises(DoesNotFit):
        load_weights(opened, CPU, torch.bfloat16)


LOAD_AND_MEASURE = """
import resource, sys, torch
from pathlib import Path
from runtime.model.checkpoint import load_weights, open_checkpoint
opened = open_checkpoint(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
weights = load_weights(opened, torch.device("cpu"), torch.bfloat16)
print(peak() - before)
"""


def test_host_memory_is_bounded_by_the_weights_and_one_shard(tmp_path: Path) -> None:
    """Two of the shards hold half of the model each: were the first still mapped, growth would be twice the weights."""
    config = tiny_config(vocabulary=400_000, layers=1)
    write_tiny(tmp_path, Layout.ORIGINAL, config, shards=4)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    total = weights_bytes(config, torch.bfloat16)
    assert max(sizes) < 0.55 * total
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 1.75 * total
