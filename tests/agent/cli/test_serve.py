"""What `agent serve` says before it serves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.backends import BACKENDS
from agent.cli.main import run

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["completions", "ollama", "chat", "responses"])
def test_a_server_behind_it_has_to_be_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--backend", name, "--port", "0"]) == 2
    assert f"The backend {name} is a server: give its URL with --endpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["local", "triton", "torch", "transformers"])
def test_a_checkpoint_has_to_be_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--backend", name, "--port", "0"]) == 2
    assert f"the {name} backend needs a checkpoint: give its folder with --model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "chat", "generate", "fix"])
def test_every_command_takes_every_backend_by_both_names_of_the_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--wire, --backend \[([a-z|]+)\]", text.replace("| ", "|"))
    for flag in ("--wire", "--backend"):
        assert run([command, flag, "nobody"]) == 2
        said = capsys.readouterr().err
        assert all(name in said for name in BACKENDS)


def test_it_says_on_one_line_what_it_took_and_why(tmp_path: Path) -> None:
    script = tmp_path / "s.json"
    script.write_text('{"turns": [[{"text": "Hi."}]]}')
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "serve", "--script", str(script), "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("http://127.0.0.1:")
        serving.send_signal(signal.SIGTERM)
        _, said = serving.communicate(timeout=20)
    assert said == "agent: taking the scripted backend, because a script was given\n"
    assert serving.returncode == 0


@pytest.mark.parametrize(("key", "said"), [("", "protect nothing"), ("  ", "protect nothing"), ("schlüssel", "ASCII")])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_key_that_nobody_or_anybody_could_bring_is_refused(
    key: str, said: str, in_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "key"
    place.write_text(key)
    assert run(["serve", "--api-key", f"@{place}" if in_file else key, "--port", "0"]) == 2
    assert said in capsys.readouterr().err
