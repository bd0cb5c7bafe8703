"""The engine of one machine: what its processes are started with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

import pytest

from agent.batch import processes
from agent.batch.attempt import Job, Kind
from agent.batch.governor import Governor
from agent.batch.processes import Processes
from agent.config import RunConfig, public


def test_a_worker_imports_nothing_of_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`agent fix -n 2` is started in the repository, which is not to be believed, and may have a folder called agent."""
    repository = tmp_path / "repository"
    (repository / "agent").mkdir(parents=True)
    for name in ("queue.py", "json.py", "click.py", "agent/__init__.py", "sitecustomize.py"):
        (repository / name).write_text(f"open({str(tmp_path / 'evil')!r}, 'w')\nraise SystemExit(7)\n")
    script = tmp_path / "script.json"
    script.write_text('{"turns": []}')
    config = RunConfig(wire="scripted", script=script, sandbox="none", cache_dir=tmp_path / "cache")
    monkeypatch.chdir(repository)
    job = Job("a", 1, "fix it", str(tmp_path / "nowhere"), str(tmp_path / "out"), public(config))
    attempt = Processes(Governor()).run(job, lambda _: None)
    assert attempt is not None
    assert attempt.kind is Kind.HARNESS
    assert str(tmp_path / "nowhere") in attempt.reason, "the worker itself came to this end"
    assert not (tmp_path / "evil").exists()


def test_a_worker_that_dies_before_it_is_told_its_job_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROGRAM", "raise SystemExit('no memory')")

    class Late(subprocess.Popen[str]):
        def __enter__(self) -> Self:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            return self

    monkeypatch.setattr(subprocess, "Popen", Late)
    job = Job("a", 1, "fix it", str(tmp_path), str(tmp_path / "out"), public(RunConfig()))
    attempt = Processes(Governor()).run(job, lambda _: None)
    assert attempt is not None
    assert (attempt.kind, attempt.reason.partition(" (")[0]) == (
        Kind.HARNESS,
        "the worker ended with exit code 1, 3 times: no memory",
    )
