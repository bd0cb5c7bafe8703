"""`agent tasks run` as a program: real processes, git and sandboxes; killed, interrupted, run again; only the model plays."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.batch.results import RESULTS_NAME
from agent.log import LOG_NAME, read
from agent.runs import is_running
from tests.e2e.conftest import PLAIN, ROOT, Place
from tests.runtime.fake_hub import FakeHub, serve

PATCH = "*** Begin Patch\n*** Update File: calc.py\n@@\n-    return n + 2\n+    return n * 2\n*** End Patch\n"
CHECK = "python3 -c 'import calc; assert calc.double(3) == 6'"


def shell(command: str) -> list[dict[str, object]]:
    return [{"recipient": "container.exec", "arguments": {"command": ["sh", "-c", command]}}]


FIX = [{"recipient": "repo_browser.apply_patch", "arguments": {"patch": PATCH}}]
DONE = [{"text": "double() doubles now."}]
TURNS = [
    shell("cat calc.py; sleep 0.3"),
    shell("sleep 0.3"),
    FIX,
    shell("sleep 0.3; python3 -B -c 'import calc'"),
    DONE,
]
# -B: a file that is changed in the second in which it was compiled, to the same length, is the old one to Python.
# What is played only where a kill took the sandbox too, and the run is asked to look again.
ONCE_MORE = [shell("git diff"), FIX, [{"text": "It is fixed."}]]


def hold(folder: Path) -> list[dict[str, object]]:
    """A command that says in a file that it runs, and ends when it is let go: however long the others take to begin."""
    return shell(f"echo ran >> {folder}/ran; until [ -e {folder}/go ]; do sleep 0.1; done")


def held(folder: Path) -> int:
    """How many such commands have begun."""
    return (folder / "ran").read_text().count("ran") if (folder / "ran").exists() else 0


def let_go(folder: Path) -> None:
    (folder / "go").touch()


Script = Callable[[Sequence[object]], tuple[str, ...]]


def make_tasks(folder: Path, count: int) -> Path:
    repo = folder / "repo"
    repo.mkdir(parents=True)
    (repo / "calc.py").write_text("def double(n):\n    return n + 2\n")
    rows = [
        {"name": f"t{number:02}", "repository": "repo", "prompt": "double(3) is 5", "checks": [CHECK]}
        for number in range(count)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "tasks.jsonl"


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / RESULTS_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(happens: Callable[[], bool], timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)


def logs(out: Path) -> list[Path]:
    return sorted(out.glob(f"tasks/*/*/*/{LOG_NAME}"))


def test_a_batch_from_end_to_end(place: Place, script: Script, tmp_path: Path) -> None:
    path, out = make_tasks(tmp_path / "set", 3), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), "--jobs", "2", *script([FIX, DONE]), *PLAIN)
    done = place.agent(*command, "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records == lines(out)
    assert [(r["class"], r["outcome"]) for r in records] == [("done", "passed")] * 3
    assert "3 of 3 tasks: 3 done" in done.stderr
    predictions = json.loads((out / "preds.json").read_text())
    assert "+    return n * 2" in predictions["t01"]["model_patch"]
    again = place.agent(*command)
    assert again.returncode == 0
    assert "3 of 3 tasks: 3 done" in again.stderr
    assert lines(out) == records
    other = place.agent(*command, "--effort", "high")
    assert other.returncode == 2
    assert "effort was 'medium' and is 'high'" in other.stderr


@pytest.mark.parametrize(
    "sandbox",
    [pytest.param(PLAIN, id="local"), pytest.param(("--image", "host"), id="docker", marks=pytest.mark.docker)],
)
@pytest.mark.timeout(300)
def test_killed_at_random_moments_and_run_again_nothing_is_lost_or_done_twice(
    place: Place, script: Script, tmp_path: Path, sandbox: tuple[str, ...]
) -> None:
    path, out = make_tasks(tmp_path / "set", 5), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), "--jobs", "2", *script([*TURNS, *ONCE_MORE * 4]), *sandbox)
    source = random.Random(4)
    for _ in range(4):
        batch = place.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(source.uniform(0.5, 3.0))
        known = lines(out)
        batch.kill()
        batch.wait()
        assert lines(out)[: len(known)] == known
        wait_until(lambda: not any(map(is_running, logs(out))))  # its workers end with it
    done = place.agent(*command, timeout_s=200)
    assert done.returncode == 0, done.stderr
    records = lines(out)
    assert sorted(record["task"] for record in records) == [f"t{number:02}" for number in range(5)]
    assert [record["outcome"] for record in records] == ["passed"] * 5
    for record in records:
        entries = read(out / record["folder"] / LOG_NAME)
        finished = [entry.event.call for entry in entries if type(entry.event).__name__ == "ToolFinished"]  # type: ignore[union-attr]
        assert len(finished) == len(set(finished)), "a call that had finished was run again"
        assert len(list((out / "tasks" / record["task"] / "1").glob(f"*/{LOG_NAME}"))) == 1


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(place: Place, script: Script, tmp_path: Path) -> None:
    path, out = make_tasks(tmp_path / "set", 2), tmp_path / "out"
    turns = [FIX, hold(tmp_path), DONE]
    command = ("tasks", "run", str(path), "--out", str(out), "--jobs", "2", *script(turns), *PLAIN)
    batch = place.start(*command)
    wait_until(lambda: held(tmp_path) == 2)
    batch.send_signal(signal.SIGINT)
    _, said = batch.communicate(timeout=30)
    assert batch.returncode == 130, said
    assert "2 tasks are left: interrupted by the user. The same command continues from here." in said
    assert lines(out) == []
    let_go(tmp_path)
    done = place.agent(*command)
    assert done.returncode == 0, done.stderr
    assert [record["outcome"] for record in lines(out)] == ["passed"] * 2
    for log in logs(out):
        assert [type(entry.event).__name__ for entry in read(log)].count("Resumed") == 1


def test_a_worker_that_is_killed_goes_on_and_harms_no_other(place: Place, script: Script, tmp_path: Path) -> None:
    path, out = make_tasks(tmp_path / "set", 2), tmp_path / "out"
    turns = [hold(tmp_path), FIX, DONE]
    batch = place.start("tasks", "run", str(path), "--out", str(out), "--jobs", "2", *script(turns), *PLAIN)
    wait_until(lambda: held(tmp_path) == 2)
    children = Path(f"/proc/{batch.pid}/task").glob("*/children")
    workers = [int(pid) for child in children for pid in child.read_text().split()]
    os.kill(workers[0], signal.SIGKILL)
    let_go(tmp_path)
    _, said = batch.communicate(timeout=60)
    assert batch.returncode == 0, said
    assert [record["outcome"] for record in lines(out)] == ["passed"] * 2


def test_a_task_that_failed_by_no_fault_of_its_own_is_run_again_by_the_same_command(
    place: Place, script: Script, tmp_path: Path
) -> None:
    path, out = make_tasks(tmp_path / "set", 1), tmp_path / "out"
    flags = script([FIX, DONE])
    good = Path(flags[-1]).read_text()
    Path(flags[-1]).write_text("no JSON")
    command = ("tasks", "run", str(path), "--out", str(out), *flags, *PLAIN)
    done = place.agent(*command)
    assert done.returncode == 0, done.stderr
    (record,) = lines(out)
    assert (record["class"], record["folder"]) == ("harness", "") or record["outcome"] == "internal"
    assert "is not JSON" in record["reason"]
    Path(flags[-1]).write_text(good)
    done = place.agent(*command)
    assert done.returncode == 0, done.stderr
    assert [record["class"] for record in lines(out)] == ["harness", "done"]


def test_the_budget_holds_over_starts(place: Place, script: Script, tmp_path: Path) -> None:
    path, out = make_tasks(tmp_path / "set", 3), tmp_path / "out"
    command = ("tasks", "run", str(path), "--out", str(out), *script([FIX, DONE]), *PLAIN)
    short = place.agent(*command, "--budget-tokens", "60")
    assert short.returncode == 4, short.stderr
    assert "the budget of 60 tokens is used up" in short.stderr
    before = len(lines(out))
    assert before < 3
    assert place.agent(*command, "--budget-tokens", "60").returncode == 4
    assert len(lines(out)) == before
    assert place.agent(*command).returncode == 0
    assert [record["outcome"] for record in lines(out)] == ["passed"] * 3


def test_attempts_share_a_checkout_and_the_best_is_kept(place: Place, script: Script, tmp_path: Path) -> None:
    path, out = make_tasks(tmp_path / "set", 1), tmp_path / "out"
    idle = script([DONE, [{"text": "It does."}]])
    ladder = ("--attempts", "2", "--effort-ladder", "low,high")
    done = place.agent("tasks", "run", str(path), "--out", str(out), "-j", "2", *ladder, *idle, *PLAIN)
    assert done.returncode == 0, done.stderr
    (record,) = lines(out)
    assert [(each["attempt"], each["effort"], each["outcome"]) for each in record["attempts"]] == [
        (1, "low", "no_change"),
        (2, "low", "no_change"),
        (3, "high", "no_change"),
        (4, "high", "no_change"),
    ]
    assert record["class"] == "model"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--effort-ladder", "low,extreme"), "'extreme' is not one of low, medium, high"),
        (("--again", "rain"), "'rain' is not one of done, model"),
        (("--filter", "zzz"), "There is no task whose name matches 'zzz'"),
        (("--sandbox", "none"), "--i-know-this-runs-on-my-machine"),
    ],
)
def test_flags_that_cannot_be_used(place: Place, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    path = make_tasks(tmp_path / "set", 1)
    done = place.agent("tasks", "run", str(path), "--out", str(tmp_path / "out"), *flags)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_a_batch_made_is_graded_on_the_patch_alone(place: Place, tmp_path: Path) -> None:
    tasks, out = ROOT / "tasks", tmp_path / "out"
    script = ("--wire", "scripted", "--script", str(tasks / "slugify" / "script.json"))
    done = place.agent("tasks", "run", str(tasks), "--filter", "slugify|rotate", "--out", str(out), *script, *PLAIN)
    assert done.returncode == 0, done.stderr
    graded = place.agent("tasks", "grade", str(out), str(tasks), "-j", "2", *PLAIN)
    assert graded.returncode == 0, graded.stderr
    assert graded.stdout.splitlines() == ["empty      rotate", "resolved   slugify"]
    assert "1 of 10 resolved" in graded.stderr
    report = json.loads((out / "grades/report.json").read_text())
    assert (report["resolved_ids"], report["empty_patch_ids"]) == (["slugify"], ["rotate"])
    assert report["total_instances"] == 10
    assert json.loads((out / "grades/slugify/report.json").read_text())["slugify"]["resolved"] is True
    reported = place.agent("report", str(out))
    assert reported.stdout == f"{out}/report.html\n", reported.stderr
    links = re.findall(r'href="(tasks/[^"]*)"', (out / "report.html").read_text())
    assert len(links) == 2
    assert all("<h1>" in (out / link).read_text() for link in links)
    refused = place.agent("tasks", "grade", str(out), str(tasks), "--sandbox", "none")
    assert refused.returncode == 2
    refused = place.agent("tasks", "grade", str(out), str(tasks), "--out", str(out / "batch.json/grades"), *PLAIN)
    assert refused.returncode == 2
    assert "reports cannot be written to" in refused.stderr


def test_a_data_set_of_the_hub_is_run_and_graded_by_its_name(place: Place, script: Script, tmp_path: Path) -> None:
    clone = tmp_path / "clones/ada/calc"
    clone.mkdir(parents=True)
    (clone / "calc.py").write_text("def double(n):\n    return n + 2\n")
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "calc")
    row = {
        "instance_id": "ada__calc-1", "repo": "ada/calc", "base_commit": git(clone, "rev-parse", "HEAD"),
        "problem_statement": "double(3) is 5", "FAIL_TO_PASS": '["test_calc.py::test_three"]', "PASS_TO_PASS": "[]",
        "test_patch": "diff --git a/test_calc.py b/test_calc.py\nnew file mode 100644\n--- /dev/null\n+++ b/test_calc.py\n"
        "@@ -0,0 +1,5 @@\n+import calc\n+\n+\n+def test_three():\n+    assert calc.double(3) == 6\n",
        "test_cmd": f"{sys.executable} -m pytest -q",
    }  # fmt: skip
    out, flags = tmp_path / "out", ("--repositories", str(tmp_path / "clones"), *PLAIN)
    with serve(FakeHub("ada/tasks", {"data/test.jsonl": json.dumps(row).encode()}, kind="datasets")) as hub:
        place.env.update(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1")
        done = place.agent("tasks", "run", "ada/tasks", "--out", str(out), *flags, *script([FIX, DONE]))
        assert done.returncode == 0, done.stderr
        assert (
            "there is no ada/tasks here, so the split test of the data set ada/tasks is loaded from Hugging Face"
            in done.stderr
        )
        graded = place.agent("tasks", "grade", str(out), "hf:ada/tasks", *flags)
    assert graded.stdout == "resolved   ada__calc-1\n", graded.stderr


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def calc(place: Place) -> Path:
    """The place's repository with one module that is wrong, not committed: attempts begin with what is there."""
    (place.repository / "calc.py").write_text("def double(n):\n    return n + 2\n")
    return place.repository


