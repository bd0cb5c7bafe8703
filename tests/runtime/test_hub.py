"""Fetching, finding and verifying checkpoints, with huggingface_hub itself against a hub on the loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import CheckpointError, DoesNotFit
from runtime.model import hub
from runtime.model.checkpoint import open_checkpoint
from runtime.model.tiny import tiny_config, write_tiny
from tests.runtime.fake_hub import COMMIT, FakeHub, serve

REPOSITORY = "someone/tiny-oss"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    write_tiny(folder, config=tiny_config(layers=2), shards=2)
    published = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return published | {"original/model.safetensors": b"twice", "metal/model.bin": b"thrice", "README.md": b"read me"}


@pytest.fixture
def server(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve(FakeHub(REPOSITORY, dict(files))) as running:
        yield running


def fetched(server: FakeHub) -> list[str]:
    return [path.rsplit("/", 1)[1] for method, path, _ in server.requests if method == "GET" and "/resolve/" in path]


def test_pull_fetches_what_the_runtime_reads_and_nothing_else(server: FakeHub, tmp_path: Path) -> None:
    path, verified = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert open_checkpoint(path).config == tiny_config(layers=2)
    assert sorted(fetched(server)) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert (verified.hashed_files, verified.unknown_files) == (4, 0)
    assert verified.read_bytes == sum(len(server.files[name]) for name in fetched(server))


def test_pulling_again_fetches_nothing(server: FakeHub, tmp_path: Path) -> None:
    first, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    server.requests.clear()
    second, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert first == second
    assert fetched(server) == []


def test_a_broken_connection_goes_on_where_it_broke(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # 10 MB: it goes on at a whole one
    server.break_after = 10_000
    path, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    open_checkpoint(path)
    ranges = [start for _, _, start in server.requests if start is not None]
    assert ranges == ["bytes=8192-"]
    assert server.sent_bytes == sum(len(server.files[name]) for name in set(fetched(server))) + 10_000 - 8192


def test_a_killed_download_keeps_the_whole_files(server: FakeHub, tmp_path: Path) -> None:
    path, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    lost = path / "model-00002-of-00002.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    server.requests.clear()
    again, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert fetched(server) == ["model-00002-of-00002.safetensors"]
    open_checkpoint(again)


def test_what_arrives_damaged_is_named_and_removed_and_fetched_again(server: FakeHub, tmp_path: Path) -> None:
    server.corrupt = "model-00001-of-00002.safetensors"
    with pytest.raises(CheckpointError, match=r"^model-00001-of-00002\.safetensors arrived damaged"):
        hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    server.corrupt = None
    server.requests.clear()
    hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert fetched(server) == ["model-00001-of-00002.safetensors"]


def test_a_disk_that_is_too_full_is_said_before_anything_is_fetched(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("runtime.model.hub.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match="HF_HOME"):
        hub.pull(REPOSITORY, cache=tmp_path / "not" / "there", endpoint=server.endpoint)
    assert fetched(server) == []


def test_a_repository_without_weights_is_no_checkpoint(server: FakeHub, tmp_path: Path) -> None:
    server.files = {"config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"contains no \*\.safetensors"):
        hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)


def test_another_model_is_refused_once_it_is_seen(server: FakeHub, tmp_path: Path) -> None:
    server.files["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert hub.cached_models(tmp_path) == []


@pytest.mark.parametrize(
    ("repository", "message"),
    [("someone/else", "someone/else cannot be downloaded: "), ("no such//name", "is not the name of a repository")],
)
def test_what_is_not_there_is_named(repository: str, message: str, server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        hub.pull(repository, cache=tmp_path, endpoint=server.endpoint)


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{REPOSITORY} cannot be downloaded"):
        hub.pull(REPOSITORY, cache=tmp_path, endpoint="http://127.0.0.1:9")


def test_verify_needs_no_network_and_names_the_damaged_file(server: FakeHub, tmp_path: Path) -> None:
    path, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    server.requests.clear()
    seen: dict[str, int] = {}
    assert hub.verify(path, lambda name, done: seen.__setitem__(name, done)).hashed_files == 4
    assert seen == {name: len(server.files[name]) for name in seen}
    blob = (path / "model-00002-of-00002.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors in .* has a wrong hash"):
        hub.verify(path)
    assert server.requests == []


def test_a_plain_folder_is_verified_by_its_tensors(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", config=tiny_config(layers=2), shards=2)
    verified = hub.verify(tmp_path / "model")
    assert (verified.hashed_files, verified.unknown_files) == (0, 4)
    (tmp_path / "model" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00001"):
        hub.verify(tmp_path / "model")
    with pytest.raises(CheckpointError, match="contains no files"):
        hub.verify(tmp_path / "nothing")


def test_the_cache_is_listed_with_what_is_wrong(server: FakeHub, tmp_path: Path) -> None:
    assert hub.cached_models(tmp_path / "none") == []
    path, verified = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    (model,) = hub.cached_models(tmp_path)
    assert (model.repository, model.revision, model.path) == (REPOSITORY, COMMIT, path)
    assert model.size_bytes == verified.read_bytes
    assert model.problem is None
    (path / "model-00002-of-00002.safetensors").unlink()
    (model,) = hub.cached_models(tmp_path)
    assert "download is incomplete" in str(model.problem)


def test_a_model_is_located_by_folder_or_by_name(server: FakeHub, tmp_path: Path) -> None:
    path, _ = hub.pull(REPOSITORY, cache=tmp_path, endpoint=server.endpoint)
    assert hub.locate(str(path)) == path
    assert hub.locate(REPOSITORY, cache=tmp_path) == path
    with pytest.raises(CheckpointError, match="agent models pull someone/else"):
        hub.locate("someone/else", cache=tmp_path)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither a folder nor a completely downloaded model"):
        hub.locate(REPOSITORY, cache=tmp_path)
