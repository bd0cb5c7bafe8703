"""`python -m runtime tune`: find the fastest kernel sizes for this GPU and save them for the engine.

A few layers of random weights with the real shapes are enough, as long as a pass over them reads more than the L2 cache holds.
Kernels are measured together with their neighbours, those of a decode step in whole layers: that keeps the L2 cache as cold
as in the whole model, and includes what a kernel gains or loses by starting while the previous one drains. (On an H100, a faster
kernel has made a whole step slower: its blocks left less room for those of the next kernel.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from runtime.descent import Left, Sizes, Step, descend, share
from runtime.engine import make_caches
from runtime.errors import RuntimeFault
from runtime.kernels.base import Kernels, LayerCache, StepInputs
from runtime.kernels.choice import Gpu, default_cache, default_sizes, keep, kept_at, look
from runtime.kernels.fast import triton_kernels
from runtime.kernels.launch import REFUSED, Tuning
from runtime.kernels.open import best_kernels
from runtime.model.config import ModelConfig, gpt_oss_20b, gpt_oss_120b
from runtime.model.random_weights import random_weights
from runtime.model.transformer import Transformer, build_transformer
from runtime.spans import Span, pages_of, span_inputs
from runtime.timing import LIMITS, distance, poisoned, stopwatch

LAYERS = 8  # of 24 or 36; each is half a GB with 32 experts
PAGE_TOKENS = 64
LONGEST = 32768  # tokens of context
LIMIT_S = 150.0  # after this time no more candidates are tried
ROUNDS, QUICK_ROUNDS = 5, 3  # of two measurements each
QUICK_CANDIDATES = 4
OTHER_EXPERTS = 0.02  # share of tokens whose experts may differ, because two almost equal scores swap ranks
MODELS: Mapping[str, Callable[[], ModelConfig]] = {"20b": gpt_oss_20b, "120b": gpt_oss_120b}

Stopwatch = Callable[[Callable[[], object]], Callable[[], float]]
"""(work) -> a function that runs it and returns the seconds it took."""


@dataclass(frozen=True, slots=True)
class Work:
    """Kernels that are measured together: ``parts`` of every layer in turn, or the unembedding.

    ``count`` new tokens of each of ``sequences``, after ``start`` cached ones.
    """

    parts: tuple[str, ...]
    sequences: int = 1
    start: int = 1023
    count: int = 1

    def __str__(self) -> str:
        tokens = self.sequences * self.count
        context = f", context {self.start + self.count}" if "attend" in self.parts else ""
        return f"{' '.join(self.parts)}, {tokens} token{'s' if tokens > 1 else ''}{context}"


_EXPERTS = ("route", "experts_up", "experts_down")
_LAYER = ("norm_qkv", "attend", "project", *_EXPERTS)
_DECODE = tuple(Work(_LAYER, start=context - 1) for context in (1024, 8192, LONGEST))


def works_of(config: ModelConfig) -> dict[str, tuple[Work, ...]]:
    """Return the works that each field is measured on, the most important field first."""
    # So many tokens that an expert has more than 64 pairs on average, for which the prompt tile is used.
    prompt = max(2048, 128 * config.experts // config.experts_per_token)
    return {
        "up": (Work(_LAYER),),
        "down": (Work(_LAYER),),
        "gemv": (Work(_LAYER), Work(("unembed",))),
        "wide_gemv": (Work(_LAYER),),
        "decode": _DECODE,
        "decode_waves": _DECODE,
        "decode_splits": _DECODE,
        "route": (Work(_LAYER),),
        "batch_tile": (Work(_EXPERTS, sequences=32), Work(_EXPERTS, sequences=64)),
        "batch_down": (Work(_EXPERTS, sequences=32), Work(_EXPERTS, sequences=64)),
        "tiled": (Work(_LAYER, sequences=32), Work(_LAYER, sequences=64)),
        "chunk_tile": (Work(_EXPERTS, start=0, count=300),),
        "prompt_tile": (Work(_EXPERTS, start=0, count=prompt),),
        "prompt": (Work(("attend",), start=0, count=2048), Work(("attend",), start=6144, count=2048)),
        "prompt_waves": (
            Work(("attend",), start=0, count=2048),
            *(Work(("attend",), start=LONGEST - 2048, count=count) for count in (300, 2048)),
        ),
        "gemv_tokens": tuple(
            Work(parts, start=64, count=count)
            for count in (2, 3, 4)
            for parts in (("norm_qkv",), ("project",), ("unembed",))
        ),
        "pair_tokens": tuple(Work(_EXPERTS, start=64, count=count) for count in (2, 4, 8, 12, 16)),
    }


# The most promising candidates first: a quick run tries only those.
CANDIDATES: Mapping[str, Sequence[object]] = {
    "up": ((4, 80), (4, 96), (4, 76), (4, 128), (2, 72), (2, 96), (8, 128), (4, 72), (4, 168), (8, 255)),
    "down": ((2, 168), (2, 160), (2, 192), (1, 96), (1, 128), (2, 128), (2, 255), (4, 255)),
    "gemv": ((4, 255), (2, 128), (4, 168), (2, 255), (8, 255), (2, 96), (4, 128)),
    "wide_gemv": ((2, 128), (2, 112), (2, 96), (1, 128), (4, 255), (2, 72), (2, 255), (4, 168)),
    "decode": ((128, 8, 4), (128, 4, 4), (64, 4, 4), (128, 8, 8), (64, 4, 2), (64, 8, 4)),
    "decode_waves": (1, 3, 4),
    "decode_splits": (16, 64),
    "route": ((1, 8), (2, 4), (1, 2), (2, 8), (4, 4)),
    "batch_tile": (
        (16, 128, 128, 4, 4, 168),
        (16, 64, 128, 4, 4, 168),
        (16, 128, 128, 4, 2, 168),
        (16, 64, 256, 4, 3, 168),
        (16, 128, 128, 4, 3, 128),
        (16, 128, 64, 4, 4, 128),
        (16, 128, 256, 8, 3, 128),
        (32, 128, 128, 4, 3, 168),
    ),
    "batch_down": (
        (16, 64, 128, 2, 3, 168),
        (16, 128, 128, 4, 3, 168),
        (16, 64, 128, 4, 3, 128),
        (16, 128, 128, 4, 4, 168),
    ),
    "tiled": (
        (32, 128, 4, 4),
        (32, 128, 4, 6),
        (32, 64, 4, 6),
        (64, 128, 4, 4),
        (32, 256, 4, 3),
        (16, 128, 4, 5),
        (64, 64, 4, 5),
    ),
    "chunk_tile": (
        (64, 128, 64, 4, 4, 168),
        (32, 128, 64, 4, 3, 128),
        (64, 128, 128, 4, 3, 168),
        (64, 128, 64, 8, 3, 128),
        (64, 64, 64, 4, 4, 128),
        (64, 128, 64, 4, 2, 128),
        (64, 256, 64, 8, 3, 168),
    ),
    "prompt_tile": (
        (128, 128, 64, 8, 3, 255),
        (128, 128, 64, 8, 4, 128),
        (128, 128, 64, 8, 4, 255),
        (64, 128, 64, 4, 3, 255),
        (128, 256, 64, 8, 3, 255),
        (128, 128, 128, 8, 3, 255),
        (128, 128, 64, 4, 3, 255),
    ),
    "prompt": ((64, 4, 128), (64, 4, 64), (128, 8, 128), (64, 8, 128), (128, 4, 64)),
    "prompt_waves": (4, 16, 2),
    "gemv_tokens": (1, 2, 3, 4),
    "pair_tokens": (4, 12, 16, 2),
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """The inputs of a work: the same for every layer, except for caches and expert ids."""

    inputs: StepInputs
    caches: Sequence[LayerCache]
    x: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    ids: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of a part. ``base`` is the residual stream, which is subtracted before two results are compared."""

    part: str
    value: torch.Tensor
    base: torch.Tensor | None = None