def test_several_attempts_at_one_fix_end_in_one_branch(place: Place, calc: Path, script: Script) -> None:
    flags = ("--check", CHECK, *script([FIX, DONE]), *PLAIN, "--branch", "best")
    done = place.agent("fix", "double(3) is 5", "-n", "2", "--json", *flags)
    assert done.returncode == 0, done.stderr
    *events, result = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("RunStarted", "RunEnded")
    assert (result["outcome"], result["branch"], result["changed_paths"]) == ("passed", "best", ["calc.py"])
    assert git(calc, "show", "best:calc.py").endswith("return n * 2")
    assert git(calc, "branch", "--format=%(refname:short)").splitlines() == ["best", "main"]
    assert (calc / "calc.py").read_text().endswith("n + 2\n")
    assert "kept: attempt 1" in done.stderr
    assert [path.name for path in place.runs.iterdir()] == [result["run"]]
    assert "return n * 2" in place.agent("diff", "last").stdout
    assert place.agent("discard", "last", "--yes").returncode == 0
    assert git(calc, "branch", "--format=%(refname:short)") == "main"


def test_the_ladder_of_one_fix_climbs_while_checks_fail(place: Place, calc: Path, script: Script) -> None:
    flags = ("--check", CHECK, *script([DONE, [{"text": "It does."}]]), *PLAIN)
    done = place.agent("fix", "double(3) is 5", "--effort-ladder", "low,high", *flags)
    assert done.returncode == 6, done.stderr
    assert [line for line in done.stderr.splitlines() if "begins" in line] == [
        "attempt 1 begins (effort low)",
        "attempt 2 begins (effort high)",
    ]
    assert git(calc, "branch", "--format=%(refname:short)") == "main"


def test_attempts_bring_the_best_change_into_the_checkout(place: Place, calc: Path, script: Script) -> None:
    git(calc, "add", "-A")
    git(calc, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "calc")
    flags = ("--check", CHECK, *script([FIX, DONE]), *PLAIN, "--apply", "--yes")
    done = place.agent("fix", "double(3) is 5", "-n", "2", *flags)
    assert done.returncode == 0, done.stderr
    assert (calc / "calc.py").read_text().endswith("n * 2\n")
    assert git(calc, "branch", "--format=%(refname:short)") == "main"


def test_attempts_that_are_interrupted_leave_nothing(place: Place, calc: Path, script: Script, tmp_path: Path) -> None:
    flags = ("--check", "true", *script([shell(f"echo ran >> {tmp_path}/ran; sleep 20"), DONE]), *PLAIN)
    running = place.start("fix", "double(3) is 5", "-n", "2", *flags)
    wait_until(lambda: (tmp_path / "ran").exists())
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert list(place.runs.iterdir()) == []
    taken = place.agent("fix", "double(3) is 5", "-n", "2", *flags, "--branch", "main")
    assert taken.returncode == 2
    assert "the branch main already exists" in taken.stderr
