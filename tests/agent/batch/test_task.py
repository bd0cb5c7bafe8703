"""Reading tasks: folders, rows of our own, rows in SWE-bench's shape; what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.batch.read import read_tasks
from agent.batch.rows import read_rows
from agent.batch.task import Suite
from agent.errors import UsageError


def make(folder: Path, toml: str = "", prompt: str = "Fix it.", repo: bool = True) -> Path:
    (folder / "repo" if repo else folder).mkdir(parents=True)
    (folder / "task.toml").write_text(toml)
    (folder / "prompt.md").write_text(prompt)
    return folder


def rows(folder: Path, *data: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in data) if name.endswith("l") else json.dumps(data))
    return path


SWE = {
    "instance_id": "ada__calc-1",
    "repo": "ada/calc",
    "base_commit": "0" * 40,
    "problem_statement": "double(3) is 5",
    "test_patch": "diff --git a/t b/t\n",
    "FAIL_TO_PASS": '["t.py::test_three"]',
    "PASS_TO_PASS": ["t.py::test_two"],
    "hints_text": "no key of ours",
}


def test_a_folder_is_read(tmp_path: Path) -> None:
    toml = 'title = "T"\ntags = ["a"]\nchecks = ["make test"]\nimage = "host"\n[limits]\nmax_turns = 7\ntimeout_s = 60'
    folder = make(tmp_path / "one", toml)
    (folder / "check.sh").write_text("exit 1\n")
    (task,) = read_tasks([folder])
    assert (task.name, task.prompt, task.title, task.tags, task.script) == ("one", "Fix it.", "T", ("a",), "exit 1\n")
    assert task.repository == str(folder / "repo")
    assert task.settings == {"checks": ["make test"], "image": "host", "max_turns": 7, "timeout_s": 60}
    assert task.tests is None


def test_paths_may_be_folders_of_tasks_and_files_of_rows(tmp_path: Path) -> None:
    make(tmp_path / "tasks/b")
    make(tmp_path / "tasks/a")
    own = {"name": "c", "repository": "../r", "prompt": "Fix.", "check": "true", "language": "shell"}
    array = rows(tmp_path, own, name="rows.json")
    tasks = read_tasks([array, tmp_path / "tasks", rows(tmp_path, SWE)])
    assert [task.name for task in tasks] == ["a", "ada__calc-1", "b", "c"]
    assert tasks[3].repository == str(tmp_path / "../r")
    assert [task.name for task in read_tasks([tmp_path / "tasks", array], "^[bc]$")] == ["b", "c"]


def test_a_row_in_swe_benchs_shape_is_read(tmp_path: Path) -> None:
    (tmp_path / "clones/ada__calc").mkdir(parents=True)
    path = rows(tmp_path, SWE | {"image": "swe/x:1", "test_cmd": "pytest -rA"})
    (task,) = read_rows(path, tmp_path / "clones")
    assert (task.name, task.prompt, task.base_commit) == ("ada__calc-1", "double(3) is 5", "0" * 40)
    assert task.repository == str(tmp_path / "clones/ada__calc")
    assert task.settings == {"image": "swe/x:1"}
    assert task.tests == Suite("diff --git a/t b/t\n", ("t.py::test_three",), ("t.py::test_two",), "pytest -rA")
    (elsewhere,) = read_rows(path)
    assert elsewhere.repository == "https://github.com/ada/calc.git"
    with pytest.raises(UsageError, match=r"line 1: .* contains no clone of ada/calc"):
        read_rows(path, tmp_path)


def test_what_a_data_set_leaves_empty_is_not_said(tmp_path: Path) -> None:
    empty = dict.fromkeys(("image", "test_cmd", "test_patch", "PASS_TO_PASS"))
    (task,) = read_rows(rows(tmp_path, SWE | empty))
    assert task.settings == {}
    assert task.tests == Suite("", ("t.py::test_three",))


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(SWE)}\n\n{{}}\n")
    with pytest.raises(UsageError, match="line 4: 'name' is missing"):
        read_rows(path)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("title = 1", "'title' must be a text"),
        ('tags = "a"', "'tags' must be a list of texts"),
        ('name = "../a"', "the name '../a' must be made of"),
        ("[limits]\nnetwork = 'on'", r"\[limits\]: unknown key 'network'"),
        ("[limits]\nmax_turns = 'many'", "'max_turns' is 'many', but must be a whole number"),
        ("limits = 3", r"\[limits\]: no table"),
        ("a b", "Expected"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path, toml: str, said: str) -> None:
    folder = make(tmp_path / "one", toml)
    with pytest.raises(UsageError, match=said) as caught:
        read_tasks([folder])
    assert str(folder / "task.toml") in str(caught.value)


def test_a_task_without_a_repository_or_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names a git repository"):
        read_tasks([make(tmp_path / "one", repo=False)])
    with pytest.raises(UsageError, match="has an empty prompt"):
        read_tasks([make(tmp_path / "two", prompt=" \n")])
    (tmp_path / "one/prompt.md").unlink()
    with pytest.raises(UsageError, match=r"prompt.md cannot be read"):
        read_tasks([tmp_path / "one"])


def test_what_is_wrong_in_a_row_is_named(tmp_path: Path) -> None:
    for row, said in [
        ([], "line 2: a task is an object"),
        ({"name": "a"}, "line 2: 'repository' is missing; a row has name"),
        ({"name": "a", "repository": "r", "prompt": 1}, "line 2: prompt and check are texts"),
        ({"name": "a", "repository": "r"}, "line 2: the task a has an empty prompt"),
        ({"name": "a", "repository": "r", "promt": "x", "prompt": "y"}, "line 2: unknown key 'promt'"),
        ({"problem_statement": "x"}, "line 2: 'name' is missing.*, or SWE-bench's keys \\(instance_id"),
        (
            {"instance_id": "b", "repo": "a/b"},
            "line 2: 'base_commit' is missing; a row in SWE-bench's format has instance_id",
        ),
        (SWE | {"instance_id": "b", "base_commit": 7}, "line 2: 'base_commit' must be a text"),
        (SWE | {"instance_id": 3}, "line 2: 'instance_id' must be a text"),
        (SWE | {"instance_id": "b", "FAIL_TO_PASS": "[1"}, "line 2: 'FAIL_TO_PASS' is not a JSON list"),
        (SWE | {"instance_id": "b", "FAIL_TO_PASS": "{}x"}, "line 2: 'FAIL_TO_PASS' is not"),
        (SWE | {"instance_id": "b", "PASS_TO_PASS": [1]}, "line 2: 'PASS_TO_PASS' must be a list of test ids"),
        (SWE | {"instance_id": "b", "repo": "--upload-pack=x"}, "line 2: repo is owner/name"),
    ]:
        with pytest.raises(UsageError, match=said):
            read_rows(rows(tmp_path, SWE, row))
        with pytest.raises(UsageError, match=said.replace("line 2", "row 2")):
            read_rows(rows(tmp_path, SWE, row, name="rows.json"))
    (tmp_path / "torn.jsonl").write_text('\n\n{"name": "a"\n')
    with pytest.raises(UsageError, match="line 3, is not JSON"):
        read_rows(tmp_path / "torn.jsonl")
    for name in ("deep.jsonl", "deep.json"):
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(UsageError, match="is not JSON"):
            read_rows(tmp_path / name)
    with pytest.raises(UsageError, match="line 1: the repository ~nobody-of-this-name/x: there is no such user"):
        read_rows(rows(tmp_path, {"name": "a", "prompt": "x", "repository": "~nobody-of-this-name/x"}))


def test_names_are_unique_and_something_must_be_left(tmp_path: Path) -> None:
    make(tmp_path / "x/one")
    make(tmp_path / "y/one", prompt="Another.")
    with pytest.raises(UsageError, match="another task called 'one'"):
        read_tasks([tmp_path / "x", tmp_path / "y"])
    assert len(read_tasks([tmp_path / "x", tmp_path / "x/one"])) == 1
    with pytest.raises(UsageError, match="no task whose name matches 'two'"):
        read_tasks([tmp_path / "x"], "two")
    with pytest.raises(UsageError, match="not a regular expression"):
        read_tasks([tmp_path / "x"], "(")
    with pytest.raises(UsageError, match="is not a task"):
        read_tasks([tmp_path / "none"])


@given(st.dictionaries(st.sampled_from([*SWE, "name", "prompt", "repository"]), st.none() | st.text() | st.integers()))
def test_any_row_is_a_task_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]) -> None:
    path = rows(tmp_path_factory.mktemp("rows"), row)
    try:
        tasks = read_rows(path)
    except UsageError as error:
        if str(path) not in str(error):
            raise
    else:
        assert all(task.name and task.prompt for task in tasks)
