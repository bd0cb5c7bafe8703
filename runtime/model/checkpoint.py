"""Checkpoints in safetensors: located, checked tensor by tensor, streamed to a device, and written.

Every name, shape and type is checked in the headers before anything is loaded. Shards are memory-mapped one at a time, and each
tensor is copied straight to its place on the device, so the host holds at most one shard. MXFP4 bytes are not converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from runtime.errors import CheckpointError
from runtime.model.config import ModelConfig, hugging_face_json, original_json, read_config, read_json
from runtime.model.memory import require_weights
from runtime.model.rope import inverse_frequencies
from runtime.model.weights import Layout, Weights, allocate, destinations

# Called with (bytes on the device so far, total bytes).
Progress = Callable[[int, int], None]

SCALE_NAN = 255  # NaN in the OCP format: no trained weight has it
DENSE_TYPES = frozenset({"BF16", "F16", "F32"})
ORIGINAL_PREFIXES = ("block.", "embedding.", "unembedding.", "norm.")
HUGGING_FACE_PREFIXES = ("model.", "lm_head.")
INDEX = "model.safetensors.index.json"
NAMES_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's shard, and its shape and type according to the header."""

    shard: Path
    shape: tuple[int, ...]
    kind: str  # the type's name in safetensors: BF16, U8 …


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose tensors were all found, with the right shapes and types."""

    directory: Path
    config: ModelConfig
    layout: Layout
    entries: Mapping[str, Entry]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the config and all headers in a checkpoint's folder and check every tensor.

    If the weights are only in the subfolder ``original/``, that is used. Raises CheckpointError, which names the file, key
    or tensor that is missing, unexpected, of a wrong shape or type, duplicated, or of the other layout.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a folder: a checkpoint is a folder with config.json and *.safetensors"
        )
    shards = sorted(directory.glob("*.safetensors"))
    if not shards and (directory / "original").is_dir():
        return open_checkpoint(directory / "original")
    if not shards:
        raise CheckpointError(
            f"{directory} has no *.safetensors: it is not a checkpoint, or nothing was downloaded yet"
        )
    config = read_config(directory / "config.json")
    inverse_frequencies(config)  # raises for an impossible YaRN ramp, before gigabytes are loaded
    _check_index(directory, shards)
    entries = _headers(shards)
    layout = detect_layout(entries)
    _account(entries, config, layout)
    return Checkpoint(directory, config, layout, entries)


def detect_layout(names: Collection[str]) -> Layout:
    """Return the layout according to the tensor names. Raises CheckpointError for a mix of both, or neither."""
    original = next((name for name in names if name.startswith(ORIGINAL_PREFIXES)), None)
    hugging_face = next((name for name in names if name.startswith(HUGGING_FACE_PREFIXES)), None)
    match original, hugging_face:
        case str(), str():
            raise CheckpointError(
                f"the checkpoint mixes two layouts: {original!r} belongs to the original one, {hugging_face!r} to Hugging "
                "Face's. Keep only the shards of one of them in the folder"
            )
        case str(), None:
            return Layout.ORIGINAL
        case None, str():
            return Layout.HUGGING_FACE
        case _:
            raise CheckpointError(f"no tensor has a name that gpt-oss uses: {_some(names)}")


def load_weights(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, progress: Progress | None = None
) -> Weights:
    """Load a checkpoint to a device: dense tensors in ``dtype``, gains and sinks in fp32, MXFP4 unchanged.

    Raises DoesNotFit before anything is allocated, and CheckpointError for a shard that cannot be read or an MXFP4
    scale of 255.
    """
    require_weights(checkpoint.config, device, dtype)
    weights = allocate(checkpoint.config, device, dtype)
    into = destinations(weights, checkpoint.config, checkpoint.layout)
    total = sum(tensor.nbytes for tensor in into.values())
    done = 0
    for shard in sorted({entry.shard for entry in checkpoint.entries.values()}):
        with _reading(shard), safe_open(shard, framework="pt") as file:
            for name in (name for name, entry in checkpoint.entries.items() if entry.shard == shard):
                target = into[name]
                target.copy_(file.get_tensor(name))
                if name.endswith("scales") and int(target.max()) == SCALE_NAN:
                    raise CheckpointError(
                        f"{name} in {shard.name} has a scale byte of 255, which is not a number: the file is damaged"
                    )
                done += target.nbytes
                if progress is not None:
                    progress(done, total)
    return weights


def save_weights(weights: Weights, config: ModelConfig, directory: Path, layout: Layout, shards: int = 1) -> None:
    """Write a checkpoint like the published ones: dense tensors in bf16, with an index if there are several shards."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {
        name: (tensor if tensor.dtype is torch.uint8 else tensor.to(torch.bfloat16)).cpu().clone()
        for name, tensor in destinations(weights, config, layout).items()
    }
    form = original_json(config) if layout is Layout.ORIGINAL else hugging_face_json(config)
    (directory / "config.json").write_text(json.dumps(form, indent=2) + "\n", encoding="utf-8")
    names = sorted(found)
    places: dict[str, str] = {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: found[name] for name in names[number::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in found.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _check_index(directory: Path, shards: list[Path]) -> None:
    """Raise CheckpointError for shards that are in the index but not in the folder: clearer than a list of hundreds of tensors."""
    path = directory / INDEX
    if not path.exists():
        return
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{path} cannot be read as an index of shards: weight_map must map names to files")
    missing = set(places.values()) - {shard.name for shard in shards}
    if missing:
        raise CheckpointError(f"{directory} lacks {_some(missing)}, which {INDEX} names: the download is incomplete")


def _headers(shards: list[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for shard in shards:
        with _reading(shard), safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in entries:
                    raise CheckpointError(f"{name} is in {entries[name].shard.name} and again in {shard.name}")
                header = file.get_slice(name)
                entries[name] = Entry(shard, tuple(header.get_shape()), header.get_dtype())
    return entries


def _account(entries: Mapping[str, Entry], config: ModelConfig, layout: Layout) -> None:
    expected = destinations(allocate(config, torch.device("meta"), torch.bfloat16), config, layout)
    missing, extra = expected.keys() - entries.keys(), entries.keys() - expected.keys()
    if any(name.endswith(("gate_up_proj", "down_proj")) for name in extra):
        raise CheckpointError(
            f"the experts are not in MXFP4 ({_some(extra)}): take the published checkpoint, or quantise this one"
        )
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}")
    if extra:
        raise CheckpointError(f"{len(extra)} tensors are not of this model ({config.layers} layers): {_some(extra)}")
    for name, tensor in expected.items():
        entry = entries[name]
        if entry.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} has shape {list(entry.shape)}, the config asks for {list(tensor.shape)} ({entry.shard.name})"
            )
        allowed = {"U8"} if tensor.dtype is torch.uint8 else DENSE_TYPES
        if entry.kind not in allowed:
            raise CheckpointError(f"{name} is of type {entry.kind}, not {' or '.join(sorted(allowed))}")


@contextmanager
def _reading(shard: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{shard} cannot be read ({error}): it is damaged or its download is incomplete"
        ) from error


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
