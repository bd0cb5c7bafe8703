"""What does not fit is said before anything is allocated, with what would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.errors import DoesNotFit
from runtime.model.config import gpt_oss_20b, gpt_oss_120b
from runtime.model.memory import GIB, control_group_bytes, free_bytes, require_weights, weights_bytes, workspace_bytes
from runtime.model.random_weights import random_weights
from runtime.model.tiny import tiny_config
from runtime.model.weights import size_bytes

CPU = torch.device("cpu")


def test_a_tiny_model_fits_anywhere() -> None:
    require_weights(tiny_config(), CPU, torch.float32)
    assert weights_bytes(tiny_config(), torch.float32) + workspace_bytes(tiny_config()) < 32 << 20


def test_120b_fits_80_gb_with_room_for_12_gb_of_cache() -> None:
    free = 79 * GIB  # what an H100 of 80 GB has when nothing runs on it
    require_weights(gpt_oss_120b(), CPU, torch.bfloat16, free)
    left = free - weights_bytes(gpt_oss_120b(), torch.bfloat16) - workspace_bytes(gpt_oss_120b())
    assert left > 12 * GIB


def test_the_message_says_how_much_is_missing_and_that_the_small_model_fits() -> None:
    with pytest.raises(
        DoesNotFit, match=r"need 60\.8 GiB .* cpu has 24\.0 GiB free: 37\.\d GiB are missing.*20b in bf16 fits"
    ):
        require_weights(gpt_oss_120b(), CPU, torch.bfloat16, 24 * GIB)


def test_the_message_says_that_bf16_would_fit() -> None:
    with pytest.raises(DoesNotFit, match="In bf16 it fits"):
        require_weights(gpt_oss_20b(), CPU, torch.float32, 14 * GIB)


def test_the_message_says_what_the_smallest_model_needs() -> None:
    with pytest.raises(DoesNotFit, match=r"the smallest, needs 13\.\d GiB"):
        require_weights(gpt_oss_20b(), CPU, torch.bfloat16, 8 * GIB)


def test_the_edge_is_exact() -> None:
    need = weights_bytes(gpt_oss_20b(), torch.bfloat16) + workspace_bytes(gpt_oss_20b())
    require_weights(gpt_oss_20b(), CPU, torch.bfloat16, need)
    with pytest.raises(DoesNotFit):
        require_weights(gpt_oss_20b(), CPU, torch.bfloat16, need - 1)


def test_the_host_says_what_is_free() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 1 << 50
    assert free_bytes(torch.device("meta")) is None


def groups(mount: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)


def version_2(group: str, limit: str, used: int) -> dict[str, str]:
    stat = "anon 900\ninactive_file 60\nactive_file 40\n"
    return {f"{group}memory.max": f"{limit}\n", f"{group}memory.current": f"{used}\n", f"{group}memory.stat": stat}


def version_1(group: str, limit: int, used: int) -> dict[str, str]:
    names = [f"memory/{group}memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")]
    return dict(
        zip(
            names,
            (f"{limit}\n", f"{used}\n", "inactive_file 7\ntotal_inactive_file 60\ntotal_active_file 40\n"),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a/b\n", version_2("a/b/", "5000", 2000), 3100),
        ("0::/a/b\n", version_2("a/b/", "max", 2000) | version_2("a/", "4000", 3000), 1100),  # the one above holds too
        ("0::/a/b\n", version_2("a/b/", "5000", 2000) | version_2("a/", "4000", 3000), 1100),
        ("0::/a\n", version_2("a/", "max", 2000), None),
        ("0::/\n", version_2("", "5000", 2000), 3100),  # in a container: its own group is the mount
        ("1:name=systemd:/x\n4:cpu,memory:/a\n0::/\n", version_1("a/", 5000, 2000), 3100),
        ("4:memory:/docker/abc\n", version_1("", 5000, 2000), 3100),  # in a container, with the path outside of it
        ("4:memory:/docker/abc\n", {}, None),
        ("0::/a\n", version_2("a/", "5000", 2000) | {"a/memory.stat": "anon 900\n"}, None),
        ("", {}, None),
    ],
)
def test_a_control_group_says_what_it_leaves(tmp_path: Path, own: str, files: dict[str, str], left: int | None) -> None:
    groups(tmp_path / "mount", files)
    (tmp_path / "own").write_text(own)
    assert control_group_bytes(tmp_path / "own", tmp_path / "mount") == left
    assert control_group_bytes(tmp_path / "not Linux", tmp_path / "mount") is None


def test_in_a_container_with_a_limit_its_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.model.memory.control_group_bytes", lambda: 1 << 20)
    with pytest.raises(DoesNotFit, match=r"cpu has 0\.0 GiB free"):
        require_weights(gpt_oss_20b(), CPU, torch.bfloat16)


def test_random_weights_are_what_was_counted() -> None:
    config = tiny_config()
    assert size_bytes(random_weights(config, CPU, torch.bfloat16)) == weights_bytes(config, torch.bfloat16)


def test_random_weights_refuse_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.model.memory.free_bytes", lambda _: GIB)
    with pytest.raises(DoesNotFit):
        random_weights(gpt_oss_20b(), CPU, torch.bfloat16)
