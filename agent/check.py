"""The checks: finds them, runs them before and after the change, and derives the outcome from the results.

A check is a shell command run in the sandbox; exit code 0 passes. If it runs pytest, results are compared test by
test: PYTEST_ADDOPTS makes pytest write a report, outside of the workspace.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from json import loads
from pathlib import PurePosixPath
from xml.parsers import expat

from agent.events import NO_VERDICT, CheckResult, Outcome
from agent.lines import one_line
from agent.position import HARNESS
from sandbox.base import Sandbox

PYTEST = "python -m pytest -q"
MARKER_FILES = (
    "pyproject.toml", "pytest.ini", "setup.cfg", "tox.ini", "package.json", "Cargo.toml", "go.mod", "Makefile",
)  # fmt: skip
OUTPUT_BYTES = 20_000
REPORT_BYTES = 32 << 20
# The report is written to the sandbox's home, outside of the workspace: in a container that is a folder below /tmp.
REPORT = '"${{HOME:-/tmp}}/.agent-check-{number}.xml"'
ADDOPTS = "-o junit_logging=no -o junit_family=xunit1 -p no:cacheprovider"
CANNOT_RUN = (126, 127)
NO_TESTS = 5
SHOWN_TESTS = 10
SHOWN_CHARS = 4000


def find_checks(paths: Collection[str], contents: Mapping[str, str]) -> tuple[str, ...]:
    """Return the check commands that a repository suggests; empty if there are none. Pure.

    ``paths`` are its files, relative with forward slashes; ``contents`` the text of the existing MARKER_FILES in its root.
    A Makefile is used only if nothing else is found, because its test target usually calls the same tools.
    """
    found = []
    if _has_pytest(paths, contents):
        found.append(PYTEST)
    elif "[tox]" in contents.get("tox.ini", ""):
        found.append("tox -q")
    if _has_npm_test(contents.get("package.json")):
        found.append("npm test --silent")
    if "Cargo.toml" in contents:
        found.append("cargo test --quiet")
    if "go.mod" in contents:
        found.append("go test ./...")
    if not found:
        target = re.search(r"^(test|check)\s*:(?!=)", contents.get("Makefile", ""), re.MULTILINE)
        found += [f"make {target[1]}"] if target else []
    return tuple(found)


def _has_pytest(paths: Collection[str], contents: Mapping[str, str]) -> bool:
    try:
        tools = tomllib.loads(contents.get("pyproject.toml", "")).get("tool", {})
    except (ValueError, RecursionError):  # also for numbers that are too long, or brackets nested a thousand deep
        tools = {}
    return (
        "pytest.ini" in contents
        or (isinstance(tools, dict) and "pytest" in tools)
        or "[tool:pytest]" in contents.get("setup.cfg", "")
        or "[pytest]" in contents.get("tox.ini", "")
        or any(re.search(r"(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$", path) for path in paths)
    )


def _has_npm_test(package: str | None) -> bool:
    try:
        data = loads(package or "")
    except (ValueError, RecursionError):
        return False
    scripts = data.get("scripts") if isinstance(data, dict) else None
    command = scripts.get("test") if isinstance(scripts, dict) else None
    return isinstance(command, str) and "no test specified" not in command


def run_checks(commands: Sequence[str], sandbox: Sandbox, timeout_s: float) -> tuple[CheckResult, ...]:
    """Run each command in the sandbox, one after the other. Raises SandboxError only if the sandbox is broken."""
    return tuple(_run(command, number, sandbox, timeout_s) for number, command in enumerate(commands))


def _run(command: str, number: int, sandbox: Sandbox, timeout_s: float) -> CheckResult:
    report = REPORT.format(number=number)
    script = (
        f'report={report}; rm -f "$report"; mkdir -p "${{report%/*}}"; '
        f'export PYTEST_ADDOPTS="\'--junitxml=$report\' {ADDOPTS}"; exec sh -c "$1"'
    )
    argv = ("sh", "-c", script, "check", command)
    result = sandbox.exec(argv, timeout_s, env={"CI": "1"}, max_output_bytes=OUTPUT_BYTES)
    text = result.output.decode("utf-8", "replace")
    tests: Mapping[str, str] = {}
    if "pytest" in command or "passed" in text or "failed" in text:
        got = sandbox.exec(("sh", "-c", f"cat {report}"), 30.0, max_output_bytes=REPORT_BYTES)
        if got.exit_code == 0 and not got.truncated_bytes:
            tests = parse_junit(got.output)
    return CheckResult(command, result.exit_code, result.duration_s, text, tests)


class _Refused(Exception):
    """The report contains something that no JUnit report needs."""


def parse_junit(data: bytes) -> dict[str, str]:
    """Return test id → one of ``TEST_STATES`` from a JUnit report; empty if it is not a valid one.

    The report was written by untrusted code: document types and entities are refused, so nothing is expanded or
    fetched.
    """
    tests: dict[str, str] = {}
    current: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "testcase":
            place = attributes.get("file") or attributes.get("classname", "")
            owners = _owners(attributes.get("classname", ""), PurePosixPath(place)) if attributes.get("file") else []
            current[:] = ["::".join([place, *owners, attributes.get("name", "")])]
            # An id may be reported twice (the test fails, and its teardown too): the worse state counts.
            tests.setdefault(current[0], "passed")
        elif current and tag in {"failure", "error", "skipped"}:
            expected = tag == "skipped" and attributes.get("type") == "pytest.xfail"
            state = "xfailed" if expected else "failed" if tag == "failure" else tag  # pytest writes both as skipped
            worse = tests[current[0]] in ("passed", *NO_VERDICT)
            tests[current[0]] = state if worse else tests[current[0]]

    def end(tag: str) -> None:
        if tag == "testcase":
            current.clear()

    def refuse(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, _Refused):
        return {}
    return tests


def _owners(classname: str, file: PurePosixPath) -> list[str]:
    """Return the classes around a test: the part of ``classname`` after its module."""
    module = ".".join(file.with_suffix("").parts)
    if f"{classname}.".startswith(f"{module}."):
        return [owner for owner in classname[len(module) :].split(".") if owner]
    return [owner for owner in classname.split(".")[-1:] if owner not in {"", file.stem}]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One check before and after the change: whether it passes now, and an explanation."""

    passes: bool
    reason: str


