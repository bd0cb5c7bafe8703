"""Results: append-only, one writer, torn lines cut off, and the forms derived from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.batch.results import RESULTS_NAME, SETTINGS_NAME, Results, derive, hold_to, read_results
from agent.cli.tasks import HELD
from agent.config import RULES
from agent.errors import LogError, UsageError


def record(task: str, folder: str = "") -> dict[str, object]:
    texts = dict.fromkeys(("outcome", "reason", "language", "difficulty"), "")
    numbers = {"kept": 1, "sampled_tokens": 5, "total_tokens": 9, "duration_s": 1.5}
    attempt = {"attempt": 1, "kind": "done", "outcome": "passed", "reason": "", "sampled_tokens": 5}
    named = {"task": task, "class": "done", "folder": folder, "model": "gpt-oss-agent/m"}
    return {**texts, **numbers, **named, "attempts": [attempt]}


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    with Results(tmp_path / "out") as results:
        results.append(record("a"))
        results.append(record("b"))
    with Results(tmp_path / "out") as results:
        assert list(results.records) == ["a", "b"]
        results.append(record("a") | {"class": "model"})
    assert read_results(tmp_path / "out")["a"]["class"] == "model"
    assert (tmp_path / "out" / RESULTS_NAME).read_bytes().count(b"\n") == 3


def test_one_batch_works_in_a_folder(tmp_path: Path) -> None:
    with Results(tmp_path), pytest.raises(LogError, match="another batch is running in"):
        Results(tmp_path)
    Results(tmp_path).close()


@given(cut=st.integers(0, 1100))
def test_a_torn_line_never_counted(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("out")
    with Results(folder) as results:
        for name in ("a", "ü", "c"):
            results.append(record(name))
    path = folder / RESULTS_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    expected = ["a", "ü", "c"][: whole[:cut].count(b"\n")]
    assert list(read_results(folder)) == expected
    with Results(folder) as results:
        assert list(results.records) == expected
        results.append(record("d"))
    assert list(read_results(folder)) == [*expected, "d"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "KeyError: 'task'"),
        ("7", "TypeError"),
        ('{"task": "a"}', "KeyError: 'class'"),
        (json.dumps(record("a") | {"class": "fine"}), "'fine' is not a valid Kind"),
        (json.dumps(record("a") | {"reason": None}), "reason is None"),
        (json.dumps(record("a") | {"attempts": [{"attempt": 1}]}), "KeyError: 'kind'"),
        (json.dumps(record("a") | {"attempts": [{"attempt": 1, "kind": "done", "new": 1}]}), "unexpected keyword"),
        (json.dumps(record("a") | {"attempts": [7]}), "TypeError"),
    ],
)
def test_a_foreign_line_is_named_with_what_to_do(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UsageError, match="agent tasks run --out"):
        read_results(tmp_path)
    (tmp_path / RESULTS_NAME).write_text(json.dumps(record("b")) + f"\n{line}\n")
    for read in (read_results, Results):
        with pytest.raises(LogError) as raised:
            read(tmp_path)
        assert "line 2, is not the result of a task" in str(raised.value)
        assert said in str(raised.value)
        assert "Give another --out, or remove the line" in str(raised.value)
    Path(tmp_path / RESULTS_NAME).write_text("")
    Results(tmp_path).close()


def test_a_disk_that_refuses_leaves_whole_lines(tmp_path: Path) -> None:
    import resource
    import signal

    with Results(tmp_path) as results:
        results.append(record("a"))
        size = (tmp_path / RESULTS_NAME).stat().st_size
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
        try:
            with pytest.raises(LogError, match="free space"):
                results.append(record("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert list(results.records) == ["a"]
        results.append(record("c"))
    assert list(read_results(tmp_path)) == ["a", "c"]


def test_predictions_are_in_swe_benchs_form(tmp_path: Path) -> None:
    run = tmp_path / "tasks/b/1/run"
    run.mkdir(parents=True)
    (run / "patch.diff").write_text("diff --git a/x b/x\n")
    derive(tmp_path, {"b": record("b", "tasks/b/1/run"), "a": record("a")})
    rows = [json.loads(line) for line in (tmp_path / "all_preds.jsonl").read_text().splitlines()]
    assert rows == [
        {"instance_id": "a", "model_name_or_path": "gpt-oss-agent/m", "model_patch": ""},
        {"instance_id": "b", "model_name_or_path": "gpt-oss-agent/m", "model_patch": "diff --git a/x b/x\n"},
    ]
    assert list(json.loads((tmp_path / "preds.json").read_text()).values()) == rows


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", "null"])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS_NAME).write_text(content)
    with pytest.raises(LogError, match=SETTINGS_NAME):
        hold_to(tmp_path, {"model": "a"})


def test_what_decides_what_comes_out_is_held() -> None:
    """A setting is held, or has no part in what comes out, or may have to change for the batch to go on at all."""
    free = {
        *("endpoint", "api_key", "wire", "script", "silence_timeout_s", "endpoint_timeout_s"),
        *("browser_url", "exa_api_key", "youcom_api_key", "memory_bytes", "pids", "cpus", "disk_bytes"),
        *("price_input", "price_cached", "price_output", "otel", "otel_content", "include_uncommitted"),
        *("runs_dir", "cache_dir", "branch", "worktree", "deliver"),
    }
    assert {*HELD} | free == {*RULES}
    assert not {*HELD} & free


def test_a_batch_is_gone_on_with_under_the_same_settings(tmp_path: Path) -> None:
    hold_to(tmp_path, {"model": "a", "checks": ("x",)})
    hold_to(tmp_path, {"model": "a", "checks": ("x",)})
    with pytest.raises(UsageError, match="model was 'a' and is 'b'"):
        hold_to(tmp_path, {"model": "b", "checks": ("x",)})
