"""Images and engines of other kinds: one without git or tools, one behind TCP, a network, a share of the CPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from docker import DockerClient

from sandbox import docker as containers
from sandbox import image as images
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.docker import Limits
from sandbox.errors import ImageUnavailable, SandboxError
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from tests.sandbox.conftest import SMALL, commit, git, sh
from tests.sandbox.images import import_python

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerClient]:
    client = containers.engine()
    yield client
    client.close()


@pytest.fixture(scope="module")
def python_image(engine: DockerClient) -> Iterator[str]:
    tag = f"gpt-oss-agent/test-python:{uuid.uuid4().hex}"  # of this process alone: another that runs these tests ends at its time
    import_python(engine, tag)
    yield tag
    engine.images.remove(tag)


def test_an_image_needs_nothing_but_a_python(
    snapshot: Snapshot, opened: Callable[..., Sandbox], python_image: str
) -> None:
    box = opened("docker", snapshot, image=python_image)
    done = box.exec(["python3", "-c", "import os; print(os.getuid(), open('README').read())"], 20)
    assert (done.exit_code, done.output) == (0, b"65534 words\n\n")
    box.write("README", b"other\n")
    assert b"+other" in box.diff()
    assert box.exec(["git", "status"], 5).exit_code == 127


def test_a_volume_with_an_image_that_has_no_workspace(
    snapshot: Snapshot, opened: Callable[..., Sandbox], python_image: str
) -> None:
    box = opened("docker", snapshot, Limits(memory_bytes=128 << 20, disk_bytes=256 << 20), image=python_image)
    box.write("README", b"other\n")
    assert b"+other" in box.diff()
    done = box.exec(["python3", "-c", "import os; print(os.stat('.').st_uid, os.getuid())"], 10)
    assert done.output == b"65534 65534\n"


class _Relay(socketserver.BaseRequestHandler):
    """Passes a TCP connection on to the engine's own socket."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect("/var/run/docker.sock")
            back = threading.Thread(target=self._pump, args=(other, self.request))
            back.start()
            self._pump(self.request, other)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def engine_behind_tcp(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Relay) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        address = f"tcp://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("DOCKER_HOST", address)
        yield address
        server.shutdown()
        serving.join()


def test_an_engine_behind_tcp(
    snapshot: Snapshot, opened: Callable[..., Sandbox], python_image: str, engine_behind_tcp: str, run_name: str
) -> None:
    assert engine_behind_tcp.startswith("tcp://")
    with pytest.raises(ImageUnavailable, match="an engine on this machine; name an image with --image"):
        opened("docker", snapshot, image="host")
    box = opened("docker", snapshot, image=python_image)
    data = os.urandom(3_000_000)
    box.write("large", data)
    assert box.read("large") == data
    done = box.exec(["python3", "-c", "import sys; sys.stdout.write('x' * 500000)"], 20)
    assert (done.exit_code, len(done.output)) == (0, 500_000)
    assert box.exec(["python3", "-c", "import time; time.sleep(60)"], 0.5).exit_code is None
    box.close()
    with contextlib.closing(containers.engine()) as client:
        assert run_name not in dict(containers.orphans(client))


