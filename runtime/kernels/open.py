"""Choose the kernels for a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from runtime.errors import RuntimeFault
from runtime.kernels.base import Kernels
from runtime.kernels.reference import reference_kernels

NAMES = ("auto", "reference", "triton")
_LEAST_MAJOR = 8  # Ampere


def best_kernels(device: torch.device) -> tuple[str, str]:
    """Return the name of the fastest kernels that run on ``device``, and the reason."""
    if device.type != "cuda":
        return "reference", f"{device} is not a CUDA GPU"
    name = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    if major < _LEAST_MAJOR:
        return (
            "reference",
            f"{name} is too old for the Triton kernels (compute capability {major}.{minor}, and they need {_LEAST_MAJOR}.0)",
        )
    if find_spec("triton") is None:
        return "reference", "the package triton is not installed"
    return "triton", f"there is a CUDA GPU, {name}"


def open_kernels(
    name: str, device: torch.device, *, cache: Path | None = None, warn: Callable[[str], None] = warnings.warn
) -> Kernels:
    """Return the kernels called ``name`` for ``device``; ``auto`` chooses the fastest that run there.

    ``cache`` is the folder where `python -m runtime tune` saves the sizes it measured (None: the default one); ``warn`` is told
    of sizes there that cannot be used. Raises RuntimeFault if there are no such kernels or they do not run on the device.
    """
    match name:
        case "auto":
            return open_kernels(best_kernels(device)[0], device, cache=cache, warn=warn)
        case "reference":
            return reference_kernels()
        case "triton":
            return _open_triton(device, cache, warn)
        case _:
            raise RuntimeFault(f"there are no kernels called {name!r} for {device}: use one of {', '.join(NAMES)}")


def _open_triton(device: torch.device, cache: Path | None, warn: Callable[[str], None]) -> Kernels:
    """Import triton only when it is needed: it does not exist for macOS, and the import takes a second."""
    try:
        import triton

        from runtime.kernels.choice import choose, default_cache, look
        from runtime.kernels.fast import triton_kernels
    except ImportError as missing:
        raise RuntimeFault(
            "the Triton kernels need the package triton: pip install 'gpt-oss-agent[runtime]'"
        ) from missing
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise RuntimeFault(f"the Triton kernels do not run on {device}, only on CUDA GPUs: use 'reference'")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < _LEAST_MAJOR:
            raise RuntimeFault(
                f"the Triton kernels need compute capability 8.0 (Ampere) and {device} has {major}.{minor}: use 'reference'"
            )
        return triton_kernels(device, choose(look(device), cache or default_cache(), warn).tuning)
    return triton_kernels(device)
