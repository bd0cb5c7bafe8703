"""Tiny checkpoints shared by the tests of the runtime: written once, read by many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime.kernels.reference import reference_kernels
from runtime.model.checkpoint import load_weights, open_checkpoint
from runtime.model.tiny import write_tiny
from runtime.model.transformer import Transformer, build_transformer
from runtime.model.weights import Layout

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and threads that wait for each other on a busy machine lose a lot."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """The same tiny model in both layouts, Hugging Face's in three shards."""
    root = tmp_path_factory.mktemp("tiny")
    for layout in Layout:
        write_tiny(root / layout, layout, shards=3 if layout is Layout.HUGGING_FACE else 1)
    return {layout: root / layout for layout in Layout}


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoints: dict[Layout, Path]) -> Transformer:
    """The tiny model in fp32 over the reference kernels."""
    checkpoint = open_checkpoint(tiny_checkpoints[Layout.ORIGINAL])
    weights = load_weights(checkpoint, CPU, torch.float32)
    return build_transformer(checkpoint.config, weights, reference_kernels(), positions=512)
