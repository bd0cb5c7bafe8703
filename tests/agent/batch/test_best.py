"""Several attempts at one fix: what is left when none of them could begin."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.batch.batch import Plan
from agent.batch.best import best_of
from agent.config import RunConfig
from agent.errors import ModelError
from tests.agent.batch.test_batch import Lines
from tests.servers import head, serving


def test_a_model_that_cannot_be_had_is_said_as_that_and_leaves_no_run(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "repository"], check=True)
    folders = {"runs_dir": tmp_path / "runs", "cache_dir": tmp_path / "cache"}
    with serving([[head(200, "text/html"), b"<html>"]]) as server:
        config = RunConfig(endpoint=server.url, sandbox="none", **folders)
        with pytest.raises(ModelError, match="is not a JSON object"):
            best_of(config, "fix it", tmp_path / "repository", Plan(), Lines())
    assert not list((tmp_path / "runs").iterdir())
