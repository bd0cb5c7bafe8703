"""One container a run: no network unless asked, nothing of the host writable, no privilege, and limits on everything."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox import image as images
from sandbox.client import Client
from sandbox.errors import EngineUnavailable, SandboxError, SandboxLost
from sandbox.link import Link, program
from sandbox.snapshot import Snapshot

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.errors import APIError
    from docker.models.containers import Container

WORKSPACE = "/workspace"
HOME = "/tmp/home"  # noqa: S108 — a path inside the container, on a tmpfs of its own
DATA = "/mnt/data"  # where gpt-oss was trained to keep files that are no part of the work
LABEL = "gpt-oss-agent.run"
START_TIMEOUT_S = 60.0
LAST_WORDS_BYTES = 4096
MAX_INODES = 2_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use. ``memory_bytes`` is the whole of it: the workspace, /tmp and /mnt/data are memory too.

    On a tmpfs the limit holds on every storage driver and writes are as fast as they get; the price is that a
    repository, and what is built in it, must fit into ``disk_bytes``.
    """

    memory_bytes: int = 4 << 30
    disk_bytes: int | None = None  # of the workspace; half the memory by default
    pids: int = 512
    cpus: float | None = None  # all of them by default
    network: bool = False
    grace_s: float = 900.0  # how long the container outlives its agent

    @property
    def workspace_bytes(self) -> int:
        """The size of /workspace."""
        return self.disk_bytes or self.memory_bytes // 2

    @property
    def temporary_bytes(self) -> int:
        """The size of /tmp, and of /mnt/data."""
        return self.memory_bytes // 8


def engine(timeout_s: float = 60.0) -> DockerClient:
    """Return a client of the engine that answers here. Raises EngineUnavailable with what to install or start."""
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=int(timeout_s))
    except DockerException as error:
        raise EngineUnavailable(f"no Docker engine answers ({error}); {remedy(sys.platform)}") from error


def remedy(platform: str) -> str:
    """Return what to install or start on a platform."""
    match platform:
        case "darwin":
            return "install and start Docker Desktop (brew install --cask docker; open -a Docker), or colima"
        case "win32":
            return "install and start Docker Desktop, or run the agent in WSL 2 with docker.io"
        case _:
            return (
                "on Debian or Ubuntu: sudo apt-get install docker.io && sudo systemctl start docker; elsewhere see "
                "docs.docker.com/engine/install; if it runs, join its group: sudo usermod -aG docker $USER and log in "
                "again; if it is elsewhere, set DOCKER_HOST"
            )


def start(
    snapshot: Snapshot, run: str, image: str | None, limits: Limits, env: Mapping[str, str]
) -> tuple[Client, list[str]]:
    """Start a container with an empty workspace; return its client and the paths in the workspace that are mounts.

    Raises EngineUnavailable, ImageUnavailable, SandboxError.
    """
    from docker.errors import APIError

    if limits.workspace_bytes + limits.temporary_bytes >= limits.memory_bytes:
        raise SandboxError(
            f"disk_bytes ({limits.workspace_bytes}) leaves no room for commands in memory_bytes ({limits.memory_bytes}), "
            "which holds both; raise memory_bytes"
        )
    client = engine()
    try:
        base = images.choose(client, image, snapshot.repository, WORKSPACE)
        container = _create(client, _config(client, base, run, limits, env))
    except APIError as error:
        client.close()
        raise SandboxError(f"the engine refused to make a container: {error.explanation or error}") from error
    except BaseException:
        client.close()
        raise
    try:
        connected = _connect(client, client.containers.get(container), snapshot, limits.grace_s, begin=True)
    except BaseException:
        _discard(client, container)
        raise
    return connected, images.skipped(base, WORKSPACE)


def attach(snapshot: Snapshot, run: str, grace_s: float) -> Client | None:
    """Return the sandbox of a run whose agent died, as it is; None when it is gone.

    What that agent was running is killed; what had been left in the background lives on. Raises EngineUnavailable.
    """
    client = engine()
    found = client.containers.list(filters={"label": f"{LABEL}={run}"})
    if not found:
        client.close()
        return None
    try:
        return _connect(client, found[0], snapshot, grace_s, begin=False)
    except SandboxLost:
        _discard(client, str(found[0].id))
        return None


def orphans(client: DockerClient) -> list[tuple[str, str]]:
    """Return (run, container id) of every container of ours, running or not."""
    found = client.containers.list(all=True, filters={"label": LABEL})
    return [(str(container.labels[LABEL]), str(container.id)) for container in found]


