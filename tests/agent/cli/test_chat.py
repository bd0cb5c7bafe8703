"""`agent chat` as a program: piped, on a real terminal, in a real sandbox."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import docker
from tests.servers import document, event, head, serving

ROOT = Path(__file__).resolve().parents[3]
HERE = ("--sandbox", "none", "--i-know-this-runs-on-my-machine")
GREET = [{"channel": "analysis", "text": "greet"}, {"text": "Hello there."}]
COMPUTE = [{"recipient": "python", "channel": "analysis", "text": "x = 6 * 7\nprint(x)"}]
AGAIN = [{"recipient": "python", "channel": "analysis", "text": "print(x + 1)"}]
PROMPT = "\x1b[?2004h"  # bracketed paste is switched on: the prompt is there
PATCH = "*** Begin Patch\n*** Update File: a.txt\n@@\n-one\n+two\n*** End Patch\n"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AGENT_", "OPENAI_", "XDG_", "EXA_", "YDC_"))
    }
    return {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


def script(folder: Path, turns: object) -> list[str]:
    path = folder / "script.json"
    path.write_text(json.dumps({"turns": turns}))
    return ["--wire", "scripted", "--script", str(path)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent", *arguments]


def chat(arguments: Sequence[str], said: str, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("chat", *arguments),
        input=said,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


def test_each_line_of_a_pipe_is_a_turn(tmp_path: Path, home: dict[str, str]) -> None:
    turns = [GREET, COMPUTE, [{"text": "It is 42."}], AGAIN, [{"text": "43."}]]
    ran = chat(
        [*script(tmp_path, turns), "-p", *HERE], "hi\ncompute\nand one more\n/nope\n/exit\nnever\n", home, tmp_path
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.sub(r"in .+", "in …", ran.stdout.replace(" for 0 ms", "")).splitlines() == [
        "✻ thought: greet", "Hello there.",
        "python: x = 6 * 7 print(x)", "ok in …", "  | 42", "It is 42.",
        "python: print(x + 1)", "ok in …", "  | 43", "43.",
        "there is no /nope; /help lists all commands", "bye",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["none", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_patch_is_made_in_the_sandbox_and_brought_in_on_request(
    repository: Path, tmp_path: Path, home: dict[str, str], kind: str
) -> None:
    turns = [[{"recipient": "repo_browser.apply_patch", "arguments": {"patch": PATCH}}], [{"text": "Done."}]]
    place = HERE if kind == "none" else ("--image", "host")
    ran = chat([*script(tmp_path, turns), "-a", *place], "patch it\n/diff\n", home, repository)
    assert ran.returncode == 0, ran.stderr
    assert "-one\n+two\n" in ran.stdout
    assert (repository / "a.txt").read_text() == "one\n"
    ran = chat([*script(tmp_path, turns), "-a", *place], "patch it\n/apply\n", home, repository)
    assert ran.stdout.endswith("written into your checkout, uncommitted: a.txt\n")
    assert (repository / "a.txt").read_text() == "two\n"


def test_raw_shows_the_tokens(tmp_path: Path, home: dict[str, str]) -> None:
    ran = chat(
        [*script(tmp_path, [GREET]), "--raw", "--system", "Be brief.", "--effort", "low"], "hi\n", home, tmp_path
    )
    assert "Reasoning: low" in ran.stdout
    assert "# Instructions\n\nBe brief.<|end|>\n" in ran.stdout
    assert ran.stdout.endswith(
        "<|start|>user<|message|>hi<|end|>\n<|start|>assistant<|channel|>analysis<|message|>greet<|end|>\n"
        "<|start|>assistant<|channel|>final<|message|>Hello there.<|end|>\n"
    )


def test_a_saved_chat_goes_on(tmp_path: Path, home: dict[str, str]) -> None:
    played = script(tmp_path, [GREET, [{"text": "Still here."}]])
    assert chat(played, "hi\n/save c.jsonl\n", home, tmp_path).stdout.endswith("saved 3 messages in c.jsonl\n")
    ran = chat([*played, "--load", "c.jsonl"], "and?\n", home, tmp_path)
    assert ran.stdout == "loaded 3 messages from c.jsonl\nStill here.\n"
    assert chat([*played, "--load", "none.jsonl"], "", home, tmp_path).returncode == 1


def test_without_lxml_a_browser_is_refused_before_the_first_line(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lxml'] = None\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), home.get("PYTHONPATH")]))
    ran = chat(["-b", *script(tmp_path, [GREET])], "hi\n", {**home, "PYTHONPATH": path, "EXA_API_KEY": "k"}, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == 'agent: The browser needs lxml, which is not installed: pip install "gpt-oss-agent[browser]"\n'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--wire", "scripted"], "--script FILE"),
        (["--sandbox", "none", "-p"], "--i-know-this-runs-on-my-machine"),
        (["-b", "--wire", "scripted"], "EXA_API_KEY"),
    ],
)
def test_what_cannot_begin(arguments: list[str], said: str, tmp_path: Path, home: dict[str, str]) -> None:
    ran = chat(arguments, "hi\n", home, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr


def test_the_web_is_searched_and_cited(tmp_path: Path, home: dict[str, str]) -> None:
    results = {"results": [{"title": "Widgets", "url": "https://widgets.example/", "summary": "all of them"}]}
    page = {"results": [{"title": "Widgets", "url": "https://widgets.example/", "text": "<p>There are 7 widgets."}]}
    turns = [
        [{"recipient": "browser.search", "channel": "analysis", "arguments": {"query": "widgets"}}],
        [{"recipient": "browser.open", "channel": "analysis", "arguments": {"id": 0}}],
        [{"text": "There are 7【1†L0】."}],
    ]
    with serving(lambda request: document(results if request.path == "/search" else page)) as server:
        url = server.url.removesuffix("/v1")
        arguments = [*script(tmp_path, turns), "-b", "--browser-url", url]
        ran = chat(arguments, "how many?\n", {**home, "EXA_API_KEY": "k-secret"}, tmp_path)
    assert ran.stdout.endswith("There are 7 ([widgets.example](https://widgets.example/)) .\n"), ran.stdout + ran.stderr
    assert "k-secret" not in ran.stdout + ran.stderr
    assert {request.headers["x-api-key"] for request in server.requests} == {"k-secret"}


def test_an_endpoint_that_refuses_does_not_end_the_chat(tmp_path: Path, home: dict[str, str]) -> None:
    answers = [document({"data": [{"id": "m"}]}), document({"error": {"message": "too hot"}}, 400)]
    chunk = {"choices": [{"index": 0, "delta": {"content": "Cooler."}, "finish_reason": "stop"}]}
    good = [head(), event(chunk), event("[DONE]")]
    with serving([answers[0], answers[1], good]) as server:
        arguments = ["--wire", "chat", "--endpoint", server.url, "--model", "m", "--context", "4096"]
        with serving([answers[1], good]) as direct:
            arguments[3] = direct.url
            ran = chat(arguments, "hi\nhi again\n", home, tmp_path)
    assert ran.returncode == 0
    assert "endpoint: " in ran.stdout
    assert "too hot" in ran.stdout
    assert ran.stdout.endswith("Cooler.\n")


@contextmanager
def on_a_terminal(arguments: Sequence[str], env: dict[str, str], folder: Path) -> Iterator[Terminal]:
    """Run a chat on a pseudo-terminal."""
    outer, inner = pty.openpty()
    running = subprocess.Popen(
        command("chat", *arguments),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=folder,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C on it is a signal
    )
    os.close(inner)
    try:
        yield Terminal(outer, running)
    finally:
        running.kill()
        running.wait()
        os.close(outer)


class Terminal:
    def __init__(self, outer: int, running: subprocess.Popen[bytes]) -> None:
        self._outer, self.running = outer, running
        self.seen = ""
        self._read = 0  # characters of it that were waited for already

    def type(self, keys: str) -> None:
        os.write(self._outer, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Read until a text comes after what was waited for before, answering what prompt_toolkit asks its terminal."""
        until_s = time.monotonic() + timeout_s
        while text not in self.seen[self._read :]:
            assert time.monotonic() < until_s, f"{text!r} did not come:\n{self.seen}"
            if select.select([self._outer], [], [], 0.2)[0]:
                try:
                    piece = os.read(self._outer, 65536).decode("utf-8", "replace")
                except OSError:  # the program has left its terminal
                    piece = ""
                self.seen += piece
                if "\x1b[6n" in piece:
                    self.type("\x1b[1;1R")
        self._read = self.seen.index(text, self._read) + len(text)


