"""The memory that a model needs and a device has, checked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from runtime.errors import DoesNotFit
from runtime.model.config import ModelConfig, gpt_oss_20b
from runtime.model.weights import allocate, size_bytes

GIB = 1 << 30
# The size of the step for which workspace is reserved besides weights and cache.
WORKSPACE_TOKENS = 512


def weights_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights."""
    return size_bytes(allocate(config, torch.device("meta"), dtype))


def workspace_bytes(config: ModelConfig) -> int:
    """Return an estimate of what a step needs besides weights and cache: fp32 logits, activations and one decoded expert."""
    activations = config.experts_per_token * 3 * config.intermediate + 8 * config.hidden
    expert = 3 * config.intermediate * config.hidden
    return 4 * (WORKSPACE_TOKENS * (config.vocabulary + activations) + expert)


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on a device, or None if that is unknown."""
    match device.type:
        case "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return int(free)
        case "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        case "cpu":
            known = [found for found in (_available_host_bytes(), control_group_bytes()) if found is not None]
            return min(known, default=None)
        case _:
            return None


def require_weights(config: ModelConfig, device: torch.device, dtype: torch.dtype, free: int | None = None) -> None:
    """Raise DoesNotFit if the weights and a step's workspace exceed a device's free memory.

    ``free`` None: read it from the device. The message says how much is missing and what would fit.
    """
    have = free_bytes(device) if free is None else free
    need, step = weights_bytes(config, dtype), workspace_bytes(config)
    if have is None or need + step <= have:
        return
    raise DoesNotFit(
        f"the weights need {_gib(need)} and a step about {_gib(step)} more, but {device} has {_gib(have)} free: "
        f"{_gib(need + step - have)} are missing. {_advice(config, dtype, have)}"
    )


def _advice(config: ModelConfig, dtype: torch.dtype, have: int) -> str:
    """Return what would fit in ``have`` bytes, or how large a device must be."""
    if dtype is not torch.bfloat16 and weights_bytes(config, torch.bfloat16) + workspace_bytes(config) <= have:
        return "In bf16 it fits."
    small = weights_bytes(gpt_oss_20b(), torch.bfloat16) + workspace_bytes(gpt_oss_20b())
    if small <= have:
        return f"gpt-oss-20b in bf16 fits: it needs {_gib(small)}."
    return f"gpt-oss-20b, the smallest, needs {_gib(small)} in bf16: use a larger device, or free memory on this one."


def _available_host_bytes() -> int | None:
    """Return MemAvailable on Linux (free pages and reclaimable ones), elsewhere the free pages."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def control_group_bytes(own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what the memory limits of this process's control groups (a container's, say) leave it; None without a limit.

    A limit of any group above holds too. Versions 1 and 2: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
    """
    left = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            group, names = mount / path.lstrip("/"), ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            group = mount / "memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        # A container sees its own group at the mount, whatever the path says: that is one of the parents here.
        left += [found for folder in (group, *group.parents) if (found := _left_bytes(folder, *names)) is not None]
    return min(left, default=None)


def _left_bytes(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    """Return what one control group leaves, with the pages of files that the kernel can drop; None where it has no limit."""
    try:
        most, used = (int((group / name).read_text()) for name in (limit, usage))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - used + sum(int(counts[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    except (OSError, ValueError, KeyError):  # no such group here, "max", or a kernel that counts otherwise
        return None


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
