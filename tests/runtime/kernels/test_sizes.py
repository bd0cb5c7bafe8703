"""What sizes the kernels take, and that those which are chosen fit any GPU."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.kernels.launch import Tuning
from runtime.kernels.sizes import LEAST, PARTS, RANGES, fits, fitted, least_of, most_of, numbers_of, shared_bytes, takes

REGISTERS = 65536
H100, A100, CONSUMER = 227 << 10, 163 << 10, 99 << 10

# Any sizes that the kernels take.
powers = {part: [1 << n for n in range(9) if low <= 1 << n <= high] for part, (low, high) in RANGES.items()}


@st.composite
def tunings(draw: st.DrawFn) -> Tuning:
    found: dict[str, object] = {}
    for name, parts in PARTS.items():
        numbers = []
        for part, least, most in zip(parts, least_of(name), most_of(name), strict=True):
            plain = st.integers(least, most)
            powered = st.sampled_from([n for n in powers[part] if least <= n <= most])
            numbers.append(draw(plain if part in {"stages", "registers", "parts", "tokens"} else powered))
        found[name] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    return replace(Tuning(), **found)  # type: ignore[arg-type]


def test_every_field_is_described() -> None:
    assert [field.name for field in fields(Tuning)] == list(PARTS)
    assert LEAST.keys() < PARTS.keys()
    for name, value in asdict(Tuning()).items():
        assert takes(name, numbers_of(value)), name
        assert takes(name, least_of(name)), name
        assert takes(name, most_of(name)), name


@pytest.mark.parametrize("shared", [A100, H100])
def test_big_gpus_take_the_defaults_as_they_are(shared: int) -> None:
    assert fitted(Tuning(), shared, REGISTERS) == Tuning()


def test_a_consumers_gpu_takes_less_where_it_must_and_only_there() -> None:
    small = fitted(Tuning(), CONSUMER, REGISTERS)
    changed = {name for name, value in asdict(small).items() if value != getattr(Tuning(), name)}
    assert "tiled" in changed
    assert small.tiled == (*Tuning().tiled[:3], Tuning().tiled[3] - 1)  # a load less under way
    assert changed <= {"tiled", "batch_tile", "batch_down", "chunk_tile", "prompt_tile"}
    for name in changed:
        assert not fits(name, numbers_of(getattr(Tuning(), name)), CONSUMER, REGISTERS)


@given(tunings(), st.integers(48 << 10, 256 << 10), st.sampled_from([REGISTERS, 32768]))
@example(Tuning(), 48 << 10, 32768)
def test_whatever_is_chosen_fits_whatever_gpu(tuning: Tuning, shared: int, registers: int) -> None:
    chosen = fitted(tuning, shared, registers)
    for name, value in asdict(chosen).items():
        numbers = numbers_of(value)
        assert takes(name, numbers)
        assert fits(name, numbers, shared, registers)
        before = numbers_of(getattr(tuning, name))
        assert all(now <= then for now, then in zip(numbers, before, strict=True))
        if fits(name, before, shared, registers):
            assert numbers == before


def test_nothing_smaller_than_the_least_is_made() -> None:
    least = replace(Tuning(), **{n: v[0] if len(v := least_of(n)) == 1 else v for n in PARTS})  # type: ignore[arg-type]
    assert fitted(Tuning(), 0, 0) != Tuning()
    for name, value in asdict(fitted(least, 0, 0)).items():
        assert takes(name, numbers_of(value))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("up", (1, 72)),  # a gate without its up
        ("up", (3, 72)),
        ("up", (4, 72, 1)),
        ("up", (4, 256)),
        ("up", (4, 8)),
        ("up", ("4", 72)),
        ("up", (True, 72)),
        ("up", (256, 255)),  # nor are 5,760 rows that many times any number
        ("down", (128, 255)),  # nor 2,880
        ("down", (2, 72.0)),
        ("decode_splits", (0,)),
        ("pair_tokens", (65,)),
        ("prompt", (128, 4, 8)),
        ("tiled", (8, 128, 4, 5)),
        ("tiled", (32, 128, 3, 5)),
        ("tiled", (32, 128, 4, 9)),
        ("batch_tile", (16, 128, 32, 4, 3, 128)),
    ],
)
def test_what_no_kernel_takes(name: str, numbers: tuple[object, ...]) -> None:
    assert not takes(name, numbers)


def test_shared_memory_grows_with_every_side() -> None:
    for name in ("decode", "prompt", "tiled", "batch_tile", "batch_down"):
        numbers = numbers_of(getattr(Tuning(), name))
        for at, part in enumerate(PARTS[name]):
            if part in {"warps", "registers"}:
                continue
            more = (*numbers[:at], numbers[at] * 2, *numbers[at + 1 :])
            assert shared_bytes(name, more) > shared_bytes(name, numbers), (name, part)


def test_a_single_number_is_one_number() -> None:
    assert numbers_of(3) == (3,)
    with pytest.raises(TypeError, match="is not a size"):
        numbers_of("3")
