"""`agent ask` in this process: when its answer comes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from agent import session
from agent.cli.main import run
from sandbox.base import Sandbox
from sandbox.client import Client
from sandbox.open import SandboxOptions, open_sandbox
from sandbox.snapshot import Snapshot


def test_an_answer_is_printed_before_its_sandbox_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, script = tmp_path / "repository", tmp_path / "script.json"
    subprocess.run(["git", "init", "-q", repository], check=True)
    script.write_text(json.dumps({"turns": [[{"text": "It is 42."}]]}))
    printed: list[str] = []

    def watched(options: SandboxOptions, snapshot: Snapshot) -> Sandbox:
        box = open_sandbox(options, snapshot)
        assert isinstance(box, Client)
        end = box.end

        def look(keep: bool) -> None:
            printed.append(capsys.readouterr().out)
            end(keep)

        box.end = look
        return box

    monkeypatch.setattr(session, "open_sandbox", watched)
    flags = ("--wire", "scripted", "--script", str(script), "--sandbox", "none", "--i-know-this-runs-on-my-machine")
    assert run(["ask", "What is it?", "--repo", str(repository), "--runs-dir", str(tmp_path / "runs"), *flags]) == 0
    assert [*printed, capsys.readouterr().out] == ["It is 42.\n", ""]
