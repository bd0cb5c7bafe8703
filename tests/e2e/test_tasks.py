"""Every sample task: its check tells a mended repository from one that is not, and its recording mends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.e2e.conftest import PLAIN, ROOT, Place, git

TASKS = sorted(path.parent for path in (ROOT / "tasks").glob("*/task.toml"))


def verdict(task: Path, folder: Path) -> int:
    return subprocess.run([str(task / "check.sh")], cwd=folder, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_says_what_it_is(task: Path) -> None:
    told = tomllib.loads((task / "task.toml").read_text(encoding="utf-8"))
    assert told.keys() == {"name", "title", "language", "checks", "files"}
    assert told["name"] == task.name
    assert (task / "prompt.md").read_text(encoding="utf-8").strip()
    assert all((task / "repo" / path).is_file() for path in told["files"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_repository_as_it_is_does_not_pass(task: Path, tmp_path: Path) -> None:
    shutil.copytree(task / "repo", tmp_path / "repo")
    assert verdict(task, tmp_path / "repo") != 0


def test_the_recording_mends_slugify_without_a_repair(place: Place, tmp_path: Path) -> None:
    task = ROOT / "tasks" / "slugify"
    script = ("--wire", "scripted", "--script", str(task / "script.json"))
    done = place.agent("fix", f"@{task / 'prompt.md'}", *script, *PLAIN, "--branch", "mended", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["repairs"] == 0
    assert result["changed_paths"] == tomllib.loads((task / "task.toml").read_text(encoding="utf-8"))["files"]
    git(tmp_path, "clone", "--quiet", "--branch", "mended", str(place.repository), "result")
    assert verdict(task, tmp_path / "result") == 0
