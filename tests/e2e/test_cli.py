from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.record import load
from tests.e2e.conftest import PLAIN, TASK, Place, git

SCRIPT = ("--wire", "scripted", "--script", str(TASK / "script.json"))
SECRET = "sk-very-secret-0123456789"
FINAL = [{"text": "Nothing to do."}]


def shell(command: str) -> list[object]:
    return [{"recipient": "container.exec", "arguments": {"command": ["bash", "-lc", command]}}]


def results(output: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    lines = [json.loads(line) for line in output.splitlines()]
    return lines[:-1], lines[-1]


def test_a_fix_hands_back_a_branch_with_one_commit_and_leaves_the_checkout(place: Place) -> None:
    before = git(place.repository, "rev-parse", "HEAD"), git(place.repository, "status", "--porcelain")
    done = place.agent("fix", f"@{TASK / 'prompt.md'}", *SCRIPT, *PLAIN)
    assert done.returncode == 0, done.stderr
    assert "passed: fixed, and the checks confirm it" in done.stdout
    assert "model: a recording, " in done.stderr
    assert "$ python3 -m unittest" in done.stderr
    assert (git(place.repository, "rev-parse", "HEAD"), git(place.repository, "status", "--porcelain")) == before
    branch = git(place.repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/agent")
    assert f"branch: {branch}" in done.stdout
    assert git(place.repository, "rev-list", "--count", f"main..{branch}") == "1"
    assert git(place.repository, "diff", "--name-only", "main", branch) == "textkit/slug.py"


@pytest.mark.docker
def test_the_same_in_a_container_as_json(place: Place) -> None:
    done = place.agent("fix", "fix slugify", *SCRIPT, "--image", "host", "--json", "--effort", "high")
    assert done.returncode == 0, done.stderr
    events, result = results(done.stdout)
    assert events[0]["event"] == "RunStarted"
    assert events[-1]["event"] == "RunEnded"
    for line in done.stdout.splitlines()[:-1]:
        load(line.encode())
    logged = (place.runs / str(result["run"]) / "events.jsonl").read_text().splitlines()
    assert [event["event"] for event in events] == [json.loads(line)["event"] for line in logged]
    assert result["event"] == "result"
    assert (result["outcome"], result["exit_code"]) == ("passed", 0)
    assert result["changed_paths"] == ["textkit/slug.py"]
    assert [check["exit_code"] for when in ("before", "after") for check in result["checks"][when]] == [1, 0]  # type: ignore[index]
    assert "passed: fixed" in done.stderr


def test_output_writes_a_patch_and_makes_no_branch(place: Place, tmp_path: Path) -> None:
    patch = tmp_path / "out.patch"
    done = place.agent("fix", "fix slugify", *SCRIPT, *PLAIN, "--output", str(patch))
    assert done.returncode == 0, done.stderr
    assert git(place.repository, "for-each-ref", "refs/heads/agent") == ""
    git(place.repository, "apply", "--check", str(patch))
    assert place.agent("diff", "last").stdout == patch.read_text()


def test_output_that_cannot_be_written_says_where_the_patch_is(place: Place, tmp_path: Path) -> None:
    done = place.agent("fix", "fix slugify", *SCRIPT, *PLAIN, "--output", str(tmp_path / ("x" * 300)))
    assert done.returncode == 2
    assert "cannot be written: File name too long. The change is kept: `agent diff 2" in done.stderr
    assert place.agent("diff", "last").stdout.startswith("diff --git a/textkit/slug.py")


def test_apply_brings_it_into_the_checkout_uncommitted(place: Place) -> None:
    done = place.agent("fix", "fix slugify", *SCRIPT, *PLAIN, "--apply")
    assert done.returncode == 0, done.stderr
    assert git(place.repository, "status", "--porcelain") == "M textkit/slug.py"
    assert git(place.repository, "for-each-ref", "refs/heads/agent") == ""


def test_a_run_that_failed_is_not_brought_in_but_can_be(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    flags = script([shell("echo >> textkit/slug.py"), *[FINAL] * 5])
    done = place.agent("fix", "fix slugify", *flags, *PLAIN, "--apply")
    assert done.returncode == 5, done.stderr
    assert git(place.repository, "status", "--porcelain") == ""
    assert "agent apply" in done.stderr
    assert place.agent("apply", "last").stdout == "textkit/slug.py\n"
    assert git(place.repository, "status", "--porcelain") == "M textkit/slug.py"


def test_a_named_branch(place: Place) -> None:
    done = place.agent("fix", "fix slugify", *SCRIPT, *PLAIN, "--branch", "fixed")
    assert done.returncode == 0, done.stderr
    assert git(place.repository, "rev-list", "--count", "main..fixed") == "1"


@pytest.mark.parametrize(
    ("turns", "flags", "code", "outcome"),
    [
        ([FINAL, FINAL, FINAL], (), 6, "no_change"),
        ([shell("ls")] * 4, ("--max-turns", "2"), 4, "limit"),
        ([shell("ls")], (), 4, "limit"),  # the script ends before the run does
        ([shell("echo >> textkit/slug.py"), FINAL], ("--check", "true"), 0, "passed"),
        ([shell("echo >> textkit/slug.py"), *[FINAL] * 5], ("--check", "false"), 5, "checks_failed"),
        ([shell("ln -s /etc/passwd leak"), FINAL, FINAL], ("--check", "true"), 7, "refused"),
    ],
)
def test_the_exit_code_says_what_was_observed(
    place: Place,
    script: Callable[..., tuple[str, ...]],
    turns: list[object],
    flags: tuple[str, ...],
    code: int,
    outcome: str,
) -> None:
    done = place.agent("fix", "fix slugify", *script(turns), *PLAIN, *flags, "--json")
    _, result = results(done.stdout)
    assert (done.returncode, result["exit_code"], result["outcome"]) == (code, code, outcome), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "outcome", "said"),
    [
        (("fix", "x", "--sandbox", "none"), 2, "usage", "--i-know-this-runs-on-my-machine"),
        (("fix", "x", "--apply", "--output", "p"), 2, None, "exclude each other"),
        (("fix", "x", "--output", "/nowhere/p", *PLAIN), 2, None, "/nowhere"),
        (("fix", "  ", *PLAIN), 2, "usage", "empty"),
        (("fix", "@missing", *PLAIN), 2, "usage", "missing"),
        (("fix", "x", *PLAIN, "--wire", "scripted"), 2, "usage", "--script"),
        (("fix", "x", *PLAIN, "--wire", "scripted", "--script", "missing.json"), 2, "usage", "missing.json"),
        (("fix", "x", *PLAIN, "--repo", "/"), 2, "usage", "git init"),
        (("fix", "x", *PLAIN, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--endpoint-timeout", "0"), 3, "endpoint", "127.0.0.1:9"),
        (("resume", "nothing"), 2, None, "no runs"),
    ],
)  # fmt: skip
def test_what_cannot_begin_says_why_and_still_has_a_last_line(
    place: Place, arguments: tuple[str, ...], code: int, outcome: str | None, said: str
) -> None:
    done = place.agent(*arguments, *(["--json"] if outcome else []))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if outcome:
        _, result = results(done.stdout)
        assert (result["outcome"], result["exit_code"]) == (outcome, code)


def test_no_engine_is_8(place: Place) -> None:
    place.env["DOCKER_HOST"] = "unix:///nowhere.sock"
    done = place.agent("fix", "x", *SCRIPT)
    assert done.returncode == 8, done.stderr
    assert "no Docker engine answers" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_ask_prints_the_answer_alone_on_standard_output(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    flags = script([shell("cat README.md"), [{"text": "It is about titles.\n\x1b]0;owned\x07"}]])
    done = place.agent("ask", "What is this?", *flags, *PLAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "It is about titles.\n\\x1b]0;owned\\x07\n"


def test_a_checkout_s_own_git_is_not_run_where_path_names_the_current_folder(place: Place) -> None:
    """With "." or an empty entry on PATH, git started in a checkout would be the program of that name in it."""
    program = place.repository / "git"
    program.write_text('#!/bin/sh\ntouch "$HOME/owned"\nPATH=${PATH#.::} exec git "$@"\n')
    program.chmod(0o755)
    place.env["PATH"] = f".::{place.env['PATH']}"
    done = place.agent("fix", "fix slugify", *SCRIPT, *PLAIN)
    assert done.returncode == 0, done.stderr
    assert not (place.home / "owned").exists()


def test_the_text_may_come_from_standard_input_and_only_then_is_it_read(place: Place) -> None:
    done = place.agent("fix", "-", *SCRIPT, *PLAIN, "--json", stdin="slugify is wrong\n")
    events, _ = results(done.stdout)
    assert events[0]["task"] == "slugify is wrong"


def test_an_open_standard_input_is_not_waited_for(place: Place) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            place.command("fix", "fix slugify", *SCRIPT, *PLAIN), cwd=place.repository, env=place.env, stdin=reader, capture_output=True, timeout=60, check=False
        )  # fmt: skip
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0


def test_the_key_is_nowhere(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    place.env["OPENAI_API_KEY"] = SECRET
    flags = script([shell("env; cat /proc/self/environ; echo >> textkit/slug.py"), FINAL])
    done = place.agent("fix", "x", *flags, *PLAIN, "--check", "env", "--json")
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    for path in place.home.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_reader_that_goes_away_does_not_end_the_run(place: Place) -> None:
    process = place.start("fix", "fix slugify", *SCRIPT, *PLAIN, "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert git(place.repository, "for-each-ref", "refs/heads/agent") != ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_cleanly_and_the_run_can_be_resumed(
    place: Place, script: Callable[..., tuple[str, ...]], number: signal.Signals
) -> None:
    flags = script([shell("echo begun; sleep 60"), shell("echo >> textkit/slug.py"), FINAL])
    process = place.start("fix", "x", *flags, *PLAIN, "--check", "true", "--json")
    _wait_for(process, "ToolStarted")
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    _, result = results(out)
    assert (result["outcome"], result["exit_code"]) == ("interrupted", 130)
    assert "stopping" in err
    logged = (place.runs / str(result["run"]) / "events.jsonl").read_text().splitlines()
    assert json.loads(logged[-1])["outcome"] == "interrupted"
    resumed = place.agent("resume", "last", "--json")
    assert resumed.returncode == 0, resumed.stderr
    events, result = results(resumed.stdout)
    assert [event["seq"] for event in events] == list(range(len(logged), len(logged) + len(events)))
    assert events[0]["event"] == "Resumed"
    assert result["outcome"] == "passed"


def test_two_signals_kill(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    flags = script([shell("sleep 60"), FINAL])
    process = place.start("fix", "x", *flags, *PLAIN, "--json")
    _wait_for(process, "ToolStarted")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.docker
def test_an_interrupted_container_is_gone(place: Place, script: Callable[..., tuple[str, ...]]) -> None:
    flags = script([shell("sleep 60"), FINAL])
    process = place.start("fix", "x", *flags, "--image", "host", "--json")
    run = _wait_for(process, "ToolStarted")
    assert _containers(run) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    for _ in range(300):  # the engine may remove it for longer than the agent waits
        if not _containers(run):
            break
        time.sleep(0.1)
    assert _containers(run) == 0


def test_on_a_terminal_there_are_colours_and_no_question(place: Place) -> None:
    """A pseudo terminal, as a person has it; --yes answers the one question there could be."""
    host, terminal = pty.openpty()
    process = subprocess.Popen(
        place.command("fix", "fix slugify", *SCRIPT, *PLAIN, "--apply", "--yes"),
        cwd=place.repository,
        env={**place.env, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            piece = os.read(host, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        output += piece
    os.close(host)
    assert process.wait(timeout=60) == 0, output.decode()
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output).decode()
    assert "\x1b[32m" in output.decode()
    assert "✔ apply_patch update textkit/slug.py" in text
    assert "+    words = WORD.findall" in text
    assert "passed: fixed" in text
    assert git(place.repository, "status", "--porcelain") == "M textkit/slug.py"


def test_show_and_runs_tell_of_it_later(place: Place) -> None:
    assert place.agent("fix", "fix slugify", *SCRIPT, *PLAIN).returncode == 0
    assert re.search(r"passed .* fix slugify$", place.agent("runs").stdout.strip())
    shown = place.agent("show", "last").stdout
    assert "run " in shown
    assert "$ python3 -m unittest" in shown
    assert "passed: fixed" in shown
    assert place.agent("discard", "last").returncode == 0
    assert git(place.repository, "for-each-ref", "refs/heads/agent") == ""
    assert place.agent("runs").stdout == ""


def _wait_for(process: subprocess.Popen[str], event: str) -> str:
    """Read JSON lines up to an event of this kind; return the run's id."""
    assert process.stdout is not None
    run = ""
    for line in process.stdout:
        found = json.loads(line)
        run = found.get("run", run)
        if found["event"] == event:
            return run
    raise AssertionError(f"no {event}: {process.stderr.read() if process.stderr else ''}")


def _containers(run: str) -> int:
    from sandbox import docker

    client = docker.engine()
    try:
        return sum(1 for name, _ in docker.orphans(client) if name == run)
    finally:
        client.close()


@pytest.mark.parametrize(
    ("error", "code", "outcome"),
    [("OSError(28, 'No space left')", 1, "internal"), ("KeyboardInterrupt", 130, "interrupted")],
)
def test_json_has_a_last_line_whatever_ends_the_run(place: Place, error: str, code: int, outcome: str) -> None:
    """A defect, or a signal before there is a run, is found in the same place as every other end."""
    program = (
        "import sys, agent.session, agent.__main__ as m\n"
        f"def broken(*_): raise {error}\n"
        "agent.session.fix = broken\n"
        "sys.argv = ['agent', 'fix', 'x', '--json', *sys.argv[1:]]\n"
        "m.main()\n"
    )
    command = [sys.executable, "-c", program, *PLAIN]
    done = subprocess.run(command, cwd=place.repository, env=place.env, capture_output=True, text=True, check=False)
    _, result = results(done.stdout)
    assert (done.returncode, result["exit_code"], result["outcome"]) == (code, code, outcome), done.stderr
