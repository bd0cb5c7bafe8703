"""Grading: a fresh sandbox, the patch alone, the tests as the task brings them; reports as the swebench package writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.batch.grade import GOOD, OUTPUT_NAME, REPORT_NAME, Grade, _state, grade, read_patches, report, summary
from agent.batch.task import Suite, Task, read_folder
from agent.config import RunConfig
from agent.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
BUGGY = "def double(n):\n    return n + 2\n\n\ndef half(n):\n    return n // 2\n"
TESTS = "from calc import double, half\n\n\ndef test_two():\n    assert double(2) == 4\n\n\ndef test_half():\n    assert half(4) == 2\n"
MORE = TESTS + "\n\ndef test_three():\n    assert double(3) == 6\n"
PYTEST = f"{sys.executable} -m pytest -q -p no:hypothesispytest"
FILES = {"calc.py": BUGGY, "tests/test_calc.py": TESTS}
FIXED = {"calc.py": BUGGY.replace("n + 2", "n * 2")}
SUITE_FILES = {"tests/test_calc.py": MORE, "tests/__init__.py": ""}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    write(folder, FILES)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "start")
    return folder


def patch(repository: Path, files: dict[str, str]) -> bytes:
    """The diff that makes these files."""
    write(repository, files)
    git(repository, "add", "-A")
    text = git(repository, "diff", "--cached", "--binary", "--full-index")
    git(repository, "reset", "-q", "--hard")
    git(repository, "clean", "-qfd")
    return text.encode()


@pytest.fixture
def swe(repository: Path) -> Task:
    """A task in SWE-bench's shape."""
    tests = patch(repository, SUITE_FILES).decode()
    base = git(repository, "rev-parse", "HEAD").strip()
    names = ("tests/test_calc.py::test_two", "tests/test_calc.py::test_half")
    suite = Suite(tests, ("tests/test_calc.py::test_three",), names, PYTEST)
    return Task("ada__calc-1", "double(3) is 5", str(repository), base, tests=suite)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(sandbox="none", image="host", cache_dir=tmp_path / "cache", check_timeout_s=60)


