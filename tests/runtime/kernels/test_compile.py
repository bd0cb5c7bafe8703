"""Every kernel is compiled to machine code for the GPUs it is meant for, as the engine launches it, without one.

The interpreter that the other tests use knows no types, layouts or limits of a GPU; the compiler does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.kernels.launch import Tuning
from runtime.kernels.sizes import fitted, shared_bytes
from tests.runtime.kernels.compile_all import REGISTERS

UNEMBED_BYTES = 96 << 10  # of the tile that dense.py has for very many rows
SMALL_BYTES = 16 << 10  # of kernels without a size
ROOT = Path(__file__).resolve().parents[3]
KERNELS = {
    *("_attend_kernel", "_choose_kernel", "_combine_kernel", "_down_kernel", "_gemv_kernel", "_grouped_kernel"),
    "_merge_kernel",
    *("_norm_kernel", "_order_kernel", "_pair_kernel", "_route_kernel", "_sample_kernel", "_tiled_kernel"),
    *("_up_kernel", "_write_kernel"),
}


GPUS = {  # capability, and what a block can have of shared memory
    "A100": (80, 163 << 10),
    "RTX 3090": (86, 99 << 10),
    "RTX 4090": (89, 99 << 10),
    "H100": (90, 227 << 10),
    "RTX 5090": (120, 99 << 10),
}


@pytest.mark.timeout(600)  # a quarter of a minute each on an idle machine, the H100 half a minute
@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles_and_fits(tmp_path: Path, gpu: str) -> None:
    capability, shared = GPUS[gpu]
    # A cache of its own: what is compiled here is compiled from the code that is here.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.runtime.kernels.compile_all", str(capability), str(shared)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "Warning" not in ran.stderr, ran.stderr[-4000:]
    launches = [(name, int(size), int(tokens)) for name, size, tokens in map(str.split, ran.stdout.splitlines())]
    assert {name for name, _, _ in launches} == KERNELS
    tuning = fitted(Tuning(), shared, REGISTERS)
    for name, size, tokens in launches:
        assert size <= bound(name, tokens, tuning) <= shared, (name, size, tokens)


def bound(name: str, tokens: int, tuning: Tuning) -> int:
    """What sizes.py takes a kernel's block to need, in a step of so many tokens."""
    match name:
        case "_grouped_kernel":
            if tokens <= 128:
                return max(needed("batch_tile", tuning), needed("batch_down", tuning))
            return needed("chunk_tile" if tokens <= 512 else "prompt_tile", tuning)
        case "_attend_kernel":
            return needed("decode" if tokens in {1, 2, 32} else "prompt", tuning)
        case "_tiled_kernel":
            return max(needed("tiled", tuning), UNEMBED_BYTES)
        case _:
            return SMALL_BYTES


def needed(field: str, tuning: Tuning) -> int:
    return shared_bytes(field, getattr(tuning, field))
