"""A run from end to end: real git, a real sandbox, real tools and checks; only the model is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from agent import session
from agent.config import RunConfig
from agent.errors import AgentError, LogError, ModelUnfit, UsageError
from agent.events import (
    Checked,
    Event,
    MessageAdded,
    Outcome,
    Resumed,
    RunEnded,
    RunStarted,
    ToolFinished,
    ToolStarted,
    fold,
)
from agent.log import LOG_NAME, Log, read
from agent.loop import EFFECT_UNKNOWN
from agent.runs import PATCH_NAME
from agent.session import LOST, RESTORED, fix, resume
from agent.workshop import SNAPSHOT_NAME, Workshop, commit_message
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.client import Client
from sandbox.errors import WorktreeError
from sandbox.open import SandboxOptions, open_sandbox
from tests.servers import Reply, document, head, serving

ROOT = Path(__file__).resolve().parents[2]
PYTEST = f"{sys.executable} -m pytest -q -p no:hypothesispytest"
CHECK = f"{sys.executable} -S -B -c 'import calc; assert calc.double(2) == 4; assert calc.double(3) == 6'"
BUGGY = "def double(n):\n    return n + 2\n"
TEST = "from calc import double\n\n\ndef test_two():\n    assert double(2) == 4\n\n\ndef test_three():\n    assert double(3) == 6\n"
PATCH = "*** Begin Patch\n*** Update File: calc.py\n@@\n-    return n + 2\n+    return n * 2\n*** End Patch\n"
SPOIL = "*** Begin Patch\n*** Update File: calc.py\n@@\n-    return n + 2\n+    return n + 3\n*** End Patch\n"
LOOK = [
    {"channel": "analysis", "text": "hm"},
    {"recipient": "repo_browser.open_file", "arguments": {"path": "calc.py"}},
]
PLAN = [{"recipient": "functions.plan", "arguments": {"steps": [{"text": "fix", "state": "in_progress"}]}}]


def patch(text: str) -> list[dict[str, object]]:
    return [{"recipient": "repo_browser.apply_patch", "arguments": {"patch": text}}]


def shell(command: str) -> list[dict[str, object]]:
    return [{"recipient": "container.exec", "arguments": {"command": ["sh", "-c", command]}}]


DONE = [{"text": "double() added where it should multiply."}]
FIX = [LOOK, patch(PATCH), DONE]


def git(repository: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "calc.py").write_text(BUGGY)
    (folder / "test_calc.py").write_text(TEST)
    (folder / "AGENTS.md").write_text("Keep functions pure.\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "A start")
    return folder


Configure = Callable[..., RunConfig]


@pytest.fixture(params=["none", pytest.param("docker", marks=pytest.mark.docker)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A configuration that plays the given answers. The sandbox is a folder of this machine unless said otherwise."""

    def make(turns: object, **keys: object) -> RunConfig:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"turns": turns}))
        config = RunConfig(wire="scripted", script=script, sandbox="none", checks=(CHECK,), image="host")
        return replace(config, runs_dir=tmp_path / "runs", cache_dir=tmp_path / "cache", **keys)

    return make


def folder_of(config: RunConfig) -> Path:
    (folder,) = config.runs_dir.iterdir()
    return folder


def events_of(config: RunConfig) -> list[Event]:
    return [entry.event for entry in read(folder_of(config) / LOG_NAME)]


def test_a_bug_is_fixed_and_handed_back_as_a_branch(repository: Path, configure: Configure, kind: str) -> None:
    config = configure([PLAN, *FIX], sandbox=kind, checks=(PYTEST,))
    shown: list[Event] = []
    ended = fix(config, "double(3) is 5\n\nIt should be 6.", repository, "fix", shown.append)

    assert ended.outcome is Outcome.PASSED, ended
    assert "1 failed before and pass now: test_calc.py::test_three" in ended.reason
    assert (ended.changed_paths, ended.test_paths) == (("calc.py",), ())
    assert ended.branch is not None
    assert ended.branch.startswith("agent/double-3-is-5")
    assert git(repository, "rev-parse", ended.branch).strip() == ended.commit
    assert git(repository, "show", f"{ended.branch}:calc.py") == BUGGY.replace("+ 2", "* 2")
    assert git(repository, "rev-list", "--count", f"main..{ended.branch}").strip() == "1"
    log = git(repository, "log", "-1", "--format=%B", ended.branch)
    assert log.startswith("double(3) is 5\n\ndouble() added where it should multiply.\n\nObserved: ")
    # The person's checkout was not touched.
    assert (repository / "calc.py").read_text() == BUGGY
    assert git(repository, "status", "--porcelain") == ""
    # The log holds what was shown, save what is for the eye only.
    events = events_of(config)
    assert [e for e in shown if type(e).__name__ != "Delta"] == events
    assert events[-1] == ended
    assert fold(events).plan
    assert (folder_of(config) / PATCH_NAME).read_bytes().startswith(b"diff --git a/calc.py b/calc.py")
    before = next(e for e in events if isinstance(e, Checked))
    assert before.results[0].tests == {"test_calc.py::test_two": "passed", "test_calc.py::test_three": "failed"}


