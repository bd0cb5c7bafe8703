"""`agent tasks run --engine ray` on a real cluster: two nodes with homes of their own, of which workers and nodes are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.log import LOG_NAME, read
from tests.e2e.conftest import PLAIN, ROOT, Place
from tests.e2e.test_batch import DONE, FIX, ONCE_MORE, Script, hold, let_go, lines, logs, make_tasks, shell, wait_until

pytestmark = pytest.mark.timeout(300)
STARTS_S = 90  # Ray's processes load much, and a machine may be busy


@dataclass(frozen=True)
class Nodes:
    """The cluster and how to reach it."""

    program: subprocess.Popen[str]
    folder: Path
    address: str

    def order(self, line: str) -> None:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(line + "\n")
        self.program.stdin.flush()
        assert self.program.stdout.readline() == "done\n"

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--engine", "ray", "--address", self.address)

    def seats(self) -> list[int]:
        """The processes of Ray in which attempts run now."""
        return [pid for pid in below(self.program.pid) if command(pid).startswith("ray::Seat")]

    def seat_of(self, log: Path) -> int:
        """The process of Ray that runs the attempt of a log."""
        home = f"HOME={self.folder / log.relative_to(self.folder).parts[0]}\0"
        return next(pid for pid in self.seats() if home in Path(f"/proc/{pid}/environ").read_text())

    def at_work(self) -> list[Path]:
        """The logs of attempts on the nodes that have got somewhere."""
        return [path for path in self.kept() if path.name == LOG_NAME and b"ToolFinished" in content(path)]

    def kept(self) -> list[Path]:
        """What lies in the homes of the nodes. (``Path.rglob`` fails where a folder is gone meanwhile.)"""
        found = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
        return [path for path in found if "/runs/.cluster/" in str(path)]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it went home meanwhile
        return b""


def below(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        try:
            texts = [path.read_text() for path in Path(f"/proc/{each}/task").glob("*/children")]
        except OSError:  # it ended meanwhile
            continue
        found += [int(child) for text in texts for child in text.split()]
    return found[1:]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "OPENAI_", "XDG_", "RAY_"))
    }
    with (folder / "said.txt").open("w") as said:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.ray_cluster", str(folder)],
            cwd=ROOT,
            env={**kept, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    with program:
        assert program.stdout is not None
        assert program.stdin is not None
        address = program.stdout.readline().strip()
        assert address, (folder / "said.txt").read_text()[-2000:]
        running = Nodes(program, folder, address)
        running.order("add one")
        running.order("add two")
        yield running
        program.stdin.close()


def outcomes(out: Path) -> list[str]:
    """What each task came to; with its reason where that is not as it should be."""
    return [
        r["outcome"] if r["outcome"] == "passed" else f"{r['task']} {r['outcome']}: {r['reason']}" for r in lines(out)
    ]


def resumed(log: Path) -> int:
    return [type(entry.event).__name__ for entry in read(log)].count("Resumed")


def calls_run_twice(log: Path) -> bool:
    calls = [entry.event.call for entry in read(log) if type(entry.event).__name__ == "ToolFinished"]  # type: ignore[union-attr]
    return len(calls) != len(set(calls))


def test_results_come_back_from_machines_that_share_no_disk(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 4), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), "--jobs", "3", *script([FIX, DONE]), *PLAIN, *nodes.flags)
    short = place.agent(*command, "--budget-tokens", "60", timeout_s=120)
    assert short.returncode == 4, short.stderr
    assert "the budget of 60 tokens is used up" in short.stderr
    assert len(lines(out)) < 4
    done = place.agent(*command, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert sorted((record["task"], record["outcome"]) for record in lines(out)) == [
        (f"t{number:02}", "passed") for number in range(4)
    ]
    assert len(logs(out)) == 4
    assert (out / "preds.json").read_text().count("+    return n * 2") == 4
    # A batch that was killed between the arrival of a result and its line only writes the line.
    kept = {log: log.read_bytes() for log in logs(out)}
    whole = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    assert place.agent(*command, timeout_s=120).returncode == 0
    assert len(lines(out)) == 4
    assert {log: log.read_bytes() for log in logs(out)} == kept
    assert nodes.kept() == []
    assert not (place.runs / ".cluster").exists()


@pytest.mark.parametrize(
    "sandbox",
    [pytest.param(PLAIN, id="local"), pytest.param(("--image", "host"), id="docker", marks=pytest.mark.docker)],
)
def test_a_worker_that_is_killed_goes_on_from_its_log(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path, sandbox: tuple[str, ...]
) -> None:
    path, out = make_tasks(tmp_path / "set", 3), tmp_path / "out"
    turns = [FIX, shell("sleep 2"), shell("python3 -B -c 'import calc'"), DONE, *ONCE_MORE]
    batch = place.start("tasks", "run", str(path), "--out", str(out), "-j", "3", *script(turns), *sandbox, *nodes.flags)
    wait_until(lambda: bool(nodes.at_work()), STARTS_S)
    os.kill(nodes.seat_of(nodes.at_work()[0]), signal.SIGKILL)
    _, said = batch.communicate(timeout=120)
    assert batch.returncode == 0, said
    assert sorted(record["task"] for record in lines(out)) == ["t00", "t01", "t02"]
    assert outcomes(out) == ["passed"] * 3
    assert sum(map(resumed, logs(out))) == 1
    assert not any(map(calls_run_twice, logs(out)))
    assert nodes.kept() == []
    for log in logs(out):
        named = f"label=gpt-oss-agent.run={log.parent.name}"
        left = subprocess.run(["docker", "ps", "-aq", "--filter", named], capture_output=True, text=True, check=False)
        assert left.stdout == "", "a container was left behind"


def test_a_batch_that_is_killed_leaves_no_worker_and_goes_on(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 3), tmp_path / "out"
    turns = [FIX, hold(tmp_path), DONE, *ONCE_MORE]
    command = ("tasks", "run", str(path), "--out", str(out), "-j", "2", *script(turns), *PLAIN, *nodes.flags)
    batch = place.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(nodes.at_work()) == 2, STARTS_S)
    assert {log.relative_to(nodes.folder).parts[0] for log in nodes.at_work()} == {"one", "two"}
    batch.kill()
    batch.wait()
    wait_until(lambda: not nodes.seats(), STARTS_S)
    assert lines(out) == []
    let_go(tmp_path)
    done = place.agent(*command, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert sorted((record["task"], record["outcome"]) for record in lines(out)) == [
        (f"t{number:02}", "passed") for number in range(3)
    ]
    assert sorted(map(resumed, logs(out))) == [0, 1, 1]
    assert not any(map(calls_run_twice, logs(out)))
    assert nodes.kept() == []


def test_ctrl_c_stops_cleanly_where_some_wait_for_a_place(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 4), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), "-j", "4", *script([FIX, hold(tmp_path), DONE]), *PLAIN)
    batch = place.start(*command, *nodes.flags)
    wait_until(lambda: len(nodes.at_work()) == 2, STARTS_S)
    batch.send_signal(signal.SIGINT)
    _, said = batch.communicate(timeout=STARTS_S)
    assert batch.returncode == 130, said
    assert "4 tasks are left: interrupted by the user" in said
    assert lines(out) == []
    let_go(tmp_path)
    done = place.agent(*command, *nodes.flags, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert outcomes(out) == ["passed"] * 4
    assert sorted(map(resumed, logs(out))) == [0, 0, 1, 1]


def test_a_machine_that_is_lost_takes_no_task_with_it(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 3), tmp_path / "out"
    turns = [FIX, hold(tmp_path), DONE]
    nodes.order("add three")
    try:
        batch = place.start(
            "tasks", "run", str(path), "--out", str(out), "-j", "3", *script(turns), *PLAIN, *nodes.flags
        )
        wait_until(lambda: any("/three/" in str(path) for path in nodes.at_work()), STARTS_S)
        seat = nodes.seat_of(next(path for path in nodes.at_work() if "/three/" in str(path)))
    finally:
        nodes.order("lose three")
    wait_until(lambda: not command(seat), STARTS_S)
    let_go(tmp_path)
    _, said = batch.communicate(timeout=120)
    assert batch.returncode == 0, said
    assert sorted(record["task"] for record in lines(out)) == ["t00", "t01", "t02"]
    assert outcomes(out) == ["passed"] * 3
    assert {path.parts[len(nodes.folder.parts)] for path in nodes.kept()} == {"three"}
    shutil.rmtree(nodes.folder / "three")


def test_what_cannot_be_used_is_said_and_spoils_no_task(
    nodes: Nodes, place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 1), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), *script([DONE]), *PLAIN)
    nowhere = place.agent(*command, "--engine", "ray", "--address", "127.0.0.1:9", timeout_s=120)
    assert nowhere.returncode == 2
    assert "there is no Ray cluster at 127.0.0.1:9" in nowhere.stderr
    alone = place.agent(*command, "--address", "127.0.0.1:9")
    assert alone.returncode == 2
    assert "add --engine ray" in alone.stderr
    # A machine with another program of this name, and no other that could be taken.
    other = tmp_path / "other"
    for name in ("agent", "sandbox"):
        shutil.copytree(ROOT / name, other / name)
    (other / "agent/batch/best.py").write_text("# another\n")
    nodes.order("lose one")
    nodes.order("lose two")
    nodes.order(f"add other {other}")
    try:
        another = place.agent(*command, *nodes.flags, timeout_s=120)
        assert another.returncode == 1, another.stderr
        assert "a machine of the cluster has another version of gpt-oss-agent than this one" in another.stderr
        nodes.order("lose other")
        # One without this program, whatever is installed for all: importing it fails there as if it were not.
        without = tmp_path / "without"
        without.mkdir()
        (without / "agent.py").write_text("raise ModuleNotFoundError(\"No module named 'agent'\", name='agent')\n")
        nodes.order(f"add none {without}")
        missing = place.agent(*command, *nodes.flags, timeout_s=120)
        assert missing.returncode == 1, missing.stderr
        assert "cannot run gpt-oss-agent" in missing.stderr
        assert "No module named 'agent'" in missing.stderr
        nodes.order("lose none")
    finally:
        nodes.order("add one")
        nodes.order("add two")
    assert lines(out) == []