class Trials:
    """Measures sizes on a model of a few layers: the ``Bench`` of ``descend``.

    ``layers`` is the number of layers of the whole model, ``first`` the sizes whose results are the reference. The inputs of a
    work are generated again each time, always the same: keeping several would take gigabytes.
    """

    def __init__(
        self, model: Transformer, layers: int, first: Tuning, watch: Stopwatch = stopwatch, rounds: int = ROUNDS
    ) -> None:
        self._model = model
        self._layers = layers
        self._first = first
        self._watch = watch
        self._rounds = rounds
        self._works = works_of(model.config)
        self._field = ""
        self._truths: dict[Work, list[_Result]] = {}

    def prepare(self, field: str, sizes: Sizes) -> None:
        """Compile the kernels that ``field`` affects and compare their results with the first sizes'. Raises Left."""
        if field != self._field:  # free the memory of the previous field
            self._field = field
            self._truths.clear()
        for work in self._works[field]:
            if work not in self._truths:
                self._truths[work] = self._results(work, asdict(self._first))
            for mine, true in zip(self._results(work, sizes), self._truths[work], strict=True):
                away = _error(mine, true)
                if not away <= _limit(mine.part):  # written so that NaN fails too
                    raise Left(f"{work}: the result of {mine.part} differs by {away:.1e} from that of the defaults")

    def race(self, field: str, present: Sizes, candidate: Sizes) -> list[tuple[float, float]]:
        """Time both alternately; seconds of everything that ``field`` affects in the whole model. Raises Left."""
        rounds = [(0.0, 0.0)] * self._rounds
        for work in self._works[field]:
            raced = self.race_work(work, present, candidate)
            rounds = [(a + c, b + d) for (a, b), (c, d) in zip(rounds, raced, strict=True)]
        return rounds

    def race_work(self, work: Work, present: Sizes, candidate: Sizes) -> list[tuple[float, float]]:
        """Time both alternately: seconds of all layers of the whole model, or of one unembedding. Raises Left."""
        scale = 1.0 if work.parts == ("unembed",) else self._layers / self._model.config.layers
        with self._leaving_out():
            scene = _scene(self._model, work)
            first, second = (
                self._watch(partial(self._run, work, scene, self._kernels(sizes), [])) for sizes in (present, candidate)
            )
            rounds = []
            for _ in range(self._rounds):  # in an order in which a GPU that warms up and slows down favours neither
                present_s, candidate_s, again_s, last_s = first(), second(), second(), first()
                rounds.append(((present_s + last_s) / 2 * scale, (candidate_s + again_s) / 2 * scale))
        return rounds

    def _kernels(self, sizes: Sizes) -> Kernels:
        return triton_kernels(self._model.device, tuning_of(sizes))

    def _results(self, work: Work, sizes: Sizes) -> list[_Result]:
        """Return the results of a work with these sizes, computed into memory filled with NaN. Raises Left."""
        results: list[_Result] = []
        with self._leaving_out():
            scene = _scene(self._model, work)
            with poisoned():
                self._run(work, scene, self._kernels(sizes), results)
        return results

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        """Turn errors (does not compile, does not fit, out of memory) into Left; raise an error that breaks the device."""
        try:
            yield
        except (*REFUSED, RuntimeError) as error:
            # The compiler's passes and the driver raise no specific types.
            if not isinstance(error, (*REFUSED, torch.OutOfMemoryError)) and not _computes(self._model.device):
                raise
            raise Left(f"{type(error).__name__}: {error}") from error

    def _run(self, work: Work, scene: _Scene, run: Kernels, results: list[_Result]) -> None:
        """Launch the work's kernels; each gets the scene's inputs, not the output of the one before.

        So a kernel's result is compared with that of other sizes on equal inputs, and what another one rounds does not count
        against it. Only the experts pass on their packed activations.
        """
        model, shapes, results[:] = self._model, self._model.shapes, []
        x = scene.x
        if work.parts == ("unembed",):
            logits = run.unembed(x, model.weights.final_gain, model.weights.unembedding, shapes)
            results.append(_Result("unembed", logits))
            return
        for number, layer in enumerate(model.weights.layers):
            ids = scene.ids[number]
            normalised = activated = shares = x
            for part in work.parts:
                match part:
                    case "norm_qkv":
                        qkv = run.norm_qkv(x, layer.attention_gain, layer.qkv_weight, layer.qkv_bias, shapes)
                        results.append(_Result(part, qkv))
                    case "attend":
                        window, cache = model.config.layer_window(number), scene.caches[number]
                        attended = run.attend(scene.qkv, model.rope, layer.sinks, cache, scene.inputs, window, shapes)
                        results.append(_Result(part, attended))
                    case "project":
                        sums = run.project(scene.attended, layer.out_weight, layer.out_bias, x)
                        results.append(_Result(part, sums, x))
                    case "route":
                        normalised, chosen, shares = run.route(
                            x, layer.mlp_gain, layer.router_weight, layer.router_bias, shapes
                        )
                        results += [_Result("chosen", chosen), _Result(part, shares)]
                    case "experts_up":
                        activated = run.experts_up(normalised, ids, layer.up, layer.up_bias, shapes)
                    case "experts_down":
                        y = run.experts_down(activated, ids, shares, layer.down, layer.down_bias, x, shapes)
                        results.append(_Result(part, y, x))


