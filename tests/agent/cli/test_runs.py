from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import cli
from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import LogError, UsageError
from agent.events import MessageAdded, Outcome, RunEnded, RunStarted
from agent.log import LOG_NAME, Log
from agent.runs import find_run, is_running, patch_of, summary

PATCH = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-caf\xe9\n+\x1b[31mred\n"


def make(
    runs_dir: Path, name: str, *, ended: Outcome | None = Outcome.PASSED, at: float = 1000.0, claimed: str = ""
) -> Path:
    folder = runs_dir / name
    times = iter([at, at + 1, at + 2.5])
    with Log(folder / LOG_NAME, new=True, clock=lambda: next(times)) as log:
        log.append(RunStarted(name, f"fix {name}\x1b[2J", "fix", Conversation(), "/repo", "c0ffee", {"wire": "chat"}))
        log.append(MessageAdded(Message(Role.ASSISTANT, "thinking", Channel.ANALYSIS)))
        if ended is not None:
            log.append(RunEnded(ended, "because", claimed, ("x",), (), f"agent/{name}"))
    os.utime(folder / LOG_NAME, (at, at))
    return folder


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "runs", "alpha-1", at=1000)
    make(tmp_path / "runs", "alpha-2", at=2000, ended=None)
    make(tmp_path / "runs", "beta", at=3000, ended=Outcome.CHECKS_FAILED)
    (tmp_path / "runs" / "beta" / "patch.diff").write_bytes(PATCH)
    return tmp_path / "runs"


def agent(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_run_is_found_by_its_name_a_beginning_or_as_the_last(runs_dir: Path) -> None:
    assert find_run(runs_dir, "alpha-1").name == "alpha-1"
    assert find_run(runs_dir, "b").name == "beta"
    assert find_run(runs_dir, "last").name == "beta"


def test_a_name_that_is_also_a_beginning_is_that_run(runs_dir: Path) -> None:
    make(runs_dir, "alpha")
    assert find_run(runs_dir, "alpha").name == "alpha"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alpha", "alpha-1"),
        ("gamma", "There is no run"),
        ("../beta", "There is no run"),
        ("", "There is no run"),
        ("/", "There is no run"),
    ],
)
def test_what_fits_no_run_or_several_is_said(runs_dir: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_run(runs_dir, name)


def test_no_runs_yet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs"):
        find_run(tmp_path, "last")


def test_a_summary_reads_the_ends_only(runs_dir: Path) -> None:
    found = summary(runs_dir / "beta")
    assert (found.state, found.started_at, found.duration_s) == ("checks_failed", 3000.0, 2.5)
    assert found.ended is not None
    assert summary(runs_dir / "alpha-2").state == "stopped"


def test_a_summary_of_a_log_with_a_very_long_last_line_or_a_torn_one(runs_dir: Path) -> None:
    long = make(runs_dir, "long", claimed="x" * 200_000)
    assert summary(long).state == "passed"
    with (long / LOG_NAME).open("ab") as file:
        file.write(b'{"seq":3,"at"')
    assert summary(long).state == "passed"


def test_a_run_that_is_written_to_is_running(runs_dir: Path) -> None:
    with Log(runs_dir / "alpha-2" / LOG_NAME):
        assert is_running(runs_dir / "alpha-2" / LOG_NAME)
        assert summary(runs_dir / "alpha-2").state == "running"
    assert not is_running(runs_dir / "alpha-2" / LOG_NAME)


@pytest.mark.parametrize(
    "content", [b"", b'{"seq":0', b"not json\nnot json\n", b'{"seq":0,"at":1,"event":"Resumed"}\n']
)
def test_a_log_that_says_nothing_is_a_log_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG_NAME).write_bytes(content)
    with pytest.raises(LogError):
        summary(tmp_path)


def test_runs_lists_newest_first_and_goes_on_after_a_broken_one(runs_dir: Path) -> None:
    (runs_dir / "broken").mkdir()
    (runs_dir / "broken" / LOG_NAME).write_bytes(b"nonsense\nnonsense\n")
    result = agent("runs")
    assert result.exit_code == 0
    rows = result.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["beta", "alpha-2", "alpha-1"]
    assert re.search(r"beta .* checks_failed +2\.5 s +fix beta\\x1b\[2J$", rows[0])
    assert "broken" in result.stderr


def test_runs_says_what_it_left_out(runs_dir: Path) -> None:
    result = agent("runs", "-n", "1")
    assert len(result.stdout.splitlines()) == 1
    assert "2 more" in result.stderr


def test_runs_as_json(runs_dir: Path) -> None:
    records = [json.loads(line) for line in agent("runs", "--json").stdout.splitlines()]
    assert [record["run"] for record in records] == ["beta", "alpha-2", "alpha-1"]
    assert records[0] == {
        "run": "beta",
        "started_at": 3000.0,
        "duration_s": 2.5,
        "state": "checks_failed",
        "mode": "fix",
        "repository": "/repo",
        "task": "fix beta\x1b[2J",
        "branch": "agent/beta",
    }


def test_runs_where_there_are_none_is_empty_and_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNS_DIR", str(tmp_path / "none"))
    result = agent("runs")
    assert (result.exit_code, result.output) == (0, "")


def test_show_tells_the_run_and_its_end(runs_dir: Path) -> None:
    result = agent("show", "last")
    assert result.stdout.splitlines() == [
        "     0.0  run beta (fix): fix beta\\x1b[2J",
        "          model: the model at the first local port that answers",
        "     1.0  thought: thinking",
        "     2.5  checks_failed: changed, but the checks fail",
        "          because",
        "          changed: x",
        "          branch: agent/beta",
    ]


def test_show_as_json_is_the_log(runs_dir: Path) -> None:
    assert agent("show", "beta", "--json").stdout_bytes == (runs_dir / "beta" / LOG_NAME).read_bytes()


def test_diff_into_a_pipe_is_the_patch_byte_for_byte(runs_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "agent", "diff", "last"], capture_output=True, check=True)
    assert done.stdout == PATCH == patch_of(runs_dir / "beta")


def test_diff_of_a_run_without_a_change_says_so(runs_dir: Path) -> None:
    result = agent("diff", "alpha-1")
    assert isinstance(result.exception, UsageError)
    assert "made no change" in str(result.exception)
