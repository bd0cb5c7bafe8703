"""The engine of one machine: what its processes are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

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
