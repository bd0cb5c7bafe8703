"""Every kernel is compiled to machine code for the GPUs it is meant for, as the engine launches it, without one.

The interpreter that the other tests use knows no types, layouts or limits of a GPU; the compiler does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KERNELS = {
    *("_attend_kernel", "_choose_kernel", "_combine_kernel", "_down_kernel", "_gemv_kernel", "_grouped_kernel"),
    *("_norm_kernel", "_order_kernel", "_pair_kernel", "_route_kernel", "_sample_kernel", "_tiled_kernel"),
    *("_up_kernel", "_write_kernel"),
}


@pytest.mark.timeout(600)  # half a minute on an idle machine
@pytest.mark.parametrize(("capability", "shared_bytes"), [(80, 163 << 10), (90, 227 << 10)], ids=["A100", "H100"])
def test_every_kernel_compiles_and_fits(tmp_path: Path, capability: int, shared_bytes: int) -> None:
    # A cache of its own: what is compiled here is compiled from the code that is here.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.runtime.kernels.compile_all", str(capability)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    sizes = [(name, int(size)) for name, size in (line.split() for line in ran.stdout.splitlines())]
    assert {name for name, _ in sizes} == KERNELS
    assert max(size for _, size in sizes) <= shared_bytes, sizes
