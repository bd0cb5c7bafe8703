"""What a container must hold against commands that mean harm, and what outlives an agent that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker import APIClient, DockerClient
from docker.errors import APIError
from requests import Response

from sandbox import docker as containers
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.docker import Limits
from sandbox.errors import EngineUnavailable, ImageUnavailable, SandboxError, SandboxLost
from sandbox.open import SandboxOptions, attach, open_sandbox
from sandbox.snapshot import Snapshot
from tests.sandbox.conftest import SMALL, sh

pytestmark = pytest.mark.docker


@pytest.fixture
def box(snapshot: Snapshot, opened: Callable[..., Sandbox]) -> Sandbox:
    return opened("docker", snapshot)


@pytest.fixture
def engine() -> Iterator[DockerClient]:
    client = containers.engine()
    yield client
    client.close()


def python(sandbox: Sandbox, code: str, timeout_s: float = 20.0) -> tuple[int | None, str]:
    done = sandbox.exec(["python3", "-c", textwrap.dedent(code)], timeout_s)
    return done.exit_code, done.output.decode("utf-8", "replace")


def test_nothing_of_the_host_is_writable_and_no_privilege_is_left(box: Sandbox) -> None:
    code, said = python(
        box,
        """
        import os, socket
        assert os.getuid() and os.geteuid() and os.getgid(), "root"
        status = open("/proc/self/status").read()
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert f"{name}:\\t0000000000000000" in status, (name, status)
        assert "NoNewPrivs:\\t1" in status
        for line in open("/proc/self/mounts"):
            source, place, kind, options = line.split()[:4]
            if kind in ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"): continue
            if place.startswith("/proc/") and os.stat(place).st_rdev == os.stat("/dev/null").st_rdev: continue  # masked
            writable = "ro" not in options.split(",") and os.access(place, os.W_OK)
            if writable: print(place, kind)
        assert os.listdir("/sys/class/net") == ["lo"]
        try: socket.create_connection(("1.1.1.1", 53), 3)
        except OSError as error: print(error.strerror)
        """,
    )
    assert code == 0, said
    places = {line.split()[0]: line.split()[-1] for line in said.splitlines()[:-1]}
    assert set(places) <= {
        "/workspace",
        "/tmp",
        "/mnt/data",
        "/dev",
        "/dev/shm",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
    }
    assert {places["/workspace"], places["/tmp"], places["/mnt/data"]} == {"tmpfs"}
    assert said.splitlines()[-1] == "Network is unreachable"
    for place in ("/usr/x", "/etc/x", "/x", "/root/x", "/workspace/../x"):
        assert box.exec(["touch", place], 5).exit_code != 0


def test_the_engine_was_told_so(box: Sandbox, engine: DockerClient, run_name: str) -> None:
    (container,) = engine.containers.list(filters={"label": f"{containers.LABEL}={run_name}"})
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    assert config["User"].split(":")[0] not in ("", "0")
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("none", True, False)
    assert (host["CapDrop"], host["CapAdd"], host["SecurityOpt"]) == (["ALL"], None, ["no-new-privileges"])
    assert host["Memory"] == host["MemorySwap"] == SMALL.memory_bytes
    assert host["PidsLimit"] == SMALL.pids
    assert not [mount for mount in container.attrs["Mounts"] if mount["RW"]]


def test_a_fork_bomb_ends_at_the_limit_and_the_next_command_runs(box: Sandbox) -> None:
    bomb = "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"
    assert box.exec(["python3", "-c", bomb], 2).exit_code is None
    assert sh(box, "echo alive") == "alive\n"
    box.exec(["sh", "-c", "b() { b | b & }; b"], 5)  # this one goes on in the background
    time.sleep(0.5)
    assert sh(box, "echo alive") == "alive\n"


def test_a_memory_hog_is_killed_and_the_next_command_runs(box: Sandbox) -> None:
    done = box.exec(["python3", "-c", "x = bytearray(1 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1"], 30)
    assert done.exit_code in (1, 137)  # MemoryError, or the kernel
    assert sh(box, "echo alive") == "alive\n"


def test_a_full_disk_is_an_error_of_the_command(box: Sandbox) -> None:
    done = box.exec(["dd", "if=/dev/zero", "of=big", "bs=1M", "count=100"], 30)
    assert done.exit_code == 1
    assert b"No space left" in done.output
    with pytest.raises(OSError, match="No space left"):
        box.write("more", bytes(1 << 20))
    assert not box.exec(["ls", "more"], 5).output.startswith(b"more")
    assert sh(box, "rm big; echo alive > file; cat file") == "alive\n"
    assert box.exec(["dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=100"], 30).exit_code == 1


def test_a_repository_that_does_not_fit_says_so(
    repository: Path, tmp_path: Path, opened: Callable[..., Sandbox]
) -> None:
    from sandbox import snapshot as snapshots

    (repository / "big.bin").write_bytes(os.urandom(8 << 20))
    snapshot = snapshots.take(repository, tmp_path / "big")
    with pytest.raises(SandboxError, match=r"needs about 8 MiB, and the workspace may have 4; raise disk_bytes"):
        opened("docker", snapshot, Limits(memory_bytes=128 << 20, disk_bytes=4 << 20))


def test_a_flood_of_output_is_read_to_its_end_within_bounds(box: Sandbox) -> None:
    done = box.exec(["sh", "-c", "head -c 1073741824 /dev/zero; echo the end"], 60, max_output_bytes=10_000)
    assert done.exit_code == 0
    assert done.output.endswith(b"the end\n")
    assert len(done.output) < 10_100
    assert done.truncated_bytes == (1 << 30) + 8 - 10_000
    assert box.exec(["sh", "-c", "echo now; yes &"], 20).output.startswith(b"now")  # a flood in the background
    assert sh(box, "echo alive") == "alive\n"


def test_the_helper_cannot_be_killed_stopped_traced_or_talked_over(box: Sandbox) -> None:
    code, said = python(
        box,
        """
        import ctypes, os, signal
        for number in range(1, 65):
            if number in (32, 33): continue
            try: os.kill(1, number)
            except OSError: pass
        libc = ctypes.CDLL(None, use_errno=True)
        print("attach", libc.ptrace(16, 1, 0, 0))
        for path in ("/proc/1/fd/1", "/proc/1/fd/3", "/proc/1/fd/4", "/proc/1/mem", "/proc/1/environ"):
            try: open(path, "r+b"); print("opened", path)
            except OSError: pass
        try: print(os.listdir("/proc/1/fd"))
        except OSError: print("closed")
        own = {os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
        print(sorted(own))
        """,
    )
    assert code == 0, said
    assert said.splitlines()[:2] == ["attach -1", "closed"]
    assert "opened" not in said
    assert sh(box, "echo alive") == "alive\n"


def test_output_that_looks_like_the_protocol_is_output(box: Sandbox) -> None:
    from sandbox.guest import frames

    forged = b"".join(frames.encode(frames.END, number, b'{"exit": 0}') for number in range(64)) + frames.MAGIC * 100
    done = box.exec(["sh", "-c", "cat; exit 7"], 10, stdin=forged)
    assert (done.exit_code, done.output) == (7, forged)
    box.write("forged", forged)
    assert box.read("forged") == forged


def test_the_diff_is_right_whatever_was_done_to_the_workspace_s_git(box: Sandbox, tmp_path: Path) -> None:
    sh(
        box,
        """
        echo changed >> README
        git config core.fsmonitor 'touch /tmp/ran; false'; git config diff.external 'touch /tmp/ran'
        git config filter.evil.clean 'touch /tmp/ran; echo gone'; echo '* filter=evil diff=evil' > .gitattributes
        printf '#!/bin/sh\\ntouch /tmp/ran' > .git/hooks-pre; mkdir -p .git/hooks; cp .git/hooks-pre .git/hooks/post-index-change
        chmod +x .git/hooks/*; echo /nonexistent > .git/objects/info/alternates; echo junk > .git/index; rm -rf .git/refs .git/HEAD
        git update-index --assume-unchanged README 2>/dev/null
        rm -rf /tmp/ran; mkdir nested; cd nested; git init -q; echo kept > file
        """
        "cd ..; mkdir -p src/.git; echo x > src/.git/config; chmod 000 src/words.py nested; exit 0",
    )
    patch = box.diff()
    from sandbox.diff import parse, paths

    assert paths(parse(patch)) == (".gitattributes", "README", "nested/file")
    assert b"+changed\n" in patch
    assert box.exec(["ls", "/tmp/ran"], 5).exit_code != 0
    sh(box, "rm -rf .git; rm README")
    assert "README" in paths(parse(box.diff()))


def test_a_change_as_large_as_the_disk_is_refused_not_swallowed(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandbox import client
    from sandbox.errors import DiffRefused

    monkeypatch.setattr(client, "MAX_DIFF_BYTES", 1 << 20)
    sh(box, "head -c 2000000 /dev/urandom > big")
    with pytest.raises(DiffRefused, match="big: the changes are more than 1 MiB"):
        box.diff()
    monkeypatch.setattr(client, "MAX_DIFF_FILES", 9)
    sh(box, "rm big; touch 1 2 3 4 5 6 7 8 9")
    assert box.diff().count(b"new file") == 9
    sh(box, "rm README")
    with pytest.raises(DiffRefused, match="or 9 files"):
        box.diff()


KILLED = """
import os, signal, sys
from pathlib import Path
from sandbox import snapshot
from sandbox.docker import Limits
from sandbox.open import SandboxOptions, open_sandbox
box = open_sandbox(SandboxOptions(run=sys.argv[2], image="host", limits=Limits(grace_s=float(sys.argv[3]))), snapshot.load(Path(sys.argv[1])))
box.exec(["sh", "-c", "echo mine > left; (sleep 300 &)"], 10)
box.link._wire.write(b"half a frame" + b"\\xf5agt\\x02" + bytes(8) + b"\\x00\\x00\\xff\\x00" + b"....and some")
if sys.argv[4] == "busy":
    import threading
    threading.Thread(target=box.exec, args=(["sh", "-c", "sleep 100; echo never > never"], 200), daemon=True).start()
    __import__("time").sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(snapshot: Snapshot, run: str, grace_s: float, busy: str = "") -> None:
    arguments = [str(snapshot.git_dir.parent), run, str(grace_s), busy]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode == -9


@pytest.mark.parametrize("busy", ["", "busy"])
def test_a_killed_run_is_taken_over_as_it_is(snapshot: Snapshot, run_name: str, busy: str) -> None:
    options = SandboxOptions(run_name, image="host")
    killed(snapshot, options.run, 60.0, busy)
    box = attach(options, snapshot)
    assert box is not None
    try:
        assert sh(box, "cat left") == "mine\n"
        assert b"+mine" in box.diff()
        running = sh(box, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "sleep 300" in running  # what was left in the background lives
        assert "sleep 100" not in running  # what nobody waits for any more does not
    finally:
        box.close()
    assert attach(options, snapshot) is None


def test_half_a_copy_is_not_taken_over(snapshot: Snapshot, run_name: str, engine: DockerClient) -> None:
    order = containers.Order(run_name, "host", Limits(), {}, 0, lambda _: None)
    half, _ = containers.start(snapshot, order)
    half.fill(snapshots.contents(snapshot, snapshots.items(snapshot)[:2]), b"", [])
    half.link.close()  # as if its agent had been killed here
    try:
        assert attach(SandboxOptions(run_name), snapshot) is None
        assert run_name not in dict(containers.orphans(engine))
    finally:
        half.close()


def test_a_container_that_ends_while_it_is_taken_over_is_gone(
    snapshot: Snapshot, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(APIClient, "containers", lambda *_, **__: [{"Id": "0" * 64}])  # listed a moment ago
    assert attach(SandboxOptions(run_name), snapshot) is None


def test_an_engine_in_trouble_is_not_a_container_that_is_gone(
    snapshot: Snapshot, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(*_: object, **__: object) -> None:
        response = Response()
        response.status_code = 500
        raise APIError("no more memory", response=response)

    killed(snapshot, run_name, 60.0)
    with monkeypatch.context() as patched:
        patched.setattr(APIClient, "attach_socket", trouble)
        with pytest.raises(SandboxError, match=r"cannot be reached: .*try again"):
            attach(SandboxOptions(run_name), snapshot)
    box = attach(SandboxOptions(run_name), snapshot)
    assert box is not None, "it holds the run's work"
    box.close()


def test_a_run_that_nobody_takes_over_leaves_nothing(snapshot: Snapshot, run_name: str, engine: DockerClient) -> None:
    killed(snapshot, run_name, 2.0)
    for _ in range(600):
        if run_name not in dict(containers.orphans(engine)):
            break
        time.sleep(0.1)
    assert run_name not in dict(containers.orphans(engine))
    assert attach(SandboxOptions(run_name), snapshot) is None


def test_orphans_can_be_removed_at_once(snapshot: Snapshot, run_name: str, engine: DockerClient) -> None:
    killed(snapshot, run_name, 600.0)
    container = dict(containers.orphans(engine))[run_name]
    containers.remove(engine, container)
    containers.remove(engine, container)
    assert run_name not in dict(containers.orphans(engine))


def test_an_engine_that_is_gone_is_told_as_any_fault_of_a_sandbox() -> None:
    gone = DockerClient("tcp://127.0.0.1:9", version="1.41")
    with pytest.raises(SandboxError, match="could not be removed"):
        containers.remove(gone, "none")
    gone.close()


def test_a_large_file_may_take_longer_than_a_socket_waits() -> None:
    """Through a slow engine a gigabyte takes minutes: the time is that of each piece."""

    class Attached:
        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def sendall(self, data: bytes) -> None:
            self.sent.append(data)

    attached, data = Attached(), os.urandom(5_000_001)
    containers.AttachWire(attached).write(data)
    assert b"".join(attached.sent) == data
    assert max(map(len, attached.sent)) <= 1 << 20


def test_a_container_that_dies_is_lost_and_says_so(box: Sandbox, engine: DockerClient, run_name: str) -> None:
    (container,) = engine.containers.list(filters={"label": f"{containers.LABEL}={run_name}"})
    container.kill()
    with pytest.raises(SandboxLost, match="the sandbox is gone"):
        box.exec(["true"], 5)
    box.close()


def test_no_engine_names_the_remedy(monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")  # the SDK forgets to close a unix socket that refuses
    with pytest.raises(EngineUnavailable, match=r"apt-get install docker\.io"):
        open_sandbox(SandboxOptions(run="x", image="host"), snapshot)
    assert "Docker Desktop" in containers.remedy("darwin")
    assert "WSL" in containers.remedy("win32")


def test_an_image_that_cannot_be_had_names_the_choices(snapshot: Snapshot) -> None:
    with pytest.raises(ImageUnavailable, match="--image host"):
        open_sandbox(SandboxOptions(run="x", image="127.0.0.1:9/nothing:1"), snapshot)


def test_an_image_without_python_says_what_it_needs(snapshot: Snapshot, run_name: str, engine: DockerClient) -> None:
    engine.api.import_image_from_data(bytes(10240), repository="gpt-oss-agent/empty", tag=run_name)
    try:
        with pytest.raises(SandboxError, match="has no python3"):
            open_sandbox(SandboxOptions(run_name, image=f"gpt-oss-agent/empty:{run_name}"), snapshot)
        assert run_name not in dict(containers.orphans(engine))
    finally:
        engine.images.remove(f"gpt-oss-agent/empty:{run_name}")