def _computes(device: torch.device) -> bool:
    """Whether a device still works: after some errors no more work runs in the same process."""
    try:
        return int(torch.ones(2, device=device).sum()) == 2
    except RuntimeError:
        return False


def _scene(model: Transformer, work: Work) -> _Scene:
    generator = torch.Generator(model.device).manual_seed(5)
    spans = [Span(work.start, work.count)] * work.sequences
    tokens, shapes = work.sequences * work.count, model.shapes
    pages = pages_of(spans, PAGE_TOKENS)
    attends = "attend" in work.parts
    layers = model.config.layers if attends else 0
    caches = make_caches(layers, pages, shapes, PAGE_TOKENS, model.dtype, model.device)
    for cache in caches:
        cache.keys.normal_(generator=generator)
        cache.values.normal_(generator=generator)

    def normal(width: int) -> torch.Tensor:
        made = torch.randn(tokens, width, generator=generator, device=model.device, dtype=torch.float32)
        return made.to(model.dtype)

    def choices() -> torch.Tensor:
        scores = torch.rand(tokens, shapes.experts, generator=generator, device=model.device)
        return scores.topk(shapes.experts_per_token, dim=-1).indices.int()

    return _Scene(
        inputs=span_inputs(spans, PAGE_TOKENS, pages, generator),
        caches=caches,
        x=normal(shapes.hidden),
        qkv=normal((shapes.query_heads + 2 * shapes.kv_heads) * shapes.head_dim),
        attended=normal(shapes.query_heads * shapes.head_dim),
        ids=[choices() for _ in range(model.config.layers)],
    )


