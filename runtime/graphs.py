"""CUDA graphs: a step's work is recorded once and replayed as a whole, instead of hundreds of launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """Recorded work over fixed tensors: its inputs are changed in place before ``replay``.

    ``output`` is valid until any graph of the same recorder is replayed or recorded, because they share memory.
    """

    @property
    def output(self) -> torch.Tensor:
        """The tensor that the work returned, overwritten by each replay."""

    def replay(self) -> None:
        """Run the work on the current content of its tensors."""


class Record(Protocol):
    """Records work as graphs. The work must read nothing back to the host; one recording at a time, on one stream."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Return ``work`` as a graph."""

    def has_room(self) -> bool:
        """Whether the device has memory to spare for optional graphs."""


ROOM_BYTES = 384 << 20  # memory that later steps may still need, kept free


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
    """Records CUDA graphs on one device. They run one at a time on one stream, so all share one memory pool.

    Beside the pool each graph keeps its output, which should therefore be small: tokens rather than logits, where possible.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle of the pool that the graphs share

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        """Run ``work`` twice, so that compilation and allocation happen before the recording; then record it."""
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
        """Whether enough memory is free for one more graph."""
        return torch.cuda.mem_get_info(self._device)[0] > ROOM_BYTES
