"""Writes runs and batches as JUnit XML, for CI systems that show tests.

A run has a test suite per check: the tests that it reported after the change, or the command itself if it reported none, or none
that explains its exit code. A batch is one suite, with a test per task. Failures are the model's fault; errors are causes
outside of the model (an endpoint, a sandbox, a limit, a defect here).
"""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree as Xml

from agent.batch.attempt import KINDS, Kind
from agent.events import EXIT_CODES, NO_VERDICT, CheckResult
from agent.lines import clean, one_line, tail
from agent.report.story import Story, read_story
from agent.report.tasks import Row, read_batch

OUTPUT_LINES = 200
MESSAGE_CHARS = 300
# Classes that say nothing about the model's work.
NO_CHANCE = frozenset({Kind.ENDPOINT, Kind.SANDBOX, Kind.HARNESS, Kind.LIMIT, Kind.POLICY})


def run_junit(run: Path) -> str:
    """Return the run in a folder as JUnit XML. Raises LogError if its log is invalid."""
    return story_junit(read_story(run))


def batch_junit(out: Path) -> str:
    """Return a batch (the folder that `agent tasks run --out` names) as JUnit XML. Raises UsageError and LogError."""
    batch = read_batch(out)
    suite = Xml.Element("testsuite", name=_text(batch.name))
    for row in batch.rows:
        _task(suite, row)
    return _written([suite])


def story_junit(story: Story) -> str:
    """Return a story as JUnit XML."""
    checks = [_check(check, story) for check in story.after or ()]
    return _written([_outcome(story), *checks])


def _outcome(story: Story) -> Xml.Element:
    """Return the suite with the outcome of the run: the checks alone do not show that nothing was changed, for example."""
    suite = Xml.Element("testsuite", name="agent", timestamp=_moment(story.started_at))
    properties = Xml.SubElement(suite, "properties")
    told = {
        "run": story.run,
        "outcome": story.state,
        "branch": (story.ended.branch or "") if story.ended else "",
        "turns": len(story.answers),
        "prompt_tokens": story.prompt_tokens,
        "completion_tokens": story.completion_tokens,
    } | ({} if story.cost is None else {"cost": f"{story.cost:.6f}"})
    for name, value in told.items():
        Xml.SubElement(properties, "property", name=name, value=_text(str(value)))
    case = _case(suite, one_line(story.task), "agent.run", story.duration_s)
    if story.ended is None:
        _wrong(case, "error", story.state, "the run has not ended")
    elif EXIT_CODES[story.ended.outcome] != 0:
        kind = "error" if KINDS[story.ended.outcome] in NO_CHANCE else "failure"
        _wrong(case, kind, story.ended.outcome.value, story.ended.reason)
    if story.ended is not None and story.ended.claimed.strip():
        Xml.SubElement(case, "system-out").text = _text(f"The model claims: {story.ended.claimed.strip()}")
    return suite


def _check(check: CheckResult, story: Story) -> Xml.Element:
    suite = Xml.Element("testsuite", name=_text(one_line(check.command)), timestamp=_moment(story.started_at))
    earlier = next((each.tests for each in story.before or () if each.command == check.command), {})
    for name, state in sorted(check.tests.items()):
        where, _, last = name.rpartition("::")
        case = _case(suite, last, where.replace("/", ".") or "check", 0.0)
        if state in NO_VERDICT:
            Xml.SubElement(case, "skipped")
        elif state != "passed":
            since = f"it was {earlier[name]} before the change" if name in earlier else "it was not there before"
            _wrong(case, "error" if state == "error" else "failure", state, since)
    explained = any(state in ("failed", "error") for state in check.tests.values())
    if not check.tests or (check.exit_code != 0 and not explained):
        case = _case(suite, one_line(check.command), "check", check.duration_s)
        if check.exit_code != 0:
            told = "ran out of time" if check.exit_code is None else f"exit code {check.exit_code}"
            _wrong(case, "failure", "failed", told)
    suite.set("time", f"{check.duration_s:.3f}")
    if check.exit_code != 0:
        Xml.SubElement(suite, "system-out").text = _text("\n".join(tail(check.output, OUTPUT_LINES)))
    return suite


def _task(suite: Xml.Element, row: Row) -> None:
    """Add a task. Its grade, if there is one, takes precedence over the run's own checks."""
    case = _case(suite, row.task, row.language or "task", row.duration_s)
    if row.kind in NO_CHANCE:
        _wrong(case, "error", row.kind.value, row.reason)
    elif row.resolved is False:
        _wrong(case, "failure", "unresolved", f"its checks fail on the patch alone; the run said: {row.reason}")
    elif row.kind is not Kind.DONE and row.resolved is None:
        _wrong(case, "failure", row.kind.value, row.reason)


def _case(suite: Xml.Element, name: str, classname: str, duration_s: float) -> Xml.Element:
    return Xml.SubElement(
        suite, "testcase", name=_text(name), classname=_text(classname), time=f"{max(duration_s, 0.0):.3f}"
    )


def _wrong(case: Xml.Element, kind: str, name: str, message: str) -> None:
    found = Xml.SubElement(case, kind, type=_text(name), message=_text(one_line(message, MESSAGE_CHARS)))
    found.text = _text(message)


def _written(suites: list[Xml.Element]) -> str:
    """Return the document, with the counts that tools expect on every suite."""
    top = Xml.Element("testsuites")
    for suite in suites:
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(sum(case.find(tag) is not None for case in cases)))
        if "time" not in suite.attrib:
            suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
        top.append(suite)
    Xml.indent(top)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(top, encoding="unicode") + "\n"


def _text(text: str) -> str:
    """Return the text without characters that XML 1.0 forbids: ``clean`` escapes control characters, and two non-characters remain."""
    return clean(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
