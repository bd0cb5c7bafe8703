"""Coding agents that we did not write, as users start them, against `agent serve` as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.agent.browser.test_browser import KEY, exa, origin
from tests.servers import serving

ROOT = Path(__file__).resolve().parents[3]
READ = "cat hello.txt"
WRITE = "printf 'hello world\\n' > hello.txt && cat hello.txt"
ANSWER = "The file now says hello world."


def program(variable: str, place: str, script: str) -> Path:
    found = Path(os.environ.get(variable) or ROOT / ".venv" / place)
    assert found.exists(), f"{found} is not there: run {script} (it needs npm), or leave these tests out with -m"
    return found


def turns(tool: str, arguments: Sequence[Mapping[str, str]]) -> list[list[dict[str, Any]]]:
    calls = [
        [{"text": f"Step {n}.", "channel": "analysis"}, {"recipient": f"functions.{tool}", "arguments": dict(values)}]
        for n, values in enumerate(arguments)
    ]
    return [*calls, [{"text": "Good.", "channel": "analysis"}, {"text": ANSWER, "channel": "final"}]]


def environment(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "XDG_", "AGENT_", "CODEX_", "OPENCODE_"))
    }
    return {**kept, "HOME": str(home)}


@contextmanager
def served(folder: Path, script: Sequence[Any], *flags: str, **variables: str) -> Iterator[str]:
    """`agent serve`, as a process of its own: gives the line that it prints, which is its URL."""
    path = folder / "script.json"
    path.write_text(json.dumps({"turns": script}))
    command = [sys.executable, "-m", "agent", "serve", "--backend", "scripted", "--script", str(path), "--port", "0"]
    command += flags
    env = {**environment(folder / "server-home"), "PYTHONPATH": str(ROOT), **variables}
    with subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.stdout.read() == "", "standard output holds the URL and nothing else"
            assert process.wait(20) == 0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "hello.txt").write_text("helo\n")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.mark.codex
def test_codex_completes_a_run_with_calls(tmp_path: Path, repository: Path) -> None:
    codex = program("CODEX", "codex/codex", "scripts/codex")
    script = turns("exec_command", [{"cmd": READ}, {"cmd": WRITE}])
    env = environment(tmp_path / "home")
    config = tmp_path / "home" / ".codex" / "config.toml"
    config.parent.mkdir()
    with served(tmp_path, script) as url:
        config.write_text(
            'model = "gpt-oss-20b"\nmodel_provider = "local"\n'
            f'[model_providers.local]\nname = "local"\nbase_url = "{url}"\nwire_api = "responses"\n'
        )
        flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json"]
        done = subprocess.run(
            [codex, "exec", *flags, "Fix the greeting."],
            cwd=repository, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert [i["exit_code"] for i in items if i["type"] == "command_execution"] == [0, 0]
    assert [i["text"] for i in items if i["type"] == "agent_message"] == [ANSWER]
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["reasoning_output_tokens"] > 0
    assert (repository / "hello.txt").read_text() == "hello world\n"


@pytest.mark.opencode
@pytest.mark.timeout(400)  # its first start in a fresh home can be slow
def test_opencode_completes_a_run_with_calls(tmp_path: Path, repository: Path) -> None:
    opencode = program("OPENCODE", "opencode/opencode", "scripts/opencode")
    script = turns("bash", [{"command": READ, "description": "Read"}, {"command": WRITE, "description": "Write"}])
    env = {**environment(tmp_path / "home"), "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    env["PWD"] = str(repository)  # where it looks for its settings
    with served(tmp_path, script) as url:
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": url, "apiKey": "none"},
            "models": {"gpt-oss-20b": {"limit": {"context": 131072, "output": 8192}}},
        }
        settings = {
            "model": "local/gpt-oss-20b",
            "small_model": "local/gpt-oss-20b",
            "autoupdate": False,
            "permission": {"bash": "allow"},
            "provider": {"local": provider},
        }
        (repository / "opencode.json").write_text(json.dumps(settings))
        done = subprocess.run(
            [opencode, "run", "--model", "local/gpt-oss-20b", "Fix the greeting."],
            cwd=repository, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=360, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ANSWER in done.stdout + done.stderr
    assert (repository / "hello.txt").read_text() == "hello world\n"


def test_one_line_with_the_url_and_a_good_end(tmp_path: Path) -> None:
    """Without any foreign program: `served` itself holds that nothing else is printed, and that SIGTERM ends it with 0."""
    with served(tmp_path, turns("x", [])) as url:
        assert url.startswith("http://127.0.0.1:")
        body = {"messages": [{"role": "user", "content": "x"}]}
        answer = httpx2.post(f"{url}/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == ANSWER
        assert httpx2.get(f"{url}/models").json()["data"][0]["id"] == "scripted"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--backend", "chat"], "--endpoint"),
        (["--backend", "scripted"], "--script"),
        (["--api-key", "@none"], "cannot be read"),
    ],
)
def test_what_is_missing_is_a_usage_error(tmp_path: Path, flags: list[str], told: str) -> None:
    env = {**environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agent", "serve", "--port", "0", *flags]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


@pytest.mark.codex
def test_codex_searches_the_web_through_the_server(tmp_path: Path, repository: Path) -> None:
    """It sends web_search with every request, unasked; switched on, the server searches, and Codex goes on with its own tools."""
    codex = program("CODEX", "codex/codex", "scripts/codex")
    search = {
        "text": '{"query": "greetings"}',
        "channel": "analysis",
        "recipient": "browser.search",
        "content_type": "code",
    }
    script = turns("exec_command", [{"cmd": WRITE}])
    home = tmp_path / "home"
    env = environment(home)
    config = home / ".codex" / "config.toml"
    config.parent.mkdir()
    with serving(exa) as service:
        search_env = {"EXA_API_KEY": KEY, "AGENT_BROWSER_URL": origin(service)}
        with served(tmp_path, [[search], *script], "--web-search", "exa", **search_env) as url:
            config.write_text(
                'model = "gpt-oss-20b"\nmodel_provider = "local"\n'
                f'[model_providers.local]\nname = "local"\nbase_url = "{url}"\nwire_api = "responses"\n'
            )
            flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json"]
            done = subprocess.run(
                [codex, "exec", *flags, "Fix the greeting."],
                cwd=repository, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
        asked = [request.path for request in service.requests]
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert asked == ["/search"]
    assert [item.get("query") for item in items if item["type"] == "web_search"] == ["greetings"]
    assert [item["text"] for item in items if item["type"] == "agent_message"] == [ANSWER]
    assert (repository / "hello.txt").read_text() == "hello world\n"
