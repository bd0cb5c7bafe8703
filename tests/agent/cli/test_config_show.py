from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import cli
from agent.cli.options import FLAGS
from agent.config import RULES

SECRET = "sk-very-secret"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "deep").mkdir()
    (tmp_path / "repo" / "agent.toml").write_text('image = "host"\nchecks = ["pytest -q"]\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path / "repo" / "deep")
    return tmp_path / "repo"


def show(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["config", "show", *arguments])


def test_each_key_is_shown_with_its_source(repository: Path) -> None:
    result = show("--max-turns", "7")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines.keys() == RULES.keys()
    assert lines["image"].endswith(f'"host"  # {repository / "agent.toml"}')
    assert lines["max_turns"].endswith("7  # flag --max-turns")
    assert lines["endpoint"].endswith("(not set)  # default")


def test_the_key_is_said_to_be_there_and_never_shown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for result in (show(), show("--json")):
        assert SECRET not in result.output
    assert json.loads(show("--json").stdout)["api_key"] == {"value": "set", "source": "environment OPENAI_API_KEY"}


def test_json_holds_every_key(repository: Path) -> None:
    shown = json.loads(show("--json", "--check", "a", "--check", "b", "--no-uncommitted").stdout)
    assert shown.keys() == RULES.keys()
    assert shown["checks"] == {"value": ["a", "b"], "source": "flag --check"}
    assert shown["include_uncommitted"] == {"value": False, "source": "flag --uncommitted"}


def test_outside_of_a_repository_there_is_just_no_repository_file(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    assert '"host"' not in show().stdout
    assert '"host"' in show("--repo", str(repository / "deep")).stdout


def test_every_key_has_a_flag_but_those_that_have_a_reason() -> None:
    without = {
        "api_key",  # a command line is visible to every user of the machine
        "exa_api_key",
        "youcom_api_key",
        "cache_dir",
        "deliver",  # --apply and --output set it
        "price_input",  # what tokens cost does not change from run to run
        "price_cached",
        "price_output",
        "otel_content",  # what leaves the machine by it is decided once, not by a slip of the hand
    }
    assert RULES.keys() - FLAGS.keys() == without
