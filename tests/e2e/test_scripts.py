"""The scripts under make, with programs that stand in for what they would install or start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "uname", "id", "seq", "sleep", "tail", "rm", "cat", "setsid", "kill", "touch", "env", "dirname")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with the usual small programs and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        for place in ("/usr/bin", "/bin"):
            if Path(place, name).exists():
                (folder / name).symlink_to(Path(place, name))
                break
    return folder


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def engine(programs: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "engine")], env={"PATH": str(programs), **env}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


def test_an_engine_that_answers_is_left_alone(programs: Path) -> None:
    stand_in(programs, "docker", "exit 0")
    stand_in(programs, "dockerd", "exit 9")
    done = engine(programs)
    assert (done.returncode, done.stderr) == (0, "")


def test_elsewhere_it_says_what_to_do(programs: Path) -> None:
    stand_in(programs, "uname", "echo Darwin")
    done = engine(programs)
    assert done.returncode == 1
    assert "Docker Desktop" in done.stderr


def test_without_root_it_says_what_to_do(programs: Path) -> None:
    stand_in(programs, "id", '[ "$1" = -u ] && echo 1000 || echo ada')
    stand_in(programs, "docker", "exit 1")
    done = engine(programs)
    assert done.returncode == 1
    assert "docker.io" in done.stderr or "usermod" in done.stderr


def test_a_named_engine_that_does_not_answer_is_named(programs: Path) -> None:
    stand_in(programs, "id", "echo 0")
    stand_in(programs, "docker", "exit 1")
    done = engine(programs, DOCKER_HOST="tcp://there:1")
    assert done.returncode == 1
    assert "tcp://there:1" in done.stderr


def test_root_on_debian_installs_and_starts_one(programs: Path, tmp_path: Path) -> None:
    """docker answers once dockerd was started, and dockerd is there once apt-get has installed it."""
    up = tmp_path / "up"
    said = tmp_path / "said"
    stand_in(programs, "id", "echo 0")
    stand_in(programs, "docker", f"[ -e {up} ]")
    stand_in(programs, "systemctl", "exit 1")
    installs = f"printf '#!/bin/sh\\ntouch {up}\\nsleep 5\\n' > {programs}/dockerd; /bin/chmod 755 {programs}/dockerd"
    stand_in(programs, "apt-get", f'echo "$@" >> {said}; case "$*" in *install*) {installs} ;; esac')
    done = engine(programs, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "install -q -y --no-install-recommends docker.io iptables" in said.read_text()
    assert "starting dockerd" in done.stderr


def test_an_old_python_is_named(tmp_path: Path) -> None:
    stand_in(tmp_path, "python2", f'{sys.executable} -c "import sys; sys.exit(\\"Python 3.11 or newer is needed\\")"')
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "environment"), str(tmp_path / "python2"), ""], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
