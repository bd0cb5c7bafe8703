"""PyTorch's allocator is told to grow its segments, before PyTorch is loaded and reads the setting."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

EXPANDABLE = "expandable_segments:True"
# The name since torch 2.9, and the one before it, which the CUDA allocator still looks at first.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def prepare_allocator(environment: MutableMapping[str, str] | None = None) -> None:
    """Ask for expandable segments, next to whatever the person set; what they said of them themselves stays.

    Without them a model that fills most of the device fails on memory that is free but in pieces. To be called before
    torch is imported: the allocator reads the environment (``os.environ`` by default) once.
    """
    variables = os.environ if environment is None else environment
    named = [name for name in VARIABLES if variables.get(name)]
    for name in named or VARIABLES[:1]:
        settings = variables.get(name, "")
        if "expandable_segments" not in settings:
            variables[name] = ",".join(filter(None, (settings, EXPANDABLE)))
