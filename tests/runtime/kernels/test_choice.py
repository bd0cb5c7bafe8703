"""Where the kernels' sizes come from: kept, defaults; and what is not believed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.kernels import choice
from runtime.kernels.choice import (
    SOURCES,
    Gpu,
    Unusable,
    choose,
    default_cache,
    default_sizes,
    keep,
    kept_at,
    kernels_digest,
    parse,
    read,
)
from runtime.kernels.launch import Tuning

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 227 << 10, 65536, "3.6.0")
H200 = replace(H100, name="NVIDIA H200")
RTX = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 99 << 10, 65536, "3.6.0")
MINE = replace(Tuning(), up=(8, 128), decode_waves=3, prompt_tile=(64, 128, 64, 4, 3, 255))


def refuse(text: str) -> None:
    raise AssertionError(text)


def kept(cache: Path, gpu: Gpu = H100, tuning: Tuning = MINE) -> Path:
    path = kept_at(gpu, cache)
    keep(path, tuning, gpu, {"model": "20b"})
    return path


def change(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, **changes}), encoding="utf-8")


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path = kept(tmp_path)
    found = choose(H100, tmp_path, refuse)
    assert found.tuning == MINE
    assert found.source == f"measured on this GPU ({path})"
    assert [each.name for each in path.parent.iterdir()] == ["NVIDIA-H100-80GB-HBM3_9.0_132_triton-3.6.0.json"]
    assert json.loads(path.read_text())["notes"] == {"model": "20b"}


def test_what_another_gpu_kept_is_not_taken(tmp_path: Path) -> None:
    kept(tmp_path, H200)
    assert choose(H200, tmp_path, refuse).tuning == MINE
    assert choose(H100, tmp_path, refuse).tuning == Tuning()


@pytest.mark.parametrize(
    ("gpu", "source"),
    [
        (H100, "defaults (measured on this kind of GPU)"),
        (H200, "defaults (measured on this kind of GPU)"),
        (replace(H100, name="NVIDIA A100-SXM4-80GB", shared_bytes=163 << 10), "defaults (not measured on this GPU)"),
    ],
)
def test_defaults_say_what_they_are(tmp_path: Path, gpu: Gpu, source: str) -> None:
    assert choose(gpu, tmp_path, refuse) == choice.Choice(Tuning(), source)


def test_defaults_are_made_to_fit(tmp_path: Path) -> None:
    found = choose(RTX, tmp_path, refuse)
    assert found.tuning == default_sizes(RTX) != Tuning()
    assert found.source.startswith("defaults, reduced for tiled")
    assert found.source.endswith("to fit 99 KiB of shared memory (not measured on this GPU)")


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "another GPU": ({"gpu": H200.same}, "it is for another GPU than this NVIDIA H100 80GB HBM3 with 132 SMs"),
    "another Triton": ({"triton": "3.5.0"}, "it was measured with another version of Triton than 3.6.0"),
    "other kernels": ({"kernels": "0" * 64}, "the kernels have changed since"),
    "an older form": ({"format": 0}, "its format is not the one of this version"),
    "no sizes": ({"tuning": None}, "it contains no sizes"),
    "a field of tomorrow": ({"tuning": {**asdict(MINE), "magic": 3}}, "its fields are not those of the kernels: magic"),
    "a field is missing": (
        {"tuning": {"up": [4, 72]}},
        "its fields are not those of the kernels: batch_down, batch_tile, ",
    ),
    "a wrong size": (
        {"tuning": {**asdict(MINE), "up": [3, 128]}},
        r"up = \[3, 128\] is not a size that the kernels accept",
    ),
    "a number for a pair": ({"tuning": {**asdict(MINE), "up": 4}}, "up = 4 is not a size"),
    "a pair for a number": ({"tuning": {**asdict(MINE), "decode_waves": [3]}}, r"decode_waves = \[3\] is not a size"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_kept_and_does_not_hold_is_said_once_and_not_used(tmp_path: Path, damage: str) -> None:
    changes, why = DAMAGE[damage]
    path = kept(tmp_path)
    change(path, **changes)
    with pytest.raises(Unusable, match=why):
        read(path, H100)
    said: list[str] = []
    assert choose(H100, tmp_path, said.append).tuning == Tuning()
    (line,) = said
    assert line.startswith(f"the kernels' sizes in {path} are not used, because ")
    assert line.endswith(": run `python -m runtime tune` again")


def test_kernels_that_change_have_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(choice.__file__).parent
    modules = {path.stem for path in here.glob("*.py") if "@triton.jit" in path.read_text(encoding="utf-8")}
    assert modules <= set(SOURCES), "every kernel counts"
    for name in SOURCES:
        (tmp_path / f"{name}.py").write_bytes((here / f"{name}.py").read_bytes())
    before = kernels_digest()
    monkeypatch.setattr(choice, "__file__", str(tmp_path / "choice.py"))
    assert kernels_digest() == before
    for name in SOURCES:
        with (tmp_path / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        assert kernels_digest() != before
        before = kernels_digest()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"format": 1}'])
def test_what_is_no_record_is_not_used(tmp_path: Path, content: bytes) -> None:
    path = kept(tmp_path)
    path.write_bytes(content)
    said: list[str] = []
    assert choose(H100, tmp_path, said.append).tuning == Tuning()
    assert len(said) == 1


def test_a_folder_in_the_files_place_is_not_used(tmp_path: Path) -> None:
    kept_at(H100, tmp_path).mkdir(parents=True)
    said: list[str] = []
    assert choose(H100, tmp_path, said.append).tuning == Tuning()
    assert len(said) == 1


def test_every_gpu_and_triton_has_a_file_of_its_own(tmp_path: Path) -> None:
    gpus = [H100, H200, replace(H100, processors=114), replace(H100, triton="3.7.0"), replace(H100, capability=(9, 1))]
    assert len({kept_at(gpu, tmp_path) for gpu in gpus}) == len(gpus)
    odd = kept_at(replace(H100, name="../../etc/NVIDIA"), tmp_path)
    assert odd.parent == tmp_path / "kernels"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    (tmp_path / "out.json" / "full").touch()
    with pytest.raises(OSError, match=r"out\.json"):
        keep(tmp_path / "out.json", MINE, H100, {})
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_sizes_survive_json() -> None:
    assert parse(json.loads(json.dumps(asdict(MINE)))) == MINE


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/gpt-oss-agent"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/gpt-oss-agent"),
        ({"HOME": "/h"}, "/h/.cache/gpt-oss-agent"),
    ],
)
def test_the_common_folder_is_the_agents(environment: dict[str, str], expected: str) -> None:
    from agent.config import base_dir

    assert default_cache(environment) == Path(expected) == base_dir(environment, "XDG_CACHE_HOME", ".cache")
