"""Coordinate descent over sizes: field by field, a candidate replaces the current value if it is clearly faster.

This module knows nothing about kernels, so its rules are tested with synthetic times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

GAIN = 0.005  # a candidate must be faster by this share: the noise of repeated measurements is 0.1 to 0.3 % on an H100

Sizes = Mapping[str, object]
"""A value for every field."""


class Left(Exception):
    """A candidate is skipped: it does not compile, does not fit, or computes a wrong result. The message says which."""


class Bench(Protocol):
    """Measures sizes on the kernels that one field affects."""

    def prepare(self, field: str, sizes: Sizes) -> None:
        """Compile the kernels that ``field`` affects with these sizes, and compare their results with the first sizes'. Raises Left."""

    def race(self, field: str, present: Sizes, candidate: Sizes) -> Sequence[tuple[float, float]]:
        """Time both alternately on what ``field`` affects: pairs of seconds (present, candidate), one per round. Raises Left."""


@dataclass(frozen=True, slots=True)
class Step:
    """The result for one field. ``tried`` maps a candidate to its time as a share of the current one's."""

    field: str
    before: object
    after: object
    tried: Mapping[object, float]
    left: Mapping[object, str]  # candidates that were skipped because of an error, and why
    skipped: int  # candidates that were not tried because the time was up


def descend(
    sizes: Sizes,
    candidates: Mapping[str, Sequence[object]],
    bench: Bench,
    *,
    limit_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Step, Sizes]]:
    """Yield the result for each field, in the order of ``candidates``, and the sizes after it.

    After ``limit_s`` no more candidates are tried. A field's first sizes must compile: an error of theirs is raised.
    """
    until = clock() + limit_s
    for field, values in candidates.items():
        before = sizes[field]
        tried: dict[object, float] = {}
        left: dict[object, str] = {}
        others = [value for value in values if value != before]
        if clock() < until:
            bench.prepare(field, sizes)
        skipped = 0
        for value in others:
            if clock() >= until:
                skipped += 1
                continue
            candidate = {**sizes, field: value}
            try:
                bench.prepare(field, candidate)
                tried[value] = share(bench.race(field, sizes, candidate))
            except Left as why:
                left[value] = str(why)
                continue
            if tried[value] < 1 - GAIN:
                sizes = candidate
        yield Step(field, before, sizes[field], tried, left, skipped), sizes


def share(rounds: Sequence[tuple[float, float]]) -> float:
    """Return the candidate's time as a share of the current one's: the median over rounds, which is robust against drift."""
    return statistics.median(candidate / present for present, candidate in rounds)
