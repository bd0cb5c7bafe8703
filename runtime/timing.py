"""Measures the time of work on a CUDA device and the error of its results: shared by `tune` and the benchmarks."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

# Relative L2 error in bf16 that a correct implementation stays below, by function of the kernels' record.
LIMITS: Mapping[str, float] = {
    "norm_qkv": 6e-3,
    "attend": 3e-2,
    "project": 6e-3,
    "route": 8e-3,
    "experts_up": 8e-3,
    "experts_down": 1.5e-2,
    "unembed": 6e-3,
}
GROUP_S = 2e-3  # approximate time of a group of replays
WARM_S = 0.03  # replays to warm up: a GPU lowers its clocks while a kernel is compiled


@dataclass(frozen=True)
class Timing:
    """Seconds per replay: the median of five groups, the fastest and the slowest."""

    median_s: float
    low_s: float
    high_s: float


def time_graph(work: Callable[[], object], replays: int = 20) -> Timing:
    """Capture ``work`` and time its replays."""
    group = stopwatch(work, replays)
    seconds = [group() for _ in range(5)]
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def stopwatch(work: Callable[[], object], replays: int | None = None) -> Callable[[], float]:
    """Capture ``work`` in a CUDA graph; return a function that replays it and returns the seconds per replay.

    ``replays`` None: as many as fit into about ``GROUP_S``.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    recorded = _Recorded(graph, work)
    until = time.monotonic() + WARM_S
    while time.monotonic() < until:
        recorded.seconds(1)
    count = replays or max(1, min(50, round(GROUP_S / recorded.seconds(1))))
    return lambda: recorded.seconds(count)


@dataclass(frozen=True)
class _Recorded:
    """A graph, and the work that it was recorded from, which keeps the tensors alive that the graph reads."""

    graph: torch.cuda.CUDAGraph
    work: Callable[[], object]

    def seconds(self, replays: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # likewise
        begin.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / replays


def distance(out: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the relative L2 distance; infinite if there is any NaN."""
    out, truth = out.double(), truth.double()
    value = float(((out - truth).norm() / truth.norm().clamp_min(1e-30)).item())
    return value if value == value else float("inf")


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside this context, new tensors are filled with NaN (integer ones with the largest integer)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
