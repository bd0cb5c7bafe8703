"""Grading: runs a task's checks in a fresh sandbox that has only the agent's patch.

Changes of the patch to files of the task's own tests are undone first, so that no agent grades itself. Reports have
the format of the ``swebench`` package: a ``report.json`` per task, and one for all tasks.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.batch.checkout import lay_out
from agent.batch.task import Suite, Task
from agent.check import failing_tests, run_checks
from agent.config import RunConfig
from agent.errors import AgentError, UsageError
from agent.saver import write_whole
from sandbox import diff as diffs
from sandbox import docker, plumbing
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.errors import DiffRefused, SandboxError, WorktreeError
from sandbox.guest.removal import remove_tree
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot
from sandbox.worktree import Worktree

OUTPUT_BYTES = 1 << 20
SCHEMA_VERSION = 2
REPORT_NAME = "report.json"
OUTPUT_NAME = "test_output.txt"
SCRATCH = ("checkout", "state")
GOOD = frozenset({"passed", "xfailed"})  # swebench counts expected failures as passed, and skipped tests as absent


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a patch. ``tests`` maps ids to states.

    ``error`` says why it could not be graded ("" if it was); ``doubt`` says why the tests' output cannot be trusted.
    """

    task: str
    resolved: bool = False
    empty: bool = False
    applied: bool = False
    error: str = ""
    doubt: str = ""
    tests: Mapping[str, str] = field(default_factory=dict)
    output: str = ""


def grade(task: Task, patch: bytes, config: RunConfig, folder: Path) -> Grade:
    """Grade a patch; the report and the checks' output are written to ``folder``. Errors of the patch are part of the grade.

    Raises UsageError if the folder contains anything but an earlier grade: a task, or its run, may have the same name.
    """
    _empty(folder)
    if not patch.strip():
        result = Grade(task.name, empty=True)
    else:
        try:
            result = _graded(task, patch, config, folder)
        except (AgentError, SandboxError, DiffRefused, WorktreeError) as error:
            result = Grade(task.name, error=str(error), output=str(error))
    for scratch in SCRATCH:
        remove_tree(str(folder / scratch))
    write_whole(folder / OUTPUT_NAME, result.output.encode("utf-8", "replace"))
    write_whole(folder / REPORT_NAME, json.dumps(report(task, result), indent=1).encode())
    return result


def _empty(folder: Path) -> None:
    ours = (*SCRATCH, REPORT_NAME, OUTPUT_NAME)
    torn = (".new-", f".{REPORT_NAME}.", f".{OUTPUT_NAME}.")  # temporary files of a killed grading
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(name not in ours and not name.startswith(torn) for name in names):
        raise UsageError(f"{folder} exists and contains something other than a grade: name another --out")
    remove_tree(str(folder))
    folder.mkdir(parents=True)


def _graded(task: Task, patch: bytes, config: RunConfig, folder: Path) -> Grade:
    if task.script is None and task.tests is None:
        raise UsageError(f"the task {task.name} cannot be graded: it has neither check.sh nor FAIL_TO_PASS")
    checkout = lay_out(task, folder / "checkout", config.cache_dir)
    snapshot = snapshots.take(checkout, folder / "state", include_uncommitted=False)
    tree = Worktree(snapshot).apply(patch).tree
    if task.tests is not None and task.tests.patch.strip():
        tree = _with_tests(snapshot, tree, task.tests.patch.encode("utf-8", "surrogateescape"))
    limits = docker.Limits(
        config.memory_bytes, config.disk_bytes, config.pids, config.cpus, network=config.network == "on"
    )
    options = SandboxOptions(f"grade-{task.name}-{secrets.token_hex(3)}", config.sandbox, config.image, limits)
    sandbox = open_sandbox(options, snapshot, snapshots.diff(snapshot, tree))
    try:
        if task.tests is not None:
            return _by_tests(task.name, task.tests, sandbox, config.check_timeout_s)
        assert task.script is not None
        done = sandbox.exec(_shell(task.script), config.check_timeout_s, max_output_bytes=OUTPUT_BYTES)
    finally:
        sandbox.close()
    output = done.output.decode("utf-8", "replace")
    ended = "ran out of time" if done.exit_code is None else f"ended with exit code {done.exit_code}"
    return Grade(task.name, done.exit_code == 0, applied=True, output=f"{output}\n(the check {ended})\n")


def _shell(script: str) -> tuple[str, ...]:
    """Return the command that runs a script's text with the interpreter that its first line names."""
    first = script.split("\n", 1)[0]
    interpreter = shlex.split(first[2:]) if first.startswith("#!") else ["sh"]
    return (*interpreter, "-c", script)


def _with_tests(snapshot: Snapshot, tree: str, tests: bytes) -> str:
    """Return the tree with the tests' files as at the task's beginning and then the tests' patch applied."""
    paths = diffs.paths(diffs.parse(tests))
    began = {item.path: item for item in snapshots.items(snapshot)}
    env = {"GIT_INDEX_FILE": str(snapshot.git_dir / "index.tests")}
    entries = b""
    for path in map(os.fsencode, paths):
        item = began.get(path)
        entries += (
            (b"%o %s" % (item.mode, item.oid.encode()) if item else b"0 " + b"0" * len(tree)) + b"\t" + path + b"\0"
        )
    plumbing.bare(snapshot.git_dir, ["read-tree", tree], env)
    plumbing.bare(snapshot.git_dir, ["update-index", "-z", "--index-info"], env, entries)
    reset = plumbing.bare(snapshot.git_dir, ["write-tree"], env).decode().strip()
    return snapshots.apply(replace(snapshot, tree=reset), tests)


