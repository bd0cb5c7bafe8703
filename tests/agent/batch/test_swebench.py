"""Our grades beside those of the ``swebench`` package: the same predictions, each side with its own hands.

Ours lays the task out, applies the patch and reads pytest's report. For the other side the patch is applied with git, the
tests are put back and run as that package's evaluation script does, and the package itself reads what was printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.batch.grade import Grade, grade, report, summary
from agent.batch.rows import read_rows
from agent.config import RunConfig
from tests.agent.batch.test_grade import BUGGY, git, patch, write

PYTEST = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {sys.executable} -m pytest -p no:cacheprovider"
TESTS = """import pytest
from calc import double, half


def test_two():
    assert double(2) == 4


class TestHalf:
    class TestEven:
        def test_four(self):
            assert half(4) == 2


@pytest.mark.xfail(reason="not yet")
def test_known():
    assert half(3) == 1.5
"""
MORE = f"""{TESTS}

def test_three():
    assert double(3) == 6


@pytest.mark.parametrize("text", ["one (two", "one (three"])
def test_cut(text):
    assert double(len(text)) == 2 * len(text)
"""
T = "tests/test_calc.py"
FAIL_TO_PASS = [f"{T}::test_three", f"{T}::test_cut[one"]  # cut off, as hundreds are in the published sets
PASS_TO_PASS = [f"{T}::test_two", f"{T}::TestHalf::TestEven::test_four", f"{T}::test_known"]
FIXED = {"calc.py": BUGGY.replace("n + 2", "n * 2")}
HOOK = "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    for item in items:\n"
CHANGES: dict[str, dict[str, str]] = {
    "fixes": FIXED,
    "changes-nothing-of-worth": {"notes.txt": "hm\n"},
    "fixes-and-breaks": {"calc.py": FIXED["calc.py"].replace("n // 2", "n // 3")},
    "fixes-a-part": {"calc.py": BUGGY.replace("n + 2", "6 if n == 3 else n + 2")},
    "fixes-the-known-one-too": {"calc.py": FIXED["calc.py"].replace("n // 2", "n / 2")},
    "cannot-be-imported": {"calc.py": "def double(n)\n"},
    "renames": {"calc.py": FIXED["calc.py"].replace("half", "halve")},
    "weakens-the-tests": {T: "def test_three():\n    pass\n"},
    "fixes-and-weakens-the-tests": {**FIXED, T: "def test_three():\n    pass\n"},
    "skips-them-all": {"conftest.py": f"{HOOK}        item.add_marker(pytest.mark.skip)\n"},
    "skips-one-that-passed": FIXED | {"conftest.py": f"{HOOK}        if item.name == 'test_two':\n            item.add_marker(pytest.mark.skip)\n"},
    # Both are taken in by this one: to that package a test that is expected to fail has passed.
    "expects-them-to-fail": {"conftest.py": f"{HOOK}        if item.name.startswith(('test_three', 'test_cut')):\n            item.add_marker(pytest.mark.xfail)\n"},
    "runs-none": {"conftest.py": "def pytest_collection_modifyitems(items):\n    items.clear()\n"},
    "stops-the-run": {"conftest.py": "import os\n\n\ndef pytest_runtest_setup():\n    os._exit(0)\n"},
    "ends-with-an-odd-code": FIXED | {"conftest.py": "def pytest_sessionfinish(session):\n    session.exitstatus = 3\n"},
    "fails-in-teardown": FIXED | {"conftest.py": "import pytest\n\n\n@pytest.fixture(autouse=True)\ndef after():\n    yield\n    assert False\n"},
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """What both sides say."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    grades: dict[str, Grade]
    our_summary: dict[str, Any]
    their_summary: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    repository = folder / "repository"
    write(repository, {"calc.py": BUGGY, T: TESTS, "tests/__init__.py": ""})
    git(repository, "init", "-q", "-b", "main")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "start")
    tests = patch(repository, {T: MORE}).decode()
    patches = {name: patch(repository, files).decode() for name, files in CHANGES.items()}
    patches |= {"does-not-apply": patches["fixes"].replace("n + 2", "n + 9"), "is-empty": ""}
    base = git(repository, "rev-parse", "HEAD").strip()
    rows = [
        {
            "instance_id": name, "repo": str(repository), "base_commit": base, "problem_statement": "double(3) is 5",
            "test_patch": tests, "test_cmd": f"{PYTEST} -q", "FAIL_TO_PASS": FAIL_TO_PASS, "PASS_TO_PASS": PASS_TO_PASS,
        }
        for name in [*patches, "has-no-prediction"]
    ]  # fmt: skip
    predictions = {
        name: {"instance_id": name, "model_name_or_path": "m", "model_patch": text} for name, text in patches.items()
    }
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "plan.json").write_text(json.dumps({"rows": rows, "predictions": predictions}))
    tasks = read_rows(folder / "rows.json")
    config = RunConfig(sandbox="none", image="host", cache_dir=folder / "cache", check_timeout_s=60)
    grades = {
        task.name: grade(task, patches[task.name].encode(), config, folder / "ours" / task.name)
        for task in tasks
        if task.name in patches
    }
    for name, text in patches.items():
        evaluate(repository, text, tests, folder / "logs" / name)
    program = Path(__file__).with_name("swebench_says.py")
    command = [sys.executable, str(program), str(folder / "plan.json"), str(folder / "logs")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    said = json.loads((folder / "logs/said.json").read_text())
    ours = {task.name: report(task, grades[task.name])[task.name] for task in tasks if task.name in grades}
    theirs = {name: told[name] for name, told in said["reports"].items()}
    return Compared(ours, theirs, grades, summary(tasks, grades), said["summary"])


def evaluate(repository: Path, text: str, tests: str, logs: Path) -> None:
    """What the package does in a container: patch, tests put back and brought, run; what was printed is kept."""
    logs.mkdir(parents=True)
    place = logs / "testbed"
    git(repository, "clone", "-q", str(repository), str(place))
    if text:
        applied = subprocess.run(["git", "apply"], cwd=place, input=text, text=True, capture_output=True, check=False)
        if applied.returncode:
            return
    git(place, "checkout", "-q", "HEAD", "--", T)
    subprocess.run(["git", "apply"], cwd=place, input=tests, text=True, check=True)
    run = subprocess.run(f"{PYTEST} -rA {T}", cwd=place, shell=True, capture_output=True, text=True, check=False)
    marks = (">>>>> Start Test Output", ">>>>> End Test Output", f">>>>> Test Exit Code: {run.returncode}")
    (logs / "test_output.txt").write_text(f"{marks[0]}\n{run.stdout}{run.stderr}\n{marks[1]}\n{marks[2]}\n")


UNEXPECTED = "fixes-the-known-one-too"
SILENT = {"skips-them-all", "runs-none", "stops-the-run", "ends-with-an-odd-code"}


@pytest.mark.timeout(300)
def test_both_sides_say_the_same(compared: Compared) -> None:
    # The one difference: a test that is expected to fail and passes is named XPASS, which the package does not know. To
    # it that test is not there, so what fixes more than was asked is unresolved; pytest's report has it among the passed.
    unexpected = compared.ours.pop(UNEXPECTED), compared.theirs.pop(UNEXPECTED)
    assert [told["resolved"] for told in unexpected] == [True, False]
    assert unexpected[1]["tests_status"]["PASS_TO_PASS"]["failure"] == [f"{T}::test_known"]

    resolved = {name for name, told in compared.theirs.items() if told["resolved"]}
    assert resolved == {"fixes", "fixes-and-weakens-the-tests", "expects-them-to-fail"}
    for name, theirs in compared.theirs.items():
        ours = compared.ours[name]
        # Why nothing could be read is guessed from words in the log there, and known here.
        assert ("infra_failure_reason" in ours) == (name in SILENT)
        guess, known = theirs.pop("infra_failure_reason", None), ours.pop("infra_failure_reason", None)
        assert guess is None or known is not None, name
        assert ours == theirs, name
    assert compared.ours.keys() - compared.theirs.keys() == {"does-not-apply", "is-empty"}

    ours, theirs = compared.our_summary, compared.their_summary
    assert ours.keys() == theirs.keys()
    ours["resolved_ids"].remove(UNEXPECTED)
    theirs["unresolved_ids"].remove(UNEXPECTED)
    for key in ("completed", "resolved", "unresolved", "incomplete", "empty_patch", "error", "submitted"):
        assert ours[f"{key}_ids"] == theirs[f"{key}_ids"], key
    assert set(theirs["ambiguous_failure_ids"]) <= set(ours["ambiguous_failure_ids"]) == SILENT
    assert ours["total_instances"] == theirs["total_instances"] == len(CHANGES) + 3
    assert ours["schema_version"] == theirs["schema_version"]
