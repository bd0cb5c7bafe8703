"""What a batch costs around the model, and whether kills lose anything.

    python -m benchmarks.batch [--engine processes|ray] [--tasks 100] [--jobs 4] [--kills 10] [--sandbox docker|none]

The model is a script of five answers that come at once, so all that is measured is ours: processes, git, containers, tools,
logs. First the batch runs undisturbed; memory is the PSS of the batch and all its workers, sampled every 0.2 s (what runs in
containers is Docker's and not in it). Then the same batch is killed (SIGKILL) at random moments and run again, until it
has been killed ``--kills`` times; at the end every task must have exactly one line, and no call may have been run twice.

With ``--engine ray`` it runs on a cluster of this machine, as many nodes of one CPU as there are jobs; what is killed the second time is
one of Ray's workers. benchmarks/scale.py takes what comes out to 10,000 tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agent.batch.results import RESULTS_NAME
from agent.events import Resumed, ToolFinished
from agent.log import LOG_NAME, read

ROOT = Path(__file__).resolve().parent.parent
PATCH = "*** Begin Patch\n*** Update File: calc.py\n@@\n-    return n + 2\n+    return n * 2\n*** End Patch\n"
# -B: a file that is changed in the second in which it was compiled, to the same length, is the old one to Python.
CHECK = "python3 -B -c 'import calc; assert calc.double(3) == 6'"


def shell(command: str) -> list[dict[str, Any]]:
    return [{"recipient": "container.exec", "arguments": {"command": ["sh", "-c", command]}}]


TURNS = [
    shell("ls -la"),
    shell("cat calc.py"),
    [{"recipient": "repo_browser.apply_patch", "arguments": {"patch": PATCH}}],
    shell(CHECK),
    [{"text": "double() doubles now."}],
]
# What is played only where a kill took the sandbox too and the run is asked to look again.
ONCE_MORE = [shell("git diff"), TURNS[2], [{"text": "It is fixed."}]]


def make_tasks(folder: Path, count: int) -> tuple[Path, Path]:
    """Write the tasks and the script; return both paths."""
    repo = folder / "repo"
    repo.mkdir()
    parts = "\n".join(f"def part_{number}(x):\n    return x + {number}\n\n" for number in range(60))
    (repo / "calc.py").write_text(f"def double(n):\n    return n + 2\n\n\n{parts}")
    row = {"repository": "repo", "prompt": "double(3) is 5 and should be 6.", "checks": [CHECK]}
    rows = (json.dumps({"name": f"task-{number:05}"} | row) for number in range(count))
    (folder / "tasks.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "script.json").write_text(json.dumps({"turns": TURNS + ONCE_MORE}))
    return folder / "tasks.jsonl", folder / "script.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is run: the tasks' folder, how many at a time, in what sandbox, on which cluster (None: on this machine)."""

    folder: Path
    jobs: int
    sandbox: str
    nodes: subprocess.Popen[str] | None = None
    address: str = ""

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agent", "tasks", "run", str(self.folder / "tasks.jsonl"), "--out", str(out)]
        flags = ["--jobs", str(self.jobs), "--wire", "scripted", "--script", str(self.folder / "script.json")]
        docker = self.sandbox == "docker"
        place = ["--image", "host"] if docker else ["--sandbox", "none", "--i-know-this-runs-on-my-machine"]
        engine = ["--engine", "ray", "--address", self.address] if self.nodes else []
        env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                [*command, *flags, *place, *engine], env=env, stdout=subprocess.DEVNULL, stderr=said
            )

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()[-2000:]


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Ray cluster of this machine; yields the program that holds it and its address."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.ray_cluster", str(folder / "nodes")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        for number in range(nodes):
            program.stdin.write(f"add node{number}\n")
            program.stdin.flush()
            program.stdout.readline()
        yield program, address
        program.stdin.close()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        try:
            texts = [path.read_text() for path in Path(f"/proc/{each}/task").glob("*/children")]
        except OSError:  # it ended meanwhile
            continue
        found += [int(child) for text in texts for child in text.split()]
    return found


