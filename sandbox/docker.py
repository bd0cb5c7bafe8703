"""One container per run: no network unless asked for, nothing of the host writable, no privileges, and limits on every resource."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import image as images
from sandbox.client import Client
from sandbox.errors import EngineUnavailable, SandboxError, SandboxLost
from sandbox.link import Link, program
from sandbox.snapshot import Snapshot

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.errors import APIError

WORKSPACE = "/workspace"
HOME = "/tmp/home"  # noqa: S108 — a path inside the container, on a tmpfs of its own
DATA = "/mnt/data"  # where gpt-oss was trained to keep files that are not part of the repository
LABEL = "gpt-oss-agent.run"
START_TIMEOUT_S = 60.0
LAST_WORDS_BYTES = 4096
PIECE_BYTES = 1 << 20
MAX_INODES = 2_000_000
VOLUME_BYTES = 10 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use. ``memory_bytes`` covers all memory: /tmp, /mnt/data and, if it fits, the workspace are in memory too.

    A tmpfs enforces its size limit with every storage driver, and is fast. If the repository would fill more than half of it,
    or ``disk_bytes`` exceeds what memory can hold, the workspace is a Docker volume instead.
    """

    memory_bytes: int = 4 << 30
    disk_bytes: int | None = (
        None  # of the workspace; by default half the memory, or for a volume what the repository needs
    )
    pids: int = 512
    cpus: float | None = None  # all of them by default
    network: bool = False
    grace_s: float = 900.0  # how long the container outlives its agent

    def on_volume(self, needed_bytes: int) -> bool:
        """Whether a repository of this size needs a volume."""
        in_memory_bytes = self.disk_bytes or self.memory_bytes // 2
        fits = in_memory_bytes + 2 * self.temporary_bytes < self.memory_bytes
        return not fits or needed_bytes > in_memory_bytes // 2

    def workspace_bytes(self, needed_bytes: int) -> int:
        """Return the size of /workspace for a repository of this size."""
        if self.disk_bytes or not self.on_volume(needed_bytes):
            return self.disk_bytes or self.memory_bytes // 2
        return max(VOLUME_BYTES, 4 * needed_bytes)

    @property
    def temporary_bytes(self) -> int:
        """The size of /tmp, and of /mnt/data."""
        return self.memory_bytes // 8


@dataclass(frozen=True, slots=True)
class Order:
    """The container to start."""

    run: str
    image: str | None
    limits: Limits
    env: Mapping[str, str]
    needed_bytes: int  # approximate size of the repository
    say: Callable[[str], None]


def engine(timeout_s: float = 60.0) -> DockerClient:
    """Return a client of the local Docker engine. Raises EngineUnavailable, which says what to install or start."""
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


def start(snapshot: Snapshot, order: Order) -> tuple[Client, list[str]]:
    """Start a container with an empty workspace; return its client and the paths in the workspace that are mounts.

    Raises EngineUnavailable, ImageUnavailable, SandboxError.
    """
    from docker.errors import APIError, ImageNotFound

    limits = order.limits
    if limits.disk_bytes and order.needed_bytes > limits.disk_bytes:
        raise SandboxError(
            f"the repository needs about {order.needed_bytes >> 20} MiB, and the workspace may have "
            f"{limits.disk_bytes >> 20}; raise disk_bytes (--disk), or leave it out"
        )
    client = engine()
    try:
        base = images.choose(client, order.image, snapshot.repository, WORKSPACE)
        try:
            container = _create(client, base, order)
        except ImageNotFound:  # `agent sandbox clean` has just removed it, because no container used it yet
            base = images.choose(client, order.image, snapshot.repository, WORKSPACE)
            container = _create(client, base, order)
    except APIError as error:
        client.close()
        raise SandboxError(_why_not_started(error, order.image)) from error
    except BaseException:
        client.close()
        raise
    try:
        connected, _ = _connect(client, container, snapshot, limits.grace_s, begin=True)
    except BaseException:
        _discard(client, container)
        raise
    return connected, images.skipped(base, WORKSPACE)


