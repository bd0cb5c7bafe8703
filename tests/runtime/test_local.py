"""From a folder to a running engine: what is said where that goes slowly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime import local
from runtime.errors import DoesNotFit
from runtime.local import open_worker
from runtime.model.weights import Layout


def test_a_real_model_on_a_cpu_is_said_to_be_slow(
    tiny_checkpoints: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = str(tiny_checkpoints[Layout.ORIGINAL])
    open_worker(folder, device="cpu", cache_bytes=4 << 20, context_tokens=256, warn=said.append)[0].close()
    assert said == []
    monkeypatch.setattr(local, "SLOW_BYTES", 0)
    open_worker(folder, device="cpu", cache_bytes=4 << 20, context_tokens=256, warn=said.append)[0].close()
    assert len(said) == 1
    assert "expect seconds per token" in said[0]


def test_a_device_that_fills_up_under_way_is_said_in_a_line(
    tiny_checkpoints: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free when it was counted, taken when it was asked for: torch's own error does not reach the caller."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(local, "load_weights", full)
    with pytest.raises(DoesNotFit, match=r"ran out of memory while 0\.0 GiB of weights.*nvidia-smi.*1\.00 GiB"):
        open_worker(str(tiny_checkpoints[Layout.ORIGINAL]), device="cpu")
