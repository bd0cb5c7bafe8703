"""From a checkpoint's folder to a running engine, with sensible defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from runtime.engine import EngineOptions, open_engine
from runtime.errors import DoesNotFit
from runtime.kernels.open import best_kernels, open_kernels
from runtime.model.checkpoint import load_weights, open_checkpoint
from runtime.model.memory import GIB, weights_bytes
from runtime.model.transformer import build_transformer, require_kernels
from runtime.scheduler import Limits
from runtime.transformers_worker import TransformersWorker, open_transformers
from runtime.worker import Worker

SLOW_BYTES = 4 * GIB  # a CPU needs seconds to read this many bytes of weights


def find_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint. ``name`` is its path, or the name of a model that `agent models pull` downloaded.

    Raises CheckpointError if it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from runtime.model.hub import locate  # importing huggingface_hub takes half a second

    return locate(name)


def choose_device(device: str | None = None) -> torch.device:
    """Return the named device; for None the first CUDA device, or the CPU if there is none."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def kernels_here() -> tuple[str, str]:
    """Return the name of the kernels that ``auto`` chooses on this machine, and the reason."""
    return best_kernels(choose_device())


def sizes_here(cache: Path | None = None, device: str | None = None) -> str | None:
    """Say where the sizes of the Triton kernels on this machine come from; None if the Triton kernels do not run here.

    ``cache`` is the folder where `python -m runtime tune` saves what it measured (None: the default one).
    """
    where = choose_device(device)
    if best_kernels(where)[0] != "triton":
        return None
    from runtime.kernels.choice import choose, default_cache, look  # imports triton, which does not exist for macOS

    said: list[str] = []
    return "; ".join([choose(look(where), cache or default_cache(), said.append).source, *said])


def open_transformers_worker(
    name: str, *, device: str | None = None, context_tokens: int | None = None
) -> tuple[TransformersWorker, int]:
    """Do as ``open_worker`` does, with transformers instead of the engine. Raises ModuleNotFoundError if it is not installed."""
    where = choose_device(device)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    return open_transformers(find_checkpoint(name), where, dtype, context_tokens)


def open_worker(
    name: str,
    *,
    kernels: str = "auto",
    device: str | None = None,
    cache_bytes: int | None = None,
    context_tokens: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Worker, int]:
    """Load a checkpoint and start an engine for it; return its worker and the window in tokens.

    ``name`` is its folder, or the name of a downloaded model. ``kernels`` and ``cache`` are those of ``runtime.kernels.open``.
    A GPU computes in bf16, the CPU in fp32. The window is the model's, or what the engine's cache holds if that is less.
    ``progress`` is called with (bytes loaded, total bytes), ``warn`` if a real model runs on the CPU or sizes in ``cache`` cannot
    be used. Raises CheckpointError, DoesNotFit or another RuntimeFault.
    """
    where = choose_device(device)
    dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    checkpoint = open_checkpoint(find_checkpoint(name))
    size = weights_bytes(checkpoint.config, dtype)
    if where.type == "cpu" and size > SLOW_BYTES:
        warn(
            f"no CUDA device was found, so {size / GIB:.1f} GiB of weights run on the CPU, in the reference kernels, which are made "
            "for correctness: expect seconds per token, and hours per run. To use this model, take a GPU with 16 GiB, or a server "
            "made for CPUs (llama.cpp, Ollama)"
        )
    chosen = open_kernels(kernels, where, cache=cache, warn=warn)
    if kernels == "auto" and where.type == "cuda" and chosen.name == "reference":
        warn(f"the reference kernels run, which are made for correctness, not speed: {best_kernels(where)[1]}")
    require_kernels(checkpoint.config, chosen)  # before gigabytes are loaded
    window = min(checkpoint.config.context_tokens, context_tokens or checkpoint.config.context_tokens)
    try:
        weights = load_weights(checkpoint, where, dtype, progress)
        model = build_transformer(checkpoint.config, weights, chosen, window)
        engine = open_engine(model, EngineOptions(cache_bytes=cache_bytes, limits=Limits(context_tokens=window)))
    except torch.OutOfMemoryError as error:  # another process took memory after it was counted as free
        raise DoesNotFit(
            f"{where} ran out of memory while {size / GIB:.1f} GiB of weights and a cache were loaded: free memory on it "
            f"(nvidia-smi lists the processes that use it), ask for a shorter window, or use a smaller model ({error})"
        ) from error
    pool = engine.scheduler.pool
    return Worker(engine), min(window, pool.total * pool.page_tokens)