def attach(snapshot: Snapshot, run: str, grace_s: float) -> Client | None:
    """Return the sandbox of a run whose agent died, in its current state; None if it is gone.

    The command that was running is killed; background processes live on. Raises EngineUnavailable.
    """
    client = engine()
    for found in client.api.containers(filters={"label": f"{LABEL}={run}"}):
        with contextlib.suppress(SandboxLost):
            taken, whole = _connect(client, str(found["Id"]), snapshot, grace_s, begin=False)
            if whole:
                return taken
            taken.link.close()  # its agent died before the repository was copied in completely
        remove(client, str(found["Id"]))
    client.close()
    return None


def orphans(client: DockerClient) -> list[tuple[str, str]]:
    """Return (run, container id) of every container of ours, running or not."""
    found = client.api.containers(all=True, filters={"label": LABEL})
    return [(str(container["Labels"][LABEL]), str(container["Id"])) for container in found]


def remove(client: DockerClient, container: str) -> None:
    """Remove a container of ours, even if it is running. It is no error if it is gone already."""
    from docker.errors import APIError

    try:
        client.api.remove_container(container, force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or being removed: it removes itself when its helper ends
            raise SandboxError(
                f"the container {container} could not be removed: {error.explanation or error}"
            ) from error
    except OSError as error:  # the connection failed: the engine was stopped, say
        raise SandboxError(f"the container {container} could not be removed: {error}") from error


def _create(client: DockerClient, base: images.Base, order: Order) -> str:
    """Create the container; return its id. A volume gets a size limit if its driver supports one; otherwise the user is told."""
    from docker.errors import APIError

    def create(bounded: bool) -> str:
        config = _config(client, base, order, bounded)
        made: dict[str, Any] = client.api.create_container_from_config(config)  # type: ignore[no-untyped-call]  # the stubs lack it
        return str(made["Id"])

    if not order.limits.on_volume(order.needed_bytes):
        return create(bounded=True)
    size = f"{order.limits.workspace_bytes(order.needed_bytes) / (1 << 30):.1f} GiB"
    try:
        container = create(bounded=True)
    except APIError as error:
        if "quota" not in str(error.explanation):
            raise
        container = create(bounded=False)
        order.say(
            f"the workspace is a volume, because it is too large for memory; its storage has no quota: one file may have {size}, "
            "and all files together what the disk has (to have it in memory, raise memory_bytes)"
        )
    else:
        order.say(f"the workspace is a volume of {size}, because it is too large for memory")
    try:
        _give(client, container, base)
    except BaseException:
        remove(client, container)
        raise
    return container


def _give(client: DockerClient, container: str, base: images.Base) -> None:
    """Give a container's new volume to its user. Nothing inside may do that, so another container does, and runs nothing else."""
    giver = client.containers.create(
        base.image,
        ["-I", "-S", "-c", f"import os; os.chown({WORKSPACE!r}, {base.user}, {base.user})"],
        entrypoint=[base.python],
        user="0:0",
        volumes_from=[container],
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        cap_add=["CHOWN"],
        security_opt=["no-new-privileges"],
    )
    try:
        giver.start()
        status = giver.wait(timeout=START_TIMEOUT_S)["StatusCode"]
        if status:
            said = giver.logs().decode("utf-8", "replace").strip()
            raise SandboxError(
                f"the volume for {WORKSPACE} could not be given to the user {base.user}: {said or status}"
            )
    finally:
        giver.remove(force=True)


def _discard(client: DockerClient, container: str) -> None:
    remove(client, container)
    client.close()


def _connect(
    client: DockerClient, container: str, snapshot: Snapshot, grace_s: float, begin: bool
) -> tuple[Client, bool]:
    """Return the client of a container, and whether all was copied in."""
    from docker.errors import APIError

    streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    try:
        wire = AttachWire(client.api.attach_socket(container, params=streams))
    except APIError as error:
        why = error.explanation or error
        if error.status_code not in (404, 409):  # the engine's own fault: the container may still hold a run's work
            raise SandboxError(f"the container cannot be reached: {why}; try again") from error
        raise SandboxLost(f"the container ended before it could be reached: {why}") from error
    try:
        if begin:
            client.api.start(container)
    except APIError as error:
        wire.close()
        raise SandboxError(_why_not_started(error, None)) from error
    link = Link(wire)
    try:
        said = link.hello(grace_s, START_TIMEOUT_S)
    except BaseException:
        link.close()
        raise

    def end(keep: bool) -> None:
        client.close() if keep else _discard(client, container)

    return Client(link, WORKSPACE, snapshot, end), bool(said.status["whole"])


def _why_not_started(error: APIError, image: str | None) -> str:
    said = str(error.explanation or error)
    if "executable file not found" in said or "no such file or directory" in said:
        return (
            f"the image{f' {image}' if image else ''} has no python3 (3.6 or later), which the sandbox's helper needs; "
            f"add it to the image, or use --image host ({said})"
        )
    return f"the container did not start: {said}"


def _config(client: DockerClient, base: images.Base, order: Order, bounded: bool) -> dict[str, Any]:
    """Return the engine's description of the container."""
    from docker.types import DriverConfig, LogConfig, Mount, Ulimit

    limits = order.limits
    size_bytes = limits.workspace_bytes(order.needed_bytes)
    owner = f"uid={base.user},gid={base.user},exec,nosuid,nodev"
    settings = {
        "workspace": WORKSPACE,
        "env": {**order.env, "HOME": HOME, **base.env},
        "grace_s": limits.grace_s,
        "remove": None,
        "held_fd": None,
        "links": base.links,
    }
    mounts = [
        Mount(inside, source, type="bind", read_only=True, propagation="rprivate") for source, inside in base.mounts
    ]
    for mount in mounts:  # a mount below the folder would not become read-only with it
        mount["BindOptions"]["NonRecursive"] = True
    tmpfs = dict.fromkeys(("/tmp", DATA), f"size={limits.temporary_bytes},nr_inodes={MAX_INODES},mode=1777,{owner}")  # noqa: S108
    tmpfs |= {str(Path(link).parent): f"size=64k,nr_inodes=64,mode=0755,{owner}" for link in base.links}
    ulimits = []
    if limits.on_volume(order.needed_bytes):
        driver = DriverConfig("local", {"size": str(size_bytes)}) if bounded else None
        mounts.append(
            Mount(WORKSPACE, None, type="volume", driver_config=driver)
        )  # anonymous: removed with the container
        ulimits = [Ulimit(name="fsize", soft=size_bytes, hard=size_bytes)]
    else:
        tmpfs[WORKSPACE] = f"size={size_bytes},nr_inodes={MAX_INODES},mode=0755,{owner}"
    host = client.api.create_host_config(
        network_mode="bridge" if limits.network else "none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        pids_limit=limits.pids,
        nano_cpus=int(limits.cpus * 1e9) if limits.cpus else None,
        tmpfs=tmpfs,
        ulimits=ulimits,
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
        labels={LABEL: order.run},
        stop_signal="SIGKILL",
        host_config=host,
        hostname="sandbox",
    )
    config.update({"AttachStdin": True, "StdinOnce": False, "NetworkDisabled": not limits.network})
    return config


class AttachWire:
    """The container's standard streams over the engine's attach connection (local, remote, TLS alike)."""

    def __init__(self, attached: Any) -> None:  # noqa: ANN401 — a socket or a wrapper of one, depending on the engine's address
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
        """Split the engine's frames: stream (1 byte), padding (3), length (4, big-endian), then so many bytes."""
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
        """Write everything; see Wire. Piece by piece: the reader's timeout, which the socket has, bounds each of them."""
        for start in range(0, len(data), PIECE_BYTES):
            self._socket.sendall(data[start : start + PIECE_BYTES])

    def close(self) -> None:
        """Disconnect; see Wire."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._owner.close()
        self._socket.close()

    def last_words(self) -> str:
        """Return the end of its standard error; see Wire."""
        return self._errors.decode("utf-8", "replace")
