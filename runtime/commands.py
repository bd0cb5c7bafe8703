"""The commands of `python -m runtime`. Importing this module loads torch."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runtime.engine import Engine, EngineOptions, make_caches, open_engine
from runtime.errors import RequestRefused, RuntimeFault
from runtime.kernels.base import StepInputs
from runtime.kernels.open import open_kernels
from runtime.local import find_checkpoint, sizes_here
from runtime.model.checkpoint import load_weights, open_checkpoint
from runtime.model.config import ModelConfig, gpt_oss_20b, gpt_oss_120b
from runtime.model.memory import weights_bytes
from runtime.model.random_weights import random_weights
from runtime.model.tiny import tiny_config
from runtime.model.transformer import Transformer, build_transformer, forward, require_kernels
from runtime.request import Request, Sampling
from runtime.scheduler import Limits

PAGE_TOKENS = 64
MOST_DIGITS = 20  # of an id: int() raises for thousands of digits
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs: device, dtype and kernels."""

    device: torch.device
    dtype: torch.dtype
    kernels: str

    @staticmethod
    def choose(device: str | None, dtype: str | None, kernels: str) -> Place:
        """Fill in defaults: the first CUDA device, else the CPU; bf16 on a GPU, fp32 on the CPU."""
        try:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise RuntimeFault(f"--device {device}: there is no such device; use cpu, cuda or mps") from error
        match where.type:
            case "cuda":
                if not torch.cuda.is_available():
                    raise RuntimeFault(f"--device {device}: PyTorch finds no CUDA device here; use --device cpu")
                if (where.index or 0) > (last := torch.cuda.device_count() - 1):
                    raise RuntimeFault(f"--device {device}: the last CUDA device here is cuda:{last}")
            case "mps":
                if not torch.backends.mps.is_available():
                    raise RuntimeFault(f"--device {device}: PyTorch finds no Metal device here; use --device cpu")
            case "cpu":
                pass
            case _:
                raise RuntimeFault(f"--device {device}: the runtime does not support it; use cpu, cuda or mps")
        wide = where.type == "cpu" if dtype is None else dtype == "fp32"
        return Place(where, torch.float32 if wide else torch.bfloat16, kernels)


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a benchmark."""

    prompt_tokens: int
    tokens: int
    batch: int
    repeats: int


def open_model(place: Place, directory: Path, positions: int | None = None) -> Transformer:
    """Load a checkpoint, with progress on stderr if that is a terminal. Raises RuntimeFault."""
    checkpoint = open_checkpoint(directory)
    kernels = open_kernels(place.kernels, place.device)
    require_kernels(checkpoint.config, kernels)  # before gigabytes are loaded
    weights = load_weights(checkpoint, place.device, place.dtype, _show_progress if sys.stderr.isatty() else None)
    return build_transformer(checkpoint.config, weights, kernels, positions)


def read_ids(path: Path, vocabulary: int) -> list[int]:
    """Read token ids, one a line, from a file or (``-``) from stdin. Raises RequestRefused naming the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestRefused(f"{path} cannot be read as token ids: {error}") from error
    ids = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        if not stripped.isdecimal() or len(stripped) > MOST_DIGITS or int(stripped) >= vocabulary:
            raise RequestRefused(f"{path}, line {number}: {stripped[:40]!r} is not an id from 0 to {vocabulary - 1}")
        ids.append(int(stripped))
    if not ids:
        raise RequestRefused(f"{path} contains no token ids")
    return ids