def pss_bytes(pid: int) -> int:
    total = 0
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def records(out: Path) -> list[dict[str, Any]]:
    path = out / RESULTS_NAME
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def undisturbed(setting: Setting) -> dict[str, float]:
    """Run the batch to its end; return what it cost."""
    out = setting.folder / "plain"
    before = os.times()
    began, began_at = time.monotonic(), time.time()
    batch = setting.start(out)
    samples: list[int] = []
    ray_samples = [0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            samples.append(pss_bytes(batch.pid))
            if setting.nodes:
                ray_samples.append(pss_bytes(setting.nodes.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = batch.wait()
    done.set()
    sampler.join()
    wall_s = time.monotonic() - began
    after = os.times()
    found = records(out)
    assert code == 0, setting.said()
    assert all(record["outcome"] == "passed" for record in found), setting.said()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    ends = [attempt["ended_at"] - began_at for record in found for attempt in record["attempts"]]
    quarters = [
        sum(wall_s * part / 4 < end <= wall_s * (part + 1) / 4 for end in ends) * 240 / wall_s for part in range(4)
    ]
    tenths = statistics.quantiles((record["duration_s"] for record in found), n=10)
    return {
        "wall_s": wall_s,
        "tasks_per_minute": 60 * len(found) / wall_s,
        "slowest_quarter": min(quarters),
        "fastest_quarter": max(quarters),
        "task_s": tenths[4],
        "task_low_s": tenths[0],
        "task_high_s": tenths[8],
        "cpu_s": cpu_s / len(found),
        "peak_mib": max(samples) / (1 << 20),
        "median_mib": statistics.median(samples) / (1 << 20),
        "ray_mib": max(ray_samples) / (1 << 20),
        "log_kib": statistics.mean(path.stat().st_size for path in out.rglob(LOG_NAME)) / 1024,
    }


def kill_batches(setting: Setting, out: Path, kills: int, wall_s: float) -> int:
    """Kill the batch at random moments and run it again, then to its end; return how often it was killed."""
    source = random.Random(1)
    for killed in range(kills):
        batch = setting.start(out)
        try:
            batch.wait(source.uniform(0.5, 1.6 * wall_s / kills))
        except subprocess.TimeoutExpired:
            batch.kill()
            batch.wait()
        else:
            return killed
    code = setting.start(out).wait()
    assert code == 0, (code, setting.said())
    return kills


def kill_workers(setting: Setting, out: Path, kills: int, wall_s: float) -> int:
    """Kill one of Ray's workers at random moments while the batch goes on; return how many were killed."""
    assert setting.nodes is not None
    source = random.Random(1)
    batch = setting.start(out)
    killed = 0
    while killed < kills and batch.poll() is None:
        time.sleep(source.uniform(0.2, 0.8) * wall_s / kills)
        seats = [pid for pid in tree(setting.nodes.pid) if runs_seat(pid)]
        if seats:
            os.kill(source.choice(seats), signal.SIGKILL)
            killed += 1
    code = batch.wait()
    assert code == 0, (code, setting.said())
    return killed


def runs_seat(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::Seat")
    except OSError:
        return False


def disturbed(setting: Setting, count: int, kills: int, wall_s: float) -> dict[str, float]:
    """Kill, and look at what is there in the end."""
    out = setting.folder / "killed"
    began = time.monotonic()
    killed = (kill_workers if setting.nodes else kill_batches)(setting, out, kills, wall_s)
    found = records(out)
    names = [record["task"] for record in found]
    assert sorted(names) == [f"task-{number:05}" for number in range(count)], "a task was lost, or has two lines"
    for record in found:
        if record["outcome"] != "passed":
            print(f"{record['task']}: {record['class']}: {record['reason']}", file=sys.stderr)
    resumed = restored = 0
    for record in found:
        entries = [entry.event for entry in read(out / record["folder"] / LOG_NAME)]
        calls = [event.call for event in entries if isinstance(event, ToolFinished)]
        assert len(calls) == len(set(calls)), f"{record['task']}: a call was run twice"
        notes = [event.note for event in entries if isinstance(event, Resumed)]
        resumed += bool(notes)
        restored += any("restored" in note for note in notes)
    return {
        "kills": killed,
        "resumed": resumed,
        "restored": restored,
        "passed": sum(record["outcome"] == "passed" for record in found),
        "wall_s": time.monotonic() - began,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kills", type=int, help="how many (10 of the batch, 1 of Ray's workers)")
    parser.add_argument("--sandbox", choices=("docker", "none"), default="docker")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="gpt-oss-agent-batch-") as name, ExitStack() as stack:
        folder = Path(name)
        make_tasks(folder, asked.tasks)
        setting = Setting(folder, asked.jobs, asked.sandbox)
        if asked.engine == "ray":
            nodes, address = stack.enter_context(cluster(folder, asked.jobs))
            setting = replace(setting, nodes=nodes, address=address)
        plain = undisturbed(setting)
        kills = asked.kills or (1 if setting.nodes else 10)
        kill = disturbed(setting, asked.tasks, kills, plain["wall_s"])
    table(asked, load, plain, kill)
    return 0


def table(asked: argparse.Namespace, load: float, plain: dict[str, float], kill: dict[str, float]) -> None:
    ray = asked.engine == "ray"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    versions = f"Python {platform.python_version()}" + (f", Ray {version('ray')}" if ray else "")
    print(f"{when}, {os.cpu_count()} cores, load {load:.1f} at the start, {versions}, sandbox {asked.sandbox}\n")
    where = f"{asked.jobs} jobs" + (f" on {asked.jobs} nodes of Ray" if ray else "")
    rows = {
        "throughput, [the slowest and the fastest quarter of the time]": f"{plain['tasks_per_minute']:.0f} tasks a minute [{plain['slowest_quarter']:.0f} to {plain['fastest_quarter']:.0f}]; {plain['wall_s']:.0f} s",
        "one task, from its first event to its last: median [tenth to ninetieth percentile]": f"{plain['task_s']:.2f} s [{plain['task_low_s']:.2f} to {plain['task_high_s']:.2f}]",
        "CPU a task, of the batch alone" if ray else "CPU a task, without the container's": f"{plain['cpu_s']:.2f} s",
        "memory of the batch (PSS)"
        if ray
        else "memory of the batch and its workers (PSS)": f"median {plain['median_mib']:.0f}, peak {plain['peak_mib']:.0f} MiB",
    }
    if ray:
        rows["memory of Ray itself and all workers, peak (PSS)"] = f"{plain['ray_mib']:.0f} MiB"
    rows["log of a task"] = f"{plain['log_kib']:.0f} KiB"
    what = "workers of Ray killed" if ray else "batch killed and run again, times"
    rows[f"{what}: {kill['kills']:.0f}"] = (
        f"nothing lost, nothing twice; {kill['passed']:.0f} of {asked.tasks} passed; {kill['resumed']:.0f} tasks resumed, "
        f"{kill['restored']:.0f} of them in a restored copy; {kill['wall_s']:.0f} s"
    )
    print(f"| what ({asked.tasks} tasks of {len(TURNS)} answers, {where}) | value |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    sys.exit(main())