def _limit(part: str) -> float:
    return OTHER_EXPERTS if part == "chosen" else LIMITS[part]


def _error(mine: _Result, true: _Result) -> float:
    """Return the error of a result against another, in the unit of ``_limit``."""
    if mine.part == "chosen":
        same = mine.value.sort(dim=-1).values == true.value.sort(dim=-1).values
        return 1.0 - float(same.all(dim=-1).double().mean())
    base = 0.0 if true.base is None else true.base.double()
    return distance(mine.value.double() - base, true.value.double() - base)


def told(step: Step) -> Iterator[str]:
    """Yield a line with the result for a field, then a line for each candidate that was skipped."""
    best = min(step.tried.values(), default=1.0)
    others = f"{len(step.tried)} tried, the best takes {best:.3f}" if step.tried else "nothing tried"
    chosen = f"{step.before} -> {step.after}" if step.after != step.before else f"{step.before} stays"
    late = f", {step.skipped} left for lack of time" if step.skipped else ""
    yield f"{step.field:14} {chosen} ({others}{late})"
    for value, why in step.left.items():
        yield f"{'':14} {value} left out: {_short(why)}"


def _short(why: str) -> str:
    return why.splitlines()[0][:100]


def table(trials: Trials, works: Sequence[Work], before: Sizes, after: Sizes) -> Iterator[str]:
    """Yield the rows of a table: the time of each work in the whole model, with the first sizes and with the chosen ones."""
    yield f"{'':58} {'before us':>10} {'after us':>10} {'share':>6}"
    for work in works:
        try:
            rounds = trials.race_work(work, before, after)
        except Left as why:
            yield f"{work!s:58} not measured: {_short(str(why))}"
            continue
        first, second = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
        yield f"{work!s:58} {first:10.1f} {second:10.1f} {share(rounds):6.3f}"


