from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import cli
from agent.errors import LogError, UsageError
from tests.agent.report.stories import attempt, record, run_events, write_batch, write_run


def agent(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "20261122-101500-abcdef", run_events())
    return tmp_path / "runs"


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return write_batch(tmp_path / "out", [record("a", [attempt(1), attempt(2)]), record("b", [attempt(1)])])


@pytest.mark.parametrize("name", ["last", "20261122", "runs/20261122-101500-abcdef"])
def test_a_run_s_page_is_written_beside_it(runs_dir: Path, name: str) -> None:
    done = agent(name)
    assert done.exit_code == 0
    page = Path(done.output.strip())
    assert page.resolve() == runs_dir / "20261122-101500-abcdef" / "report.html"
    assert "<h1>Fix the price.</h1>" in page.read_text()


def test_each_form_goes_where_it_is_asked_for(runs_dir: Path, tmp_path: Path) -> None:
    done = agent("last", "--markdown", "-", "--junit", tmp_path / "j.xml", "--html", tmp_path / "p.html")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{tmp_path}/p.html\n### ✅ passed")
    assert done.stdout.endswith(f"{tmp_path}/j.xml\n")
    assert Xml.parse(tmp_path / "j.xml").getroot().tag == "testsuites"
    assert not (runs_dir / "20261122-101500-abcdef" / "report.html").exists()


def test_a_batch_s_page_and_those_of_its_runs(runs_dir: Path, batch: Path) -> None:
    done = agent(batch)
    assert done.exit_code == 0
    assert done.output == f"{batch}/report.html\n"
    assert (batch / "tasks/a/2/run-2/report.html").exists()
    assert 'href="tasks/a/1/run-1/report.html"' in (batch / "report.html").read_text()


def test_a_batch_s_page_elsewhere_links_back(runs_dir: Path, batch: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    assert agent(batch, "--html", tmp_path / "site" / "index.html").exit_code == 0
    assert 'href="../out/tasks/a/1/run-1/report.html"' in (tmp_path / "site" / "index.html").read_text()


def test_a_batch_as_markdown_and_junit_writes_no_page(runs_dir: Path, batch: Path) -> None:
    assert agent(batch, "--markdown", "-").stdout.startswith("### 2 of 2 tasks done")
    assert Xml.fromstring(agent(batch, "--junit", "-").stdout).find("testsuite").attrib["tests"] == "2"  # type: ignore[union-attr]
    assert not (batch / "report.html").exists()


def test_a_run_that_cannot_be_read_is_said_and_the_batch_is_reported(runs_dir: Path, batch: Path) -> None:
    (batch / "tasks/a/1/run-1/events.jsonl").write_text("x\n")
    done = agent(batch)
    assert done.exit_code == 0
    assert "no page for a: " in done.stderr
    assert (batch / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "There is no run"),
        (["./out/tasks"], "neither a run's events.jsonl nor a batch's results.jsonl"),
        (["last", "--markdown", "-", "--junit", "-"], "Only one report can go to standard output"),
        (["last", "--html", "not/there/x.html"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said(runs_dir: Path, batch: Path, arguments: list[str], said: str) -> None:
    done = agent(*arguments)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_torn_log_is_named(runs_dir: Path) -> None:
    (runs_dir / "20261122-101500-abcdef" / "events.jsonl").write_text("x\n")
    assert isinstance(agent("last").exception, LogError)
