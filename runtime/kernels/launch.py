"""How kernels are launched: the properties of the device, and programmatic dependent launch.

On Hopper and later every kernel is launched as a *programmatic dependent* of the previous one: its blocks start while the
previous kernel drains, load their weights into registers, and only then wait for it. Two rules make that safe:

1. before ``wait`` a kernel writes nothing, and reads nothing that its direct predecessor writes;
2. a kernel releases its dependent only after its own ``wait``. So when a kernel runs, everything before its direct predecessor
   has finished, and may be read before ``wait``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.errors import OutOfResources, PTXASError

REFUSED = (CompilationError, OutOfResources, PTXASError)
"""What Triton raises if a kernel cannot be compiled with the given sizes, or its blocks need more than the device has."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes that affect only speed. The defaults are the fastest known on an H100 and an H200, and reasonable elsewhere.

    They made whole steps faster: kernels alone mislead, because the registers of one decide how many blocks of the next can start early.
    """

    route: tuple[int, int] = (1, 4)  # rows of the router per block, warps
    gemv: tuple[int, int] = (4, 255)  # rows of a bf16 weight per block, most registers per thread
    wide_gemv: tuple[int, int] = (2, 128)  # the same for rows of more than three tiles
    up: tuple[int, int] = (4, 80)  # rows of an expert's first matrix per warp, registers
    down: tuple[int, int] = (2, 168)
    gemv_tokens: int = 2  # tokens up to which dense products are gemvs
    pair_tokens: int = 8  # tokens up to which expert products are gemvs
    decode: tuple[int, int, int] = (128, 8, 4)  # keys per step of decode attention, warps for one step and for several
    decode_splits: int = 32  # most parts of a context
    decode_waves: int = 2  # blocks per SM that splitting aims at
    prompt_waves: int = 8  # the same for a prompt after a long context
    prompt: tuple[int, int, int] = (128, 4, 128)  # keys per step of prompt attention, warps, query rows per block
    tiled: tuple[int, int, int, int] = (32, 128, 4, 5)  # rows, step, warps, stages of dense products on tensor cores
    # Experts on tensor cores, for few, some and many pairs per expert: tokens, columns, step, warps, stages, registers.
    batch_tile: tuple[int, int, int, int, int, int] = (16, 128, 128, 4, 3, 168)
    batch_down: tuple[int, int, int, int, int, int] = (16, 64, 128, 2, 3, 168)  # the same for the second matrix
    chunk_tile: tuple[int, int, int, int, int, int] = (64, 128, 64, 4, 3, 128)
    prompt_tile: tuple[int, int, int, int, int, int] = (128, 128, 64, 8, 3, 255)


@dataclass(frozen=True, slots=True)
class Device:
    """What the kernels need to know about the device, and the counters that tell a block that it is the last one of its launch.

    ``counters`` are zero between launches: the last block resets its counter. Only one stream at a time may use them.
    """

    processors: int
    dependent_launch: bool
    packed_decode: bool  # decode MXFP4 two values at a time in PTX; otherwise in plain Triton (the interpreter)
    counters: torch.Tensor  # int32 zeros
    tuning: Tuning

    def options(self, warps: int, stages: int = 1, registers: int = 255) -> dict[str, int | bool]:
        """Return the keyword arguments of a launch."""
        options: dict[str, int | bool] = {"num_warps": warps, "num_stages": stages, "DEPENDENT": self.dependent_launch}
        options["enable_fp_fusion"] = True  # the default up to Triton 3.9, which warns that it will change
        if registers < 255:
            options["maxnreg"] = registers
        if self.dependent_launch:
            options["launch_pdl"] = True
        return options


COUNTERS = 1 << 16


def describe(device: torch.device, tuning: Tuning | None = None) -> Device:
    """Return the properties of a device. On the CPU the kernels run only under TRITON_INTERPRET=1."""
    counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    tuning = tuning or Tuning()
    if device.type != "cuda":
        return Device(processors=4, dependent_launch=False, packed_decode=False, counters=counters, tuning=tuning)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        processors=properties.multi_processor_count,
        dependent_launch=properties.major >= 9,
        packed_decode=properties.major >= 8,
        counters=counters,
        tuning=tuning,
    )


@triton.jit
def wait_and_release(DEPENDENT: tl.constexpr):
    """Wait for the previous kernel, then let the next one start."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
