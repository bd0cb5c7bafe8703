"""Work that is recorded once and then run again as a whole, because a step is hundreds of launches otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """Recorded work over fixed tensors: what it reads is changed in place before ``replay``.

    ``output`` holds the result until any graph of the same recorder is replayed or recorded: they share their memory.
    """

    @property
    def output(self) -> torch.Tensor:
        """The tensor that the work returned, rewritten by each replay."""

    def replay(self) -> None:
        """Run the work on what its tensors hold now."""


class Record(Protocol):
    """Runs work that reads nothing back to the host, and records it. One at a time, on one stream."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Return ``work`` as a graph."""

    def has_room(self) -> bool:
        """Whether the device has memory for graphs that nobody waits for."""


ROOM_BYTES = 384 << 20  # what a step may still need beside what it has needed so far


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: torch.Tensor) -> None:
        self._graph = graph
        self._output = output

    @property
    def output(self) -> torch.Tensor:
        return self._output

    def replay(self) -> None:
        self._graph.replay()


class CudaRecorder:
    """Records CUDA graphs on one device. They run one at a time in one stream's order, so all take one memory pool.

    What a graph holds on to beside the pool is its output, so that is kept small (tokens rather than logits) where it can be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle of the pool that the graphs share

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Record ``work`` after running it twice, to compile and to allocate outside of the recording."""
        current = torch.cuda.current_stream(self._device)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = work()
        self._pool = graph.pool()
        return _CudaGraph(graph, output)

    def has_room(self) -> bool:
        """Whether enough memory is free to do without a graph's."""
        return torch.cuda.mem_get_info(self._device)[0] > ROOM_BYTES
