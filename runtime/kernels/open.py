"""Choose the kernels for a device."""

from __future__ import annotations

import torch

from runtime.errors import RuntimeFault
from runtime.kernels.base import Kernels
from runtime.kernels.reference import reference_kernels

NAMES = ("auto", "reference", "triton")


def open_kernels(name: str, device: torch.device) -> Kernels:
    """Return the record called ``name`` for ``device``; ``auto`` takes the fastest that runs there.

    Raises RuntimeFault when there is no such record or it does not run on the device.
    """
    match name:
        case "auto" | "reference":
            return reference_kernels()
        case _:
            raise RuntimeFault(f"there are no kernels called {name!r} for {device}: use one of {', '.join(NAMES)}")