def verdict(
    before: Sequence[CheckResult], after: Sequence[CheckResult] | None, changed_paths: Collection[str]
) -> tuple[Outcome, str]:
    """Return the outcome and its reason, only from what was observed. Pure.

    A check that could not be run, neither before nor after, is ignored. All others must pass: exit code 0; or, if single
    tests are known, no test that passed before fails, no new one fails, and one that failed before passes now.
    """
    if not changed_paths:
        return Outcome.NO_CHANGE, "no file was changed"
    if after is None:
        return Outcome.UNVERIFIED, "a change was made; no check was run after it"
    told = [
        (then, now)
        for then, now in _pairs(before, after)
        if not (_could_not_run(now) and (then is None or _could_not_run(then)))
    ]
    silent = len(after) - len(told)
    if not told:
        why = "no check could be run here" if silent else "there is no check to run"
        return Outcome.UNVERIFIED, f"a change was made; {why}{_about_tests(changed_paths)}"
    compared = [compare(then, now) for then, now in told]
    failing = [each.reason for each in compared if not each.passes]
    outcome = Outcome.CHECKS_FAILED if failing else Outcome.PASSED
    reasons = "; ".join(failing or [each.reason for each in compared])
    return outcome, f"{reasons}{_about_tests(changed_paths)}"


def _pairs(before: Sequence[CheckResult], after: Sequence[CheckResult]) -> list[tuple[CheckResult | None, CheckResult]]:
    """Pair the runs of the same commands; they are run in the same order both times."""
    then = [*before, *[None] * len(after)]
    return [
        (old if old is not None and old.command == new.command else None, new)
        for old, new in zip(then, after, strict=False)
    ]


