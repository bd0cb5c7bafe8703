from __future__ import annotations

import gc
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import doctor
from agent.cli.main import cli
from agent.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    script = tmp_path / "script.json"
    script.write_text('{"turns": [[{"text": "done"}]]}')
    return RunConfig(
        wire="scripted", script=script, sandbox="none", cache_dir=tmp_path / "cache", endpoint_timeout_s=0.2
    )


def git_saying(text: str):
    return lambda *_args, **_options: subprocess.CompletedProcess([], 0, text, "")


@pytest.mark.parametrize(
    ("said", "works"),
    [
        ("git version 2.39.5", True),
        ("git version 2.31.0.windows.1", True),
        ("git version 3.0.0 (Apple Git-1)", True),
        ("git version 2.30.9", False),
        ("git version 1.8.3.1", False),
        ("gibberish", False),
    ],
)
def test_git_must_be_new_enough(said: str, works: bool) -> None:
    found = doctor.git(git_saying(said))
    assert found.works is works
    assert said in found.detail


def test_git_that_does_not_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = doctor.git()
    assert found.exit_code == 1
    assert "apt-get install git" in found.detail


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_docker_engine_that_does_not_answer_is_8(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    found = doctor.engine(replace(config, sandbox="docker"))
    gc.collect()  # the docker package leaves the socket that could not connect to the collector, which warns
    assert found.exit_code == 8
    assert "no Docker engine answers" in found.detail


def test_the_sandbox_is_really_started(config: RunConfig) -> None:
    found = doctor.container(config)
    assert found.works, found
    assert "a command takes" in found.detail


@pytest.mark.docker
def test_a_container_is_really_started(config: RunConfig) -> None:
    found = doctor.container(replace(config, sandbox="docker", image="host"))
    assert found.works, found
    assert found.detail.startswith("host is up in ")


@pytest.mark.docker
def test_an_image_that_cannot_be_had_is_8(config: RunConfig) -> None:
    found = doctor.container(replace(config, sandbox="docker", image="no.such.registry.invalid/image:1"))
    assert found.exit_code == 8
    assert "no.such.registry.invalid/image:1" in found.detail


def test_the_vocabulary_comes_with_the_package(config: RunConfig) -> None:
    assert doctor.vocabulary(config).works


def test_the_model_that_would_be_asked(config: RunConfig) -> None:
    found = doctor.model(config)
    assert found.works
    assert "script.json" in found.detail


def test_the_sizes_of_the_local_engines_kernels(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert list(doctor.kernels(config)) == []  # there is nothing to choose
    asked = []

    def sizes(cache: Path) -> str:
        asked.append(cache)
        return "shipped for NVIDIA H200"

    monkeypatch.setattr("runtime.local.sizes_here", sizes)
    assert list(doctor.kernels(config)) == [doctor.Finding("kernels", "sizes: shipped for NVIDIA H200")]
    assert asked == [config.cache_dir]


def test_only_triton_has_sizes() -> None:
    assert {"local", "triton"} == doctor.TUNED


def test_an_endpoint_where_nobody_answers_is_3(config: RunConfig) -> None:
    found = doctor.model(replace(config, wire="chat", script=None, endpoint="http://127.0.0.1:9/v1", model="m"))
    assert found.exit_code == 3
    assert "127.0.0.1:9" in found.detail


def test_the_command_tells_all_and_exits_with_the_first_fault(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_CACHE_DIR", str(config.cache_dir))
    monkeypatch.setenv("AGENT_SANDBOX", "none")
    good = CliRunner().invoke(
        cli, ["doctor", "--json", "--wire", "scripted", "--script", str(config.script)], standalone_mode=False
    )
    found = [json.loads(line) for line in good.stdout.splitlines()]
    assert [each["subject"] for each in found] == ["python", "git", "docker", "sandbox", "vocabulary", "model"]
    assert all(each["works"] for each in found), found
    assert good.return_value == 0
    bad = CliRunner().invoke(
        cli, ["doctor", "--endpoint", "http://127.0.0.1:9/v1", "--wire", "chat"], standalone_mode=False
    )
    assert bad.return_value == 3
    assert "fails  endpoint" in bad.stdout
