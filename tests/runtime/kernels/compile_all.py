"""Compile every kernel for a GPU that need not be here, as the engine launches it: python -m tests.runtime.kernels.compile_all 90 232448

Whole steps run over tensors without memory, at the models' true shapes, so types, alignment and constants are the engine's own.
The second number is what a block of that GPU may have of shared memory, to which the sizes are fitted.
Prints a line for each compiled kernel: its name, its shared memory in bytes and the tokens of the step. A process of its own, because Triton is told at
import whether it interprets.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from runtime import batch
from runtime.batch import Counts
from runtime.engine import make_caches
from runtime.kernels import fast
from runtime.kernels.launch import Device, Tuning
from runtime.kernels.sizes import fitted
from runtime.model.config import ModelConfig, gpt_oss_20b, gpt_oss_120b
from runtime.model.transformer import build_transformer, forward
from runtime.model.weights import allocate

META = torch.device("meta")
PAGE = 64
REGISTERS = 65536  # of a block, on every GPU that the kernels run on
ALL_STEPS = (  # tokens, sequences, longest query, longest context
    (1, 1, 1, 131072),
    (2, 2, 1, 512),
    (8, 1, 8, 131072),
    (32, 32, 1, 512),
    (300, 3, 257, 2000),
    (2048, 1, 2048, 131072),
)
SOME_STEPS = (ALL_STEPS[0], ALL_STEPS[3], ALL_STEPS[4])  # every kernel at least once


class Driver:
    """As much of a driver as a launch that launches nothing asks for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def compile_steps(
    config: ModelConfig, steps: Sequence[tuple[int, int, int, int]], capability: int, tuning: Tuning, at: list[int]
) -> None:
    """Compile what the steps launch; ``at`` is told the tokens of each."""
    on = Device(132, capability >= 90, packed_decode=True, counters=torch.empty(1, device=META), tuning=tuning)
    fast.describe = lambda device, tuning: on
    config = dataclasses.replace(config, sliding=config.sliding[:2])
    model = build_transformer(config, allocate(config, META, torch.bfloat16), fast.triton_kernels(META))
    caches = make_caches(config.layers, 100, model.shapes, PAGE, torch.bfloat16, META)
    for tokens, sequences, query, context in steps:
        at[:] = [tokens]
        laid = batch.layout(Counts(tokens, sequences, -(-context // PAGE), sequences, query, context))
        buffer = torch.empty(laid.nbytes, dtype=torch.uint8, device=META)
        logits = forward(model, batch.step_inputs(buffer, laid), caches)
        sampling = batch.sampling_inputs(buffer, laid)
        model.kernels.sample(logits, sampling.temperature, sampling.uniform)


def main() -> None:
    capability, shared_bytes = (int(argument) for argument in sys.argv[1:])
    tuning = fitted(Tuning(), shared_bytes, REGISTERS)
    driver.set_active(Driver(capability))
    run, seen = JITFunction.run, set()
    at: list[int] = []

    def compiled(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert not warmup
        assert all(0 < size <= limit for size, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False)), grid
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            assert kernel.asm["cubin"]
            sys.stdout.write(f"{self.fn.__name__} {kernel.metadata.shared} {at[0]}\n")

    JITFunction.run = compiled
    if capability >= 90:
        compile_steps(gpt_oss_20b(), ALL_STEPS, capability, tuning, at)
        compile_steps(gpt_oss_120b(), SOME_STEPS, capability, tuning, at)
    else:
        compile_steps(gpt_oss_20b(), SOME_STEPS, capability, tuning, at)


if __name__ == "__main__":
    main()
