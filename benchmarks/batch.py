"""What a batch costs around the model, whether kills lose anything, and what 10,000 tasks would need.

    python -m benchmarks.batch [--tasks 100] [--jobs 4] [--kills 10] [--sandbox docker|none]

The model is a script of five answers that come at once, so all that is measured is ours: processes, git, containers, tools,
logs. First the batch runs undisturbed; memory is the PSS of the batch and all its workers, sampled every 0.2 s (what runs in
containers is the engine's and not in it). Then the same batch is killed (SIGKILL) at random moments and run again, until it
has been killed ``--kills`` times; at the end every task must have exactly one line, and no call may have been run twice.
Last a simulation takes the measured costs to 10,000 tasks.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.batch.results import RESULTS_NAME
from agent.events import Resumed, ToolFinished
from agent.log import LOG_NAME, read

ROOT = Path(__file__).resolve().parent.parent
PATCH = "*** Begin Patch\n*** Update File: calc.py\n@@\n-    return n + 2\n+    return n * 2\n*** End Patch\n"
CHECK = "python3 -c 'import calc; assert calc.double(3) == 6'"


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
ONCE_MORE = [shell("git diff"), TURNS[2], [{"text": "It is mended."}]]


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


def start(folder: Path, out: Path, jobs: int, sandbox: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agent", "tasks", "run", str(folder / "tasks.jsonl"), "--out", str(out)]
    flags = ["--jobs", str(jobs), "--wire", "scripted", "--script", str(folder / "script.json")]
    place = ["--image", "host"] if sandbox == "docker" else ["--sandbox", "none", "--i-know-this-runs-on-my-machine"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen([*command, *flags, *place], env=env, stdout=subprocess.DEVNULL, stderr=said)


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


def undisturbed(folder: Path, jobs: int, sandbox: str) -> dict[str, float]:
    """Run the batch to its end; return what it cost."""
    before = os.times()
    began = time.monotonic()
    batch = start(folder, folder / "plain", jobs, sandbox)
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            samples.append(pss_bytes(batch.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = batch.wait()
    done.set()
    sampler.join()
    wall_s = time.monotonic() - began
    after = os.times()
    found = records(folder / "plain")
    assert code == 0, (folder / "said.txt").read_text()[-2000:]
    assert all(record["outcome"] == "passed" for record in found)
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "wall_s": wall_s,
        "tasks_per_minute": 60 * len(found) / wall_s,
        "task_s": statistics.median(record["duration_s"] for record in found),
        "cpu_s": cpu_s / len(found),
        "peak_mib": max(samples) / (1 << 20),
        "median_mib": statistics.median(samples) / (1 << 20),
        "log_kib": statistics.mean(path.stat().st_size for path in (folder / "plain").rglob(LOG_NAME)) / 1024,
    }


def killed(folder: Path, count: int, jobs: int, sandbox: str, kills: int, wall_s: float) -> dict[str, float]:
    """Kill the batch at random moments, run it again, and look at what is there in the end."""
    source, out = random.Random(1), folder / "killed"
    at: list[int] = []
    began = time.monotonic()
    while len(at) < kills:
        batch = start(folder, out, jobs, sandbox)
        try:
            batch.wait(source.uniform(0.5, 1.6 * wall_s / kills))
        except subprocess.TimeoutExpired:
            batch.kill()
            at.append(len(records(out)))
            batch.wait()
        else:
            break
    code = start(folder, out, jobs, sandbox).wait()
    assert code == 0, (code, (folder / "said.txt").read_text()[-2000:])
    found = records(out)
    names = [record["task"] for record in found]
    assert sorted(names) == [f"task-{number:05}" for number in range(count)], "a task was lost, or has two lines"
    passed = sum(record["outcome"] == "passed" for record in found)
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
        "kills": len(at),
        "resumed": resumed,
        "restored": restored,
        "passed": passed,
        "wall_s": time.monotonic() - began,
    }


@dataclass(frozen=True, slots=True)
class World:
    """What a task is, in the simulation. The model's numbers are assumptions; ``start_s`` and ``turn_s`` were measured."""

    turns: float = 40  # median; the spread is log-normal, sigma 0.5
    answer_tokens: float = 400
    tokens_per_s: float = 60  # of one stream
    streams: int = 64  # that an endpoint serves at that speed; more wait
    tool_s: float = 2.0
    start_s: float = 1.0
    turn_s: float = 0.05