def logits(place: Place, checkpoint: str, ids_path: Path, out: Path, chunk_tokens: int) -> None:
    """Write the fp32 logits [tokens, vocabulary] of a prompt as a .npy file, a chunk of rows at a time."""
    directory = find_checkpoint(checkpoint)
    config = open_checkpoint(directory).config
    ids = read_ids(ids_path, config.vocabulary)
    model = open_model(place, directory, positions=_window(config, len(ids)))
    part = out.with_name(out.name + ".part")
    try:
        found = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(ids), config.vocabulary))
        row = 0
        for rows in all_logits(model, ids, chunk_tokens):
            found[row : row + len(rows)] = rows.cpu().numpy()
            row += len(rows)
        found.flush()
        part.replace(out)
    except OSError as error:
        raise RequestRefused(f"--out {out} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def all_logits(model: Transformer, ids: Sequence[int], chunk_tokens: int) -> Iterator[torch.Tensor]:
    """Yield the logits of every token of one sequence, fp32 [chunk, V] at a time."""
    pages = -(-len(ids) // PAGE_TOKENS)
    caches = make_caches(model.config.layers, pages, model.shapes, PAGE_TOKENS, model.dtype, model.device)
    for start in range(0, len(ids), chunk_tokens):
        yield forward(model, one_sequence(ids[start : start + chunk_tokens], start, pages, model.device), caches)


def one_sequence(ids: Sequence[int], start: int, pages: int, device: torch.device) -> StepInputs:
    """Return a step that computes ``ids`` from position ``start`` of a sequence with pages 0, 1, …, and logits of every row."""
    count, end = len(ids), start + len(ids)
    positions = torch.arange(start, end, device=device)  # with pages in order, a token's slot is its position
    return StepInputs(
        token_ids=torch.tensor(ids, device=device),
        positions=positions.int(),
        slots=positions,
        query_start=torch.tensor([0, count], dtype=torch.int32, device=device),
        context_len=torch.tensor([end], dtype=torch.int32, device=device),
        page_table=torch.arange(pages, dtype=torch.int32, device=device)[None],
        sample_rows=torch.arange(count, device=device),
        max_query_len=count,
        max_context_len=end,
    )


def generate(
    place: Place,
    checkpoint: str,
    ids_path: Path,
    *,
    max_tokens: int,
    stop: frozenset[int],
    temperature: float,
    top_p: float,
    seed: int | None,
) -> None:
    """Continue a prompt and print one id per line as it is sampled; print the finish reason and the speed to stderr."""
    directory = find_checkpoint(checkpoint)
    config = open_checkpoint(directory).config
    prompt = tuple(read_ids(ids_path, config.vocabulary))
    window = _window(config, len(prompt) + max_tokens)
    request = Request("generate", prompt, max_tokens, stop, Sampling(temperature, top_p, seed))
    model = open_model(place, directory, positions=window)
    engine = _engine(model, sequences=1, tokens=window, graphs=False)
    engine.add(request)
    count, finish, began = 0, None, time.monotonic()
    while not engine.idle:
        for out in engine.step():
            if out.token is not None:
                count += 1
                print(out.token, flush=True)  # noqa: T201 - the command's output
            finish = out.finish
    spent = time.monotonic() - began
    print(f"{finish} after {count} tokens in {spent:.2f} s", file=sys.stderr)  # noqa: T201


def bench(place: Place, name: str, load: Load) -> None:
    """Time prefill and decode and print one JSON object: medians over the repeats, with the lowest and highest."""
    began = time.monotonic()
    window = load.prompt_tokens + load.tokens
    model = _bench_model(place, name, window)
    made_s = time.monotonic() - began
    engine = _engine(model, load.batch, window, graphs=True)
    rounds = [_timed(engine, model.config.vocabulary, load, number) for number in range(load.repeats + 1)][1:]
    prompts, decoded = load.batch * load.prompt_tokens, load.batch * (load.tokens - 1)
    report = {
        "model": name,
        "device": _device_name(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "kernels": model.kernels.name,
        "sizes": sizes_here(device=str(place.device)) if model.kernels.name == "triton" else None,
        "torch": torch.__version__,
        "batch": load.batch,
        "prompt_tokens": load.prompt_tokens,
        "decoded_tokens": load.tokens,
        "weights_gib": round(weights_bytes(model.config, place.dtype) / GIB, 2),
        "ready_s": round(made_s, 2),
        "prefill_tokens_per_s": _spread([prompts / prefill for prefill, _ in rounds]),
        "decode_tokens_per_s": _spread([decoded / decode for _, decode in rounds]) if decoded else None,
    }
    if place.device.type == "cuda":
        report["peak_gib"] = round(torch.cuda.max_memory_allocated(place.device) / GIB, 2)
        report["free_gib"] = round(torch.cuda.mem_get_info(place.device)[0] / GIB, 2)
    print(json.dumps(report, indent=2))  # noqa: T201 - the command's output


def _bench_model(place: Place, name: str, positions: int) -> Transformer:
    sizes = {"20b": gpt_oss_20b, "120b": gpt_oss_120b, "tiny": tiny_config}
    if name not in sizes:
        return open_model(place, find_checkpoint(name), positions)
    config = sizes[name]()
    _window(config, positions)
    kernels = open_kernels(place.kernels, place.device)
    return build_transformer(config, random_weights(config, place.device, place.dtype), kernels, positions)


def _timed(engine: Engine, vocabulary: int, load: Load, number: int) -> tuple[float, float]:
    """Run one load to its end; return the seconds until every sequence had its first token, and the seconds after that."""
    generator = torch.Generator().manual_seed(
        number
    )  # different prompts each time, so that the prefix cache has no effect
    for index in range(load.batch):
        prompt = torch.randint(0, vocabulary, (load.prompt_tokens,), generator=generator).tolist()
        engine.add(Request(f"{number}.{index}", tuple(prompt), load.tokens, sampling=Sampling(temperature=0.0)))
    started: set[str] = set()
    began = time.monotonic()
    first = began
    while not engine.idle:
        started.update(out.id for out in engine.step())
        if len(started) == load.batch and first == began:
            first = time.monotonic()
    return first - began, time.monotonic() - first


def _engine(model: Transformer, sequences: int, tokens: int, *, graphs: bool) -> Engine:
    """Return an engine whose cache holds exactly so many sequences of so many tokens."""
    config = model.config
    token_bytes = 2 * config.layers * config.kv_heads * config.head_dim * model.dtype.itemsize
    pages = sequences * -(-tokens // PAGE_TOKENS) + 2
    options = EngineOptions(
        page_tokens=PAGE_TOKENS,
        cache_bytes=pages * PAGE_TOKENS * token_bytes,
        limits=Limits(sequences=sequences, context_tokens=tokens),
        graphs=graphs,
    )
    return open_engine(model, options)


def _window(config: ModelConfig, tokens: int) -> int:
    if tokens > config.context_tokens:
        raise RequestRefused(f"{tokens} tokens are requested and the model's window is {config.context_tokens}")
    return tokens


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "lowest": round(min(values), 1),
        "highest": round(max(values), 1),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _show_progress(done_bytes: int, total_bytes: int) -> None:
    end = "\n" if done_bytes == total_bytes else ""
    text = f"\rloading {done_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB"
    print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201
