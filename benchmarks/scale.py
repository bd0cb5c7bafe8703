"""How many endpoints and workers a large batch needs: a simulation of what was measured.

    python -m benchmarks.scale [--tasks 10000] [--start-s S] [--turn-s S] [--repeats 2]

An endpoint is the bundled engine on one H100: how fast it decodes is a curve over the streams in a step, and each stream's
context costs more, by what batch 1 costs more at 32k than at 1k; a prompt's new tokens stop the others for as long as they
take; streams whose contexts do not fit the cache wait, and where the contexts of all its workers do not, that part of the
requests is read again from its first token. Those numbers are measured ones (benchmarks/RESULTS.md says of when). A worker starts a task
(``--start-s``), then asks and works in turn (``--turn-s`` and a tool's time): both as benchmarks/batch.py measures them. What no
benchmark can say stands in ``World``: how many turns a task takes, how long answers, results and tools are.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

CORES, MEMORY_GIB = 64, 256  # of one machine for workers


@dataclass(frozen=True, slots=True)
class Card:
    """A checkpoint on one H100 80GB, as measured."""

    name: str
    decode: Sequence[tuple[int, float]]  # streams in a step → tokens a second of all, contexts of 1k
    prefill: Sequence[tuple[int, float]]  # new tokens → seconds
    context_s: float  # what a step costs more for each token of each context beyond 1k
    cache_tokens: int

    def step_s(self, streams: int, contexts: int) -> float:
        """Seconds of a step for so many streams, whose contexts have so many tokens together."""
        return streams / between(self.decode, streams) + max(0, contexts - 1024 * streams) * self.context_s

    def prefill_s(self, tokens: float) -> float:
        """Seconds for so many new tokens; beyond what was measured, as the last stretch."""
        (x0, y0), (x1, y1) = self.prefill[-2:]
        return between(self.prefill, tokens) + max(0.0, tokens - x1) * (y1 - y0) / (x1 - x0)


# 20b: the engine at temperature 1; its cache is what 20b's weights leave, at two thirds of 120b's bytes a token.
SMALL = Card(
    "20b",
    ((1, 617), (8, 1560), (32, 4468), (64, 8184)),
    ((300, 0.0233), (2048, 0.0392), (8192, 0.1214)),
    (1 / 514 - 1 / 617) / (32_768 - 1024),
    1_250_000,
)
# 120b: the engine at batch 1, the kernels alone above it and for prompts.
LARGE = Card(
    "120b",
    ((1, 405), (8, 1057), (32, 1455), (64, 2130)),
    ((300, 300 / 6029), (2048, 2048 / 25_077), (8192, 8192 / 32_218)),
    (1 / 347 - 1 / 405) / (32_768 - 1024),
    229_696,
)


def between(points: Sequence[tuple[int, float]], at: float) -> float:
    """The value at a place, on straight lines between the points; outside, as at the nearest."""
    place = bisect_right([x for x, _ in points], at)
    if place in (0, len(points)):
        return points[min(place, len(points) - 1)][1]
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class World:
    """What a task is. Medians and means of what people report for tasks of SWE-bench's kind, not measured here."""

    turns: float = 40  # median; log-normal, sigma 0.5
    answer_tokens: float = 400  # mean; exponential
    result_tokens: float = 600  # mean of what a turn adds to the prompt; exponential
    first_tokens: int = 5_000
    most_tokens: int = 120_000  # then the context is folded up
    tool_s: float = 2.0  # mean; exponential


@dataclass(slots=True)
class Stream:
    """One request."""

    worker: Worker
    tokens: float
    new_tokens: float
    asked_s: float

    @property
    def context(self) -> int:
        """Tokens of its prompt."""
        return self.worker.context


@dataclass(slots=True)
class Worker:
    """One attempt at a time, one request at a time."""

    endpoint: Endpoint
    turns_left: int = 0
    context: int = 0


@dataclass(slots=True)
class Endpoint:
    """Streams that share a card: each advances as fast as every other, so one clock in tokens serves all."""

    card: Card
    most_streams: int = 64
    clock: float = 0.0  # tokens that a stream which was always there would have
    now_s: float = 0.0
    stalled_s: float = 0.0  # decoding rests until then, for prompts
    contexts: int = 0  # of those that run
    held: int = 0  # of all its workers
    running: list[tuple[float, int, Stream]] = field(default_factory=list)
    waiting: deque[Stream] = field(default_factory=deque)
    version: int = 0  # of the forecast
    busy_s: float = 0.0
    tokens: float = 0.0

    def advance(self, now_s: float) -> None:
        """Let time pass."""
        if self.running:
            worked_s = max(0.0, now_s - max(self.now_s, self.stalled_s))
            self.clock += worked_s / self.card.step_s(len(self.running), self.contexts)
            self.busy_s += now_s - self.now_s
        self.now_s = now_s

    def take(self, number: int) -> None:
        """Let in who waits, as far as streams and cache go."""
        while self.waiting and len(self.running) < self.most_streams:
            if self.running and self.contexts + self.waiting[0].context > self.card.cache_tokens:
                return
            stream = self.waiting.popleft()
            self.stalled_s = max(self.stalled_s, self.now_s) + self.card.prefill_s(stream.new_tokens)
            self.contexts += stream.context
            heapq.heappush(self.running, (self.clock + stream.tokens, number, stream))

    def next_end_s(self) -> float:
        """When the next stream ends if nothing else happens."""
        step_s = self.card.step_s(len(self.running), self.contexts)
        return max(self.now_s, self.stalled_s) + max(0.0, self.running[0][0] - self.clock) * step_s