def _could_not_run(result: CheckResult) -> bool:
    """Whether the program of a check is missing, or found nothing to run."""
    missing = result.output.rstrip().endswith("No module named pytest")
    nothing = "pytest" in result.command and result.exit_code == NO_TESTS
    return result.exit_code in CANNOT_RUN or missing or nothing


def compare(before: CheckResult | None, after: CheckResult) -> Comparison:
    """Compare the two runs of one check (``before`` None: it was not run before). Pure."""
    name = f"`{after.command}`"
    if before is None:
        if after.exit_code == 0:
            return Comparison(True, f"{name} passes")
        return Comparison(False, f"{name} {_how(after)}")
    if before.tests and after.tests:
        return _compare_tests(name, before, after)
    if after.exit_code == 0:
        return Comparison(True, f"{name} passes" + (" (it failed before)" if before.exit_code != 0 else ", as before"))
    if before.exit_code == 0:
        return Comparison(False, f"{name} passed before and now {_how(after)}")
    return Comparison(False, f"{name} failed before and still {_how(after)}")


def _compare_tests(name: str, before: CheckResult, after: CheckResult) -> Comparison:
    failed_before, failing = failing_tests(before), failing_tests(after)
    passed_before, passing = _passing(before), _passing(after)
    broken = sorted(failing & passed_before)
    new = sorted(failing - passed_before - failed_before)
    still = sorted(failing & failed_before)
    fixed = sorted(passing & failed_before)
    lost = sorted(passed_before - passing - failing)
    gone = sorted(failed_before - passing - failing)
    facts = [
        f"{len(tests)} {words}{_named(tests)}"
        for tests, words in (
            (broken, "passed before and now fail"),
            (new, "are new and fail"),
            (still, "failed before and still fail"),
            (fixed, "failed before and pass now"),
            (lost, "passed before and no longer run"),
            (gone, "failed before and no longer run"),
        )
        if tests
    ]
    told = f" ({'; '.join(facts)})" if facts else ""
    if after.exit_code == 0 and not failing:
        return Comparison(True, f"{name} passes, {len(passing)} tests{told}")
    # A non-zero exit code without a failing test is a failure of the test run itself.
    explained = bool(failing) and after.exit_code == 1
    return Comparison(explained and not broken and not new and bool(fixed), f"{name}: {_how(after)}{told}")


def failing_tests(result: CheckResult) -> set[str]:
    """Return the ids of the tests that failed or could not run."""
    return {test for test, how in result.tests.items() if how in {"failed", "error"}}


def _passing(result: CheckResult) -> set[str]:
    return {test for test, how in result.tests.items() if how == "passed"}


def _how(result: CheckResult) -> str:
    if result.exit_code == 0:
        return "ends with exit code 0 although its report has failures"
    return "ran out of time" if result.exit_code is None else f"fails with exit code {result.exit_code}"


def _named(tests: Sequence[str]) -> str:
    shown = ", ".join(one_line(test) for test in tests[:SHOWN_TESTS])
    return f": {shown}" + (f" and {len(tests) - SHOWN_TESTS} more" if len(tests) > SHOWN_TESTS else "")


def touched_tests(paths: Collection[str]) -> tuple[str, ...]:
    """Return the paths that are tests, by the conventions of the languages whose checks are found."""
    return tuple(path for path in paths if _IS_TEST.search(path))


_IS_TEST = re.compile(
    r"(^|/)(tests?|__tests__|spec)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.(py|go)$|\.(test|spec)\.[cm]?[jt]sx?$"
)


def _about_tests(changed_paths: Collection[str]) -> str:
    tests = touched_tests(sorted(changed_paths))
    return f"; the change touches tests: {', '.join(tests)}" if tests else ""


def feedback(reason: str, results: Sequence[CheckResult]) -> str:
    """Return the message to the model if it says that it is done and the checks fail."""
    told = (
        f"{HARNESS}You ended, but the checks do not pass: {reason}. Fix it, or, if these failures have nothing to do "
        "with the task, say so in the final message."
    )
    shown = [f"$ {each.command}\n{each.output[-SHOWN_CHARS:]}" for each in results if each.exit_code != 0]
    return "\n\n".join([told, *shown])
