from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.main import cli, run
from agent.conversation import Conversation
from agent.events import RunStarted
from agent.log import LOG_NAME, Log
from sandbox import docker


@pytest.mark.parametrize("arguments", [[], ["git", "--dockerfile", "."]])
def test_an_image_is_made_of_one_thing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sandbox", "build", *arguments]) == 2
    assert "--dockerfile DIR" in capsys.readouterr().err


@pytest.mark.docker
def test_an_image_from_a_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY file /file\n")
    (tmp_path / "file").write_text("text")
    tag = "gpt-oss-agent/test-build:1"
    client = docker.engine()
    try:
        result = CliRunner().invoke(cli, ["sandbox", "build", "--dockerfile", str(tmp_path), "--tag", tag])
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == client.images.get(tag).id
        assert f"--image {tag}" in result.stderr
    finally:
        client.images.remove(tag)
        client.close()


@pytest.mark.docker
def test_a_dockerfile_that_does_not_build_is_8_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY missing /file\n")
    assert run(["sandbox", "build", "--dockerfile", str(tmp_path)]) == 8
    assert "missing" in capsys.readouterr().err


@pytest.mark.docker
def test_clean_removes_what_dead_runs_left_and_nothing_else(tmp_path: Path) -> None:
    client = docker.engine()
    names = ("clean-test-dead", "clean-test-running", "clean-test-foreign")
    made = {name: _container(client, name) for name in names}
    try:
        for name in names[:2]:
            with Log(tmp_path / name / LOG_NAME, new=True) as log:
                log.append(RunStarted(name, "x", "fix", Conversation(), "/r", ""))
        with Log(tmp_path / names[1] / LOG_NAME):
            result = CliRunner().invoke(cli, ["sandbox", "clean", "--runs-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert "removed the container of clean-test-dead" in result.stdout
        assert "left alone the container of clean-test-foreign" in result.stderr
        left = {run for run, _ in docker.orphans(client)}
        assert left.intersection(names) == {"clean-test-running", "clean-test-foreign"}
    finally:
        for container in made.values():
            docker.remove(client, container)
        client.images.remove("gpt-oss-agent/test-empty")
        client.close()


def _container(client, run_name: str) -> str:
    """A container that never ran, labelled as one of ours."""
    image = client.api.import_image_from_data(_empty_tar(), repository="gpt-oss-agent/test-empty")
    return client.containers.create(json.loads(image)["status"], ["/none"], labels={docker.LABEL: run_name}).id


def _empty_tar() -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return buffer.getvalue()