def remove(client: DockerClient, container: str) -> None:
    """Remove a container of ours, whatever it does. One that is gone already is no error."""
    from docker.errors import APIError

    try:
        client.api.remove_container(container, force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or going: it removes itself when its helper ends
            raise SandboxError(
                f"the container {container} could not be removed: {error.explanation or error}"
            ) from error


def _create(client: DockerClient, config: dict[str, Any]) -> str:
    made: dict[str, Any] = client.api.create_container_from_config(config)  # type: ignore[no-untyped-call]  # the stubs lack it
    return str(made["Id"])


def _discard(client: DockerClient, container: str) -> None:
    remove(client, container)
    client.close()


def _connect(client: DockerClient, container: Container, snapshot: Snapshot, grace_s: float, begin: bool) -> Client:
    from docker.errors import APIError

    streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    wire = AttachWire(client.api.attach_socket(str(container.id), params=streams))
    try:
        if begin:
            container.start()
    except APIError as error:
        wire.close()
        raise SandboxError(_why_not_started(error, container)) from error
    link = Link(wire)
    try:
        link.hello(grace_s, START_TIMEOUT_S)
    except BaseException:
        link.close()
        raise
    return Client(link, WORKSPACE, snapshot, lambda: _discard(client, str(container.id)))


def _why_not_started(error: APIError, container: Container) -> str:
    said = str(error.explanation or error)
    if "executable file not found" in said or "no such file or directory" in said:
        return (
            f"the image {container.attrs['Config']['Image']} has no python3 (3.6 or later), which the sandbox's helper needs; "
            f"add it to the image, or use --image host ({said})"
        )
    return f"the container did not start: {said}"


def _config(
    client: DockerClient, base: images.Base, run: str, limits: Limits, env: Mapping[str, str]
) -> dict[str, Any]:
    """Return the engine's description of the container."""
    from docker.types import LogConfig, Mount

    owner = f"uid={base.user},gid={base.user},exec,nosuid,nodev"
    settings = {
        "workspace": WORKSPACE,
        "env": {**env, "HOME": HOME, **base.env},
        "grace_s": limits.grace_s,
        "remove": None,
    }
    mounts = [
        Mount(inside, source, type="bind", read_only=True, propagation="rprivate") for source, inside in base.mounts
    ]
    for mount in mounts:  # what is mounted below a folder would not become read-only with it
        mount["BindOptions"]["NonRecursive"] = True
    host = client.api.create_host_config(
        network_mode="bridge" if limits.network else "none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        pids_limit=limits.pids,
        nano_cpus=int(limits.cpus * 1e9) if limits.cpus else None,
        tmpfs={
            WORKSPACE: f"size={limits.workspace_bytes},nr_inodes={MAX_INODES},mode=0755,{owner}",
            **dict.fromkeys(("/tmp", DATA), f"size={limits.temporary_bytes},nr_inodes={MAX_INODES},mode=1777,{owner}"),  # noqa: S108
        },
        auto_remove=True,
        log_config=LogConfig(type="none"),
        ipc_mode="private",
        mounts=mounts,
    )
    command = program(base.python, settings)
    config: dict[str, Any] = client.api.create_container_config(
        base.image,
        command[1:],
        entrypoint=command[:1],
        user=f"{base.user}:{base.user}",
        stdin_open=True,
        working_dir=WORKSPACE,
        labels={LABEL: run},
        stop_signal="SIGKILL",
        host_config=host,
        hostname="sandbox",
    )
    config.update({"AttachStdin": True, "StdinOnce": False, "NetworkDisabled": not limits.network})
    return config


class AttachWire:
    """The container's standard streams over the engine's attach connection (local, remote, TLS alike)."""

    def __init__(self, attached: Any) -> None:  # noqa: ANN401 — a socket, or one in a wrapper, by the kind of the engine's address
        self._owner = attached
        self._socket = getattr(attached, "_sock", attached)
        self._buffer = bytearray()
        self._errors = bytearray()
        self._closing = threading.Event()

    def read(self, timeout_s: float) -> bytes | None:
        """Return what the helper wrote; see Wire."""
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            return None
        except OSError:
            if self._closing.is_set():
                return b""
            raise
        if not data:
            return b""
        self._buffer += data
        return b"".join(self._split()) or None

    def _split(self) -> Iterator[bytes]:
        """Take the engine's frames apart: stream (1), padding (3), length (4), then so many bytes."""
        while len(self._buffer) >= 8:
            end = 8 + int.from_bytes(self._buffer[4:8], "big")
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[8:end])
            if self._buffer[0] == 2:
                self._errors = (self._errors + payload)[-LAST_WORDS_BYTES:]
            else:
                yield payload
            del self._buffer[:end]

    def write(self, data: bytes) -> None:
        """Write everything; see Wire."""
        self._socket.sendall(data)

    def close(self) -> None:
        """Hang up; see Wire."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._owner.close()
        self._socket.close()

    def last_words(self) -> str:
        """Return the end of its standard error; see Wire."""
        return self._errors.decode("utf-8", "replace")