def simulate(world: World, tasks: int, workers: int, endpoints: int, seed: int = 1) -> tuple[float, float]:
    """Return (hours until the last task ends, how busy the endpoints were) for so many workers and endpoints."""
    source = random.Random(seed)
    free = [0.0] * (world.streams * endpoints)  # when each stream is free again
    waiting = [max(1, round(source.lognormvariate(0, 0.5) * world.turns)) for _ in range(tasks)]
    moments = [(world.start_s * 0.1 * worker, worker, waiting.pop()) for worker in range(min(workers, tasks))]
    heapq.heapify(moments)
    busy_s = end_s = 0.0
    while moments:
        now_s, worker, left = heapq.heappop(moments)
        answer_s = source.expovariate(1 / world.answer_tokens) / world.tokens_per_s
        begin_s = max(now_s, heapq.heappop(free))
        heapq.heappush(free, begin_s + answer_s)
        busy_s += answer_s
        end_s = begin_s + answer_s + world.turn_s + source.expovariate(1 / world.tool_s)
        if left > 1:
            heapq.heappush(moments, (end_s, worker, left - 1))
        elif waiting:
            heapq.heappush(moments, (end_s + world.start_s, worker, waiting.pop()))
    return end_s / 3600, busy_s / (end_s * len(free))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--sandbox", choices=("docker", "none"), default="docker")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="gpt-oss-agent-batch-") as name:
        folder = Path(name)
        make_tasks(folder, asked.tasks)
        plain = undisturbed(folder, asked.jobs, asked.sandbox)
        kill = killed(folder, asked.tasks, asked.jobs, asked.sandbox, asked.kills, plain["wall_s"])
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    print(
        f"{when}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, sandbox {asked.sandbox}\n"
    )
    print(f"| what ({asked.tasks} tasks of {len(TURNS)} answers, {asked.jobs} jobs) | value |\n|---|---|")
    print(f"| throughput | {plain['tasks_per_minute']:.0f} tasks a minute ({plain['wall_s']:.0f} s) |")
    print(f"| one task, from its first event to its last (median) | {plain['task_s']:.2f} s |")
    print(f"| CPU a task, without the container's | {plain['cpu_s']:.2f} s |")
    print(
        f"| memory of the batch and its workers (PSS) | median {plain['median_mib']:.0f}, peak {plain['peak_mib']:.0f} MiB |"
    )
    print(f"| log of a task | {plain['log_kib']:.0f} KiB |")
    print(
        f"| killed {kill['kills']:.0f} times and run again | nothing lost, nothing twice; {kill['passed']:.0f} of {asked.tasks} passed; {kill['resumed']:.0f} tasks resumed, {kill['restored']:.0f} of them in a restored copy; {kill['wall_s']:.0f} s |"
    )
    turn_s = plain["task_s"] / len(TURNS)
    world = World(start_s=60 * asked.jobs / plain["tasks_per_minute"] - plain["task_s"], turn_s=turn_s)
    print(f"\n10,000 tasks, simulated: {world}\n\n| endpoints | workers | hours | endpoints busy |\n|---|---|---|---|")
    for endpoints, workers in ((1, 64), (1, 128), (2, 256), (4, 512), (8, 512), (8, 1024), (16, 2048)):
        hours, busy = simulate(world, 10_000, workers, endpoints)
        print(f"| {endpoints} | {workers} | {hours:.1f} | {100 * busy:.0f} % |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