@dataclass(frozen=True, slots=True)
class Result:
    """What a batch took."""

    hours: float
    busy: float  # part of the time in which endpoints worked at all
    tokens_per_s: float  # of one endpoint, while the batch ran
    waited_s: float  # mean time of a request, from asking to the last token


def simulate(
    card: Card, world: World, tasks: int, workers: int, endpoints: int, start_s: float, turn_s: float, seed: int = 1
) -> Result:
    """Run a batch in simulated time."""
    source = random.Random(seed)
    places = [Endpoint(card) for _ in range(endpoints)]
    left = [max(1, round(source.lognormvariate(0, 0.5) * world.turns)) for _ in range(tasks)]
    numbers = itertools.count()
    # (when, number, what): a worker that asks, or an endpoint with the version of its forecast.
    events: list[tuple[float, int, Worker | tuple[Endpoint, int]]] = []
    for number in range(min(workers, tasks)):
        worker = Worker(places[number % endpoints], left.pop(), world.first_tokens)
        worker.endpoint.held += worker.context
        heapq.heappush(events, (start_s * (1 + 0.1 * number), next(numbers), worker))
    waits, end_s = list[float](), 0.0
    while events:
        now_s, _, what = heapq.heappop(events)
        if isinstance(what, Worker):
            place = what.endpoint
            place.advance(now_s)
            anew = what.context == world.first_tokens or source.random() > card.cache_tokens / place.held
            new = what.context if anew else source.expovariate(1 / world.result_tokens)
            stream = Stream(what, source.expovariate(1 / world.answer_tokens), new, now_s)
            place.waiting.append(stream)
        else:
            place, version = what
            if version != place.version:
                continue  # something came between
            place.advance(now_s)
            _, _, stream = heapq.heappop(place.running)
            place.contexts -= stream.context
            place.tokens += stream.tokens
            waits.append(now_s - stream.asked_s)
            end_s = now_s
            worker = stream.worker
            worker.turns_left -= 1
            place.held -= worker.context
            worker.context += round(stream.tokens + source.expovariate(1 / world.result_tokens))
            if worker.context > world.most_tokens:
                worker.context = world.first_tokens
            again_s = now_s + turn_s + source.expovariate(1 / world.tool_s)
            if not worker.turns_left and left:
                worker.turns_left, worker.context = left.pop(), world.first_tokens
                again_s += start_s
            if worker.turns_left:
                place.held += worker.context
                heapq.heappush(events, (again_s, next(numbers), worker))
        place.take(next(numbers))
        place.version += 1
        if place.running:
            heapq.heappush(events, (place.next_end_s(), next(numbers), (place, place.version)))
    return Result(
        end_s / 3600,
        sum(place.busy_s for place in places) / (end_s * endpoints),
        sum(place.tokens for place in places) / (end_s * endpoints),
        statistics.mean(waits),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--start-s", type=float, default=2.0, help="of a worker, before its first request")
    parser.add_argument("--turn-s", type=float, default=0.05, help="around each request, tools apart")
    parser.add_argument("--repeats", type=int, default=2, help="of each row, with other random numbers")
    asked = parser.parse_args()
    world = World()
    print(f"{asked.tasks} tasks, start {asked.start_s} s, turn {asked.turn_s} s, {world}\n")
    print(
        "| model | endpoints | workers | hours | endpoints busy | tokens/s per endpoint | time per request | machines for workers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    plans = (
        (SMALL, ((1, 32), (1, 64), (4, 128), (4, 256), (8, 256), (16, 512), (16, 1024))),
        (LARGE, ((4, 32), (4, 64), (16, 128), (16, 256), (32, 256), (32, 512))),
    )
    for card, rows in plans:
        for endpoints, workers in rows:
            found = [
                simulate(card, world, asked.tasks, workers, endpoints, asked.start_s, asked.turn_s, seed)
                for seed in range(1, asked.repeats + 1)
            ]
            hours = [each.hours for each in found]
            middle = found[0]
            wait_s, cycle_s = middle.waited_s, middle.waited_s + world.tool_s + asked.turn_s
            cores = workers * (world.tool_s + asked.turn_s) / cycle_s  # a tool is taken to use one core
            machines = max(-(-cores // CORES), -(-workers // MEMORY_GIB))  # a container is taken to use 1 GiB
            print(
                f"| {card.name} | {endpoints} | {workers} | {statistics.median(hours):.1f} [{min(hours):.1f} to {max(hours):.1f}] "
                f"| {100 * middle.busy:.0f} % | {middle.tokens_per_s:,.0f} | {wait_s:.1f} s | {machines:.0f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
