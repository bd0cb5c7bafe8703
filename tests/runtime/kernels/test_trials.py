"""What `tune` measures, over interpreted kernels at tiny shapes: every work runs, is compared, and wrong sizes are left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources, PTXASError

from runtime import tune
from runtime.descent import Left, Step, descend, share
from runtime.errors import RuntimeFault
from runtime.kernels.base import Kernels
from runtime.kernels.choice import Gpu, choose, kept_at
from runtime.kernels.fast import triton_kernels
from runtime.kernels.launch import Tuning
from runtime.kernels.sizes import PARTS, numbers_of, takes
from runtime.model.config import ModelConfig, gpt_oss_20b, gpt_oss_120b
from runtime.model.random_weights import random_weights
from runtime.model.tiny import tiny_config
from runtime.model.transformer import Transformer, build_transformer
from runtime.tune import CANDIDATES, QUICK_CANDIDATES, Trials, Work, works_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIRST = Tuning(up=(64, 255), down=(32, 255), gemv=(64, 255), wide_gemv=(64, 255), route=(8, 4), decode=(64, 4, 4))
SMALL = {  # works as small as the interpreter needs
    "down": (Work(("route", "experts_up", "experts_down"), start=0),),
    "decode": (Work(("norm_qkv", "attend", "project"), start=40),),
    "gemv": (Work(("unembed",)),),
    "tiled": (Work(("norm_qkv",), sequences=2, start=4),),
}


def small() -> ModelConfig:
    """One tiny layer; on a GPU with heads that fill a matrix instruction."""
    config = tiny_config(layers=1)
    return config if DEVICE.type == "cpu" else replace(config, head_dim=64)


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = small()
    weights = random_weights(config, DEVICE, torch.float32 if DEVICE.type == "cpu" else torch.bfloat16, 1)
    return build_transformer(config, weights, triton_kernels(DEVICE, FIRST), positions=64)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "works_of", lambda config: SMALL)


def once(work: Callable[[], object]) -> Callable[[], float]:
    work()
    return lambda: 1.0


def sizes(**changed: object) -> dict[str, object]:
    return {**asdict(FIRST), **changed}


@pytest.mark.parametrize(
    ("field", "value"),
    [("down", (16, 255)), ("decode", (16, 4, 4)), ("gemv", (32, 255)), ("tiled", (16, 64, 4, 3))],
)
def test_other_sizes_compute_the_same(model: Transformer, field: str, value: object) -> None:
    trials = Trials(model, 12, FIRST, once)
    trials.prepare(field, sizes())
    trials.prepare(field, sizes(**{field: value}))


def test_times_are_those_of_all_layers_and_works(model: Transformer) -> None:
    trials = Trials(model, 12, FIRST, once, rounds=3)
    assert (
        trials.race("down", sizes(), sizes(down=(16, 255))) == [(12.0, 12.0)] * 3
    )  # twelve layers, one of them measured
    assert trials.race("gemv", sizes(), sizes()) == [(1.0, 1.0)] * 3  # one unembedding


def test_each_side_of_a_race_runs_its_own_sizes(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[int, int]] = []

    def kernels(device: torch.device, tuning: Tuning) -> Kernels:
        opened.append(tuning.down)
        return triton_kernels(device, tuning)

    monkeypatch.setattr(tune, "triton_kernels", kernels)
    seconds: Iterator[float] = iter([1.0, 2.0])

    def watch(work: Callable[[], object]) -> Callable[[], float]:
        mine = next(seconds)
        return lambda: mine

    trials = Trials(model, 1, FIRST, watch, rounds=2)
    assert trials.race("down", sizes(), sizes(down=(16, 255))) == [(1.0, 2.0)] * 2
    assert opened == [FIRST.down, (16, 255)]


BREAKS: dict[str, tuple[str, Callable[[Kernels], Callable[..., object]]]] = {
    "experts_down": ("down", lambda run: lambda *args: run.experts_down(*args) + 1),
    "attend": ("decode", lambda run: lambda *args: run.attend(*args) * 1.1),
    "project": ("decode", lambda run: lambda *args: run.project(*args) * float("nan")),
    "norm_qkv": ("tiled", lambda run: lambda *args: run.norm_qkv(*args).roll(1, -1)),
    "unembed": ("gemv", lambda run: lambda *args: torch.empty_like(run.unembed(*args))),  # never written
    "route": ("down", lambda run: lambda *args: _others(*run.route(*args))),
}


def _others(normalised: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return normalised, (ids + 1) % 8, shares


@pytest.mark.parametrize("name", BREAKS)
def test_what_computes_something_else_is_left_out(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    field, broken = BREAKS[name]
    trials = Trials(model, 12, FIRST, once)
    trials.prepare(field, sizes())

    def kernels(device: torch.device, tuning: Tuning) -> Kernels:
        run = triton_kernels(device, tuning)
        return replace(run, **{name: broken(run)})

    monkeypatch.setattr(tune, "triton_kernels", kernels)
    part = "chosen" if name == "route" else name
    with pytest.raises(Left, match=f"the result of {part} differs by .* from that of the defaults"):
        trials.prepare(field, sizes())


@pytest.mark.parametrize(
    "error",
    [
        OutOfResources(300_000, 232_448, "shared memory"),
        PTXASError("registers"),
        RuntimeError("PassManager::run failed"),
    ],
)
def test_what_does_not_compile_is_left_out(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> object:
        raise error

    trials = Trials(model, 12, FIRST, once)
    monkeypatch.setattr(
        tune, "triton_kernels", lambda device, tuning: replace(triton_kernels(device, tuning), unembed=refuse)
    )
    with pytest.raises(Left, match=type(error).__name__):
        trials.prepare("gemv", sizes())


def test_a_fault_after_which_the_device_computes_is_the_candidates_and_any_other_ends_it(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[RuntimeError] = []

    def fail(*_: object, **__: object) -> object:
        raise raised[-1]

    trials = Trials(model, 12, FIRST, once)
    monkeypatch.setattr(
        tune, "triton_kernels", lambda device, tuning: replace(triton_kernels(device, tuning), unembed=fail)
    )
    measures = (lambda: trials.prepare("gemv", sizes()), lambda: trials.race("gemv", sizes(), sizes()))

    def leaves_out(error: RuntimeError) -> None:
        raised.append(error)
        for measure in measures:
            with pytest.raises(Left, match=f"{type(error).__name__}: {error}"):
                measure()

    leaves_out(RuntimeError("too many resources requested for launch"))
    row = list(tune.table(trials, SMALL["gemv"], sizes(), sizes()))[1]
    assert row.endswith("not measured: RuntimeError: too many resources requested for launch")
    monkeypatch.setattr(torch, "ones", fail)
    leaves_out(torch.OutOfMemoryError("out of memory"))  # nor is there any for the question
    raised.append(RuntimeError("CUDA error: an illegal memory access was encountered"))
    for measure in measures:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            measure()


def test_a_gpu_that_slows_down_favours_nobody(model: Transformer) -> None:
    """Each use of the device takes a hundredth longer than the one before."""
    uses = itertools.count()

    def watch(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: 1.0 + next(uses) / 100

    rounds = Trials(model, 1, FIRST, watch, rounds=9).race("gemv", sizes(), sizes())
    assert share(rounds) == pytest.approx(1.0)
    assert rounds[0] != rounds[-1]


def test_a_whole_descent_and_its_table(model: Transformer) -> None:
    def watch(work: Callable[[], object]) -> Callable[[], float]:
        work()
        return lambda: 1e-6

    trials = Trials(model, 12, FIRST, watch)
    steps = list(descend(sizes(), {"tiled": [(16, 64, 4, 3)], "gemv": [(32, 255)]}, trials))
    assert [step for step, _ in steps] == [
        Step("tiled", FIRST.tiled, FIRST.tiled, {(16, 64, 4, 3): 1.0}, {}, 0),
        Step("gemv", FIRST.gemv, FIRST.gemv, {(32, 255): 1.0}, {}, 0),
    ]
    assert list(tune.told(steps[0][0])) == [f"tiled          {FIRST.tiled} stays (1 tried, the best takes 1.000)"]
    left = Step("gemv", (4, 255), (2, 128), {(2, 128): 0.9}, {(8, 255): "PTXASError: registers\nat length"}, 3)
    assert list(tune.told(left)) == [
        "gemv           (4, 255) -> (2, 128) (1 tried, the best takes 0.900, 3 left for lack of time)",
        "               (8, 255) left out: PTXASError: registers",
    ]
    rows = list(tune.table(trials, SMALL["gemv"], sizes(), sizes()))
    assert rows[1].split() == ["unembed,", "1", "token", "1.0", "1.0", "1.000"]


GPU = Gpu("NVIDIA Made Up", (9, 0), 132, 227 << 10, 65536, "3.6.0")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which every second candidate takes half the time; only the unembedding's sizes are tuned."""
    seconds = itertools.cycle([1.0, 0.5])

    def watch(work: Callable[[], object]) -> Callable[[], float]:
        mine = next(seconds)
        return lambda: mine

    monkeypatch.setattr(tune, "_gpu", lambda: DEVICE)
    monkeypatch.setattr(tune, "look", lambda device: GPU)
    monkeypatch.setattr(tune, "MODELS", {"20b": small})
    monkeypatch.setattr(tune, "works_of", lambda config: {"gemv": SMALL["gemv"]})
    monkeypatch.setattr(tune, "CANDIDATES", {"gemv": ((32, 255), Tuning().gemv)})
    monkeypatch.setattr(tune, "Trials", partial(Trials, watch=watch))


