from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import RULES, RunConfig, debug_wanted, load, public, restore, user_file
from agent.errors import ConfigError
from agent.rules import GIB

SECRET = "sk-very-secret"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment that knows nothing of this machine."""
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_has_a_rule_and_a_default_that_keeps_it() -> None:
    config = RunConfig()
    for item in fields(RunConfig):
        rule = RULES[item.name]
        assert rule.help.endswith("."), item.name
        value = getattr(config, item.name)
        assert (value is None) == rule.optional, f"{item.name}: optional exactly if the default is None"


def test_nothing_given_is_the_defaults(home: dict[str, str]) -> None:
    loaded = load(environ=home)
    assert loaded.config.max_turns == 200
    assert loaded.config.memory_bytes == 4 * GIB
    assert loaded.config.runs_dir == Path(home["HOME"]) / ".local/state/gpt-oss-agent/runs"
    assert set(loaded.sources.values()) == {"default"}


def test_each_source_overrides_the_one_before(tmp_path: Path, home: dict[str, str]) -> None:
    mine = write(user_file(home), "max_turns = 1\nmax_answer_tokens = 100\ntemperature = 0.1\ntop_p = 0.5\n")
    theirs = write(tmp_path / "repo" / "agent.toml", "max_turns = 2\nmax_answer_tokens = 200\ntemperature = 0.2\n")
    loaded = load(
        {"max_turns": 4, "seed": None},
        tmp_path / "repo",
        {**home, "AGENT_MAX_TURNS": "3", "AGENT_MAX_ANSWER_TOKENS": "300"},
        {"max_turns": "--max-turns"},
    )
    config = loaded.config
    assert (config.max_turns, config.max_answer_tokens, config.temperature, config.top_p) == (4, 300, 0.2, 0.5)
    assert loaded.sources["max_turns"] == "flag --max-turns"
    assert loaded.sources["max_answer_tokens"] == "environment AGENT_MAX_ANSWER_TOKENS"
    assert loaded.sources["temperature"] == str(theirs)
    assert loaded.sources["top_p"] == str(mine)
    assert loaded.sources["seed"] == "default"


def test_the_two_variables_everyone_knows(home: dict[str, str]) -> None:
    config = load(environ={**home, "OPENAI_BASE_URL": "http://h:1/v1/", "OPENAI_API_KEY": SECRET}).config
    assert config.endpoint == "http://h:1/v1"
    assert config.api_key == SECRET


def test_our_own_variable_wins_over_the_common_one(home: dict[str, str]) -> None:
    both = {**home, "OPENAI_BASE_URL": "http://common/v1", "AGENT_ENDPOINT": "http://ours/v1"}
    loaded = load(environ=both)
    assert loaded.config.endpoint == "http://ours/v1"
    assert loaded.sources["endpoint"] == "environment AGENT_ENDPOINT"


def test_an_empty_variable_is_not_set(home: dict[str, str]) -> None:
    assert load(environ={**home, "OPENAI_BASE_URL": "", "AGENT_MAX_TURNS": ""}).config == load(environ=home).config


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("max_turn = 3", ["max_turn", "agent.toml", "max_turns"]),
        ("zzz = 3", ["zzz", "agent config show"]),
        ("[checks]\na = 1", ["checks", "list of commands"]),
        ("max_turns = true", ["max_turns", "whole number"]),
        ("max_turns = 0", ["max_turns", "at least 1"]),
        ("max_turns = 1.5", ["max_turns", "whole number"]),
        ("temperature = nan", ["temperature", "number"]),
        ("temperature = inf", ["temperature", "from 0 to 2"]),
        ("timeout_s = inf", ["timeout_s", "a finite number"]),
        ("seed = -1", ["seed", "from 0 to 9223372036854775807."]),
        ("max_output_bytes = 9", ["max_output_bytes", "at least 256."]),
        ("temperature = 'hot'", ["temperature", "number"]),
        ("include_uncommitted = 1", ["include_uncommitted", "true or false"]),
        ("effort = 'huge'", ["effort", "low, medium, high"]),
        ("checks = 'pytest'", ["checks", "list of commands"]),
        ("checks = ['']", ["checks", "list of commands"]),
        ("max_output_bytes = '4 parsecs'", ["max_output_bytes", "4GiB"]),
        ("model = ''", ["model", "single line of text"]),
        ('model = "a\\nb"', ["model", "single line of text"]),
        ("max_turns = ", ["agent.toml", "TOML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, home: dict[str, str], text: str, names: list[str]) -> None:
    write(tmp_path / "agent.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(repository=tmp_path, environ=home)
    for name in names:
        assert name in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_least_size_is_said_as_a_person_writes_it(home: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="'memory_bytes' is '1', but must be at least 64 MiB"):
        load({"memory_bytes": "1"}, environ=home)


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule.personal])
def test_a_repository_cannot_decide_about_the_machine_or_the_keys(
    tmp_path: Path, home: dict[str, str], key: str
) -> None:
    write(tmp_path / "agent.toml", f"{key} = 'x'")
    with pytest.raises(ConfigError, match="cannot be set by a repository"):
        load(repository=tmp_path, environ=home)


def test_what_would_run_on_the_machine_or_send_the_key_is_personal() -> None:
    for key in (
        "endpoint",
        "api_key",
        "exa_api_key",
        "youcom_api_key",
        "browser",
        "browser_url",
        "sandbox",
        "network",
        "script",
        "runs_dir",
        "cache_dir",
        "deliver",
        "wire",
    ):
        assert RULES[key].personal, key


def test_a_repository_file_that_is_no_file_or_too_large_is_refused(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "agent.toml").symlink_to("/dev/zero")
    (tmp_path / "b" / "agent.toml").mkdir(parents=True)
    write(tmp_path / "c" / "agent.toml", "#" * ((1 << 20) + 1))
    for name in "abc":
        with pytest.raises(ConfigError, match="regular file"):
            load(repository=tmp_path / name, environ=home)


def test_a_file_that_is_not_utf8_is_a_config_error(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "agent.toml").write_bytes(b"model = '\xff'")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(repository=tmp_path, environ=home)


@pytest.mark.parametrize("text", ["max_turns = " + "9" * 5000, "checks = " + "[" * 100_000], ids=["digits", "brackets"])
def test_what_is_too_much_for_a_parser_is_a_config_error(tmp_path: Path, home: dict[str, str], text: str) -> None:
    write(tmp_path / "agent.toml", text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(repository=tmp_path, environ=home)


def test_a_home_that_nobody_has_is_a_config_error(tmp_path: Path, home: dict[str, str]) -> None:
    file = write(tmp_path / "config.toml", "runs_dir = '~nobody-of-this-name/runs'")
    with pytest.raises(ConfigError, match=r"config\.toml: 'runs_dir' is .*home of an unknown user"):
        load(environ={**home, "AGENT_CONFIG": str(file)})
    with pytest.raises(ConfigError, match=r"'runs_dir' is .*home of an unknown user"):
        load({"runs_dir": Path("~nobody-of-this-name/runs")}, environ=home)


def test_variables_of_other_programs_are_left_alone_but_a_near_miss_is_named(home: dict[str, str]) -> None:
    azure = {"AGENT_NAME": "x", "AGENT_OS": "Linux", "AGENT_ID": "7", "AGENT_JOBSTATUS": "ok", "AGENT_DEBUG": "1"}
    assert load(environ={**home, **azure}).config == load(environ=home).config
    with pytest.raises(ConfigError, match=r"AGENT_MAX_TURN.*AGENT_MAX_TURNS"):
        load(environ={**home, "AGENT_MAX_TURN": "3"})


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("AGENT_CHECKS", "pytest -q\n\nruff check .\n", "checks", ("pytest -q", "ruff check .")),
        ("AGENT_INCLUDE_UNCOMMITTED", "no", "include_uncommitted", False),
        ("AGENT_MEMORY_BYTES", "512MiB", "memory_bytes", 512 << 20),
        ("AGENT_MEMORY_BYTES", "1.5 GiB", "memory_bytes", 3 * GIB // 2),
        ("AGENT_MEMORY_BYTES", "4g", "memory_bytes", 4 * GIB),
        ("AGENT_DISK_BYTES", "1000000000", "disk_bytes", 10**9),
        ("AGENT_CPUS", "2", "cpus", 2.0),
        ("AGENT_RUNS_DIR", "/srv/runs", "runs_dir", Path("/srv/runs")),
        ("AGENT_SEED", "0", "seed", 0),
    ],
)
def test_text_from_the_environment_is_typed(
    home: dict[str, str], variable: str, text: str, key: str, value: object
) -> None:
    assert getattr(load(environ={**home, variable: text}).config, key) == value


@pytest.mark.parametrize(("variable", "text"), [("AGENT_MAX_TURNS", "many"), ("AGENT_INCLUDE_UNCOMMITTED", "perhaps")])
def test_text_from_the_environment_that_is_wrong_names_the_variable(
    home: dict[str, str], variable: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(environ={**home, variable: text})


@pytest.mark.parametrize(
    "url", ["localhost:8000", "127.0.0.1:8000/v1", "ftp://h/v1", "http://", "http://h:99999", "http://[::1", 7]
)
def test_an_endpoint_that_is_no_url_is_refused_with_an_example(home: dict[str, str], url: object) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000/v1"):
        load({"endpoint": url}, environ=home)


def test_a_key_inside_the_url_is_refused_without_printing_it(home: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"endpoint": f"http://me:{SECRET}@h/v1"}, environ=home)
    assert SECRET not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "EXA_API_KEY", "YDC_API_KEY"])
@pytest.mark.parametrize("wrong", [SECRET + "\nX-Injected: 1", SECRET + "…"])
def test_a_wrong_key_is_never_printed(variable: str, wrong: str, home: dict[str, str]) -> None:
    """One that no header can carry: the HTTP client would repeat it in its error."""
    with pytest.raises(ConfigError) as caught:
        load(environ={**home, variable: wrong})
    assert SECRET not in str(caught.value)


def test_the_key_is_in_no_view_of_the_configuration(home: dict[str, str]) -> None:
    config = load(environ={**home, "OPENAI_API_KEY": SECRET}).config
    assert SECRET not in repr(config)
    assert SECRET not in json.dumps(public(config))
    assert "api_key" not in public(config)


def test_a_recorded_configuration_comes_back_with_the_key_of_today(tmp_path: Path, home: dict[str, str]) -> None:
    config = load(
        {"checks": ("true",), "script": tmp_path / "s.json", "max_turns": 9}, environ={**home, "OPENAI_API_KEY": "old"}
    ).config
    record = json.loads(json.dumps(public(config)))
    assert restore(record, {**home, "OPENAI_API_KEY": SECRET}) == replace(config, api_key=SECRET)
    with pytest.raises(ConfigError, match="unknown key 'max_turn'"):
        restore({**record, "max_turn": 1}, home)


def test_paths_in_a_file_are_relative_to_it_and_on_the_command_line_to_the_folder(
    tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(user_file(home), "runs_dir = 'runs'\ncache_dir = '~/c'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home["HOME"])
    config = load({"script": "s.json"}, environ=home).config
    assert config.runs_dir == mine.parent / "runs"
    assert config.cache_dir == Path(home["HOME"]) / "c"
    assert config.script == tmp_path / "s.json"


def test_xdg_folders_are_followed_if_absolute(home: dict[str, str]) -> None:
    assert load(environ={**home, "XDG_STATE_HOME": "/s"}).config.runs_dir == Path("/s/gpt-oss-agent/runs")
    assert load(environ={**home, "XDG_STATE_HOME": "s"}).config == load(environ=home).config
    assert user_file({**home, "AGENT_CONFIG": "/etc/a.toml"}) == Path("/etc/a.toml")


def test_debug_is_asked_for_by_any_text() -> None:
    assert debug_wanted({"AGENT_DEBUG": "1"})
    assert not debug_wanted({"AGENT_DEBUG": ""})
    assert not debug_wanted({})


def test_an_unknown_flag_name_is_our_own_mistake_and_still_named(home: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="max_turn"):
        load({"max_turn": 3}, environ=home)


@given(
    st.dictionaries(
        st.sampled_from(sorted(RULES)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_whatever_is_given_becomes_a_configuration_or_one_error(flags: dict[str, object]) -> None:
    try:
        config = load(flags, environ={"HOME": "/nowhere"}).config
    except ConfigError:
        return
    assert math.isfinite(config.temperature)
    assert restore(public(config), {"HOME": "/nowhere"}) == replace(
        config, api_key=None, exa_api_key=None, youcom_api_key=None
    )
