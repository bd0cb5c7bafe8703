"""What a sandbox costs: start, one command, copying in, the diff. Prints rows for benchmarks/RESULTS.md.

    python -m benchmarks.sandbox [--runs 10] [--image host] [--kind docker]

"overhead" is the time of `true` through the sandbox less the time of `true` started directly by the same Python. The 200 MB
are a packed repository: 100 MB of files and a history of the same size, random bytes, so nothing compresses.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox import docker, snapshot
from sandbox.base import Sandbox
from sandbox.docker import Limits
from sandbox.open import SandboxOptions, open_sandbox

COMMANDS = 200
BIG_BYTES, BIG_FILES = 100_000_000, 2000


def timed(work: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def row(what: str, aim: str, seconds: Sequence[float]) -> str:
    unit, factor = ("ms", 1e3) if statistics.median(seconds) < 0.2 else ("s", 1.0)
    ordered = sorted(value * factor for value in seconds)
    middle = f"{statistics.median(ordered):.2f} {unit}"
    return f"| {what} | {middle} | {ordered[0]:.2f} to {ordered[-1]:.2f} | {len(ordered)} | {aim} |"


def repository(folder: Path, size_bytes: int, files: int) -> Path:
    """Make a packed repository of incompressible files."""
    folder.mkdir()
    rng = random.Random(0)
    settings = ["user.name=bench", "user.email=bench@localhost", "core.compression=0", "pack.window=0"]
    command = ["git", "-C", str(folder), *(part for setting in settings for part in ("-c", setting))]
    subprocess.run([*command, "init", "-q"], check=True)
    for number in range(files):
        path = folder / f"d{number % 40}" / f"f{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(size_bytes // files))
    for step in (["add", "-A"], ["commit", "-qm", "all"], ["repack", "-adq"]):
        subprocess.run([*command, *step], check=True)
    return folder


def commands(box: Sandbox) -> tuple[list[float], list[float]]:
    """Return the seconds of `true` through the sandbox and directly, taken in turns."""
    inside, outside = [], []
    for _ in range(COMMANDS):
        inside.append(timed(lambda: box.exec(["true"], 10)))
        outside.append(timed(lambda: subprocess.run(["true"], check=True)))
    return inside, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--image", default="host")
    parser.add_argument("--kind", default="docker")
    asked = parser.parse_args()
    options = SandboxOptions(run="bench", kind=asked.kind, image=asked.image, limits=Limits(memory_bytes=4 << 30))
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-sandbox-") as folder:
        small = repository(Path(folder, "small"), 200_000, 20)
        takes, opens, closes, diffs = [], [], [], []
        inside: list[float] = []
        outside: list[float] = []
        for number in range(asked.runs):
            state = Path(folder, f"small-{number}")
            takes.append(timed(lambda state=state: snapshot.take(small, state)))
            taken = snapshot.load(state)
            begun_s = time.perf_counter()
            box = open_sandbox(options, taken)
            opens.append(time.perf_counter() - begun_s)
            if not number:
                inside, outside = commands(box)
            box.write("d0/f0.bin", os.urandom(10_000))
            diffs.append(timed(box.diff))
            closes.append(timed(box.close))
        direct_s = statistics.median(outside)
        rows += [
            row("start: container up, small repository in it", "< 500 ms", opens[1:]),
            row("start, the first in a process (imports the SDK)", "", opens[:1]),
            row("snapshot of a small repository", "", takes),
            row("one command (`true`)", "", inside),
            row("the same without a sandbox", "", outside),
            row("overhead of one command", "< 10 ms", [value - direct_s for value in inside]),
            row("diff of one changed file", "", diffs),
            row("close", "", closes),
        ]
        big = repository(Path(folder, "big"), BIG_BYTES, BIG_FILES)
        big_takes, big_opens = [], []
        for number in range(3):
            state = Path(folder, f"big-{number}")
            big_takes.append(timed(lambda state=state: snapshot.take(big, state)))
            begun_s = time.perf_counter()
            box = open_sandbox(options, snapshot.load(state))
            big_opens.append(time.perf_counter() - begun_s)
            box.close()
        rows += [
            row("200 MB: snapshot", "", big_takes),
            row("200 MB: start and copy in, history included", "< 3 s", big_opens),
        ]
    engine = "none"
    if asked.kind == "docker":
        client = docker.engine()
        engine = f"Docker {client.version()['Version']}"
        client.close()
    print(
        f"\n{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ",
        end="",
    )
    print(
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {engine}, image {asked.image}\n"
    )
    print("| what | median | min to max | n | aim |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
