from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import cli
from agent.conversation import Conversation
from agent.errors import LogError, UsageError
from agent.events import Outcome, RunEnded, RunStarted
from agent.landing import bring_in, discard, sweep, sweep_unbegun
from agent.log import LOG_NAME, Log
from agent.session import new_folder
from sandbox import scratch
from sandbox import snapshot as snapshots
from sandbox.errors import DiffRefused, WorktreeError
from sandbox.worktree import Worktree

PATCH = b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n one\n-two\n+TWO\n"
DEEPER = b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -2,5 +2,5 @@\n 2\n 3\n-4\n+four\n 5\n 6\n"
NEW = b"diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+new\n"
HOOK = b"diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "x.py").write_text("one\ntwo\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    return folder


@pytest.fixture
def run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended with a branch."""
    monkeypatch.setenv("AGENT_RUNS_DIR", str(tmp_path / "runs"))
    snapshots.take(repository, tmp_path / "runs" / "x-1")
    git(repository, "branch", "agent/x-1")
    commit = git(repository, "rev-parse", "agent/x-1")
    folder = tmp_path / "runs" / "x-1"
    with Log(folder / LOG_NAME, new=True) as log:
        log.append(RunStarted("x-1", "fix x", "fix", Conversation(), str(repository), commit))
        log.append(RunEnded(Outcome.PASSED, "", "", ("x.py",), (), "agent/x-1", commit))
    (folder / "patch.diff").write_bytes(PATCH)
    return folder


def agent(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_patch_comes_into_the_checkout_uncommitted(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert bring_in(repository, PATCH + NEW) == ("new.py", "x.py")
    assert (repository / "x.py").read_text() == "one\nTWO\n"
    assert git(repository, "status", "--porcelain").splitlines() == ["M x.py", "?? new.py"]
    assert git(repository, "rev-parse", "HEAD") == head


def test_it_is_fitted_onto_other_changes_and_leaves_them(repository: Path) -> None:
    (repository / "other").write_text("mine\n")
    (repository / "x.py").write_text("0\n1\n2\n3\n4\n5\n6\n7\n")
    bring_in(repository, DEEPER)
    assert (repository / "x.py").read_text() == "0\n1\n2\n3\nfour\n5\n6\n7\n"
    assert (repository / "other").read_text() == "mine\n"


def test_where_it_does_not_fit_nothing_is_written(repository: Path) -> None:
    (repository / "x.py").write_text("one\n2\n")
    with pytest.raises(WorktreeError, match=r"does not apply to the current checkout \(x\.py\): nothing was changed"):
        bring_in(repository, NEW + PATCH)
    assert not (repository / "new.py").exists()
    assert (repository / "x.py").read_text() == "one\n2\n"


def test_what_a_rule_forbids_is_refused(repository: Path) -> None:
    with pytest.raises(DiffRefused):
        bring_in(repository, HOOK)
    assert not (repository / ".git" / "hooks" / "x").exists()


def test_apply_goes_into_the_checkout_of_the_run(run: Path, repository: Path) -> None:
    result = agent("apply", "last")
    assert (result.exit_code, result.stdout) == (0, "x.py\n"), result.output
    assert (repository / "x.py").read_text() == "one\nTWO\n"


def test_apply_into_another_checkout(run: Path, repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(repository), "other")
    assert agent("apply", "x", "--repo", str(tmp_path / "other")).exit_code == 0
    assert (tmp_path / "other" / "x.py").read_text() == "one\nTWO\n"
    assert (repository / "x.py").read_text() == "one\ntwo\n"


def test_discard_deletes_the_run_and_its_branch(run: Path, repository: Path) -> None:
    result = agent("discard", "last", "--yes")
    assert result.exit_code == 0, result.output
    assert "deleted branch agent/x-1" in result.stdout
    assert not run.exists()
    assert git(repository, "branch", "--list", "agent/*") == ""


def test_discard_leaves_a_branch_that_has_moved_and_its_run(run: Path, repository: Path) -> None:
    git(repository, "checkout", "-q", "agent/x-1")
    git(repository, "commit", "-q", "--allow-empty", "-m", "mine")
    git(repository, "checkout", "-q", "main")
    with pytest.raises(WorktreeError, match="moved"):
        discard(run)
    assert run.exists()
    assert git(repository, "branch", "--list", "agent/*") == "agent/x-1"


def test_discard_of_a_running_run_is_refused(run: Path) -> None:
    with Log(run / LOG_NAME), pytest.raises(UsageError, match="is running"):
        discard(run)
    assert run.exists()


def test_discard_where_the_repository_is_gone(run: Path, repository: Path) -> None:
    repository.rename(repository.parent / "moved")
    assert discard(run) == [str(run)]
    assert not run.exists()


def test_discard_says_only_what_it_deleted(run: Path, repository: Path) -> None:
    git(repository, "branch", "-D", "agent/x-1")
    assert discard(run) == [str(run)]


def test_discard_of_a_run_whose_log_is_broken_says_where_it_is(run: Path) -> None:
    (run / LOG_NAME).write_text("junk\n")
    with pytest.raises(LogError, match=f"delete {run} yourself"):
        discard(run)


def test_without_a_terminal_nothing_is_asked(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "discard", "last"],
        stdin=subprocess.PIPE,  # open, and nobody will ever write
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert not run.exists()


def test_discard_takes_away_the_worktree_that_was_kept(run: Path, repository: Path, tmp_path: Path) -> None:
    snapshot = snapshots.load(run)
    worktree = Worktree(snapshot)
    commit = worktree.keep(worktree.apply(PATCH), "agent/x-1-2", "fix x", tmp_path / "kept")
    with Log(run / LOG_NAME) as log:
        log.append(RunEnded(Outcome.PASSED, "", "", ("x.py",), (), "agent/x-1-2", commit))
    assert (tmp_path / "kept" / "x.py").read_text() == "one\nTWO\n"
    assert agent("discard", "x-1", "--yes").exit_code == 0
    assert not (tmp_path / "kept").exists()
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "worktree", "prune", "--dry-run", "-v") == ""


def test_discard_takes_away_a_worktree_left_by_a_killed_run(run: Path, repository: Path) -> None:
    git(repository, "worktree", "add", "-q", "--detach", str(run / "worktree"))
    discard(run)
    assert git(repository, "worktree", "prune", "--dry-run", "-v") == ""
    assert git(repository, "worktree", "list").count("\n") == 0


def test_what_was_killed_before_it_said_anything_is_taken_away_by_the_next_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    names = ("20260101-000000-abcdef", "20260101-000001-abcdef", ".attempts-1", ".attempts-2", "20260101-000002-abcdef")
    unbegun, empty, attempts, going, begun = made = [runs / name for name in names]
    others = [runs / name for name in ("notes", "20260101-000000", ".cluster")]
    for folder in (*made, *others):
        (folder / "base.git").mkdir(parents=True)
    (empty / LOG_NAME).touch()
    (begun / LOG_NAME).write_text("{}\n")
    for folder in made:
        os.utime(folder, (0, 0))
    held = scratch.hold(going)
    try:
        with Log(empty / LOG_NAME):
            assert sweep_unbegun(runs) == [str(attempts), str(unbegun)]
        assert sweep_unbegun(runs) == [str(empty)]
    finally:
        os.close(held)
    held = new_folder(runs / "20260101-000003-abcdef")
    os.close(held)
    assert sorted(path.name for path in runs.iterdir()) == sorted(
        ["20260101-000003-abcdef", begun.name, *(folder.name for folder in others)]
    )


def test_sweep_takes_away_what_killed_processes_left(
    run: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    left = temporary / "gpt-oss-agent-pack-abc"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    git(repository, "worktree", "add", "-q", "--detach", str(run / "worktree"))
    with Log(run / LOG_NAME):
        assert sweep(run.parent) == [str(left)]  # the run goes on: its worktree stays
    assert sweep(run.parent) == [str(run / "worktree")]
    assert sweep(run.parent) == []
    assert git(repository, "worktree", "prune", "--dry-run", "-v") == ""
    assert (run / LOG_NAME).exists()
