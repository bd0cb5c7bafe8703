"""Chooses the kernels' sizes for a GPU: those measured on it, or defaults that fit it.

`python -m runtime tune` measures and saves its choice in a file, which records what it was measured on. The file is ignored
if that differs from this machine (another GPU, another Triton, changed kernels) or if it contains invalid sizes. The driver
version does not matter: Triton ships its own compiler to machine code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path

import torch
import triton
from triton.runtime import driver

from runtime.kernels.launch import Tuning
from runtime.kernels.sizes import PARTS, fitted, takes

FORMAT = 1
SOURCES = ("attention", "dense", "grouped", "launch", "moe", "mxfp4", "sampling", "sizes")  # what was measured
DEFAULTS_GPUS = ("NVIDIA H100", "NVIDIA H200")  # `runtime tune` found the defaults to be the fastest sizes on both


class Unusable(Exception):
    """A file of sizes cannot be used here. The message says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The properties of a GPU that sizes depend on. ``shared_bytes`` and ``registers`` are the limits of one block."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int
    registers: int
    triton: str

    @property
    def same(self) -> dict[str, object]:
        """The properties that must be equal for measured sizes to apply, as JSON."""
        return {"name": self.name, "capability": list(self.capability), "processors": self.processors}


@dataclass(frozen=True, slots=True)
class Choice:
    """The sizes to use, and where they come from."""

    tuning: Tuning
    source: str


def look(device: torch.device) -> Gpu:
    """Describe a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    index = torch.empty(0, device=device).get_device()
    most = driver.active.utils.get_device_properties(index)  # the limits that Triton itself checks at a launch
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        processors=properties.multi_processor_count,
        shared_bytes=most["max_shared_mem"],
        registers=most["max_num_regs"],
        triton=triton.__version__,
    )


def default_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return the cache folder as the XDG specification defines it (a relative value is ignored)."""
    variables = os.environ if environment is None else environment
    named = variables.get("XDG_CACHE_HOME", "")
    base = Path(named) if named.startswith("/") else Path(variables.get("HOME") or Path.home()) / ".cache"
    return base / "gpt-oss-agent"


def default_sizes(gpu: Gpu) -> Tuning:
    """Return the defaults, reduced where they do not fit the GPU."""
    return fitted(Tuning(), gpu.shared_bytes, gpu.registers)


def kept_at(gpu: Gpu, cache: Path) -> Path:
    """Return the file of the choice for a GPU; its name contains GPU, compute capability, number of SMs and Triton version."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    major, minor = gpu.capability
    return cache / "kernels" / f"{name}_{major}.{minor}_{gpu.processors}_triton-{gpu.triton}.json"


def choose(gpu: Gpu, cache: Path, warn: Callable[[str], None]) -> Choice:
    """Choose the sizes for a GPU. ``warn`` is told of a saved file that is ignored."""
    kept = kept_at(gpu, cache)
    defaults = default_sizes(gpu)
    if kept.exists():
        try:
            return Choice(read(kept, gpu), f"measured on this GPU ({kept})")
        except Unusable as why:
            warn(f"the kernels' sizes in {kept} are not used, because {why}: run `python -m runtime tune` again")
    changed = [name for name, value in asdict(defaults).items() if value != getattr(Tuning(), name)]
    if changed:
        small = f"{gpu.shared_bytes >> 10} KiB of shared memory"
        return Choice(defaults, f"defaults, reduced for {', '.join(changed)} to fit {small} (not measured on this GPU)")
    measured = gpu.name.startswith(DEFAULTS_GPUS)
    return Choice(defaults, f"defaults ({'measured on this kind of GPU' if measured else 'not measured on this GPU'})")


def keep(path: Path, tuning: Tuning, gpu: Gpu, notes: Mapping[str, object]) -> None:
    """Write a choice atomically. Raises OSError."""
    record = {
        "format": FORMAT,
        "gpu": gpu.same,
        "triton": gpu.triton,
        "kernels": kernels_digest(),
        "tuning": asdict(tuning),
        "notes": dict(notes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def kernels_digest() -> str:
    """Return a hash of the kernels' sources: after a change, other sizes may be the fastest, and old ones may not fit."""
    digest = sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def read(path: Path, gpu: Gpu) -> Tuning:
    """Read a choice for a GPU, made with the same Triton and the same kernels. Raises Unusable."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"it cannot be read ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise Unusable("its format is not the one of this version")
    if record.get("gpu") != gpu.same:
        raise Unusable(f"it is for another GPU than this {gpu.name} with {gpu.processors} SMs")
    tuning = parse(record.get("tuning"))
    if record.get("triton") != gpu.triton:
        raise Unusable(f"it was measured with another version of Triton than {gpu.triton}")
    if record.get("kernels") != kernels_digest():
        raise Unusable("the kernels have changed since")
    return tuning


def parse(sizes: object) -> Tuning:
    """Read sizes from JSON: every field and no other, each with numbers that the kernels accept. Raises Unusable."""
    if not isinstance(sizes, dict):
        raise Unusable("it contains no sizes")
    names = {each.name for each in fields(Tuning)}
    if odd := sorted(names ^ sizes.keys()):
        raise Unusable(f"its fields are not those of the kernels: {', '.join(odd)}")
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in sizes.items():
        single = not isinstance(value, list)
        numbers = (value,) if single else tuple(value)
        if single != (len(PARTS[name]) == 1) or not takes(name, numbers):
            raise Unusable(f"{name} = {value!r} is not a size that the kernels accept")
        found[name] = numbers[0] if single else numbers
    return replace(Tuning(), **found)  # type: ignore[arg-type]  # as many numbers as the field has