def test_on_a_terminal(tmp_path: Path, home: dict[str, str]) -> None:
    turns = [GREET, COMPUTE, [{"text": "It is 42."}]]
    with on_a_terminal([*script(tmp_path, turns), "-p", *HERE], home, tmp_path) as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for(PROMPT)
        terminal.type("hi\x1b\rthere\r")
        terminal.wait_for("✻ thought")
        terminal.wait_for(PROMPT)
        terminal.type("compute\r")
        terminal.wait_for("It is 42.")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.running.wait(timeout=30) == 0
    history = Path(home["HOME"]) / ".local/state/gpt-oss-agent/chat-history"
    assert "+hi\n+there\n" in history.read_text()


def test_ctrl_c_stops_an_answer_and_sigterm_leaves_nothing_behind(tmp_path: Path, home: dict[str, str]) -> None:
    begun = tmp_path / "begun"
    code = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    sleep = [{"recipient": "python", "channel": "analysis", "text": code}]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    home = {**home, "TMPDIR": str(scratch)}
    with on_a_terminal([*script(tmp_path, [sleep, [{"text": "Awake."}]]), "-p", *HERE], home, tmp_path) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("sleep\r")
        until_s = time.monotonic() + 30
        while not begun.exists():  # before that, the sandbox may be starting
            assert time.monotonic() < until_s
            time.sleep(0.05)
        terminal.type("\x03")
        terminal.wait_for("interrupted: stopped")
        terminal.wait_for(PROMPT)
        terminal.type("up?\r")
        terminal.wait_for("Awake.")
        terminal.wait_for(PROMPT)
        terminal.running.send_signal(signal.SIGTERM)
        assert terminal.running.wait(timeout=30) == 128 + signal.SIGTERM
    until_s = time.monotonic() + 20
    while list(scratch.iterdir()) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert list(scratch.iterdir()) == []


@pytest.mark.docker
def test_ctrl_c_while_the_sandbox_starts_leaves_no_container(tmp_path: Path, home: dict[str, str]) -> None:
    played = script(tmp_path, [COMPUTE, [{"text": "It is 42."}]])
    with on_a_terminal([*played, "-p", "--image", "host"], home, tmp_path) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("compute\r")
        terminal.wait_for("python: x")
        time.sleep(0.1)
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type("/save c.jsonl\r")
        terminal.wait_for("saved")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.running.wait(timeout=30) == 0
    run = json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["run"]
    client = docker.engine()
    try:
        assert run not in [name for name, _ in docker.orphans(client)]
    finally:
        client.close()