def test_the_choice_is_kept_told_and_taken_from_then_on(made_up: None, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out" / "made-up.json"
    kept = tune.tune("20b", quick=True, out=out, cache=tmp_path, say=said.append)
    assert kept == kept_at(GPU, tmp_path)
    assert out.read_bytes() == kept.read_bytes()
    assert said[0] == "NVIDIA Made Up, 132 processors, Triton 3.6.0; 8 layers of gpt-oss-20b"
    assert said[1] == "gemv           (4, 255) -> (32, 255) (1 tried, the best takes 0.500)"
    assert said[3].split()[-3:] == ["1000000.0", "500000.0", "0.500"]
    assert f"saved in {kept}" in said[4]
    assert len(said) == 5
    chosen = choose(GPU, tmp_path, said.append).tuning
    assert chosen == replace(Tuning(), gemv=(32, 255))
    assert len(said) == 5  # nothing to warn of


def test_a_place_that_cannot_be_written_is_named(made_up: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeFault, match=r"cannot be written to .*file/out\.json: .*; name another place"):
        tune.tune("20b", quick=False, out=tmp_path / "file" / "out.json", cache=tmp_path, say=lambda _: None)


@pytest.mark.parametrize(
    ("fault", "raised", "says"),
    [
        (
            RuntimeError("CUDA error: unspecified launch failure"),
            RuntimeFault,
            "NVIDIA Made Up failed .*launch failure",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_ends_it_early_leaves_what_was_chosen(
    made_up: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    raised: type[BaseException],
    says: str | None,
) -> None:
    def prepare(self: Trials, field: str, sizes: dict[str, object]) -> None:
        if field == "tiled":
            raise fault

    monkeypatch.setattr(Trials, "prepare", prepare)
    monkeypatch.setattr(tune, "works_of", lambda config: {name: SMALL[name] for name in ("gemv", "tiled")})
    monkeypatch.setattr(tune, "CANDIDATES", {"gemv": ((32, 255),), "tiled": ((16, 64, 4, 3),)})
    said: list[str] = []
    with pytest.raises(raised, match=says):
        tune.tune("20b", quick=True, out=None, cache=tmp_path, say=said.append)
    assert choose(GPU, tmp_path, said.append).tuning == replace(Tuning(), gemv=(32, 255))
    assert (said[-1] == f"stopped: the results so far are saved in {kept_at(GPU, tmp_path)}") == (says is None)


def test_what_ends_it_in_its_first_field_leaves_nothing_and_says_so(
    made_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Trials, field: str, sizes: dict[str, object]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trials, "prepare", stop)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tune.tune("20b", quick=True, out=None, cache=tmp_path, say=said.append)
    assert said[-1] == "stopped: nothing was saved, because no field was finished"
    assert not kept_at(GPU, tmp_path).exists()


def test_kernels_that_do_not_run_at_all_are_said(
    made_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(
        tune, "triton_kernels", lambda device, tuning: replace(triton_kernels(device, tuning), unembed=refuse)
    )
    with pytest.raises(
        RuntimeFault, match=r"do not run on this NVIDIA Made Up with their initial sizes: .*OutOfResources"
    ):
        tune.tune("20b", quick=True, out=None, cache=tmp_path, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_every_field_has_works_and_candidates_that_the_kernels_take() -> None:
    names = {field.name for field in fields(Tuning)}
    for config in (gpt_oss_20b(), gpt_oss_120b()):
        assert works_of(config).keys() == names
    assert CANDIDATES.keys() == PARTS.keys() == names
    for name, values in CANDIDATES.items():
        assert len(set(values)) == len(values), name
        assert all(takes(name, numbers_of(value)) for value in (*values, getattr(Tuning(), name))), name
        assert any(value != getattr(Tuning(), name) for value in values[:QUICK_CANDIDATES])


@pytest.mark.parametrize(("config", "least"), [(gpt_oss_20b(), 2048), (gpt_oss_120b(), 4096)])
def test_the_prompts_tile_is_measured_where_it_is_taken(config: object, least: int) -> None:
    (work,) = works_of(config)["prompt_tile"]  # type: ignore[arg-type]
    assert work.count == least
    assert work.count * 4 > 64 * config.experts  # type: ignore[attr-defined]
