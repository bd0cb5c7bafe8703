"""A workspace that memory cannot hold is a volume: bounded as far as its storage can, and gone with the container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient

from sandbox import docker as containers
from sandbox import snapshot as snapshots
from sandbox.docker import Limits
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from tests.sandbox.conftest import sh

TIGHT = Limits(memory_bytes=128 << 20)


@pytest.fixture
def engine() -> Iterator[DockerClient]:
    client = containers.engine()
    yield client
    client.close()


def volumes_of(engine: DockerClient, name: str) -> list[str]:
    """The volumes of this sandbox alone: other tests make theirs on the same engine at the same time."""
    (container,) = engine.containers.list(filters={"label": f"{containers.LABEL}={name}"})
    return [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"]


def there_are(engine: DockerClient, volumes: list[str]) -> list[str]:
    return [volume.name for volume in engine.volumes.list() if volume.name in volumes]


@pytest.mark.parametrize(
    ("limits", "needed_mib", "volume", "size_mib"),
    [
        (Limits(1024 << 20), 0, False, 512),
        (Limits(1024 << 20), 256, False, 512),
        (Limits(1024 << 20), 257, True, 10 << 10),
        (Limits(1024 << 20), 4 << 10, True, 16 << 10),
        (Limits(1024 << 20, disk_bytes=700 << 20), 10, False, 700),
        (Limits(1024 << 20, disk_bytes=2048 << 20), 10, True, 2048),
    ],
)
def test_what_is_chosen(limits: Limits, needed_mib: int, volume: bool, size_mib: int) -> None:
    assert limits.on_volume(needed_mib << 20) == volume
    assert limits.workspace_bytes(needed_mib << 20) == size_mib << 20


@pytest.mark.docker
def test_a_repository_too_large_for_memory_gets_a_volume(
    repository: Path, tmp_path: Path, engine: DockerClient, run_name: str
) -> None:
    (repository / "large.bin").write_bytes(
        bytes(range(256)) * (40 << 12)
    )  # 40 MiB of the 64 that /workspace would have
    snapshot = snapshots.take(repository, tmp_path / "large")
    said = list[str]()
    box = open_sandbox(SandboxOptions(run_name, image="host", limits=TIGHT, say=said.append), snapshot)
    try:
        (container,) = engine.containers.list(filters={"label": f"{containers.LABEL}={run_name}"})
        assert [mount["Destination"] for mount in container.attrs["Mounts"] if mount["RW"]] == ["/workspace"]
        volumes = volumes_of(engine, run_name)
        assert len(volumes) == 1
        assert there_are(engine, volumes) == volumes
        assert len(said) == 1
        assert said[0].startswith("the workspace is a volume")
        assert sh(box, "id -u; stat -c %u .; git status --short; sha256sum < large.bin | cut -c1-8; touch new; ls")
        sh(box, "head -c 150000000 /dev/zero > built")  # more than all the memory
        sh(box, "rm built; echo other > README; chmod +x README")
        assert b"+other" in box.diff()
        done = box.exec(["sh", "-c", "truncate -s 11G huge"], 20)
        assert done.exit_code != 0
        assert b"File too large" in done.output or b"File size limit" in done.output or done.exit_code == 153
    finally:
        box.close()
    assert not there_are(engine, volumes)


@pytest.mark.docker
def test_a_disk_larger_than_the_memory_is_a_volume(snapshot: Snapshot, run_name: str, engine: DockerClient) -> None:
    said = list[str]()
    limits = Limits(memory_bytes=128 << 20, disk_bytes=256 << 20)
    box = open_sandbox(SandboxOptions(run_name, image="host", limits=limits, say=said.append), snapshot)
    try:
        volumes = volumes_of(engine, run_name)
        assert len(volumes) == 1
        assert "0.2 GiB" in said[0]
        assert sh(box, "cat README") == "words\n"
        assert box.exec(["sh", "-c", "head -c 300000000 /dev/zero > huge"], 60).exit_code != 0
    finally:
        box.close()
    assert not there_are(engine, volumes)
