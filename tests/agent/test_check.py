"""The checks: found, run, compared, and judged by what was observed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.check import (
    PYTEST,
    Comparison,
    compare,
    feedback,
    find_checks,
    parse_junit,
    run_checks,
    touched_tests,
    verdict,
)
from agent.events import CheckResult, Outcome
from agent.position import HARNESS
from sandbox.base import ExecResult
from sandbox.open import ENVIRONMENT

# -- which ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "contents", "found"),
    [
        ([], {}, ()),
        (["README.md"], {}, ()),
        (["a.py", "tests/test_a.py"], {}, (PYTEST,)),
        (["pkg/a_test.py"], {}, (PYTEST,)),
        (["conftest.py"], {}, (PYTEST,)),
        (["attest.py", "contest_x.py"], {}, ()),
        ([], {"pytest.ini": ""}, (PYTEST,)),
        ([], {"pyproject.toml": "[tool.pytest.ini_options]\n"}, (PYTEST,)),
        ([], {"pyproject.toml": "[project]\nname = 'x'\n"}, ()),
        ([], {"pyproject.toml": "not toml ["}, ()),
        ([], {"pyproject.toml": "tool = 7"}, ()),
        ([], {"pyproject.toml": "x = " + "9" * 5000}, ()),
        ([], {"pyproject.toml": "x = " + "[" * 100_000}, ()),
        ([], {"setup.cfg": "[tool:pytest]\n"}, (PYTEST,)),
        ([], {"tox.ini": "[tox]\n[pytest]\n"}, (PYTEST,)),
        ([], {"tox.ini": "[tox]\nenvlist = py\n"}, ("tox -q",)),
        ([], {"package.json": '{"scripts": {"test": "vitest run"}}'}, ("npm test --silent",)),
        ([], {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'}, ()),
        ([], {"package.json": "{"}, ()),
        ([], {"package.json": "[" * 100_000}, ()),
        ([], {"package.json": "[]"}, ()),
        ([], {"package.json": '{"scripts": []}'}, ()),
        ([], {"Cargo.toml": ""}, ("cargo test --quiet",)),
        ([], {"go.mod": "module x"}, ("go test ./...",)),
        ([], {"Makefile": "all: x\n\ntest: all\n\tsh run\n"}, ("make test",)),
        ([], {"Makefile": "check:\n\tsh run\n"}, ("make check",)),
        ([], {"Makefile": "test := yes\nall:\n"}, ()),
        (["tests/test_a.py"], {"Makefile": "test:\n\tpytest\n"}, (PYTEST,)),
        (["tests/test_a.py"], {"package.json": '{"scripts": {"test": "jest"}}'}, (PYTEST, "npm test --silent")),
    ],
)
def test_checks_are_found(paths: list[str], contents: dict[str, str], found: tuple[str, ...]) -> None:
    assert find_checks(paths, contents) == found


# -- the report -----------------------------------------------------------------------------------------------------

REPORT = b"""<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" errors="1" failures="1">
<testcase classname="tests.test_a" name="test_ok" file="tests/test_a.py" line="1" time="0.1"/>
<testcase classname="tests.test_a.TestB" name="test_in[x-1]" file="tests/test_a.py"><failure message="no">trace</failure></testcase>
<testcase classname="tests.test_c" name="test_err" file="tests/test_c.py"><error message="x"/></testcase>
<testcase classname="tests.test_c" name="test_err" file="tests/test_c.py"><skipped/></testcase>
<testcase classname="tests.test_c" name="test_skip" file="tests/test_c.py"><skipped type="pytest.skip"/></testcase>
<testcase classname="tests.test_c.TestA.TestB" name="test_deep" file="tests/test_c.py"><skipped type="pytest.xfail"/></testcase>
<testcase classname="tests.test_d" name="test_old"/>
</testsuite></testsuites>"""


def test_a_report_is_read_test_by_test() -> None:
    assert parse_junit(REPORT) == {
        "tests/test_a.py::test_ok": "passed",
        "tests/test_a.py::TestB::test_in[x-1]": "failed",
        "tests/test_c.py::test_err": "error",
        "tests/test_c.py::test_skip": "skipped",
        "tests/test_c.py::TestA::TestB::test_deep": "xfailed",
        "tests.test_d::test_old": "passed",
    }


LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a;" * 10) for n in range(9))
    + b"]><testsuite><testcase name='&a8;'/></testsuite>"
)
FETCH = b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><testsuite><testcase name="t"/></testsuite>'


@pytest.mark.parametrize("data", [b"", b"not xml", REPORT[:-20], LAUGHS, FETCH, b"\xff\xfe\x00", b"<a>" * 10_000])
def test_what_is_no_honest_report_says_nothing(data: bytes) -> None:
    assert parse_junit(data) == {}


@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda junk: REPORT[:300] + junk + REPORT[300:]))
def test_no_report_can_raise(data: bytes) -> None:
    assert isinstance(parse_junit(data), dict)


# -- comparison -----------------------------------------------------------------------------------------------------


def ran(
    exit_code: int | None, tests: Mapping[str, str] | None = None, command: str = "check", output: str = ""
) -> CheckResult:
    return CheckResult(command, exit_code, 0.1, output, tests or {})


P, F, E, S = "passed", "failed", "error", "skipped"


@pytest.mark.parametrize(
    ("before", "after", "passes", "says"),
    [
        (None, ran(0), True, "`check` passes"),
        (None, ran(2), False, "fails with exit code 2"),
        (ran(0), ran(0), True, "passes, as before"),
        (ran(1), ran(0), True, "passes (it failed before)"),
        (ran(0), ran(1), False, "passed before and now fails with exit code 1"),
        (ran(1), ran(1), False, "failed before and still fails"),
        (ran(0), ran(None), False, "passed before and now ran out of time"),
        # Test by test.
        (ran(1, {"a": F, "b": P}), ran(0, {"a": P, "b": P}), True, "passes, 2 tests (1 failed before and pass now: a)"),
        (ran(1, {"a": F, "u": F}), ran(1, {"a": P, "u": F}), True, "1 failed before and still fail: u; 1 failed before and pass now: a"),
        (ran(1, {"a": F, "u": F}), ran(1, {"a": F, "u": F}), False, "2 failed before and still fail: a, u"),
        (ran(1, {"a": F, "b": P}), ran(1, {"a": P, "b": F}), False, "1 passed before and now fail: b"),
        (ran(0, {"a": P}), ran(1, {"a": P, "n": F}), False, "1 are new and fail: n"),
        (ran(1, {"a": F, "u": F}), ran(1, {"a": P, "u": E}), True, "still fail: u"),
        (ran(0, {"a": P, "b": P}), ran(0, {"a": P}), True, "1 passed before and no longer run: b"),
        (ran(1, {"a": F, "b": P}), ran(0, {"b": P}), True, "1 failed before and no longer run: a"),
        (ran(0, {"a": P}), ran(0, {"a": S}), True, "1 passed before and no longer run: a"),
        # An exit code that no test explains is a failure of its own.
        (ran(0, {"a": P}), ran(1, {"a": P}), False, "fails with exit code 1"),
        (ran(1, {"a": F, "u": F}), ran(2, {"a": P, "u": F}), False, "fails with exit code 2"),
        (ran(1, {"a": F}), ran(None, {"a": P}), False, "ran out of time"),
        # A report that says there are failures beside exit code 0 (`pytest || true`) is not believed to pass.
        (ran(0, {"a": P}), ran(0, {"a": F}), False, "1 passed before and now fail: a"),
        # Tests known on one side only: the exit code is all there is.
        (ran(1), ran(1, {"a": F}), False, "failed before and still fails"),
        (ran(0, {"a": P}), ran(1), False, "passed before and now fails"),
    ],
)  # fmt: skip
def test_two_runs_of_a_check_are_compared(
    before: CheckResult | None, after: CheckResult, passes: bool, says: str
) -> None:
    compared = compare(before, after)
    assert isinstance(compared, Comparison)
    assert (compared.passes, says in compared.reason) == (passes, True), compared


RUN = st.builds(
    ran, st.sampled_from([0, 1, 2, None]), st.dictionaries(st.sampled_from("abcd"), st.sampled_from([P, F, E, S]))
)


@given(RUN, RUN)
def test_what_passed_before_and_fails_now_never_passes(before: CheckResult, after: CheckResult) -> None:
    broken = (
        before.tests
        and after.tests
        and {t for t, h in before.tests.items() if h == P} & {t for t, h in after.tests.items() if h in {F, E}}
    )
    if broken or (before.exit_code == 0 and after.exit_code != 0 and not after.tests):
        assert not compare(before, after).passes


# -- the verdict ----------------------------------------------------------------------------------------------------


def outcome(
    before: Sequence[CheckResult], after: Sequence[CheckResult] | None, paths: Sequence[str] = ("a.py",)
) -> tuple[Outcome, str]:
    return verdict(before, after, paths)


def test_no_change_is_no_change_whatever_the_checks_say() -> None:
    assert outcome([ran(1)], [ran(0)], ())[0] is Outcome.NO_CHANGE


def test_without_a_check_a_change_is_unverified() -> None:
    assert outcome([], []) == (Outcome.UNVERIFIED, "a change was made; there is no check to run")
    assert outcome([], None) == (Outcome.UNVERIFIED, "a change was made; no check was run after it")


@pytest.mark.parametrize(
    "result",
    [ran(127), ran(126), ran(1, output="/usr/bin/python: No module named pytest\n"), ran(5, command=PYTEST)],
    ids=["no program", "not executable", "no pytest", "no tests"],
)
def test_a_check_that_cannot_run_says_nothing(result: CheckResult) -> None:
    assert outcome([result], [result]) == (Outcome.UNVERIFIED, "a change was made; no check could be run here")
    assert outcome([result, ran(1)], [result, ran(0)])[0] is Outcome.PASSED


def test_a_check_that_can_no_longer_run_has_failed() -> None:
    assert outcome([ran(0)], [ran(127)])[0] is Outcome.CHECKS_FAILED


def test_all_checks_must_pass_and_the_failing_one_is_named() -> None:
    before = [ran(1, command="tests"), ran(0, command="lint")]
    assert outcome(before, [ran(0, command="tests"), ran(0, command="lint")])[0] is Outcome.PASSED
    failed = outcome(before, [ran(0, command="tests"), ran(1, command="lint")])
    assert failed == (Outcome.CHECKS_FAILED, "`lint` passed before and now fails with exit code 1")


def test_a_change_to_tests_is_reported_as_such() -> None:
    passed = outcome([ran(1)], [ran(0)], ["a.py", "tests/test_a.py"])
    assert passed == (Outcome.PASSED, "`check` passes (it failed before); the change touches tests: tests/test_a.py")
    assert "touches tests" in outcome([], [], ["conftest.py"])[1]


@pytest.mark.parametrize(
    ("path", "is_test"),
    [
        ("tests/data.json", True),
        ("src/pkg/tests/x.py", True),
        ("test/a.rb", True),
        ("test_a.py", True),
        ("a_test.go", True),
        ("web/a.test.tsx", True),
        ("web/a.spec.js", True),
        ("web/__tests__/a.js", True),
        ("conftest.py", True),
        ("src/testing.py", False),
        ("src/latest/a.py", False),
        ("contest.py", False),
        ("src/attest_a.py", False),
    ],
)
def test_test_paths_are_known_by_custom(path: str, is_test: bool) -> None:
    assert touched_tests([path]) == ((path,) if is_test else ())


def test_the_feedback_shows_the_output_of_what_fails_only() -> None:
    text = feedback("it fails", [ran(0, output="fine"), ran(1, output="x" * 9000 + "AssertionError")])
    assert text.startswith(HARNESS)
    assert "it fails" in text
    assert "AssertionError" in text
    assert "fine" not in text
    assert len(text) < 5000


# -- running --------------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """A sandbox that answers from a list and remembers what was asked."""

    answers: list[ExecResult]
    asked: list[tuple[tuple[str, ...], Mapping[str, str]]] = field(default_factory=list)
    workspace: str = "/workspace"

    def exec(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", cwd: str | None = None,
        env: Mapping[str, str] | None = None, max_output_bytes: int = 1 << 20,
    ) -> ExecResult:  # fmt: skip
        self.asked.append((tuple(argv), env or {}))
        return self.answers[len(self.asked) - 1]

    def read(self, path: str) -> bytes:
        raise FileNotFoundError(path)

    def write(self, path: str, data: bytes, executable: bool | None = None) -> None:
        raise PermissionError(path)

    def remove(self, path: str) -> None:
        raise FileNotFoundError(path)

    def diff(self) -> bytes:
        return b""

    def undo(self) -> None:
        return

    def close(self, keep: bool = False) -> None:
        return


def test_a_check_that_is_not_pytest_costs_one_command() -> None:
    sandbox = Recording([ExecResult(1, b"\xff no", 0.5)])
    assert run_checks(["make lint"], sandbox, 9.0) == (CheckResult("make lint", 1, 0.5, "\ufffd no"),)
    assert sandbox.asked[0][0][-1] == "make lint"
    assert "PYTEST_ADDOPTS" in sandbox.asked[0][0][2]


def test_out_of_time_is_no_exit_code() -> None:
    (result,) = run_checks(["sleep 9"], Recording([ExecResult(None, b"", 9.0)]), 9.0)
    assert result.exit_code is None
    assert not compare(None, result).passes


def test_a_report_that_was_cut_is_not_read() -> None:
    sandbox = Recording([ExecResult(0, b"1 passed", 0.5), ExecResult(0, REPORT, 0.1, truncated_bytes=1)])
    assert run_checks([PYTEST], sandbox, 9.0)[0].tests == {}


@pytest.fixture
def here(tmp_path: Path) -> Recording:
    """A sandbox that really runs commands, in a temporary folder."""
    import subprocess

    class Here(Recording):
        def exec(self, argv, timeout_s, stdin=b"", cwd=None, env=None, max_output_bytes=1 << 20):  # type: ignore[no-untyped-def]
            path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
            done = subprocess.run(
                argv,
                cwd=tmp_path / "work",
                env={"PATH": path, "HOME": str(tmp_path / "its home"), **ENVIRONMENT, **(env or {})},
                capture_output=True,
                timeout=60,
                check=False,
            )
            return ExecResult(done.returncode, done.stdout + done.stderr, 0.1)

    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pytest.ini").write_text("[pytest]\n")  # where test ids begin
    return Here([])


def test_real_pytest_is_compared_test_by_test_and_leaves_nothing_behind(here: Recording, tmp_path: Path) -> None:
    (tmp_path / "work" / "test_a.py").write_text(
        "class TestA:\n    def test_x(self): assert 1 == 2\ndef test_y(): pass\n"
    )
    before = run_checks([PYTEST], here, 60.0)
    assert before[0].exit_code == 1
    assert before[0].tests == {"test_a.py::TestA::test_x": "failed", "test_a.py::test_y": "passed"}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"test_a.py", "pytest.ini"}
    (tmp_path / "work" / "test_a.py").write_text(
        "class TestA:\n    def test_x(self): assert 1 == 1\ndef test_y(): pass\n"
    )
    after = run_checks([PYTEST], here, 60.0)
    assert verdict(before, after, ["a.py"]) == (
        Outcome.PASSED,
        f"`{PYTEST}` passes, 2 tests (1 failed before and pass now: test_a.py::TestA::test_x)",
    )


def test_a_report_of_the_run_before_is_not_taken_for_this_ones(here: Recording, tmp_path: Path) -> None:
    (tmp_path / "work" / "test_a.py").write_text("def test_y(): pass\n")
    assert run_checks([PYTEST], here, 60.0)[0].tests
    assert run_checks(["echo 'pytest did not run'; exit 3"], here, 60.0)[0].tests == {}
