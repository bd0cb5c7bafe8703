"""Real processes on real repositories: only the model plays from a script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TASK = ROOT / "tasks" / "slugify"
PLAIN = ("--sandbox", "none", "--i-know-this-runs-on-my-machine")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Place:
    """A checkout of the sample repository, a home of its own, and a way to run the program there."""

    repository: Path
    home: Path
    env: dict[str, str]

    @property
    def runs(self) -> Path:
        return self.home / ".local/state/gpt-oss-agent/runs"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "agent", *arguments]

    def agent(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.repository,
            env=self.env,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.repository,
            env=self.env,
            stdin=subprocess.DEVNULL,
            text=True,
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),  # type: ignore[call-overload]
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    repository, home = tmp_path / "textkit", tmp_path / "home"
    shutil.copytree(TASK / "repo", repository, ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=textkit 1.4.0")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "OPENAI_", "XDG_", "GIT_"))
    }
    return Place(repository, home, {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)})


@pytest.fixture
def script(tmp_path: Path) -> Callable[[Sequence[object]], tuple[str, ...]]:
    """Write a script for the scripted model; return the flags that play it."""

    def write(turns: Sequence[object]) -> tuple[str, ...]:
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"turns": turns}))
        return ("--wire", "scripted", "--script", str(path))

    return write
