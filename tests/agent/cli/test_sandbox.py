from __future__ import annotations

import uuid
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
    assert "--dockerfile PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "Dockerfile cannot be read: No such file"),
        ("nowhere", "cannot be read: No such"),
        ("folder", "Is a directory"),
    ],
)
def test_what_is_no_dockerfile_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "folder" / "Dockerfile").mkdir(parents=True)
    assert run(["sandbox", "build", "--dockerfile", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Name a Dockerfile, or the folder that holds it" in shown


@pytest.mark.docker
@pytest.mark.parametrize("arguments", [["jq"], ["--dockerfile", "{folder}"]])
def test_a_tag_that_is_none_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    assert run(["sandbox", "build", "--tag", "No Tag", *(each.format(folder=tmp_path) for each in arguments)]) == 8
    assert "invalid reference format" in capsys.readouterr().err


@pytest.mark.docker
@pytest.mark.parametrize("name", ["Dockerfile", "Other"])
def test_an_image_from_a_dockerfile(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("FROM scratch\nCOPY file /file\n")
    (tmp_path / "file").write_text("text")
    tag = f"gpt-oss-agent/test-build:{uuid.uuid4().hex}"
    client = docker.engine()
    try:
        path = tmp_path if name == "Dockerfile" else tmp_path / name
        result = CliRunner().invoke(cli, ["sandbox", "build", "--dockerfile", str(path), "--tag", tag])
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
    dead, running, foreign = names = [f"clean-test-{uuid.uuid4().hex}" for _ in range(3)]
    tag = f"gpt-oss-agent/test-empty:{dead}"
    client.api.import_image_from_data(_empty_tar(), *tag.split(":"))
    made = [client.containers.create(tag, ["/none"], labels={docker.LABEL: name}).id for name in names]
    try:
        for name in (dead, running):
            with Log(tmp_path / name / LOG_NAME, new=True) as log:
                log.append(RunStarted(name, "x", "fix", Conversation(), "/r", ""))
        with Log(tmp_path / running / LOG_NAME):
            result = CliRunner().invoke(cli, ["sandbox", "clean", "--runs-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert f"removed the container of {dead}" in result.stdout
        assert f"kept the container of {foreign}" in result.stderr
        left = {run for run, _ in docker.orphans(client)}
        assert left.intersection(names) == {running, foreign}
    finally:
        for container in made:
            docker.remove(client, str(container))
        client.images.remove(tag)
        client.close()


def _empty_tar() -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return buffer.getvalue()
