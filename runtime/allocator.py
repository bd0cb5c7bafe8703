"""Configures PyTorch's CUDA allocator to use expandable segments. Must run before PyTorch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

EXPANDABLE = "expandable_segments:True"
# The name since torch 2.9, and the older one, which the CUDA allocator still reads first.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def prepare_allocator(environment: MutableMapping[str, str] | None = None) -> None:
    """Turn on expandable segments, in addition to the user's own settings; an explicit setting of the user's is kept.

    Without them, a model that fills most of the device can fail because of fragmentation. Must be called before torch is
    imported: the allocator reads the environment (``os.environ`` by default) once.
    """
    variables = os.environ if environment is None else environment
    named = [name for name in VARIABLES if variables.get(name)]
    for name in named or VARIABLES[:1]:
        settings = variables.get(name, "")
        if "expandable_segments" not in settings:
            variables[name] = ",".join(filter(None, (settings, EXPANDABLE)))
