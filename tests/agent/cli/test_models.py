"""`agent models`, as a person calls it, against a hub on the loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli.main import run
from runtime.model.tiny import tiny_config, write_tiny
from tests.runtime.fake_hub import COMMIT, FakeHub, serve

REPOSITORY = "someone/tiny-oss"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeHub]:
    write_tiny(tmp_path / "published", config=tiny_config(layers=1))
    files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    with serve(FakeHub(REPOSITORY, files)) as running:
        yield running


def test_a_model_is_pulled_listed_and_verified(
    server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    assert run(["models", "pull", REPOSITORY, *cache, "--endpoint", server.endpoint]) == 0
    shown = capsys.readouterr()
    path = shown.out.strip()
    assert Path(path, "config.json").is_file()
    assert "2 files, 0.0 GiB, all hashes match" in shown.err

    assert run(["models", "list", *cache]) == 0
    assert capsys.readouterr().out == f"{REPOSITORY}  {COMMIT[:12]}  0.0 GiB  {path}\n"

    assert run(["models", "verify", REPOSITORY, *cache]) == 0
    assert capsys.readouterr().out == f"{path}: all tensors are there; the hashes of 2 files match\n"

    blob = Path(path, "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert run(["models", "verify", path]) == 3
    assert "has a wrong hash" in capsys.readouterr().err


def test_a_terminal_is_told_what_is_being_hashed(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "pull", REPOSITORY, "--cache", str(tmp_path), "--endpoint", server.endpoint]) == 0
    assert "hashing" not in capsys.readouterr().err
    monkeypatch.setattr("agent.cli.models.sys.stderr.isatty", lambda: True, raising=False)
    assert run(["models", "verify", REPOSITORY, "--cache", str(tmp_path)]) == 0
    assert "hashing model.safetensors: 0.0 GiB\n" in capsys.readouterr().err


def test_a_broken_model_is_listed_with_what_is_wrong(
    server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    assert run(["models", "pull", REPOSITORY, *cache, "--endpoint", server.endpoint]) == 0
    path = capsys.readouterr().out.strip()
    Path(path, "model.safetensors").unlink()
    assert run(["models", "list", *cache]) == 0
    assert "has no *.safetensors" in capsys.readouterr().err


def test_a_plain_folder_says_that_its_hashes_are_unknown(
    server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "verify", str(tmp_path / "published")]) == 0
    assert "the hashes of 0 files match, 2 without a known hash" in capsys.readouterr().out


def test_nothing_pulled_yet_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--cache", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().err == "none yet: run agent models pull openai/gpt-oss-20b\n"


def test_a_repository_that_is_not_there_is_one_line(
    server: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "pull", "someone/else", "--cache", str(tmp_path), "--endpoint", server.endpoint]) == 3
    assert "agent: someone/else cannot be downloaded" in capsys.readouterr().err


def test_without_the_runtime_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "runtime.model.hub", raising=False)
    monkeypatch.delattr("runtime.model.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(["models", "list"]) == 2
    assert 'pip install "gpt-oss-agent[runtime]"' in capsys.readouterr().err
