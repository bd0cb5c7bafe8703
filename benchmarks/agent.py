"""What a run costs around the model: our agent beside its peers, with a model that answers at once.

    python benchmarks/agent.py [--runs 5] [--turns fix,20,100] [--peers agent,codex,mini]
                               [--codex PATH] [--mini PATH]

Every agent works on a fresh copy of the same small repository and talks to benchmarks/model_server.py on the loopback
interface. `fix` is 3 reads, the tests (they fail), the patch, the tests (they pass), the final answer: 7 requests. `20` and
`100` are that many commands of 40 lines each and a final answer. Wall time and CPU are of the whole process tree (not of a
container: it runs under the engine); PSS is the tree's, sampled every 50 ms. "first" is from the start of the process to the
first request, "gap" the median time from an answer to the next request, the command's own run included. Run it with the Python
of an environment that holds the agent and nothing else: packages import what they find beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

from model_server import Server

Json = dict[str, object]

CALC = "\n".join(f"def part_{i}(x):\n    return x + {i}\n" for i in range(60))
FILES = {
    "calc.py": CALC + "\n\ndef mean(values):\n    return sum(values) / (len(values) - 1)\n",
    "test_calc.py": "from calc import mean\n\nassert mean([1, 2, 3]) == 2, mean([1, 2, 3])\n",
    "README.md": "# calc\n\nSmall sums.\n",
}
PATCH = """*** Begin Patch
*** Update File: calc.py
@@ def mean(values):
-    return sum(values) / (len(values) - 1)
+    return sum(values) / len(values)
*** End Patch"""
TASK = "mean() divides by one too few: mean([1, 2, 3]) is 3.0. Fix it."


def script(kind: str) -> list[Json]:
    """Return the turns of one kind."""
    if kind != "fix":
        reads: list[Json] = [{"shell": f"sed -n '{i % 100 + 1},{i % 100 + 40}p' calc.py"} for i in range(int(kind) - 1)]
        return [*reads, {"final": "Read it all."}]
    old = FILES["calc.py"]
    new = old.replace("(len(values) - 1)", "len(values)")
    line = old[: old.index("    return sum")].count("\n") + 1
    before, after = old.splitlines()[line - 1], new.splitlines()[line - 1]
    head = f"--- a/calc.py\n+++ b/calc.py\n@@ -{line - 1},2 +{line - 1},2 @@\n def mean(values):\n"
    return [
        {"shell": "ls -la"},
        {"shell": "sed -n '1,40p' calc.py"},
        {"shell": "tail -n 5 calc.py"},
        {"shell": "python3 test_calc.py"},
        {"patch": PATCH, "unified": f"{head}-{before}\n+{after}\n"},
        {"shell": "python3 test_calc.py"},
        {"final": "mean() now divides by the number of values; the test passes."},
    ]


def make_repository(root: Path) -> Path:
    """Write the repository and commit it."""
    repository = root / "repository"
    repository.mkdir()
    for name, text in FILES.items():
        (repository / name).write_text(text)
    run = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]
    subprocess.run([*run, "init", "-q"], cwd=repository, check=True)
    subprocess.run([*run, "add", "-A"], cwd=repository, check=True)
    subprocess.run([*run, "commit", "-qm", "start"], cwd=repository, check=True)
    return repository


@dataclass(frozen=True, slots=True)
class Peer:
    """How to start one agent."""

    name: str
    argv: Sequence[str]
    env: dict[str, str]


def peer(name: str, url: str, root: Path, given: argparse.Namespace, kind: str) -> Peer:
    """Return the command line of one agent, with its state kept below ``root``."""
    home = {"HOME": str(root), "XDG_STATE_HOME": str(root / "state"), "XDG_CONFIG_HOME": str(root / "config")}
    match name:
        case "agent":
            flags = ["--endpoint", url, "--model", "gpt-oss-20b", "--wire", "chat", "--image", "host"]
            # A run of reads only changes nothing: `ask` is the same loop and ends with 0.
            task = ["fix", TASK, "--check", "true"] if kind == "fix" else ["ask", TASK]
            return Peer(name, [sys.executable, "-m", "agent", *task, *flags], home)
        case "codex":
            config = {
                "model_provider": '"bench"',
                "model": '"gpt-oss-20b"',
                "model_providers.bench.name": '"bench"',
                "model_providers.bench.base_url": f'"{url}"',
                "model_providers.bench.wire_api": '"responses"',
            }
            overrides = [part for key, value in config.items() for part in ("-c", f"{key}={value}")]
            argv = [given.codex, "exec", "-s", "danger-full-access", "--skip-git-repo-check", *overrides, TASK]
            return Peer(name, argv, {**home, "CODEX_HOME": str(root)})
        case "mini":
            argv = [given.mini, "-y", "--exit-immediately", "-t", TASK, "-m", "openai/gpt-oss-20b", "-l", "0"]
            env = {
                **home,
                "OPENAI_API_BASE": url,
                "OPENAI_API_KEY": "none",
                "MSWEA_CONFIGURED": "true",
                "MSWEA_COST_TRACKING": "ignore_errors",
                "MSWEA_GLOBAL_CONFIG_DIR": str(root / "config"),
            }
            return Peer(name, argv, env)
    raise SystemExit(f"no such peer: {name}")


def fixed(repository: Path) -> bool:
    """Whether the fix is in the checkout or on a branch that the run made."""
    refs = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)"], cwd=repository, capture_output=True, check=True
    )
    shows = [["git", "show", f"{ref}:calc.py"] for ref in refs.stdout.decode().split()]
    texts = [subprocess.run(show, cwd=repository, capture_output=True, check=False).stdout for show in shows]
    return any(b"sum(values) / len(values)" in text for text in [*texts, (repository / "calc.py").read_bytes()])


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found


def pss_kib(pid: int) -> int:
    """Return the proportional set size of a process, 0 where it is gone."""
    try:
        match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def once(name: str, kind: str, given: argparse.Namespace) -> dict[str, float]:
    """Run one agent once and return its figures."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.tmp) as folder:
        root = Path(folder)
        repository = make_repository(root)
        log = root / "requests.jsonl"
        server = Server(json.loads(json.dumps(script(kind))), log)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chosen = peer(name, server.url, root, given, kind)
        output = (root / "output.txt").open("wb")
        env = {**os.environ, **chosen.env, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled code is kept, as where the agent is installed
        started = time.monotonic()
        process = subprocess.Popen(
            chosen.argv, cwd=repository, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, sum(pss_kib(each) for each in tree(process.pid)))
            time.sleep(0.05)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        server.shutdown()
        server.server_close()
        output.close()
        requests = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if not requests:
            raise SystemExit(f"{name} made no request:\n" + (root / "output.txt").read_text()[-2000:])
        gaps = [b["arrived"] - a["answered"] for a, b in pairwise(requests)]
        return {
            "exit": process.returncode,
            "fixed": float(fixed(repository)),
            "wall s": wall,
            "CPU s": usage.ru_utime + usage.ru_stime,
            "peak PSS MiB": peak / 1024,
            "requests": len(requests),
            "first s": requests[0]["arrived"] - started,
            "gap ms": statistics.median(gaps) * 1000 if gaps else 0.0,
            "gap, last 10 turns, ms": statistics.median(gaps[-10:]) * 1000 if gaps else 0.0,
            "sent KiB": sum(request["bytes"] for request in requests) / 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--turns", default="fix,20,100")
    parser.add_argument("--peers", default="agent,codex,mini")
    parser.add_argument("--codex", default=shutil.which("codex") or "codex")
    parser.add_argument("--mini", default=shutil.which("mini") or "mini")
    parser.add_argument("--tmp", default=None, help="where the copies go (Codex wants a home outside of /tmp)")
    given = parser.parse_args()
    print(f"{date.today()} · {platform.machine()} · {os.cpu_count()} cores · Python {platform.python_version()}")
    print(f"medians of {given.runs} [lowest, highest], after one run that is not counted; agents in turn\n")
    header: list[str] | None = None
    for kind in given.turns.split(","):
        names = given.peers.split(",")
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for run in range(given.runs + 1):
            for name in names:
                result = once(name, kind, given)
                if run:
                    figures[name].append(result)
        for name, rows in figures.items():
            if header is None:
                header = ["script", "agent", *rows[0]]
                print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
            cells = []
            for key in rows[0]:
                values = sorted(row[key] for row in rows)
                digits = 2 if key.endswith(" s") else 0 if key in {"exit", "fixed", "requests", "sent KiB"} else 1
                spread = f" [{values[0]:.{digits}f}, {values[-1]:.{digits}f}]" if digits else ""
                cells.append(f"{statistics.median(values):.{digits}f}{spread}")
            print("| " + " | ".join([kind, name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