def test_what_a_run_keeps_is_for_nobody_else_on_the_machine(repository: Path, configure: Configure) -> None:
    config = configure([[{"channel": "final", "text": "No change."}]])
    fix(config, "Look.", repository, "ask", lambda _: None)
    assert folder_of(config).stat().st_mode & 0o777 == 0o700


def test_a_folder_for_runs_that_cannot_be_made_is_named_before_anything_begins(
    repository: Path, configure: Configure, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    config = replace(configure([]), runs_dir=tmp_path / "file" / "runs")
    with pytest.raises(UsageError, match=r"cannot be kept in .*file/runs: Not a directory; name another"):
        fix(config, "Look.", repository, "ask", lambda _: None)


def test_the_first_event_holds_the_whole_prompt_and_no_key(repository: Path, configure: Configure) -> None:
    config = configure(FIX, api_key="sk-very-secret")
    fix(config, "fix it", repository, "fix", lambda _: None)
    started = events_of(config)[0]
    assert isinstance(started, RunStarted)
    assert (started.task, started.mode, started.repository) == ("fix it", "fix", str(repository))
    assert started.base_commit == git(repository, "rev-parse", "HEAD").strip()
    assert "Keep functions pure." in started.conversation.instructions
    assert CHECK in started.conversation.instructions
    assert "<issue>\nfix it\n</issue>" in started.conversation.messages[0].text
    assert "container.exec" in [tool.name for tool in started.conversation.tools]
    assert b"sk-very-secret" not in (folder_of(config) / LOG_NAME).read_bytes()


def test_the_prompt_is_the_same_for_the_same_task(repository: Path, configure: Configure) -> None:
    config = configure(FIX)
    conversations = []
    for _ in range(2):
        fix(replace(config, deliver="patch"), "fix it", repository, "fix", lambda _: None)
    for folder in config.runs_dir.iterdir():
        conversations.append(fold([read(folder / LOG_NAME)[0].event]).conversation)
    assert conversations[0] == conversations[1]


def test_checks_are_found_when_none_is_named(repository: Path, configure: Configure) -> None:
    config = configure(FIX, checks=())
    fix(config, "fix it", repository, "fix", stop_at(RunStarted))
    assert fold(events_of(config)).config["checks"] == ["python -m pytest -q"]


def test_what_the_checks_leave_behind_is_not_the_models_work(repository: Path, configure: Configure) -> None:
    (repository / "counter").write_text("0")
    config = configure(FIX, checks=(f"touch litter; echo >> counter; rm -f test_calc.py; {CHECK}",))
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.changed_paths) == (Outcome.PASSED, ("calc.py",))


def test_a_claim_does_not_count(repository: Path, configure: Configure) -> None:
    turns = [LOOK, patch(SPOIL), DONE, [{"text": "All tests pass."}], [{"text": "All tests pass!"}]]
    ended = fix(configure(turns), "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.claimed) == (Outcome.CHECKS_FAILED, "All tests pass!")
    assert "failed before and still fails" in ended.reason


def test_no_change_makes_no_branch(repository: Path, configure: Configure) -> None:
    config = configure([LOOK, DONE, DONE])
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.branch) == (Outcome.NO_CHANGE, None)
    assert git(repository, "branch", "--format=%(refname:short)").split() == ["main"]
    assert not (folder_of(config) / PATCH_NAME).exists()