def tune(model_name: str, *, quick: bool, out: Path | None, cache: Path | None, say: Callable[[str], None]) -> Path:
    """Measure on the first CUDA device, save the choice, and return its file. ``say`` gets the report line by line.

    The choice is saved after each field, so that an interruption costs only the current field. Raises RuntimeFault if there is
    no GPU that the Triton kernels support, if it has no room for the layers, or if it fails.
    """
    device, began = _gpu(), time.monotonic()
    gpu = look(device)
    first, whole = default_sizes(gpu), MODELS[model_name]()
    config = replace(whole, sliding=whole.sliding[:LAYERS])
    weights = random_weights(config, device, torch.bfloat16, 1)
    model = build_transformer(config, weights, triton_kernels(device, first), positions=LONGEST)
    say(f"{gpu.name}, {gpu.processors} processors, Triton {gpu.triton}; {LAYERS} layers of gpt-oss-{model_name}")
    trials = Trials(model, whole.layers, first, rounds=QUICK_ROUNDS if quick else ROUNDS)
    works = works_of(config)
    candidates = {name: CANDIDATES[name][: QUICK_CANDIDATES if quick else None] for name in works}
    sizes: Sizes = asdict(first)
    notes = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "model": model_name, "quick": quick, "torch": torch.__version__}
    kept = kept_at(gpu, cache or default_cache())
    left = "nothing was saved, because no field was finished"
    try:
        for step, chosen in descend(sizes, candidates, trials, limit_s=LIMIT_S):
            sizes = chosen
            _keep((kept,) if out is None else (kept, out), sizes, gpu, notes)
            left = f"the results so far are saved in {kept}"
            for line in told(step):
                say(line)
        for line in table(trials, list(dict.fromkeys(chain(*works.values()))), asdict(first), sizes):
            say(line)
    except Left as why:  # the initial sizes failed (a failing candidate would only be skipped)
        raise RuntimeFault(f"the kernels do not run on this {gpu.name} with their initial sizes: {why}") from why
    except RuntimeError as error:
        raise RuntimeFault(f"{gpu.name} failed ({error}): {left}") from error
    except KeyboardInterrupt:
        say(f"stopped: {left}")
        raise
    say(f"{time.monotonic() - began:.0f} s; saved in {kept}: engines on this GPU use these sizes from now on")
    return kept


def _keep(places: Sequence[Path], sizes: Sizes, gpu: Gpu, notes: Mapping[str, object]) -> None:
    for path in places:
        try:
            keep(path, tuning_of(sizes), gpu, notes)
        except OSError as error:
            raise RuntimeFault(
                f"the sizes cannot be written to {path}: {error}; name another place (--cache-dir, --out)"
            ) from error


def tuning_of(sizes: Sizes) -> Tuning:
    """Return sizes as a Tuning."""
    return replace(Tuning(), **sizes)  # type: ignore[arg-type]  # a value for each field


def _gpu() -> torch.device:
    """Return the first CUDA device. Raises RuntimeFault if there is none that the Triton kernels support."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels, why = best_kernels(device)
    if kernels != "triton":
        raise RuntimeFault(f"there is nothing to tune here: {why}, and only Triton kernels have sizes to choose")
    return device
