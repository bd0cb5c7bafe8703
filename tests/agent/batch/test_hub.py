"""Data sets by name, with huggingface_hub itself against a hub on the loopback; and Parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from agent.batch import hub
from agent.batch.read import read_tasks
from agent.batch.task import Suite
from agent.errors import UsageError
from tests.agent.batch.test_task import SWE
from tests.runtime.fake_hub import COMMIT, FakeHub, serve

NAME = "someone/tasks-verified"


def parquet(*rows: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def row(number: int, **keys: object) -> dict[str, object]:
    return SWE | {"instance_id": f"ada__calc-{number}"} | keys


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    files = {
        "README.md": b"read me",
        "data/dev-00000-of-00001.parquet": parquet(row(9)),
        "data/test-00000-of-00002.parquet": parquet(row(1), row(2)),
        "data/test-00001-of-00002.parquet": parquet(row(3, image=None)),
    }
    with serve(FakeHub(NAME, files, kind="datasets")) as running:
        # What the person says by HF_ENDPOINT and HF_HUB_CACHE, which the client reads when it is imported.
        template = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield running


def fetched(server: FakeHub) -> list[str]:
    return [path.rsplit("/", 1)[1] for method, path, _ in server.requests if method == "GET" and "/resolve/" in path]


def test_the_files_of_one_split_are_fetched_and_read(server: FakeHub) -> None:
    said: list[str] = []
    tasks = read_tasks([f"hf:{NAME}"], say=said.append)
    assert [task.name for task in tasks] == ["ada__calc-1", "ada__calc-2", "ada__calc-3"]
    assert tasks[0].repository == "https://github.com/ada/calc.git"
    assert tasks[0].tests == Suite(str(SWE["test_patch"]), ("t.py::test_three",), ("t.py::test_two",))
    assert said == [f"the split test of the data set {NAME} is loaded from Hugging Face"]
    assert sorted(fetched(server)) == ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]
    assert [task.name for task in read_tasks([f"hf:{NAME}:dev"])] == ["ada__calc-9"]
    assert [task.name for task in read_tasks([f"hf:{NAME}@{COMMIT}:test"], "2$")] == ["ada__calc-2"]


def test_a_plain_name_is_a_data_set_where_no_such_path_can_be_meant(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert len(read_tasks([NAME], say=said.append)) == 3
    assert said == [f"there is no {NAME} here, so the split test of the data set {NAME} is loaded from Hugging Face"]
    server.requests.clear()
    (tmp_path / "someone").mkdir()
    for slip in (NAME, "someone/tasks.jsonl", "elsewhere/tasks.parquet", "./a/b", "a/b/c", "alone"):
        with pytest.raises(UsageError, match=r"is not a task: .* or a data set as hf:OWNER/NAME"):
            read_tasks([slip])
    assert server.requests == []


def test_what_was_fetched_is_there_without_a_network(server: FakeHub) -> None:
    first = read_tasks([f"hf:{NAME}"])
    server.files.clear()
    server.repository = "gone/away"
    assert read_tasks([f"hf:{NAME}"]) == first
    assert read_tasks([f"hf:{NAME}@{COMMIT}"]) == first


def test_a_part_that_is_missing_is_missed(server: FakeHub) -> None:
    """As where an earlier download was killed, and now there is no network: less than all would be taken for all."""
    del server.files["data/test-00000-of-00002.parquet"]
    with pytest.raises(UsageError, match="only 1 of 2 parts of data/test"):
        read_tasks([f"hf:{NAME}"])


def test_a_split_that_is_not_there_is_named_with_those_that_are(server: FakeHub) -> None:
    with pytest.raises(UsageError, match="has no split 'train'; it has data/dev, data/test"):
        read_tasks([f"hf:{NAME}:train"])
    server.files = {"README.md": b""}
    with pytest.raises(UsageError, match="has no split 'lite'; it has none that can be read"):
        read_tasks([f"hf:{NAME}:lite"])


def test_one_of_several_configurations_is_asked_for(server: FakeHub) -> None:
    lines = json.dumps(row(5)).encode()
    server.files = {"lite/test/0000.parquet": parquet(row(4)), "full/test.jsonl": lines, "full/test.txt": b"no rows"}
    with pytest.raises(
        UsageError,
        match=f"several configurations .* have the split 'test': choose one of full/test, lite/test, as hf:{NAME}:full/test",
    ):
        read_tasks([f"hf:{NAME}"])
    assert [task.name for task in read_tasks([f"hf:{NAME}:lite/test"])] == ["ada__calc-4"]
    assert [task.name for task in read_tasks([f"hf:{NAME}:full/test"])] == ["ada__calc-5"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:someone/other", "the data set someone/other cannot be downloaded: RepositoryNotFoundError"),
        ("hf:some--one/x", "'some--one/x' is not the name of a data set"),
        ("hf:alone", "hf:alone is not a task"),
    ],
)
def test_what_is_no_data_set_is_said(server: FakeHub, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_tasks([name])


def test_an_unclear_row_is_named_with_its_file(server: FakeHub) -> None:
    server.files = {"test.parquet": parquet(row(1), row(2, base_commit=None)), "data/dev.parquet": b"PAR1 no more"}
    with pytest.raises(UsageError, match=f"{NAME}, test.parquet, row 2: 'base_commit' is missing"):
        read_tasks([f"hf:{NAME}"])
    with pytest.raises(UsageError, match=r"dev\.parquet cannot be read as a Parquet file"):
        read_tasks([f"hf:{NAME}:dev"])


@pytest.mark.parametrize("place", ["/home/ada/secret", "../../secret", "file:///home/ada/secret", "./a/b", "~/a"])
def test_what_somebody_else_wrote_cannot_name_a_folder_of_this_machine(server: FakeHub, place: str) -> None:
    """It would be copied into the sandbox, and the model would read it."""
    rows = (row(1, repo=place), {"name": "a", "repository": place, "prompt": "Look around."})
    server.files = {f"split{number}.jsonl": json.dumps(line).encode() for number, line in enumerate(rows)}
    for number, key in enumerate(("repo", "repository")):
        with pytest.raises(UsageError, match=f"line 1: '{key}' is .*, a place on this machine"):
            read_tasks([f"hf:{NAME}:split{number}"])


def test_rows_from_elsewhere_take_the_persons_clones(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "clones/ada/calc").mkdir(parents=True)
    tasks = read_tasks([f"hf:{NAME}"], repositories=tmp_path / "clones")
    assert {task.repository for task in tasks} == {str(tmp_path / "clones/ada/calc")}


def test_a_parquet_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    own = {"name": "a", "repository": "r", "prompt": "Fix.", "tags": ["x", "y"], "image": "host"}
    path.write_bytes(parquet(own, own | {"name": "b", "tags": None, "image": None}))
    first, second = read_tasks([path])
    assert (first.name, first.repository, first.tags) == ("a", str(tmp_path / "r"), ("x", "y"))
    assert (second.tags, second.settings) == ((), {})
    path.write_bytes(parquet(own, own | {"prompt": None}))
    with pytest.raises(UsageError, match=r"mine\.parquet, row 2: the task a has an empty prompt"):
        read_tasks([path])
    path.write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"mine\.parquet cannot be read as a Parquet file"):
        read_tasks([path])


def test_files_are_told_apart_by_split() -> None:
    for name, split in [
        ("data/test-00000-of-00001.parquet", "/data/test"),
        ("data/test-00000-of-00001-0123456789abcdef.parquet", "/data/test"),
        ("default/test/0000.parquet", "/default/test"),
        ("test.jsonl", "/test"),
        ("contest.jsonl", "/contest"),
        ("README.md", ""),
    ]:
        assert hub._split(Path(name)) == split