def test_a_change_to_tests_is_reported(repository: Path, configure: Configure) -> None:
    cheat = "*** Begin Patch\n*** Delete File: test_calc.py\n*** Add File: test_new.py\n+def test_x(): pass\n*** End Patch\n"
    ended = fix(configure([LOOK, patch(cheat), DONE], checks=(PYTEST,)), "fix it", repository, "fix", lambda _: None)
    assert ended.test_paths == ("test_calc.py", "test_new.py")
    assert "the change touches tests" in ended.reason
    assert "no longer run" in ended.reason


def test_asking_offers_no_tool_that_writes(repository: Path, configure: Configure) -> None:
    config = configure([LOOK, patch(PATCH), shell("touch x"), [{"text": "It adds."}]])
    ended = fix(config, "what does double do?", repository, "ask", lambda _: None)
    assert (ended.outcome, ended.claimed, ended.changed_paths) == (Outcome.ANSWERED, "It adds.", ())
    results = [e.result.ok for e in events_of(config) if isinstance(e, ToolFinished)]
    assert results == [True, False, False]
    assert not any(isinstance(e, Checked) for e in events_of(config))


def test_delivering_a_patch_makes_no_branch(repository: Path, configure: Configure) -> None:
    config = configure(FIX, deliver="patch")
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.branch) == (Outcome.PASSED, None)
    git(repository, "apply", str(folder_of(config) / PATCH_NAME))
    assert (repository / "calc.py").read_text() == BUGGY.replace("+ 2", "* 2")


LINK = shell("ln -s /etc/passwd leak")


def test_what_may_not_leave_is_told_and_can_be_undone(repository: Path, configure: Configure) -> None:
    config = configure([LOOK, patch(PATCH), LINK, DONE, shell("rm leak"), DONE])
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.changed_paths) == (Outcome.PASSED, ("calc.py",))
    told = [e.message.text for e in events_of(config) if isinstance(e, MessageAdded)]
    assert any("'leak': a link may not point outside the repository" in text for text in told)


def test_what_may_not_leave_stays_inside(repository: Path, configure: Configure) -> None:
    config = configure([LOOK, patch(PATCH), LINK, DONE, DONE])
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.branch) == (Outcome.REFUSED, None)
    assert "may not point outside" in ended.reason
    assert not (folder_of(config) / PATCH_NAME).exists()
    assert git(repository, "branch", "--format=%(refname:short)").split() == ["main"]


def test_a_limit_hands_back_what_there_is(repository: Path, configure: Configure) -> None:
    ended = fix(configure(FIX, max_turns=2), "fix it", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.changed_paths) == (Outcome.LIMIT, ("calc.py",))
    assert ended.branch is not None


def test_a_dead_endpoint_ends_the_run_with_its_own_outcome(repository: Path, configure: Configure) -> None:
    config = configure([], wire="chat", endpoint="http://127.0.0.1:9/v1", model="m", endpoint_timeout_s=0.2)
    ended = fix(config, "fix it", repository, "fix", lambda _: None)
    assert ended.outcome is Outcome.ENDPOINT
    assert events_of(config)[-1] == ended


def test_a_script_that_ends_too_early_is_a_limit_and_no_fault_of_an_endpoint(
    repository: Path, configure: Configure
) -> None:
    ended = fix(configure([LOOK]), "fix it", repository, "fix", lambda _: None)
    assert ended.outcome is Outcome.LIMIT
    assert "the script is at its end" in ended.reason


def test_where_no_run_can_begin_nothing_is_left(tmp_path: Path, configure: Configure) -> None:
    (tmp_path / "plain").mkdir()
    config = configure(FIX)
    with pytest.raises(WorktreeError):
        fix(config, "fix it", tmp_path / "plain", "fix", lambda _: None)
    assert not list(config.runs_dir.glob("*"))


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        ("main", "already exists; give another name with --branch"),
        ("a..b", "is not a valid branch name"),
        ("-f", "is not a valid branch name"),
        ("HEAD", "is not a valid branch name"),
        ("@{-1}", "is not a valid branch name"),
        ("main/more", "there is a branch main, and git does not allow main/more beside it; give another"),
    ],
)
def test_a_branch_that_cannot_be_made_is_said_before_the_run(
    repository: Path, configure: Configure, branch: str, said: str
) -> None:
    config = configure(FIX, branch=branch)
    with pytest.raises(UsageError, match=said):
        fix(config, "fix it", repository, "fix", lambda _: None)
    assert not list(config.runs_dir.iterdir())


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("repository", "repository exists and is not empty; name another"),
        ("script.json/new", "script.json is not a folder"),
    ],
)
def test_a_worktree_that_cannot_be_made_is_said_before_the_run(
    repository: Path, configure: Configure, tmp_path: Path, folder: str, said: str
) -> None:
    config = configure(FIX, worktree=tmp_path / folder)
    with pytest.raises(UsageError, match=said):
        fix(config, "fix it", repository, "fix", lambda _: None)
    assert not list(config.runs_dir.iterdir())


