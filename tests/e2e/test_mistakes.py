"""What people get wrong: said before anything is spent, with what to do; and what is made is never lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cli.main import run
from tests.e2e.conftest import PLAIN, ROOT, TASK, Place, git

SCRIPT = ("--wire", "scripted", "--script", str(TASK / "script.json"))
FINAL = [{"text": "Nothing to do."}]
# Root may write everywhere; without these it is held to the permissions of what it owns, as anybody is.
AS_ANYBODY = () if os.getuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def shell(command: str) -> list[object]:
    return [{"recipient": "container.exec", "arguments": {"command": ["sh", "-c", command]}}]


def as_anybody(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*AS_ANYBODY, *place.command(*arguments)]
    return subprocess.run(
        command, cwd=place.repository, env=place.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--worktree", "{tmp}/locked/kept"), "locked cannot be written; name another folder with --worktree"),
        (("--output", "{tmp}/locked/patch"), "it cannot be written. Fix the permissions, or name another file"),
        (("--runs-dir", "{tmp}/locked/runs"), "Permission denied; name another folder with --runs-dir"),
        (("--runs-dir", "{tmp}/locked", "-n", "2"), "Permission denied; name another folder with --runs-dir"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_before_the_run(
    place: Place, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    (tmp_path / "locked").mkdir(0o555)
    where = [flag.format(tmp=tmp_path) for flag in flags]
    done = as_anybody(place, "fix", "x", *SCRIPT, *PLAIN, *where)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not list(place.runs.glob("*/events.jsonl"))


@pytest.mark.parametrize(("flags", "locked"), [((), ".git/objects"), (("--apply",), ".")])
def test_a_repository_that_cannot_be_written_is_said_before_the_run(
    place: Place, flags: tuple[str, ...], locked: str
) -> None:
    folder = place.repository / locked
    folder.chmod(0o555)
    refused = as_anybody(place, "fix", "x", *SCRIPT, *PLAIN, *flags)
    folder.chmod(0o755)
    assert refused.returncode == 2, refused.stderr
    assert "cannot be written" in refused.stderr
    assert "--output FILE" in refused.stderr


@pytest.mark.parametrize("flag", ["--worktree", "--branch", "--output"])
def test_a_place_that_is_taken_while_the_run_goes_costs_no_work(
    place: Place, script: Callable[..., tuple[str, ...]], tmp_path: Path, flag: str
) -> None:
    name = "taken" if flag == "--branch" else str(tmp_path / "taken")
    take = f"git -C {place.repository} branch taken" if flag == "--branch" else f"mkdir -p {name}/x"
    flags = script([shell(f"echo more >> textkit/slug.py; {take}"), *[FINAL] * 3])
    done = place.agent("fix", "x", *flags, *PLAIN, "--check", "true", flag, name)
    assert done.returncode == (2 if flag == "--output" else 1), done.stderr
    (run,) = (path.name for path in place.runs.iterdir())
    assert f"`agent apply {run}` applies it to the checkout" in done.stdout + done.stderr
    assert b"\n+more\n" in (place.runs / run / "patch.diff").read_bytes()


def test_a_question_minds_no_branch(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    (place.repository / "agent.toml").write_text('branch = "main"\n')
    done = place.agent("ask", "x", *script([[{"text": "It is."}]]), *PLAIN)
    assert (done.returncode, done.stdout) == (0, "It is.\n"), done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--output", "nowhere/patch"), "nowhere does not exist. Create it, or name another file"),
        (("--output", "p", "--apply"), "exclude each other"),
        (("--output", "p", "--worktree", "w"), "leave one of them out"),
        (("--effort-ladder", "low,most"), "'most' is not one of low, medium, high"),
    ],
)
def test_wrong_flags_have_a_last_line_too(
    flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fix", "x", *flags, *PLAIN, "--json"]) == 2
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["outcome"], result["exit_code"], said in result["reason"]) == ("usage", 2, True), result
    assert said in shown.err


def test_more_jobs_than_files_may_be_open_are_refused_before_they_begin(place: Place) -> None:
    command = place.command("tasks", "run", str(ROOT / "tasks"), "--jobs", "5000", *SCRIPT, *PLAIN)
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 150; exec "$@"', "sh", *command], cwd=place.home, env=place.env, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "10 jobs at a time need 180 open files, and this process may have 150: use --jobs 6" in done.stderr


def test_a_bare_repository_is_called_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    git(place.home, "clone", "-q", "--bare", str(place.repository), "bare.git")
    assert run(["fix", "x", *SCRIPT, *PLAIN, "--repo", str(place.home / "bare.git")]) == 2
    assert "bare.git is a bare repository, without files to work on. Clone it" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(place: Place) -> None:
    (place.repository / "secret").touch(0o000)
    done = as_anybody(place, "fix", "x", *SCRIPT, *PLAIN)
    assert done.returncode == 1
    assert 'open("secret"): Permission denied' in done.stderr
    assert "Put the file into .gitignore, make it readable, or use --no-uncommitted" in done.stderr


def test_without_git_it_says_so(place: Place) -> None:
    assert place.agent("fix", "x", *SCRIPT, *PLAIN).returncode == 0
    place.env["PATH"] = str(place.home)
    for command in (["doctor", *SCRIPT, *PLAIN[:2]], ["discard", "last"]):
        done = place.agent(*command)
        assert done.returncode in (1, 2)
        assert "install git" in done.stdout + done.stderr
        assert "internal error" not in done.stderr


def test_a_change_that_no_longer_fits_the_checkout_is_kept(
    place: Place, script: Callable[..., tuple[str, ...]]
) -> None:
    theirs = place.repository / "textkit/slug.py"
    flags = script([shell(f"echo more >> textkit/slug.py; echo other > {theirs}"), *[FINAL] * 3])
    done = place.agent("fix", "x", *flags, *PLAIN, "--check", "true", "--apply")
    assert done.returncode == 1, done.stderr
    assert "does not apply to the current checkout (textkit/slug.py): nothing was changed there" in done.stderr
    assert "The change is kept: agent apply 2" in done.stderr
    assert theirs.read_text() == "other\n"