def _by_tests(name: str, suite: Suite, sandbox: Sandbox, timeout_s: float) -> Grade:
    """Run the files of the tests that decide, and look up each test by its id."""
    wanted = (*suite.fail_to_pass, *suite.pass_to_pass)
    files = dict.fromkeys(test.partition("::")[0] for test in wanted)
    (done,) = run_checks([f"{suite.command} {shlex.join(files)}"], sandbox, timeout_s)
    if done.exit_code is None:
        return Grade(name, applied=True, error="the tests ran out of time", output=done.output)
    # As in swebench: a run with only skipped tests proves nothing, and an error exit code without a failing test makes the
    # output suspect, because the patch may have influenced it. swebench then reports the patch as not applied; so do we.
    if not any(state != "skipped" for state in done.tests.values()):
        return Grade(name, doubt=f"no test ran: exit code {done.exit_code}", output=done.output)
    if done.exit_code and not failing_tests(done):
        return Grade(name, doubt=f"exit code {done.exit_code}, but no test is reported to fail", output=done.output)
    states = {test: _state(test, done.tests) for test in wanted}
    return Grade(name, all(map(GOOD.__contains__, states.values())), applied=True, tests=states, output=done.output)


def _state(test: str, states: Mapping[str, str]) -> str:
    """Return the state of a test. Hundreds of ids in SWE-bench's data sets are truncated within their parameters (its issue 290).

    Such a test is found by its prefix, if all tests with that prefix agree.
    """
    if test in states or test.count("[") <= test.count("]"):
        return states.get(test, "missing")
    found = {state in GOOD: state for name, state in states.items() if name.startswith(test)}
    return next(iter(found.values())) if len(found) == 1 else "missing"


def report(task: Task, result: Grade) -> dict[str, Any]:
    """Return a task's report, in the format of swebench's ``get_eval_report``."""
    told: dict[str, Any] = {
        "patch_is_None": False,
        "patch_exists": not result.empty,
        "patch_successfully_applied": result.applied,
        "resolved": result.resolved,
        "infra_failure": False,
    }
    if task.tests is not None and result.tests:
        told["tests_status"] = {
            "FAIL_TO_PASS": _sorted(task.tests.fail_to_pass, result.tests),
            "PASS_TO_PASS": _sorted(task.tests.pass_to_pass, result.tests),
            "FAIL_TO_FAIL": {"success": [], "failure": []},
            "PASS_TO_FAIL": {"success": [], "failure": []},
        }
    if result.doubt:
        told["infra_failure_reason"] = result.doubt
    if result.error:
        told["error"] = result.error
    return {task.name: told}


def _sorted(tests: Sequence[str], states: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "success": [test for test in tests if states[test] in GOOD],
        "failure": [test for test in tests if states[test] not in GOOD],
    }


def summary(tasks: Sequence[Task], grades: Mapping[str, Grade]) -> dict[str, Any]:
    """Return the report on all tasks, in the format of swebench's ``make_run_report``."""
    every = sorted(grades.values(), key=lambda each: each.task)
    lists = {
        "completed": [each.task for each in every if not each.empty and not each.error],
        "incomplete": sorted(task.name for task in tasks if task.name not in grades),
        "empty_patch": [each.task for each in every if each.empty],
        "submitted": [each.task for each in every],
        "resolved": [each.task for each in every if each.resolved],
        "unresolved": [each.task for each in every if not each.resolved and not each.empty and not each.error],
        "infra_failure": list[str](),  # swebench infers these from logs
        "ambiguous_failure": [each.task for each in every if each.doubt],
        "error": [each.task for each in every if each.error],
    }
    counted = [name for name in lists if name != "incomplete"]
    return (
        {"total_instances": len(tasks)}
        | {f"{name}_instances": len(lists[name]) for name in counted}
        | {f"{name}_ids": names for name, names in lists.items()}
        | {"failure_reasons": {each.task: each.doubt for each in every if each.doubt}, "schema_version": SCHEMA_VERSION}
    )


def read_patches(place: Path) -> dict[str, bytes]:
    """Return the patches in a batch's folder, or in a file of predictions (a JSON object or list, or JSON lines).

    Raises UsageError if it is neither.
    """
    path = place / "all_preds.jsonl" if place.is_dir() else place
    try:
        text = path.read_text(encoding="utf-8")
        data = (
            [json.loads(line) for line in text.split("\n") if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
        rows = list(data.values()) if isinstance(data, dict) else data
        return {row["instance_id"]: (row["model_patch"] or "").encode("utf-8", "surrogateescape") for row in rows}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; `agent tasks run --out DIR` makes one") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path} contains no predictions (instance_id, model_patch): {type(error).__name__}: {error}"
        ) from error
