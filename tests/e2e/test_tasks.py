"""Every sample task is proven: its check refuses the repository as it is and accepts it with the reference patch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from agent.batch.read import read_tasks
from agent.batch.task import Task, read_folder
from tests.e2e.conftest import PLAIN, ROOT, Place, git

FOLDERS = sorted(path.parent for path in (ROOT / "tasks").glob("*/task.toml"))
TASKS = [read_folder(folder) for folder in FOLDERS]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def run(folder: Path, command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    shell = ["sh", "-c", command] if isinstance(command, str) else [str(command)]
    return subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


def copy(task: Task, place: Path) -> Path:
    folder = place / "checkout"
    shutil.copytree(task.repository, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_there_are_ten_in_three_languages_from_trivial_to_hard() -> None:
    assert len(TASKS) >= 10
    assert {"python", "javascript", "shell"} <= {task.language for task in TASKS}
    assert {task.difficulty for task in TASKS} == {"trivial", "easy", "medium", "hard"}
    assert read_tasks([ROOT / "tasks"]) == TASKS


@each_task
def test_a_task_says_what_it_is(task: Task) -> None:
    folder = Path(task.repository).parent
    assert task.name == folder.name
    assert task.title
    assert task.tags
    assert task.script == (folder / "check.sh").read_text(encoding="utf-8")
    patch = (folder / "reference.patch").read_text(encoding="utf-8")
    touched = [line.removeprefix("+++ b/") for line in patch.splitlines() if line.startswith("+++ ")]
    assert tuple(touched) == task.files


@each_task
def test_the_check_refuses_the_repository_as_it_is(task: Task, tmp_path: Path) -> None:
    assert run(copy(task, tmp_path), Path(task.repository).parent / "check.sh").returncode != 0


@each_task
def test_the_reference_patch_passes_and_leaves_nothing_else(task: Task, tmp_path: Path) -> None:
    folder, source = copy(task, tmp_path), Path(task.repository).parent
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=start")
    git(folder, "apply", str(source / "reference.patch"))
    for command in task.settings["checks"]:
        done = run(folder, command)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run(folder, source / "check.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    changed = [line.split()[-1] for line in git(folder, "status", "--porcelain").splitlines()]
    assert tuple(changed) == task.files


def test_the_recording_fixes_slugify_without_a_repair(place: Place, tmp_path: Path) -> None:
    task = ROOT / "tasks" / "slugify"
    script = ("--wire", "scripted", "--script", str(task / "script.json"))
    done = place.agent("fix", f"@{task / 'prompt.md'}", *script, *PLAIN, "--branch", "fixed", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["repairs"] == 0
    assert result["changed_paths"] == tomllib.loads((task / "task.toml").read_text(encoding="utf-8"))["files"]
    git(tmp_path, "clone", "--quiet", "--branch", "fixed", str(place.repository), "result")
    assert run(tmp_path / "result", task / "check.sh").returncode == 0
