"""Which image a sandbox starts from, and what of the host is mounted into it (read-only)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox import plumbing, scratch
from sandbox.errors import ImageUnavailable

if TYPE_CHECKING:
    from docker import DockerClient

HOST = "host"
DEFAULT = "python:3.12"
NOBODY = 65534
ENVIRONMENTS = (".venv", "venv", "env")
REPOSITORY = "gpt-oss-agent/host"
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# The parts of /etc that programs under /usr need to run at all; nothing that identifies this machine or its users.
ETC = (
    "alternatives",
    "ssl",
    "ca-certificates",
    "pki",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "fonts",
    "mime.types",
)
DEBIAN_PACKAGES = ("python3", "git", "ca-certificates")


@dataclass(frozen=True, slots=True)
class Base:
    """What a container consists of. ``mounts`` are (host path, path inside), all read-only.

    ``links`` (path to target) are made when it starts, each in a small tmpfs over its parent folder, so that one image
    serves every repository.
    """

    image: str
    python: str = "python3"
    mounts: tuple[tuple[str, str], ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    user: int = NOBODY
    links: dict[str, str] = field(default_factory=dict)


def choose(client: DockerClient, image: str | None, repository: Path, workspace: str) -> Base:
    """Return what to start from: the requested image, the default one if it is available, or the host's own programs.

    Raises ImageUnavailable if the requested image is not there and cannot be pulled.
    """
    if image == HOST:
        return host(client, repository, workspace)
    if _present(client, image or DEFAULT):
        return Base(image or DEFAULT)
    problem = _pull(client, image or DEFAULT)
    if problem is None:
        return Base(image or DEFAULT)
    if image is None and sys.platform == "linux" and _is_local(client):
        return host(client, repository, workspace)
    raise ImageUnavailable(
        f"the image {image or DEFAULT} is not on this machine and could not be pulled ({problem}); build one with `agent sandbox "
        "build`, name another with --image, or on Linux use --image host"
    )


def host(client: DockerClient, repository: Path, workspace: str) -> Base:
    """Return an empty image with the host's programs, and the repository's installed packages, mounted read-only.

    These are its virtual environment and its top-level ``node_modules``: git ignores them, but tests need them. Folders that
    git tracks are not mounted: a repository with a symbolic link of that name could otherwise have any folder of this machine
    mounted. (Deeper ones are not mounted either: the folders above a mount would belong to root, and not to the workspace's user.)

    Raises ImageUnavailable if that cannot work: not on Linux, or with an engine on another machine.
    """
    if sys.platform != "linux" or not _is_local(client):
        raise ImageUnavailable("--image host needs Linux and an engine on this machine; name an image with --image")
    tracked = _tracked(repository)
    environment = _environment(repository, tracked)
    prefix = _base_prefix(environment)
    mounts = [
        (f"/{name}", f"/{name}") for name in SYSTEM if Path("/", name).is_dir() and not Path("/", name).is_symlink()
    ]
    mounts += [(f"/etc/{name}", f"/etc/{name}") for name in ETC if Path("/etc", name).exists()]
    links = {name: str(Path("/", name).readlink()) for name in SYSTEM if Path("/", name).is_symlink()}
    if not prefix.is_relative_to("/usr"):
        mounts.append((str(prefix), str(prefix)))
    path = [f"{prefix}/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    env = {}
    if environment is not None:
        inside = _inside(environment, repository, workspace)
        mounts.append((str(environment), inside))
        env["VIRTUAL_ENV"] = inside
        path.insert(0, f"{inside}/bin")
    if "node_modules" not in tracked and (repository / "node_modules").is_dir():
        mounts.append((str(repository / "node_modules"), f"{workspace}/node_modules"))
    own = (
        {} if _covered(repository, mounts) else {str(repository): workspace}
    )  # an editable installation refers to this path
    if repository.parent == Path("/"):  # a tmpfs cannot be mounted over the root: then the image has the link
        links |= {path.lstrip("/"): target for path, target in own.items()}
        own = {}
    env["PATH"] = ":".join(path)
    python = next(
        (p for name in ("python3", "python") if (p := prefix / "bin" / name).exists()), prefix / "bin/python3"
    )
    user = os.getuid() or NOBODY
    return Base(_import(client, links, user), str(python), tuple(mounts), env, user, own)


def skipped(base: Base, workspace: str) -> list[str]:
    """Return the paths in the workspace that are mounts, relative to it: they are not part of the diff."""
    return [inside[len(workspace) + 1 :] for _, inside in base.mounts if inside.startswith(workspace + "/")]


def remove_unused(client: DockerClient) -> list[str]:
    """Remove our own host images that no container uses; return their names. They are made again when needed."""
    from docker.errors import APIError

    gone = []
    used = {container["ImageID"] for container in client.api.containers(all=True)}
    for image in client.api.images(name=REPOSITORY):  # does not inspect each image, which may be gone meanwhile
        for name in image["RepoTags"] or () if image["Id"] not in used else ():
            try:
                client.images.remove(name)
            except APIError as error:
                if error.status_code not in (404, 409):  # gone meanwhile, or in use
                    raise
            else:
                gone.append(name)
    return gone


def build_from_dockerfile(client: DockerClient, dockerfile: Path, tag: str) -> str:
    """Build an image from a Dockerfile and its folder; return its id. Raises ImageUnavailable with the end of the build's output."""
    from docker.errors import BuildError, DockerException

    try:
        image, _ = client.images.build(
            path=str(dockerfile.absolute().parent), dockerfile=dockerfile.name, tag=tag, rm=True
        )
    except BuildError as error:
        said = "".join(str(line.get("stream", "")) for line in error.build_log)[-2000:]
        raise ImageUnavailable(f"the image {tag} could not be built: {error}\n{said}") from error
    except (DockerException, OSError) as error:  # a file beside it cannot be read, or the engine went away
        raise ImageUnavailable(f"the image {tag} could not be built from {dockerfile}: {error}") from error
    return str(image.id)


def build_from_debian(client: DockerClient, packages: Sequence[str], tag: str, suite: str = "stable") -> str:
    """Make an image of Debian packages with debootstrap (needs root), for machines without access to a registry; return its id.

    Raises ImageUnavailable if debootstrap is missing or fails.
    """
    from docker.errors import APIError
    from docker.utils import parse_repository_tag

    try:
        _present(client, tag)
    except APIError as error:  # checked before the minutes that the packages take
        raise ImageUnavailable(
            f"no image can be called {tag!r}: {error.explanation}; give another name with --tag"
        ) from error
    if shutil.which("debootstrap") is None:
        raise ImageUnavailable("an image of Debian packages needs debootstrap; install it: apt-get install debootstrap")
    with scratch.folder("image") as folder:
        wanted = ",".join(dict.fromkeys((*DEBIAN_PACKAGES, *packages)))
        command = ["debootstrap", "--variant=minbase", f"--include={wanted}", suite, str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).decode("utf-8", "replace")[-2000:]
            raise ImageUnavailable(f"debootstrap could not make {tag} (it needs root and a Debian mirror): {said}")
        archive = subprocess.Popen(["tar", "-C", str(folder), "--exclude=./dev/*", "-c", "."], stdout=subprocess.PIPE)
        with archive:
            assert archive.stdout is not None
            name, version = parse_repository_tag(tag)
            client.api.import_image_from_stream(archive.stdout, repository=name, tag=version or "latest")
    return str(client.images.get(tag).id)


def _present(client: DockerClient, image: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _pull(client: DockerClient, image: str) -> str | None:
    """Pull an image; return why that failed, or None."""
    from docker.errors import APIError

    try:
        said = client.api.pull(image)
    except APIError as error:
        return str(error.explanation or error)
    last = str(said).strip().rpartition("\n")[2]
    return str(json.loads(last)["error"]) if '"error"' in last else None


def _is_local(client: DockerClient) -> bool:
    """Whether the engine can mount this machine's files: Docker Desktop and remote engines cannot."""
    return (
        str(client.api.base_url).startswith("http+docker://")
        and client.info().get("OperatingSystem") != "Docker Desktop"
    )


def _tracked(repository: Path) -> set[str]:
    """Return the names of installed folders that git tracks, completely or in part."""
    listed = plumbing.attempt(["ls-files", "-z", "--", *ENVIRONMENTS, "node_modules"], repository).stdout
    return {os.fsdecode(path).split("/")[0] for path in listed.split(b"\0")[:-1]}


def _environment(repository: Path, tracked: Collection[str]) -> Path | None:
    """Return the virtual environment that the repository's tests run in, if there is one."""
    active = os.environ.get("VIRTUAL_ENV")
    own = [repository / name for name in ENVIRONMENTS if name not in tracked]
    candidates = [*own, *([Path(active)] if active else [])]
    if sys.prefix != sys.base_prefix:
        candidates.append(Path(sys.prefix))
    return next((path for path in candidates if (path / "pyvenv.cfg").is_file()), None)


def _base_prefix(environment: Path | None) -> Path:
    """Return the installation whose interpreter a virtual environment (or this process) uses."""
    if environment is not None:
        for name in ("python3", "python"):
            python = environment / "bin" / name
            if python.exists():
                return python.resolve().parent.parent
    return Path(sys.base_prefix)


def _inside(environment: Path, repository: Path, workspace: str) -> str:
    """Return where an environment is mounted: in the workspace if it is in the repository, otherwise at its own path."""
    if environment.is_relative_to(repository):
        return f"{workspace}/{environment.relative_to(repository)}"
    return str(environment)


def _covered(path: Path, mounts: Sequence[tuple[str, str]]) -> bool:
    taken = ("/proc", "/sys", "/dev", "/tmp", "/workspace", *(inside for _, inside in mounts))  # noqa: S108 — inside
    return any(path == Path(other) or path.is_relative_to(other) or Path(other).is_relative_to(path) for other in taken)


def _import(client: DockerClient, links: dict[str, str], user: int) -> str:
    """Return the tag of an image with only links, mount points and a minimal /etc; made once per content."""
    people = f"root:x:0:0:root:/root:/bin/sh\nagent:x:{user}:{user}:agent:/tmp/home:/bin/sh\n"
    texts = {
        "etc/passwd": people,
        "etc/group": f"root:x:0:\nagent:x:{user}:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/shells": "/bin/sh\n/bin/bash\n",
    }
    tag = hashlib.sha256(repr((sorted(links.items()), sorted(texts.items()))).encode()).hexdigest()[:16]
    name = f"{REPOSITORY}:{tag}"
    if _present(client, name):
        return name
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in ("etc", "tmp", "workspace", "proc", "sys", "dev"):
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for path, text in texts.items():
            file = tarfile.TarInfo(path)
            file.size, file.mode = len(text), 0o644
            archive.addfile(file, io.BytesIO(text.encode()))
        for path, target in links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    client.api.import_image_from_data(buffer.getvalue(), repository=REPOSITORY, tag=tag)
    return name