TWO_MODELS = {"object": "list", "data": [{"id": f"gpt-oss-{size}", "object": "model"} for size in ("20b", "120b")]}


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (document(TWO_MODELS), UsageError, "choose one with --model"),
        ([head(200, "text/html"), b"<html>"], ModelUnfit, "is not a JSON object"),
    ],
)
def test_a_model_that_cannot_be_had_is_no_run(
    repository: Path, configure: Configure, answer: Reply, error: type[AgentError], said: str
) -> None:
    with serving([answer]) as server:
        config = configure(FIX, wire="auto", script=None, endpoint=server.url, model=None)
        events: list[Event] = []
        with pytest.raises(error, match=said):
            fix(config, "fix it", repository, "fix", events.append)
    assert isinstance(events[-1], RunEnded)
    assert not list(config.runs_dir.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [("gone.json", None, UsageError), ("odd.json", "{", UsageError), ("cut.jsonl", "{}\n{}\n", LogError)],
)
def test_a_script_that_cannot_be_read_is_no_run(
    repository: Path, configure: Configure, tmp_path: Path, name: str, text: str | None, error: type[AgentError]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    config = configure(FIX, script=tmp_path / name)
    with pytest.raises(error, match=name):
        fix(config, "fix it", repository, "fix", lambda _: None)
    assert not list(config.runs_dir.iterdir())


def test_a_branch_that_cannot_be_made_at_the_end_loses_no_work(
    repository: Path, configure: Configure, kind: str
) -> None:
    """The sandbox is taken down while the branch is made: what there is to save was saved before."""
    config = configure([*FIX, DONE], branch="mine", sandbox=kind)

    def show(event: Event) -> None:
        if isinstance(event, Checked) and event.when == "after":
            git(repository, "branch", "mine")

    ended = fix(config, "fix it", repository, "fix", show)
    assert (ended.outcome, ended.changed_paths) == (Outcome.INTERNAL, ("calc.py",))
    assert "the branch mine already exists" in ended.reason
    for name in (PATCH_NAME, SNAPSHOT_NAME):
        assert b"return n * 2" in (folder_of(config) / name).read_bytes()
    git(repository, "branch", "-D", "mine")
    ended = resume(folder_of(config), lambda _: None)
    assert (ended.outcome, ended.branch) == (Outcome.PASSED, "mine")
    assert git(repository, "show", "mine:calc.py") == BUGGY.replace("+ 2", "* 2")


def test_a_defect_is_logged_and_raised(repository: Path, configure: Configure) -> None:
    class Defect(Exception):
        pass

    def show(event: Event) -> None:
        if isinstance(event, ToolStarted):
            raise Defect("the screen broke")

    config = configure(FIX)
    with pytest.raises(Defect):
        fix(config, "fix it", repository, "fix", show)
    ended = events_of(config)[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.outcome, ended.reason) == (Outcome.INTERNAL, "the screen broke")


# -- interrupts and kills -------------------------------------------------------------------------------------------


def stop_at(kind: type, number: int = 1) -> Callable[[Event], None]:
    """A screen that presses Ctrl-C at the given occurrence of an event."""
    seen = 0

    def show(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, kind)
        if isinstance(event, kind) and seen == number:
            raise KeyboardInterrupt

    return show


@pytest.mark.parametrize(
    ("at", "number"), [(MessageAdded, 1), (Checked, 1), (ToolStarted, 1), (ToolStarted, 2), (ToolFinished, 2)]
)
def test_an_interrupted_run_says_so_and_can_go_on(
    repository: Path, configure: Configure, at: type, number: int
) -> None:
    # Where the patch was lost with the interrupt, the model is told so and makes it again.
    config = configure([*FIX, patch(PATCH), DONE])
    ended = fix(config, "fix it", repository, "fix", stop_at(at, number))
    assert (ended.outcome, ended.reason) == (Outcome.INTERRUPTED, "stopped by Ctrl-C or a signal")
    assert events_of(config)[-1] == ended
    assert resume(folder_of(config), lambda _: None).outcome is Outcome.PASSED
    events = events_of(config)
    assert sum(isinstance(e, Resumed) for e in events) == 1
    assert sum(isinstance(e, RunEnded) for e in events) == 2
    calls = [e.call for e in events if isinstance(e, ToolFinished)]
    assert len(calls) == len(set(calls)), "no call is answered twice"


def test_an_interrupt_after_the_end_leaves_the_result_as_it_is(repository: Path, configure: Configure) -> None:
    config = configure([*FIX, DONE])

    def interrupt(event: Event) -> None:
        if isinstance(event, RunEnded):
            raise KeyboardInterrupt

    ended = fix(config, "x", repository, "fix", interrupt)
    assert (ended.outcome, bool(ended.branch)) == (Outcome.PASSED, True)
    assert sum(isinstance(event, RunEnded) for event in events_of(config)) == 1


def test_an_interrupt_between_the_branch_and_the_end_takes_the_branch_back(
    repository: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure([*FIX, DONE])
    append = Log.append

    def interrupted(log: Log, event: Event) -> None:
        if isinstance(event, RunEnded) and event.branch:
            monkeypatch.undo()
            raise KeyboardInterrupt
        append(log, event)

    monkeypatch.setattr(Log, "append", interrupted)
    ended = fix(config, "x", repository, "fix", lambda _: None)
    assert (ended.outcome, ended.branch) == (Outcome.INTERRUPTED, None)
    assert git(repository, "branch", "--list", "agent/*") == ""
    resumed = resume(folder_of(config), lambda _: None)
    assert resumed.outcome is Outcome.PASSED
    assert git(repository, "branch", "--list", "agent/*").split() == [resumed.branch]


def test_after_an_interrupt_the_work_is_restored_from_the_saved_copy(repository: Path, configure: Configure) -> None:
    config = configure(FIX)
    fix(config, "fix it", repository, "fix", stop_at(ToolFinished, 2))
    assert b"return n * 2" in (folder_of(config) / SNAPSHOT_NAME).read_bytes()
    assert b"return n * 2" in (folder_of(config) / PATCH_NAME).read_bytes(), "agent diff works on it"
    written = (folder_of(config) / LOG_NAME).stat()
    # Both within one tick of the clock.
    os.utime(folder_of(config) / PATCH_NAME, ns=(written.st_atime_ns, written.st_mtime_ns))
    ended = resume(folder_of(config), lambda _: None)
    assert (ended.outcome, ended.changed_paths) == (Outcome.PASSED, ("calc.py",))
    told = [e.message.text for e in events_of(config) if isinstance(e, MessageAdded)]
    assert RESTORED in told


def test_a_call_that_a_lost_sandbox_took_along_is_not_repeated(repository: Path, configure: Configure) -> None:
    config = configure([shell("echo once >> ran.txt"), *FIX, patch(PATCH), DONE])
    fix(config, "fix it", repository, "fix", stop_at(ToolStarted, 1))
    assert resume(folder_of(config), lambda _: None).outcome is Outcome.PASSED
    results = [e.result.text for e in events_of(config) if isinstance(e, ToolFinished)]
    assert results[0] == LOST


def test_a_finished_run_does_not_go_on(repository: Path, configure: Configure) -> None:
    config = configure(FIX)
    fix(config, "fix it", repository, "fix", lambda _: None)
    with pytest.raises(UsageError, match=r"has ended \(passed\)"):
        resume(folder_of(config), lambda _: None)


def test_a_run_that_met_a_limit_may_use_as_much_again(repository: Path, configure: Configure) -> None:
    config = configure(FIX, max_turns=2)
    assert fix(config, "fix it", repository, "fix", lambda _: None).outcome is Outcome.LIMIT
    ended = resume(folder_of(config), lambda _: None)
    assert ended.outcome is Outcome.PASSED, ended
    assert ended.branch is not None
    assert ended.branch.endswith("-2"), "the branch of the first end stays as it is"
    told = [e.message.text for e in events_of(config) if isinstance(e, MessageAdded)]
    assert any("The person asks you to go on" in text for text in told)


def test_a_log_without_a_start_is_an_error(tmp_path: Path) -> None:
    with Log(tmp_path / LOG_NAME, new=True):
        pass
    with pytest.raises(LogError, match="holds no RunStarted"):
        resume(tmp_path, lambda _: None)


SLOW = [LOOK, shell("echo once >> ran.txt"), shell("echo started > slow.txt; sleep 30"), patch(PATCH), DONE]


@pytest.mark.parametrize(
    "lost", [pytest.param(False, marks=pytest.mark.docker), True], ids=["the container lives", "the sandbox is gone"]
)
def test_killed_with_sigkill_in_the_middle_of_a_command_it_goes_on(
    repository: Path, configure: Configure, tmp_path: Path, lost: bool
) -> None:
    config = configure([*SLOW, *[patch(PATCH), DONE]], sandbox="none" if lost else "docker")
    code = (
        "import sys; from pathlib import Path; from agent.config import restore; from agent.session import fix; import json\n"
        "config = restore(json.loads(sys.argv[1])); fix(config, 'fix it', Path(sys.argv[2]), 'fix', lambda _: None)"
    )
    from agent.config import public

    arguments = [sys.executable, "-c", code, json.dumps(public(config)), str(repository)]
    process = subprocess.Popen(arguments, cwd=ROOT)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        assert process.poll() is None
        logs = list(config.runs_dir.glob(f"*/{LOG_NAME}"))
        calls = [e for e in events_of(config) if isinstance(e, ToolStarted)] if logs else []
        saved = folder_of(config) / SNAPSHOT_NAME if logs else tmp_path / "none"
        if len(calls) == 3 and saved.exists() and b"+once" in saved.read_bytes():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    ended = resume(folder_of(config), lambda _: None)
    assert ended.outcome is Outcome.PASSED, ended
    events = events_of(config)
    (resumed,) = [e for e in events if isinstance(e, Resumed)]
    assert resumed.note == ("the workspace was restored from the last saved copy" if lost else "in the sandbox it left")
    results = [e.result.text for e in events if isinstance(e, ToolFinished)]
    assert results[2] == (LOST if lost else EFFECT_UNKNOWN)
    assert "once\n" in (folder_of(config) / PATCH_NAME).read_text()
    assert (folder_of(config) / PATCH_NAME).read_text().count("+once") == 1, "a finished command ran again"


def test_work_that_is_saved_needs_neither_its_sandbox_nor_room_on_the_disk(
    repository: Path, configure: Configure, tmp_path: Path
) -> None:
    """As where the disk is full when the branch is made: the sandbox is gone by then, and must not be said to wait."""
    snapshot = snapshots.take(repository, tmp_path / "state")
    box: Future[Sandbox] = Future()
    box.set_result(open_sandbox(SandboxOptions("saved", "none"), snapshot))
    shop = Workshop(configure([]), tmp_path, snapshot, (), {}, box, Future())
    try:
        box.result().write("calc.py", BUGGY.replace("+ 2", "* 2").encode())
        assert shop.salvage().paths == ("calc.py",)
        assert b"return n * 2" in (tmp_path / SNAPSHOT_NAME).read_bytes()
    finally:
        shop.saver.close()
        box.result().close()
    inode = (tmp_path / SNAPSHOT_NAME).stat().st_ino
    shop.save()
    assert (tmp_path / SNAPSHOT_NAME).stat().st_ino == inode


def test_work_that_is_saved_is_not_replaced_with_what_was_looked_at_before(
    repository: Path, configure: Configure, tmp_path: Path
) -> None:
    """The saver's thread looks and writes; so does the run at its end, and its work is the newer."""
    looked, go_on = threading.Event(), threading.Event()

    class Changing:
        def diff(self) -> bytes:
            if looked.is_set():
                return b"newer"
            looked.set()
            go_on.wait(60)
            return b"older"

    snapshot = snapshots.take(repository, tmp_path / "state")
    box: Future[Sandbox] = Future()
    box.set_result(Changing())  # type: ignore[arg-type]
    shop = Workshop(configure([]), tmp_path, snapshot, (), {}, box, Future())
    threads = [threading.Thread(target=shop.save) for _ in range(2)]
    threads[0].start()
    assert looked.wait(60)
    threads[1].start()
    threads[1].join(0.2)  # time to be the first to write
    go_on.set()
    for thread in threads:
        thread.join()
    shop.saver.close()
    assert (tmp_path / SNAPSHOT_NAME).read_bytes() == b"newer"


@pytest.mark.parametrize("mode", ["fix", "ask"])
def test_a_sandbox_that_cannot_be_removed_holds_up_no_result(
    repository: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """As where the Docker engine hangs: the branch is there, the run ends, and the person is told what is left."""
    engine_answers, opened = threading.Event(), list[Client]()

    def open_in_a_hanging_engine(options: SandboxOptions, snapshot: snapshots.Snapshot) -> Sandbox:
        box = open_sandbox(options, snapshot)
        assert isinstance(box, Client)
        end = box.end

        def hang(keep: bool) -> None:
            engine_answers.wait()
            end(keep)

        box.end = hang
        opened.append(box)
        return box

    monkeypatch.setattr(session, "open_sandbox", open_in_a_hanging_engine)
    monkeypatch.setattr(session, "CLOSE_TIMEOUT_S", 0.2)
    said: list[str] = []
    try:
        ended = fix(configure(FIX), "fix it", repository, mode, lambda _: None, said.append)
    finally:
        engine_answers.set()
        opened[0].close()
    assert (ended.outcome, bool(ended.branch)) == (
        (Outcome.PASSED, True) if mode == "fix" else (Outcome.ANSWERED, False)
    )
    assert "`agent sandbox clean` removes what is left" in said[-1]


def test_killed_while_its_change_landed_it_lands_without_asking_the_model_again(
    repository: Path, configure: Configure
) -> None:
    config = configure(FIX)
    once = fix(config, "fix it", repository, "fix", lambda _: None)
    assert once.branch is not None
    git(repository, "branch", "-D", once.branch)
    log = folder_of(config) / LOG_NAME
    *lines, _ended = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines))  # as if killed before this was written
    landed_ns = (folder_of(config) / PATCH_NAME).stat().st_mtime_ns
    os.utime(log, ns=(landed_ns, landed_ns))

    again = resume(folder_of(config), lambda _: None)
    assert (again.outcome, again.branch) == (Outcome.PASSED, once.branch)
    assert git(repository, "show", f"{again.branch}:calc.py") == BUGGY.replace("+ 2", "* 2")
    assert [type(e).__name__ for e in events_of(config)[len(lines) :]] == ["Resumed", "RunEnded"]


@pytest.mark.docker
def test_work_that_this_machine_cannot_take_waits_in_the_sandbox(repository: Path, configure: Configure) -> None:
    config = configure([patch(PATCH), DONE], sandbox="docker")

    def fill_the_disk(event: Event) -> None:
        if isinstance(event, ToolFinished):
            for folder in ("objects/pack", "objects"):
                place = folder_of(config) / "base.git" / folder
                place.rename(place.with_name(f"{place.name}.away"))
            (folder_of(config) / SNAPSHOT_NAME).mkdir()

    ended = fix(config, "fix it", repository, "fix", fill_the_disk)
    assert (ended.outcome, ended.branch) == (Outcome.INTERNAL, None)
    assert f"waits 15 minutes for `agent resume {folder_of(config).name}`" in ended.reason
    for folder in ("objects", "objects/pack"):
        place = folder_of(config) / "base.git" / folder
        place.with_name(f"{place.name}.away").rename(place)
    (folder_of(config) / SNAPSHOT_NAME).rmdir()

    ended = resume(folder_of(config), lambda _: None)
    assert ended.outcome is Outcome.PASSED, ended
    assert [e.note for e in events_of(config) if isinstance(e, Resumed)] == ["in the sandbox it left"]
    assert git(repository, "show", f"{ended.branch}:calc.py") == BUGGY.replace("+ 2", "* 2")


def test_the_commit_message_is_short_in_its_first_line() -> None:
    message = commit_message("word " * 40 + "\nmore", " I did it.\n", "it passes")
    subject, empty, claimed, _, observed = message.splitlines()
    assert len(subject) <= 72
    assert subject.endswith(" word…")
    assert (empty, claimed, observed) == ("", "I did it.", "Observed: it passes")
    assert commit_message(" \n", "", "x").startswith("Change by gpt-oss-agent\n")


def test_the_commit_message_holds_nothing_that_a_terminal_git_or_a_service_obeys() -> None:
    message = commit_message(
        "a\x1b]0;b\x07", "\0 \x1b[31mred\x1b[0m \ud800", "`x` fails: 1 t[a\n\nCo-authored-by: b <c@d>]"
    )
    assert message.split("\n\n") == [
        "a\\x1b]0;b\\x07",
        "\\x00 red \\ud800",
        "Observed: `x` fails: 1 t[a Co-authored-by: b <c@d>]\n",
    ]
