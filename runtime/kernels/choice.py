"""Which sizes the kernels take on a GPU: those measured on it, or defaults that fit it.

`python -m runtime tune` measures and keeps its choice in a file, which also says what it was measured on. A file that says
something else than what is here now (another GPU, another Triton, other kernels, sizes that no kernel takes) is not
believed. The driver does not matter: Triton brings the compiler that makes machine code.
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
DEFAULTS_GPU = "NVIDIA H100"  # what the defaults were measured on


class Unusable(Exception):
    """A file of sizes cannot be used here. The message says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What sizes depend on. ``shared_bytes`` and ``registers`` are what one block can have at most."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int
    registers: int
    triton: str

    @property
    def same(self) -> dict[str, object]:
        """What must be the same for sizes that were measured to hold, in JSON's terms."""
        return {"name": self.name, "capability": list(self.capability), "processors": self.processors}


@dataclass(frozen=True, slots=True)
class Choice:
    """The sizes to take, and where they are from."""

    tuning: Tuning
    source: str


def look(device: torch.device) -> Gpu:
    """Describe a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    index = torch.empty(0, device=device).get_device()
    most = driver.active.utils.get_device_properties(index)  # what Triton itself holds a launch to
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        processors=properties.multi_processor_count,
        shared_bytes=most["max_shared_mem"],
        registers=most["max_num_regs"],
        triton=triton.__version__,
    )


def default_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder of what can be made again, as the XDG specification places it (a relative value is ignored)."""
    variables = os.environ if environment is None else environment
    named = variables.get("XDG_CACHE_HOME", "")
    base = Path(named) if named.startswith("/") else Path(variables.get("HOME") or Path.home()) / ".cache"
    return base / "gpt-oss-agent"


def default_sizes(gpu: Gpu) -> Tuning:
    """Return the defaults, made smaller where they do not fit the GPU."""
    return fitted(Tuning(), gpu.shared_bytes, gpu.registers)


def kept_at(gpu: Gpu, cache: Path) -> Path:
    """Return where the choice for a GPU is kept: its name, capability, processors and Triton's version are in the path."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    major, minor = gpu.capability
    return cache / "kernels" / f"{name}_{major}.{minor}_{gpu.processors}_triton-{gpu.triton}.json"


def choose(gpu: Gpu, cache: Path, warn: Callable[[str], None]) -> Choice:
    """Choose the sizes for a GPU. ``warn`` is told of a kept file that is not believed."""
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
        return Choice(
            defaults, f"defaults, with less for {', '.join(changed)} to fit {small} (not measured on this GPU)"
        )
    measured = gpu.name.startswith(DEFAULTS_GPU)
    return Choice(defaults, f"defaults ({'measured on this kind of GPU' if measured else 'not measured on this GPU'})")


def keep(path: Path, tuning: Tuning, gpu: Gpu, notes: Mapping[str, object]) -> None:
    """Write a choice, whole or not at all. Raises OSError."""
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
    """Return a hash of the kernels' sources: what is fast, or fits, may be so no more when they change."""
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
        raise Unusable("it is not in the form that this version writes")
    if record.get("gpu") != gpu.same:
        raise Unusable(f"it is of another GPU than this {gpu.name} with {gpu.processors} processors")
    tuning = parse(record.get("tuning"))
    if record.get("triton") != gpu.triton:
        raise Unusable(f"it was measured with another Triton than {gpu.triton}")
    if record.get("kernels") != kernels_digest():
        raise Unusable("the kernels have changed since")
    return tuning


def parse(sizes: object) -> Tuning:
    """Read sizes from JSON's terms: every field, no other, each number one that the kernels take. Raises Unusable."""
    if not isinstance(sizes, dict):
        raise Unusable("it holds no sizes")
    names = {each.name for each in fields(Tuning)}
    if odd := sorted(names ^ sizes.keys()):
        raise Unusable(f"its fields are others than the kernels': {', '.join(odd)}")
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in sizes.items():
        single = not isinstance(value, list)
        numbers = (value,) if single else tuple(value)
        if single != (len(PARTS[name]) == 1) or not takes(name, numbers):
            raise Unusable(f"{name} = {value!r} is not a size that the kernels accept")
        found[name] = numbers[0] if single else numbers
    return replace(Tuning(), **found)  # type: ignore[arg-type]  # as many numbers as the field has
