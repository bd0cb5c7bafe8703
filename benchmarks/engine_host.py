"""What the host does for a step, for a prompt and for a draft, without a GPU: the engine over graphs that compute nothing."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from agent.conversation import Message, Role
from agent.harmony.codec import open_codec
from agent.model.patch_drafts import PatchDrafts
from runtime.engine import Engine, EngineOptions
from runtime.graphs import Graph
from runtime.kernels.base import LayerCache, StepInputs
from runtime.lookup import Speculation
from runtime.request import Request, Sampling
from runtime.scheduler import Limits

VOCABULARY = 201_088
PAGE = 64


Write = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Instant:
    """A graph whose replay takes no time."""

    output: torch.Tensor
    write: Write

    def replay(self) -> None:
        self.write(self.output)


@dataclass(frozen=True)
class Recorder:
    write: Write

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        return Instant(work(), self.write)

    def has_room(self) -> bool:
        return True


def idle_engine(limits: Limits) -> Engine:
    """An engine at the true sizes whose device is infinitely fast; what it says repeats nothing."""
    said = count(1)

    def forward(inputs: StepInputs, _: Sequence[LayerCache]) -> torch.Tensor:
        return torch.zeros(len(inputs.sample_rows), 1)

    def sample(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(logits), dtype=torch.int64)

    made = Engine(
        forward,
        lambda pages: [LayerCache(torch.zeros(pages, 1), torch.zeros(0))],
        page_bytes=1,
        vocabulary=VOCABULARY,
        device=torch.device("cpu"),
        options=EngineOptions(page_tokens=PAGE, cache_bytes=8192, limits=limits),
        sample=sample,
        record=Recorder(lambda output: output.fill_(next(said) * 7919 % 199_000)),
    )
    while made.prepare():
        pass
    return made


@contextmanager
def timed(engine: Engine) -> Iterator[dict[str, float]]:
    """Seconds spent in the engine's parts."""
    spent: dict[str, float] = defaultdict(float)
    places = [(engine.scheduler, name) for name in ("plan", "ahead", "record")]
    places += [(engine.runner, name) for name in ("_pack", "launch")]  # type: ignore[list-item]
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, call in before:
        setattr(owner, name, _around(spent, name, call))
    yield spent
    for owner, name, call in before:
        setattr(owner, name, call)


def _around(spent: dict[str, float], name: str, call: Callable[..., object]) -> Callable[..., object]:
    def run(*args: object) -> object:
        began = time.perf_counter()
        try:
            return call(*args)
        finally:
            spent[name] += time.perf_counter() - began

    return run


def host_steps(batch: int, context: int, guesses: bool, steps: int = 2000) -> dict[str, float]:
    """Microseconds a decode step."""
    speculation = Speculation() if guesses else Speculation(0)
    engine = idle_engine(Limits(speculation=speculation))
    for index in range(batch):
        prompt = tuple((index * 7919 + place * 31) % 199_000 for place in range(context))
        engine.add(Request(str(index), prompt, steps + 200, sampling=Sampling(seed=index)))
    while any(sequence.sampled < 100 for sequence in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    began = time.perf_counter()
    for _ in range(steps // 2):
        engine.step()
    whole = time.perf_counter() - began
    with timed(engine) as spent:
        for _ in range(steps // 2):
            engine.step()
    parts = {name: seconds / (steps // 2) * 1e6 for name, seconds in spent.items()}
    return {"whole": whole / (steps // 2) * 1e6, **parts}


def host_turn(cached: int, new: int) -> dict[str, float]:
    """Microseconds from a request to its first token."""
    engine = idle_engine(Limits(step_tokens=8192))
    start = tuple(place * 31 % 199_000 for place in range(cached))
    rounds: list[dict[str, float]] = []
    for repeat in range(8):
        engine.add(Request("warm", (*start, 1), 1))
        while not engine.idle:
            engine.step()
        prompt = (*start, *(100 * repeat + place for place in range(new)))
        with timed(engine) as spent:
            began = time.perf_counter()
            engine.add(Request("turn", prompt, 2))
            added = time.perf_counter() - began
            engine.step()
            spent["whole"], spent["add"] = time.perf_counter() - began, added
        engine.abort("turn")
        rounds.append({name: seconds * 1e6 for name, seconds in spent.items()})
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in rounds[0]}


def host_drafts() -> dict[str, float]:
    """Microseconds to read a file of 10 KB as the agent's drafter does, and per token of a patch in a call to follow it and to draft."""
    with tempfile.TemporaryDirectory() as folder:
        codec = open_codec(Path(folder))
    source = (Path(__file__).parent / "engine.py").read_text(encoding="utf-8")[:10_000]
    kept = "".join(f" {row}\n" for row in source.split("\n")[:-1])
    ids = codec.encode(json.dumps({"patch": f"*** Begin Patch\n*** Update File: x.py\n@@\n{kept}"}))
    rounds: list[dict[str, float]] = []
    for _ in range(5):
        began = time.perf_counter()
        drafter = PatchDrafts(codec.encode, codec.token_bytes).drafter([Message(Role.TOOL, source)])
        spent = {"read 10 KB": time.perf_counter() - began, "take": 0.0, "draft": 0.0}
        for token in ids:
            began = time.perf_counter()
            drafter.take(token)
            taken = time.perf_counter()
            drafter.draft()
            spent["draft"] += (time.perf_counter() - taken) / len(ids)
            spent["take"] += (taken - began) / len(ids)
        rounds.append({"whole": spent["take"] + spent["draft"], **spent})
    return {name: statistics.median(each[name] for each in rounds) * 1e6 for name in rounds[0]}


def show_host() -> None:
    """Print all."""
    for batch, context, guesses in (
        (1, 1000, False),
        (1, 1000, True),
        (1, 30_000, True),
        (8, 1000, False),
        (64, 1000, False),
    ):
        title = f"host, step: batch {batch}, context {context}{', guesses' if guesses else ''}"
        line(title, host_steps(batch, context, guesses))
    for cached, new in ((0, 300), (30_000, 300)):
        line(f"host, first token: {cached} cached, {new} new", host_turn(cached, new))
    line("host, drafts of a patch, each token", host_drafts())


def line(title: str, micros: dict[str, float]) -> None:
    parts = "  ".join(f"{name.strip('_')} {value:.0f}" for name, value in micros.items() if name != "whole")
    print(f"{title:52} {micros['whole']:8.0f} us  ({parts})", flush=True)


if __name__ == "__main__":
    show_host()
