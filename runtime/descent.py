"""Coordinate descent over sizes: each field in turn takes the candidate that is faster than the present choice beyond doubt.

Nothing here knows what a kernel is, so the rules are tested with made-up times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

GAIN = 0.01  # a candidate must be faster by this share of the time: what repeated measurements differ by

Sizes = Mapping[str, object]
"""A value for every field."""


class Left(Exception):
    """A candidate is left out: it does not compile, does not fit, or computes something else. The message says which."""


class Bench(Protocol):
    """Measures sizes on what one field touches."""

    def prepare(self, field: str, sizes: Sizes) -> None:
        """Compile what ``field`` touches with these sizes, and compare its results with the first sizes'. Raises Left."""

    def race(self, field: str, present: Sizes, candidate: Sizes) -> Sequence[tuple[float, float]]:
        """Time both in turns, on what ``field`` touches: pairs of seconds (present, candidate), one a round. Raises Left."""


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one field. ``tried`` maps a candidate to the share of the present time that it took."""

    field: str
    before: object
    after: object
    tried: Mapping[object, float]
    left: Mapping[object, str]  # candidates that were left out, and why
    skipped: int  # candidates that there was no time for


def descend(
    sizes: Sizes,
    candidates: Mapping[str, Sequence[object]],
    bench: Bench,
    *,
    limit_s: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Step, Sizes]]:
    """Yield what became of each field, in the order of ``candidates``, and the sizes after it.

    After ``limit_s`` nothing more is tried. A field's first sizes must compile: what is raised for them is passed on.
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
    """Return the candidate's time as a share of the present one's: the median over rounds, so that drift does not decide."""
    return statistics.median(candidate / present for present, candidate in rounds)