def test_network_on_reaches_beyond_the_container(snapshot: Snapshot, opened: Callable[..., Sandbox]) -> None:
    """A server on the host's end of the bridge: an address outside the container, that needs no internet."""
    box = opened("docker", snapshot, Limits(memory_bytes=256 << 20, network=True))
    gateway = "int(next(l.split()[2] for l in open('/proc/net/route') if l.split()[1] == '00000000'), 16)"
    find = f"import socket, struct; print(socket.inet_ntoa(struct.pack('<I', {gateway})))"
    address = box.exec(["python3", "-c", find], 10).output.decode().strip()
    with socket.create_server((address, 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        script = f"import socket; print(socket.create_connection(('{address}', {port}), 10).recv(9).decode())"

        def answer() -> None:
            with server.accept()[0] as caller:
                caller.sendall(b"from here")

        answering = threading.Thread(target=answer)
        answering.start()
        assert box.exec(["python3", "-c", script], 20).output == b"from here\n"
        answering.join()
    assert "localhost" in sh(box, "cat /etc/hosts")


def test_a_share_of_the_cpu(snapshot: Snapshot, opened: Callable[..., Sandbox]) -> None:
    box = opened("docker", snapshot, Limits(memory_bytes=256 << 20, cpus=0.2))
    spin = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    used_s = float(box.exec(["python3", "-c", spin], 30).output)
    assert used_s < 0.9  # 0.4 s and what is left of a period


def test_debian_packages_without_debootstrap_say_what_to_install(
    engine: DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImageUnavailable, match="apt-get install debootstrap"):
        images.build_from_debian(engine, ["jq"], "gpt-oss-agent/test-debian:1")


def test_debian_packages_by_a_debootstrap(
    engine: DockerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_name: str
) -> None:
    """The command line and what becomes of its folder; a real bootstrap takes a minute and a mirror."""
    fake = tmp_path / "bin" / "debootstrap"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\necho "$@" > $4/args; mkdir $4/dev; echo x > $4/dev/left-out; case $3 in bad) exit 3;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    tag = f"gpt-oss-agent/test-debian:{run_name}"
    made = images.build_from_debian(engine, ["jq", "git"], tag)
    try:
        container = engine.containers.create(made, ["/none"])
        with tempfile.TemporaryFile() as file:
            for piece in container.export():
                file.write(piece)
            file.seek(0)
            exported = file.read()
        container.remove()
        assert b"--variant=minbase --include=python3,git,ca-certificates,jq stable" in exported
        assert b"left-out" not in exported
    finally:
        engine.images.remove(tag)
    with pytest.raises(ImageUnavailable, match="needs root and a Debian mirror"):
        images.build_from_debian(engine, ["jq"], tag, "bad")


def test_unused_host_images_are_removed_and_used_ones_are_not(
    snapshot: Snapshot, opened: Callable[..., Sandbox], engine: DockerClient, run_name: str
) -> None:
    box = opened("docker", snapshot)
    (container,) = engine.containers.list(filters={"label": f"{containers.LABEL}={run_name}"})
    used = container.attrs["Config"]["Image"]
    engine.api.import_image_from_data(bytes(10240), repository=images.REPOSITORY, tag=run_name)
    gone = images.remove_unused(engine)
    assert not engine.images.list(name=f"{images.REPOSITORY}:{run_name}")
    assert used not in gone
    assert sh(box, "echo alive") == "alive\n"


def test_an_image_that_is_removed_before_its_container_is_made_is_made_again(
    snapshot: Snapshot, opened: Callable[..., Sandbox], run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, choose = list[images.Base](), images.choose

    def removed_once(*arguments: object) -> images.Base:
        base = choose(*arguments)  # type: ignore[arg-type]
        chosen.append(base)
        return base if len(chosen) == 2 else replace(base, image=f"{images.REPOSITORY}:{run_name}")

    monkeypatch.setattr(images, "choose", removed_once)
    assert sh(opened("docker", snapshot), "echo alive") == "alive\n"
    assert len(chosen) == 2


@pytest.fixture
def project() -> Iterator[Path]:
    """A repository outside /tmp, as a person's is: the container has a /tmp of its own."""
    folder = Path(tempfile.mkdtemp(prefix="gpt-oss-agent-test-", dir="/var/tmp"))
    repository = folder / "people" / "project"
    repository.mkdir(parents=True)
    git(repository, "init", "-q", "-b", "trunk")
    (repository / "src" / "words").mkdir(parents=True)
    (repository / "src" / "words" / "__init__.py").write_text("def first(text):\n    return text.split()[0]\n")
    (repository / "test_words.py").write_text(
        "import unittest\nfrom words import first\n\n\nclass Test(unittest.TestCase):\n"
        "    def test_first(self):\n        self.assertEqual(first('a b'), 'a')\n"
    )
    (repository / ".gitignore").write_text("/.venv/\nnode_modules/\n")
    commit(repository)
    yield repository
    shutil.rmtree(folder)


def test_the_repository_s_own_environment_with_an_editable_install(
    project: Path, tmp_path: Path, opened: Callable[..., Sandbox]
) -> None:
    """The package is installed by a path of this machine; inside, that path leads to the workspace, and edits count."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(project / ".venv")], check=True)
    (packages,) = (project / ".venv" / "lib").glob("python*/site-packages")
    (packages / "words.pth").write_text(f"{project}/src\n")
    box = opened("docker", snapshots.take(project, tmp_path / "state"))
    assert "OK" in sh(box, "python -m unittest 2>&1")
    assert sh(box, "python -c 'import sys, words; print(sys.prefix, words.__file__)'").split() == [
        "/workspace/.venv",
        f"{project}/src/words/__init__.py",
    ]
    box.write("src/words/__init__.py", b"def first(text):\n    return 'edited'\n")
    assert sh(box, "python -c 'import words; print(words.first(str()))'") == "edited\n"
    assert box.exec(["touch", ".venv/new"], 5).exit_code != 0
    assert ".venv" not in sh(box, "git status --short") + box.diff().decode()


def test_one_host_image_serves_every_repository(
    project: Path, repository: Path, tmp_path: Path, engine: DockerClient, opened: Callable[..., Sandbox]
) -> None:
    chosen = {images.choose(engine, "host", folder, "/workspace").image for folder in (project, repository)}
    assert len(chosen) == 1


def test_node_modules_are_there_though_ignored(project: Path, tmp_path: Path, opened: Callable[..., Sandbox]) -> None:
    for folder in ("node_modules", "packages/web/node_modules"):
        (project / folder / "left").mkdir(parents=True)
        (project / folder / "left" / "index.js").write_text("module.exports = 7\n")
    (project / "packages" / "web" / "main.js").write_text("require('left')\n")
    commit(project)
    box = opened("docker", snapshots.take(project, tmp_path / "state"))
    assert sh(box, "cat node_modules/left/index.js") == "module.exports = 7\n"
    assert box.exec(["touch", "node_modules/x"], 5).exit_code != 0
    box.write("packages/web/main.js", b"require('left') + 1\n")
    assert b"node_modules" not in box.diff()


def test_an_image_without_python_is_refused_on_a_volume_too(
    snapshot: Snapshot, engine: DockerClient, run_name: str
) -> None:
    engine.api.import_image_from_data(bytes(10240), repository="gpt-oss-agent/empty", tag=run_name)
    limits = Limits(memory_bytes=128 << 20, disk_bytes=256 << 20)
    try:
        with pytest.raises(SandboxError, match="has no python3"):
            open_sandbox(SandboxOptions(run_name, image=f"gpt-oss-agent/empty:{run_name}", limits=limits), snapshot)
        assert run_name not in dict(containers.orphans(engine))
    finally:
        engine.images.remove(f"gpt-oss-agent/empty:{run_name}")


def test_the_limits_of_these_tests_are_in_memory() -> None:
    assert not SMALL.on_volume(1 << 20)
