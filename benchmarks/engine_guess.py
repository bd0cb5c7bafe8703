"""What guesses gain on text that agents write: simulated from what steps cost, and measured through the whole engine.

Weights are random, so no model says these texts: what the engine sampled is replaced by the text's own token where the host takes it
in (``Scheduler.record``). All else is as in a run: lookup, verifying steps, their graphs and the host's work. The device is told the
text's tokens in guesses and prompts and its own samples in steps launched ahead; how long either takes is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.engine_texts import Text, history_texts, task_texts
from runtime.engine import Engine
from runtime.lookup import H100_COSTS, Costs, Lookup, Speculation
from runtime.request import Request, Sampling, TokenOut
from runtime.scheduler import Work

MEASURED_TOKENS = 12_000  # of the answers of a kind: more would take minutes of a GPU


@dataclass(frozen=True)
class Gain:
    """Of one kind of text: answers' tokens, plain steps that they cost, guesses made, tokens guessed, and those right."""

    tokens: int
    cost: float
    guesses: int
    guessed: int
    right: int

    def __str__(self) -> str:
        share = self.right / max(self.guessed, 1)
        return f"{self.tokens / self.cost:5.2f} x  ({self.guesses} guesses of {self.guessed} tokens, {share:.0%} right)"


def simulate(texts: Sequence[Text], costs: Costs) -> Gain:
    """Write the answers with guesses of the engine's own making."""
    cost, guesses, guessed, hits = 0.0, 0, 0, 0
    for text in texts:
        lookup, tokens = Lookup(Speculation(), costs), list(text.prompt)
        truth = [*text.prompt, *text.answer]
        while len(tokens) < len(truth):
            guess = lookup.draft(tokens)
            following = truth[len(tokens) : len(tokens) + len(guess)]
            right = next(
                (n for n, pair in enumerate(zip(guess, following, strict=False)) if pair[0] != pair[1]), len(following)
            )
            tokens += truth[len(tokens) : len(tokens) + right + 1]
            cost += next(c for size, c in ((1, 1.0), *costs) if size > len(guess))
            guesses, guessed, hits = guesses + bool(guess), guessed + len(guess), hits + right
    return Gain(sum(len(text.answer) for text in texts), cost, guesses, guessed, hits)


def kinds() -> dict[str, list[Text]]:
    """All texts that this checkout gives, by kind."""
    patches, rewrites = history_texts()
    return {
        "patches of the sample tasks": task_texts(),
        "patches of this history": patches,
        "files rewritten whole": rewrites,
    }


def write_texts(file: Path) -> None:
    """Write as many as are measured, for a machine that has neither git nor the vocabulary."""
    chosen: dict[str, list[dict[str, object]]] = {}
    for kind, texts in kinds().items():
        chosen[kind], left = [], MEASURED_TOKENS
        for text in texts:
            if len(text.answer) <= left:
                chosen[kind].append(asdict(text))
                left -= len(text.answer)
    file.write_text(json.dumps(chosen))


def read_texts(file: Path) -> dict[str, list[Text]]:
    """Read what ``write_texts`` wrote."""
    return {
        kind: [Text(each["name"], tuple(each["prompt"]), tuple(each["answer"])) for each in texts]
        for kind, texts in json.loads(file.read_text()).items()
    }


def show_simulated() -> None:
    """Print what guesses should gain with the costs of batches on an H100."""
    print(f"costs of verifying, in plain steps: {H100_COSTS}")
    for kind, texts in kinds().items():
        print(f"simulated, {kind:28} {simulate(texts, H100_COSTS)}")


def seconds(engine: Engine, texts: Sequence[Text]) -> float:
    """Have the engine write the answers, one after the other: from their first tokens to their last."""
    record, answers = engine.scheduler.record, {text.name: text.answer for text in texts}

    def scripted(
        works: Sequence[Work], tokens: Sequence[int], logprobs: Sequence[float] | None = None
    ) -> list[TokenOut]:
        said: list[int] = []
        for work in works:
            answer = answers[work.sequence.request.id]
            said += [answer[min(work.index + place, len(answer) - 1)] for place in range(work.samples)]
        assert len(said) == len(tokens)
        return record(works, said, logprobs)

    engine.scheduler.record = scripted  # type: ignore[method-assign]
    spent = 0.0
    for text in texts:
        engine.add(Request(text.name, text.prompt, len(text.answer), sampling=Sampling(temperature=0.0)))
        got: list[int | None] = []
        while not got:
            got += [out.token for out in engine.step()]
        began = time.perf_counter()
        while not engine.idle:
            got += [out.token for out in engine.step()]
        spent += time.perf_counter() - began
        assert got == list(text.answer)
    engine.scheduler.record = record  # type: ignore[method-assign]
    return spent


def show_measured(engine: Engine, file: Path) -> None:
    """Print what guesses gain through the whole engine, beside what the simulation expects of the costs it measured."""
    scheduler, limits = engine.scheduler, engine.scheduler.limits
    costs = scheduler.guess_costs
    print("costs of verifying, in plain steps: " + ", ".join(f"{tokens} tokens {cost:.2f}" for tokens, cost in costs))
    for kind, texts in read_texts(file).items():
        scheduler.limits = replace(limits, speculation=Speculation(draft_tokens=0))
        seconds(engine, texts[:1])
        plain_s = seconds(engine, texts)
        scheduler.limits = limits
        seconds(engine, texts[:1])
        guessed_s = seconds(engine, texts)
        tokens = sum(len(text.answer) - 1 for text in texts)
        print(
            f"guesses, {kind:28} {plain_s / guessed_s:5.2f} x: {tokens / plain_s:.0f} -> {tokens / guessed_s:.0f} tokens/s;"
            f" expected {simulate(texts, costs)}",
            flush=True,
        )
