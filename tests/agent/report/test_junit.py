from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings

from agent.batch.attempt import Kind
from agent.errors import UsageError
from agent.events import Checked, CheckResult, Durable, Outcome
from agent.report.junit import batch_junit, run_junit, story_junit
from agent.report.story import tell
from tests.agent.report.hostile import texts
from tests.agent.report.stories import attempt, entries, record, run_events, write_batch, write_run


def read(text: str) -> list[Xml.Element]:
    """The suites, after what every reader counts on was held to: each counts its own cases."""
    top = Xml.fromstring(text)
    assert top.tag == "testsuites"
    suites = top.findall("testsuite")
    assert len(suites) == len(top)
    for suite in suites:
        cases = suite.findall("testcase")
        found = {tag: sum(case.find(tag) is not None for case in cases) for tag in ("failure", "error", "skipped")}
        assert {
            "tests": len(cases),
            "failures": found["failure"],
            "errors": found["error"],
            "skipped": found["skipped"],
        } == {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        assert all(case.attrib.keys() >= {"name", "classname", "time"} for case in cases)
        assert all(len(case.findall("failure")) + len(case.findall("error")) <= 1 for case in cases)
        assert float(suite.attrib["time"]) >= 0
    return suites


def verdicts(suite: Xml.Element) -> Mapping[str, str]:
    return {
        case.attrib["name"]: next((child.tag for child in case if child.tag != "system-out"), "passed")
        for case in suite.findall("testcase")
    }


def after(check: CheckResult, outcome: Outcome = Outcome.CHECKS_FAILED) -> str:
    events: list[Durable] = [
        Checked("after", (check,)) if isinstance(event, Checked) and event.when == "after" else event
        for event in run_events(outcome=outcome)
    ]
    return story_junit(tell(entries(events)))


def test_a_run_and_its_checks_test_by_test(tmp_path: Path) -> None:
    agent, check = read(run_junit(write_run(tmp_path / "r", run_events())))
    assert verdicts(agent) == {"Fix the price.": "passed"}
    told = {each.attrib["name"]: each.attrib["value"] for each in agent.iter("property")}
    assert told == {
        "run": "20261122-101500-abcdef", "outcome": "passed", "branch": "agent/price-1", "turns": "4",
        "prompt_tokens": str(1500 + 1590 + 1680 + 2500), "completion_tokens": str(40 + 41 + 42 + 30),
    }  # fmt: skip
    assert verdicts(check) == {"a": "passed", "b": "passed", "c": "skipped"}
    assert check.attrib["name"] == "python -m pytest -q"
    assert check.attrib["time"] == "1.500"


def test_a_failing_test_says_what_it_was_before() -> None:
    tests = {"t.py::a": "failed", "t.py::b": "error", "t.py::new": "failed"}
    agent, check = read(after(CheckResult("python -m pytest -q", 1, 1.0, "long story", tests)))
    assert verdicts(check) == {"a": "failure", "b": "error", "new": "failure"}
    assert [found.attrib["message"] for case in check.iter("testcase") for found in case] == [
        "it was passed before the change",
        "it was failed before the change",
        "it was not there before",
    ]
    assert check.findtext("system-out") == "long story"
    assert verdicts(agent) == {"Fix the price.": "failure"}


def test_a_check_that_reports_no_tests_is_one() -> None:
    _, check = read(after(CheckResult("make", 2, 1.0, "no rule")))
    assert verdicts(check) == {"make": "failure"}
    assert check.find("testcase/failure").attrib["message"] == "exit code 2"  # type: ignore[union-attr]
    _, late = read(after(CheckResult("make", None, 1.0, "")))
    assert late.find("testcase/failure").attrib["message"] == "ran out of time"  # type: ignore[union-attr]


def test_an_exit_code_that_no_test_explains_is_a_failure_of_its_own() -> None:
    _, check = read(after(CheckResult("make check", 2, 1.0, "lint", {"t.py::a": "passed"})))
    assert verdicts(check) == {"a": "passed", "make check": "failure"}


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.PASSED, "passed"), (Outcome.UNVERIFIED, "passed"), (Outcome.CHECKS_FAILED, "failure"), (Outcome.NO_CHANGE, "failure"),
        (Outcome.LIMIT, "error"), (Outcome.ENDPOINT, "error"), (Outcome.SANDBOX, "error"), (Outcome.INTERNAL, "error"),
        (Outcome.REFUSED, "error"), (None, "error"),
    ],
)  # fmt: skip
def test_failures_are_the_model_s_and_errors_are_not(outcome: Outcome | None, verdict: str) -> None:
    agent = read(story_junit(tell(entries(run_events(outcome=outcome)))))[0]
    assert verdicts(agent) == {"Fix the price.": verdict}


@settings(max_examples=60)
@given(texts)
def test_any_text_makes_good_xml(text: str) -> None:
    assert len(read(after(CheckResult("make" + text, 1, 1.0, text, {"a::" + text: "failed"})))) == 2
    assert read(story_junit(tell(entries(run_events(text=text)))))[0].attrib["tests"] == "1"


def test_a_batch_is_a_suite_and_a_task_a_test(tmp_path: Path) -> None:
    kinds = [Kind.DONE, Kind.MODEL, Kind.ENDPOINT, Kind.LIMIT, Kind.PARSER]
    records = [record(kind.value, [attempt(kind=kind, duration_s=2.0, reason="<why>")]) for kind in kinds]
    (suite,) = read(batch_junit(write_batch(tmp_path / "out", records, runs=False)))
    assert suite.attrib["name"] == "out"
    assert suite.attrib["time"] == "10.000"
    assert verdicts(suite) == {
        "done": "passed",
        "model": "failure",
        "endpoint": "error",
        "limit": "error",
        "parser": "failure",
    }
    assert suite.find("testcase[@name='model']/failure").attrib == {"type": "model", "message": "<why>"}  # type: ignore[union-attr]


def test_a_grade_stands_over_what_the_run_said(tmp_path: Path) -> None:
    records = [record("good", [attempt()]), record("bad", [attempt()]), record("fixed", [attempt(kind=Kind.MODEL)])]
    out = write_batch(tmp_path / "out", records, runs=False)
    (out / "grades").mkdir()
    (out / "grades" / "report.json").write_text(
        '{"resolved_ids":["good","fixed"],"completed_ids":["good","bad","fixed"]}'
    )
    (suite,) = read(batch_junit(out))
    assert verdicts(suite) == {"good": "passed", "bad": "failure", "fixed": "passed"}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"results\.jsonl"):
        batch_junit(tmp_path)
