"""What guesses gain on text that agents write: simulated from what steps cost, and measured through the whole engine.

Weights are random, so no model says these texts: what the engine sampled is replaced by the text's own token where the host takes it
in (``Scheduler.record``). All else is as in a run: lookup, verifying steps, their graphs and the host's work. The device is told the
text's tokens in guesses and prompts and its own samples in steps launched ahead; how long either takes is the same. What the agent's
drafter says was recorded, so its own time (engine_host.py measures it) is not in what is measured.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.model.patch_drafts import PRIORS
from benchmarks.engine_texts import Draft, Text, history_texts, task_texts
from runtime.engine import Engine
from runtime.guess import Guesser
from runtime.lookup import H100_COSTS, Costs, Speculation
from runtime.request import Request, Sampling, TokenOut
from runtime.scheduler import Work

LOWER_COSTS: Costs = ((4, 1.9), (8, 2.6), (16, 3.2), (32, 3.5))  # what better kernels might give
MEASURED_TOKENS = 24_000  # of the answers of a kind: more would take minutes of a GPU


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


class Recorded:
    """A Drafter that says what was recorded before each token."""

    priors = PRIORS

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._drafts = drafts
        self._taken = 0

    def take(self, _: int) -> None:
        self._taken += 1

    def draft(self) -> Draft:
        return self._drafts[self._taken] if self._taken < len(self._drafts) else ()


def drafter_of(text: Text, drafts: bool) -> Recorded | None:
    return Recorded(text.drafts) if drafts and text.drafts else None


def simulate(texts: Sequence[Text], costs: Costs, *, drafts: bool = True) -> Gain:
    """Write the answers with the engine's guesses, and with those of the agent's drafter or without."""
    cost, guesses, guessed, hits = 0.0, 0, 0, 0
    for text in texts:
        guesser = Guesser(Speculation(), costs, drafter_of(text, drafts), len(text.prompt), 1 << 31)
        tokens = list(text.prompt)
        truth = [*text.prompt, *text.answer]
        while len(tokens) < len(truth):
            guess = guesser.draft(tokens)
            following = truth[len(tokens) : len(tokens) + len(guess)]
            right = next(
                (n for n, pair in enumerate(zip(guess, following, strict=False)) if pair[0] != pair[1]), len(following)
            )
            tokens += truth[len(tokens) : len(tokens) + right + 1]
            cost += next(c for size, c in ((1, 1.0), *costs) if size > len(guess))
            guesses, guessed, hits = guesses + bool(guess), guessed + len(guess), hits + right
    return Gain(sum(len(text.answer) for text in texts), cost, guesses, guessed, hits)


def kinds() -> dict[str, list[Text]]:
    """The texts of this checkout that are measured, by kind."""
    patches, rewrites = history_texts()
    return {
        "patches of the sample tasks": task_texts(),
        "patches of this history": patches,
        "files rewritten whole": rewrites,
    }


def write_texts(file: Path, texts_of: Mapping[str, Sequence[Text]]) -> None:
    """Write as many of each kind as are measured, for a machine that has neither git nor the vocabulary."""
    chosen: dict[str, list[dict[str, object]]] = {}
    for kind, texts in texts_of.items():
        chosen[kind], left = [], MEASURED_TOKENS
        for text in texts:
            if len(text.answer) <= left:
                chosen[kind].append(asdict(text))
                left -= len(text.answer)
    file.write_bytes(gzip.compress(json.dumps(chosen).encode()))


def read_texts(file: Path) -> dict[str, list[Text]]:
    """Read what ``write_texts`` wrote."""
    return {
        kind: [
            Text(
                each["name"],
                tuple(each["prompt"]),
                tuple(each["answer"]),
                tuple(tuple((token, why) for token, why in draft) for draft in each["drafts"]),
            )
            for each in texts
        ]
        for kind, texts in json.loads(gzip.decompress(file.read_bytes())).items()
    }


def show_simulated() -> None:
    """Print what guesses should gain on an H100, at the costs that were measured and at lower ones."""
    plain_patches, _ = history_texts(calls=False)
    more = {"the tasks' as plain text": task_texts(calls=False), "the history's as plain text": plain_patches}
    for costs in (H100_COSTS, LOWER_COSTS):
        print(f"costs of verifying, in plain steps: {costs}")
        for kind, texts in (kinds() | more).items():
            print(
                f"simulated, {kind:28} {simulate(texts, costs)}; from its own tokens {simulate(texts, costs, drafts=False)}"
            )


def seconds(engine: Engine, texts: Sequence[Text], *, drafts: bool = True) -> float:
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
        greedy = Sampling(temperature=0.0)
        drafter = drafter_of(text, drafts)
        engine.add(Request(text.name, text.prompt, len(text.answer), sampling=greedy, drafter=drafter))
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
        tokens = sum(len(text.answer) - 1 for text in texts)
        rates = []
        for speculation, drafts in (
            (Speculation(draft_tokens=0), False),
            (limits.speculation, False),
            (limits.speculation, True),
        ):
            scheduler.limits = replace(limits, speculation=speculation)
            seconds(engine, texts[:1], drafts=drafts)
            rates.append(tokens / seconds(engine, texts, drafts=drafts))
        scheduler.limits = limits
        plain, own, all_drafts = rates
        print(
            f"guesses, {kind:28} {all_drafts / plain:5.2f} x, from its own tokens {own / plain:5.2f} x:"
            f" {plain:.0f} -> {own:.0f} -> {all_drafts:.0f} tokens/s;"
            f" expected {simulate(texts, costs)}, from its own tokens {simulate(texts, costs, drafts=False)}",
            flush=True,
        )
