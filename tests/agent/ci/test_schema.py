"""The published schema is what results are: every outcome, from `--json` and from `agent ci`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from agent.ci import artifacts
from agent.ci.artifacts import OUTCOMES, RESULT_NAME
from agent.ci.request import Request, marker
from agent.cli.exits import exit_code, outcome_name
from agent.errors import AgentError, EndpointUnreachable, LogError, PolicyRefused, ServiceError, UsageError
from agent.events import EXIT_CODES, Checked, CheckResult, Outcome, RunEnded, Sampled
from agent.tally import Tally
from sandbox.errors import DiffRefused, EngineUnavailable, WorktreeError
from tests.fakes import started

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs/schemas/result.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
ASKED = Request("github", "ada/textkit", "issue", 12, "t", "t", "ada", "main")


def valid(record: Mapping[str, Any]) -> None:
    VALIDATOR.validate(json.loads(json.dumps(record)))


def tally(*results: CheckResult) -> Tally:
    made = Tally()
    for event in (started(), Checked("before", results), Sampled(10, 5, "stop"), Checked("after", results)):
        made(event)
    return made


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["required"]) | {"ci"} == set(SCHEMA["properties"])
    assert SCHEMA["properties"]["outcome"]["enum"] == list(OUTCOMES)
    assert set(SCHEMA["properties"]["exit_code"]["enum"]) == {*EXIT_CODES.values(), 2}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_of_a_run_fits(outcome: Outcome) -> None:
    checks = (CheckResult("make test", None, 1.0, "…", {"t::a": "failed"}), CheckResult("true", 0, 0.0, ""))
    valid(tally(*checks).result(RunEnded(outcome, "why", "claim", ("a.py",), ("t.py",), "agent/x", "0" * 40)))
    valid(Tally().result(RunEnded(outcome, "why")))


@pytest.mark.parametrize(
    "error",
    [
        UsageError("x"),
        EndpointUnreachable("x"),
        ServiceError("x"),
        PolicyRefused("x"),
        LogError("x"),
        AgentError("x"),
        EngineUnavailable("x"),
        DiffRefused("x"),
        WorktreeError("x"),
        ValueError("x"),
    ],
)
def test_what_could_not_begin_fits_too(error: Exception) -> None:
    record = Tally().result(RunEnded(Outcome.INTERNAL, str(error)))
    valid(record | {"outcome": outcome_name(error), "exit_code": exit_code(error)})


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_is_written_fits_and_is_read_back(tmp_path: Path, outcome: str) -> None:
    record = Tally().result(RunEnded(Outcome.INTERNAL, "why")) | {"outcome": outcome}
    artifacts.prepare(tmp_path)
    artifacts.write(tmp_path, record, None if outcome == artifacts.IGNORED else ASKED, None)
    valid(json.loads((tmp_path / RESULT_NAME).read_text()))
    found = artifacts.read(tmp_path)
    assert found is not None
    assert (found.outcome, found.reason, found.base_commit, found.report, found.patch) == (outcome, "why", "", "", b"")
    summary = (tmp_path / artifacts.SUMMARY_NAME).read_text()
    assert summary.startswith(ASKED.marker) or outcome == artifacts.IGNORED


@pytest.mark.parametrize(
    "change", [{"outcome": "fine"}, {"exit_code": 9}, {"more": 1}, {"ci": {}}, {"changed_paths": [1]}, {"turns": -1}]
)
def test_what_is_no_result_does_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        valid(tally().result(RunEnded(Outcome.PASSED, "")) | change)


@given(st.text(min_size=1))
def test_a_marker_of_any_key_fits(key: str) -> None:
    pattern = SCHEMA["$defs"]["ci"]["properties"]["marker"]["pattern"]
    Draft202012Validator({"pattern": pattern}).validate(marker(key.encode("utf-8", "replace").decode()))
