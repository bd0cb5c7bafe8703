from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from agent.cli.exits import exit_code
from agent.cli.main import COMMANDS, cli, run
from agent.cli.signals import Interrupts
from agent.errors import (
    AgentError,
    ConfigError,
    ContextOverflow,
    EndpointRefused,
    EndpointUnreachable,
    LogError,
    ModelUnfit,
    PolicyRefused,
    UsageError,
)
from runtime.errors import DoesNotFit
from sandbox.errors import DiffRefused, EngineUnavailable, ImageUnavailable, SandboxLost, WorktreeError

ROOT = Path(__file__).resolve().parents[3]


def agent(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the real program; its standard input is closed."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_its_line_of_help_is_its_own(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert command.help.split("\n")[0] == COMMANDS[name][2]


def test_help_is_quick_and_lists_every_command() -> None:
    cpu_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = agent("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
    # The aim is 0.15 s cold. CPU time, because the neighbours on a shared machine are not to be measured.
    assert min(cpu_s) < 0.25, cpu_s


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AgentError("x"), 1),
        (LogError("x"), 1),
        (WorktreeError("x"), 1),
        (UsageError("x"), 2),
        (ConfigError("x"), 2),
        (EndpointUnreachable("x"), 3),
        (EndpointRefused("x", 401), 3),
        (ContextOverflow("x"), 3),
        (ModelUnfit("x"), 3),
        (DoesNotFit("x"), 3),
        (PolicyRefused("x"), 7),
        (DiffRefused("x"), 7),
        (EngineUnavailable("x"), 8),
        (ImageUnavailable("x"), 8),
        (SandboxLost("x"), 8),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def failing(error: BaseException) -> click.Command:
    def body() -> None:
        raise error

    return click.Command("fails", callback=body)


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch):
    def install(command: click.Command) -> None:
        module = type(sys)("agent_test_command")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "agent_test_command", module)
        monkeypatch.setitem(COMMANDS, "fails", ("agent_test_command", "command", "Fails."))  # type: ignore[arg-type]

    return install


def test_an_error_is_one_clean_message_and_no_traceback(with_command, capsys: pytest.CaptureFixture[str]) -> None:
    with_command(failing(EngineUnavailable("no engine\x1b]0;owned\x07 answers: start one")))
    assert run(["fails"]) == 8
    assert capsys.readouterr().err == "agent: no engine\\x1b]0;owned\\x07 answers: start one\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "agent: Disk quota exceeded. Free some space"),
    ],
)
def test_a_full_disk_is_no_internal_error(
    with_command, error: OSError, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_command(failing(error))
    assert run(["fails"]) == 1
    assert said in capsys.readouterr().err


def test_a_current_folder_that_is_gone_is_no_internal_error(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.rmdir(os.getcwd()); import agent.cli.main as m; sys.argv = ['agent', 'fix', 'x']; m.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "agent: The current folder does not exist any more. Change to another one.\n"


def test_another_error_of_the_system_is_one(with_command) -> None:
    with_command(failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        run(["fails"])


def test_debug_shows_where(with_command, monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(failing(EngineUnavailable("gone")))
    monkeypatch.setenv("AGENT_DEBUG", "1")
    with pytest.raises(EngineUnavailable):
        run(["fails"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130(with_command, error: BaseException) -> None:
    with_command(failing(error))
    assert run(["fails"]) == 130


def test_a_command_may_return_its_exit_code(with_command) -> None:
    with_command(click.Command("fails", callback=lambda: 5))
    assert run(["fails"]) == 5


def test_what_nobody_foresaw_is_named_and_exits_1() -> None:
    code = "import sys, agent.cli.main as m; m.run = lambda arguments: {}['missing']; sys.argv = ['agent']; m.main()"
    quiet = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert quiet.returncode == 1
    assert quiet.stderr.splitlines() == ["agent: internal error: KeyError: 'missing'", "AGENT_DEBUG=1 shows where."]
    loud = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "AGENT_DEBUG": "1"},
    )
    assert loud.returncode == 1
    assert "Traceback" in loud.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["confg"], "Did you mean 'config'?"),
        (["slugify drops the last word"], "agent fix"),
        (["--zzz"], "--zzz"),
        (["config", "show", "--max-turns", "many"], "many"),
        (["config", "show", "--max-turns", "0"], "flag --max-turns"),
        (["config", "show", "--repo", "/nowhere-at-all"], "not a folder"),
    ],
)
def test_wrong_usage_is_2_and_says_so_on_standard_error(arguments: list[str], said: str) -> None:
    result = agent(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_version() -> None:
    result = agent("--version")
    assert (result.stdout or result.stderr).startswith(("agent 0.", "agent: internal error: RuntimeError")), result


def test_a_terminal_without_utf8_shows_less_but_does_not_fail() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "agent", "config", "show", "--repo", "größe"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 2
    assert b"is not a folder" in result.stderr


def test_a_reader_that_went_away_ends_a_listing_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "agent", "config", "show"],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    finally:
        os.close(writer)
    assert result.returncode == 141
    assert result.stderr == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_end_and_no_file_is_mistaken_for_one(closed: str) -> None:
    command = f'exec "$0" -m agent config show {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_standard_input_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    command = f'exec "$0" -m agent fix --repo {tmp_path} - <&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.partition(".")[0]) == (2, "agent: The text is empty")


def test_an_interrupt_while_the_program_loads_ends_quietly() -> None:
    code = (
        "import os, signal, sys, agent.__main__ as m\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'agent.cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_second_interrupt_while_the_program_ends_is_quiet_too() -> None:
    code = (
        "import atexit, os, signal, sys, agent.__main__ as m, agent.cli.main as c\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "c.main = lambda: sys.exit(130)\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_second_interrupt_while_python_ends_does_not_change_the_exit_code() -> None:
    """By then Python has given the signal its default action back, unless it is ignored: the process would die of it."""
    code = (
        "import os, signal, sys, types, agent.__main__ as m, agent.cli.main as c\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT): kill(pid, number)\n"
        "sys.modules['last'] = types.ModuleType('last')\n"
        "sys.modules['last'].late = Late()\n"
        "c.main = lambda: sys.exit(130)\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_thread_that_still_computes_does_not_abort_the_end() -> None:
    """torch's C++ ends the process with SIGABRT when the interpreter is taken down under it, so it is not taken down."""
    code = (
        "import atexit, sys, threading, time, agent.__main__ as m, agent.cli.main as c\n"
        "class Last:\n"
        "    def __del__(self): print('taken down')\n"
        "last = Last()\n"
        "atexit.register(print, 'at exit')\n"
        "def interrupted():\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "    sys.exit(130)\n"
        "c.main = interrupted\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "at exit\n", "")


def test_what_was_loaded_is_not_searched_for_garbage_at_the_end() -> None:
    """An object in a cycle is found by that search alone, so its finalizer tells whether it was made."""
    code = (
        "import sys, agent.__main__ as m\n"
        "class Knot:\n"
        "    def __del__(self): print('searched')\n"
        "knot = Knot()\n"
        "knot.self = knot\n"
        "sys.argv = ['agent', '--help']\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: agent")
    assert "searched" not in done.stdout


def test_under_nohup_the_end_of_the_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