KINDS = ["none", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_tasks_are_graded_by_their_scripts(tmp_path: Path, config: RunConfig, kind: str) -> None:
    folder = ROOT / "tasks" / "rotate"
    task = read_folder(folder)
    config = replace(config, sandbox=kind)
    good = grade(task, (folder / "reference.patch").read_bytes(), config, tmp_path / "good")
    assert (good.resolved, good.error) == (True, "")
    bad = patch_that_changes_nothing_of_worth()
    poor = grade(task, bad, config, tmp_path / "poor")
    assert (poor.resolved, poor.applied, poor.error) == (False, True, "")
    assert "ended with exit code 1" in (tmp_path / "poor" / OUTPUT_NAME).read_text()
    assert sorted(path.name for path in (tmp_path / "poor").iterdir()) == [REPORT_NAME, OUTPUT_NAME]


def patch_that_changes_nothing_of_worth() -> bytes:
    return b"diff --git a/notes.txt b/notes.txt\nnew file mode 100644\n--- /dev/null\n+++ b/notes.txt\n@@ -0,0 +1 @@\n+hm\n"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_swe_bench_are_graded_test_by_test(
    tmp_path: Path, repository: Path, swe: Task, config: RunConfig, kind: str
) -> None:
    config = replace(config, sandbox=kind)
    good = grade(swe, patch(repository, FIXED), config, tmp_path / "good")
    assert good.resolved, good
    told = json.loads((tmp_path / "good" / REPORT_NAME).read_text())
    assert told == {
        "ada__calc-1": {
            "patch_is_None": False,
            "patch_exists": True,
            "patch_successfully_applied": True,
            "resolved": True,
            "infra_failure": False,
            "tests_status": {
                "FAIL_TO_PASS": {"success": ["tests/test_calc.py::test_three"], "failure": []},
                "PASS_TO_PASS": {
                    "success": ["tests/test_calc.py::test_two", "tests/test_calc.py::test_half"],
                    "failure": [],
                },
                "FAIL_TO_FAIL": {"success": [], "failure": []},
                "PASS_TO_FAIL": {"success": [], "failure": []},
            },
        }
    }


def test_a_patch_that_fixes_and_breaks_does_not_resolve(
    tmp_path: Path, repository: Path, swe: Task, config: RunConfig
) -> None:
    broken = {"calc.py": FIXED["calc.py"].replace("n // 2", "n // 3")}
    result = grade(swe, patch(repository, broken), config, tmp_path / "one")
    assert not result.resolved
    assert result.tests["tests/test_calc.py::test_three"] == "passed"
    assert result.tests["tests/test_calc.py::test_half"] == "failed"


def test_no_patch_grades_itself(tmp_path: Path, repository: Path, swe: Task, config: RunConfig) -> None:
    """Tests that the patch weakens, deletes or brings under the same name are put back first."""
    weak = {
        "tests/test_calc.py": "def test_three():\n    pass\n\n\ndef test_two():\n    pass\n",
        "tests/__init__.py": "x = 1\n",
    }
    assert not grade(swe, patch(repository, weak), config, tmp_path / "weak").resolved
    assert grade(swe, patch(repository, weak | FIXED), config, tmp_path / "both").resolved
    (repository / "tests/test_calc.py").unlink()
    assert grade(swe, patch(repository, FIXED), config, tmp_path / "gone").resolved


def test_what_cannot_be_graded_says_why(tmp_path: Path, repository: Path, swe: Task, config: RunConfig) -> None:
    elsewhere = patch(repository, FIXED).replace(b"n + 2", b"n + 9")
    for number, (task, data, said) in enumerate(
        [
            (swe, elsewhere, "does not apply"),
            (swe, b"no diff at all\n", "line 1 of the diff"),
            (replace(swe, tests=None), patch(repository, FIXED), "cannot be graded"),
            (replace(swe, base_commit="0" * 40), patch(repository, FIXED), "checkout failed"),
        ]
    ):
        result = grade(task, data, config, tmp_path / str(number))
        assert said in result.error
        assert not result.resolved
        assert said in (tmp_path / str(number) / OUTPUT_NAME).read_text()
    nothing = grade(swe, b"\n", config, tmp_path / "empty")
    assert (nothing.empty, nothing.error, nothing.resolved) == (True, "", False)


def test_what_is_no_grade_is_not_deleted(tmp_path: Path, swe: Task, config: RunConfig) -> None:
    """`--out tasks` would name the tasks' own folders."""
    folder = tmp_path / "tasks" / swe.name
    write(folder, {"prompt.md": "fix it"})
    with pytest.raises(UsageError, match="something other than a grade"):
        grade(swe, b"\n", config, folder)
    assert (folder / "prompt.md").read_text() == "fix it"
    (folder / "prompt.md").rename(folder / OUTPUT_NAME)
    (folder / "checkout" / ".git").mkdir(parents=True)  # what a grade leaves that was killed
    (folder / ".new-x").mkdir()
    assert grade(swe, b"\n", config, folder).empty
    assert {path.name for path in folder.iterdir()} == {OUTPUT_NAME, REPORT_NAME}


def test_a_script_that_runs_out_of_time_does_not_resolve(tmp_path: Path, config: RunConfig, swe: Task) -> None:
    slow = replace(swe, tests=None, script="#!/bin/sh -e\nsleep 30\n")
    result = grade(slow, patch_that_changes_nothing_of_worth(), replace(config, check_timeout_s=1.0), tmp_path / "x")
    assert not result.resolved
    assert "ran out of time" in result.output


def test_the_report_over_all_has_the_shape_of_swebenchs() -> None:
    tasks = [Task(name, "Fix.", "/r") for name in "abcdef"]
    grades = [
        Grade("a", resolved=True, applied=True),
        Grade("b", applied=True),
        Grade("c", empty=True),
        Grade("d", error="x"),
    ]
    assert summary(tasks, {each.task: each for each in grades}) == {
        "total_instances": 6,
        "submitted_instances": 4,
        "completed_instances": 2,
        "resolved_instances": 1,
        "unresolved_instances": 1,
        "empty_patch_instances": 1,
        "infra_failure_instances": 0,
        "ambiguous_failure_instances": 0,
        "error_instances": 1,
        "completed_ids": ["a", "b"],
        "incomplete_ids": ["e", "f"],
        "empty_patch_ids": ["c"],
        "submitted_ids": ["a", "b", "c", "d"],
        "resolved_ids": ["a"],
        "unresolved_ids": ["b"],
        "infra_failure_ids": [],
        "ambiguous_failure_ids": [],
        "error_ids": ["d"],
        "failure_reasons": {},
        "schema_version": 2,
    }


@pytest.mark.parametrize(
    ("state", "good"), [("passed", True), ("xfailed", True), ("skipped", False), ("failed", False), ("missing", False)]
)
def test_what_counts_as_good(state: str, good: bool) -> None:
    """As swebench finds it in what pytest prints, where a skipped test has no name (tests/agent/batch/test_swebench.py)."""
    task = Task("t", "Fix.", "/r", tests=Suite("", ("a",), ("b",)))
    told = report(task, Grade("t", applied=True, tests={"a": state, "b": state}))["t"]["tests_status"]
    assert told["FAIL_TO_PASS"] == {"success": ["a"] * good, "failure": ["a"] * (not good)}
    assert told["PASS_TO_PASS"] == {"success": ["b"] * good, "failure": ["b"] * (not good)}


def test_what_says_nothing_is_unresolved_and_named(tmp_path: Path, swe: Task, config: RunConfig) -> None:
    assert swe.tests is not None
    data = patch_that_changes_nothing_of_worth()
    for number, (command, said) in enumerate(
        [
            (f"{PYTEST} --deselect tests", "no test ran: exit code 5"),
            ("true", "no test ran: exit code 0"),
            (f"{PYTEST} -k test_two; exit 3; :", "exit code 3, but no test is reported to fail"),
        ]
    ):
        task = replace(swe, tests=replace(swe.tests, command=command))
        result = grade(task, data, config, tmp_path / str(number))
        assert (result.resolved, result.error, result.doubt) == (False, "", said)
        whole = summary([task], {task.name: result})
        assert whole["unresolved_ids"] == whole["ambiguous_failure_ids"] == [task.name]
        assert whole["failure_reasons"] == {task.name: said}


def test_ids_that_were_cut_off_are_found_by_their_beginning() -> None:
    states = {
        "t[a b]": "passed",
        "t[a c]": "xfailed",
        "t[d e]": "passed",
        "t[d f]": "failed",
        "t[g]": "failed",
        "tx": "error",
    }
    wanted = {"t[a": "good", "t[d": "missing", "t[g]": "failed", "t[h": "missing", "t": "missing", "tx": "error"}
    assert {name: "good" if (found := _state(name, states)) in GOOD else found for name in wanted} == wanted


def test_predictions_come_in_three_forms(tmp_path: Path) -> None:
    row = {"instance_id": "a", "model_name_or_path": "m", "model_patch": "x"}
    other = {"instance_id": "b", "model_name_or_path": "m", "model_patch": None}
    (tmp_path / "all_preds.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    (tmp_path / "list.json").write_text(json.dumps([row, other]))
    (tmp_path / "preds.json").write_text(json.dumps({"a": row, "b": other}))
    for place in (tmp_path, tmp_path / "list.json", tmp_path / "preds.json"):
        assert read_patches(place) == {"a": b"x", "b": b""}
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UsageError, match="contains no predictions"):
        read_patches(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_patches(tmp_path / "none.json")
