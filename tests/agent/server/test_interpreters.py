"""Sandboxes for callers: who gets which, when they are closed, and what a real server leaves behind. Most over a sandbox that only counts."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.config import RunConfig
from agent.errors import UsageError
from agent.server.equip import equipped
from agent.server.interpreters import Interpreter, Interpreters
from sandbox.base import Sandbox
from sandbox.errors import SandboxError, SandboxLost, WorktreeError
from tests.agent.server.equipment import pool
from tests.agent.server.served import until
from tests.agent.server.test_clients import ROOT, environment


@dataclass
class Counter:
    """Opens sandboxes that do nothing but close."""

    opened: int = 0
    closed: list[int] = field(default_factory=list)
    fails: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def start(self) -> Sandbox:
        if self.fails is not None:
            raise self.fails
        self.opened += 1
        number = self.opened
        self.gate.wait(10)
        counter = self

        class Empty:
            def close(self) -> None:
                counter.closed.append(number)

        return Empty()  # type: ignore[return-value]


@contextmanager
def counted(most: int = 3, idle_s: float = 60.0) -> Iterator[tuple[Counter, Interpreters]]:
    counter = Counter()
    with pool(counter.start, most, idle_s) as interpreters:
        yield counter, interpreters


def taken(interpreters: Interpreters, wanted: str | None = None) -> Interpreter:
    found = interpreters.take(wanted)
    assert found is not None
    found.opened()
    return found


def test_the_first_is_warm_and_another_is_warmed_when_it_is_taken() -> None:
    with counted() as (counter, interpreters):
        assert counter.opened == 1
        taken(interpreters)
        until(lambda: counter.opened == 2)
    assert sorted(counter.closed) == [1, 2]


def test_an_idle_one_is_found_by_its_id_and_a_taken_one_is_not_shared() -> None:
    with counted() as (_, interpreters):
        first = taken(interpreters)
        assert not first.lost
        second = taken(interpreters, first.id)
        assert second is not first
        assert second.lost
        interpreters.give(first)
        interpreters.give(first)  # twice is once
        assert first.id in interpreters
        assert taken(interpreters, first.id) is first
        assert not first.lost
        assert "cntr_other" not in interpreters


def test_the_one_that_was_idle_for_longest_makes_room() -> None:
    with counted(most=2) as (counter, interpreters):
        one, two = taken(interpreters), taken(interpreters)
        assert interpreters.take(None) is None
        interpreters.give(one)
        interpreters.give(two)
        three = taken(interpreters)
        assert one.id not in interpreters
        assert two.id in interpreters
        until(lambda: len(counter.closed) == 1)
        with pytest.raises(SandboxLost):
            one.opened()
        interpreters.give(three)


def test_one_that_was_warmed_for_a_place_that_was_taken_meanwhile_is_closed() -> None:
    with counted(most=2) as (counter, interpreters):
        counter.gate.clear()
        taken(interpreters)
        until(lambda: counter.opened == 2)  # one is being warmed for the last place
        assert interpreters.take(None) is not None
        counter.gate.set()
        until(lambda: counter.closed == [2])
        assert interpreters.take(None) is None


def test_idle_ones_are_closed_in_time() -> None:
    with counted(idle_s=0.2) as (counter, interpreters):
        first = taken(interpreters)
        interpreters.give(first)
        until(lambda: counter.closed == [1])
        assert first.id not in interpreters


def test_discarding_returns_at_once_and_closes_behind() -> None:
    with counted() as (counter, interpreters):
        until(lambda: counter.opened == 1)
        first = taken(interpreters)
        interpreters.discard(first)
        interpreters.give(first)  # too late
        assert first.id not in interpreters
        until(lambda: 1 in counter.closed)


def test_one_that_is_closed_while_it_starts_is_closed_when_it_is_there() -> None:
    counter = Counter()
    counter.gate.clear()
    interpreter = Interpreter(counter.start)
    caught: list[Exception] = []

    def open_it() -> None:
        try:
            interpreter.opened()
        except SandboxLost as error:
            caught.append(error)

    thread = threading.Thread(target=open_it)
    thread.start()
    until(lambda: counter.opened == 1)
    interpreter.close()
    counter.gate.set()
    thread.join()
    assert (counter.closed, len(caught)) == ([1], 1)


@pytest.mark.parametrize("failure", [SandboxError("no engine"), WorktreeError("no git"), OSError("no space left")])
def test_an_engine_that_goes_away_is_no_end(failure: Exception) -> None:
    with counted() as (counter, interpreters):
        counter.fails = failure
        first = taken(interpreters)
        until(lambda: interpreters._retry_s > time.monotonic())  # it is left alone for a while
        second = interpreters.take(None)
        assert second is not None
        with pytest.raises(type(failure)):
            second.opened()
        counter.fails = None
        second.opened()
        interpreters.give(first)
        interpreters.give(second)


def test_an_engine_that_is_not_there_is_told_at_the_start() -> None:
    counter = Counter(fails=SandboxError("no engine"))
    interpreters = Interpreters(counter.start)
    with pytest.raises(SandboxError):
        interpreters.open()
    interpreters.close()


def test_what_cannot_be_switched_on_says_why() -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match="EXA_API_KEY"), equipped(RunConfig(), "auto", 0, told.append):
        pass
    with (
        pytest.raises(UsageError, match="only in containers"),
        equipped(RunConfig(sandbox="none"), None, 1, told.append),
    ):
        pass
    with equipped(RunConfig(exa_api_key="k"), "exa", 0, told.append) as builtins:
        assert (builtins.offer.web, builtins.offer.code) == (True, False)
    with equipped(RunConfig(), None, 0, told.append) as builtins:
        assert (builtins.offer.web, builtins.offer.code) == (False, False)


def containers(pids: int) -> int:
    """How many containers that may have so many processes there are: others use the engine at the same time."""
    listed = subprocess.run(["docker", "ps", "-q"], capture_output=True, text=True, check=True).stdout.split()
    looked = ["docker", "inspect", "--format", "{{.HostConfig.PidsLimit}}", *listed]
    return subprocess.run(looked, capture_output=True, text=True, check=False).stdout.split().count(str(pids))


NETWORK = (
    "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 2)\nexcept OSError as e:\n    print('no', e)"
)


@pytest.mark.docker
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_server_runs_code_in_a_container_and_leaves_none_behind(tmp_path: Path, ending: signal.Signals) -> None:
    turns: list[Any] = [
        [{"text": NETWORK, "channel": "analysis", "recipient": "python", "content_type": "code"}],
        [{"text": "Done.", "channel": "final"}],
    ]
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"turns": turns}))
    pids = 100_000 + secrets.randbelow(900_000)  # nobody else's
    settings = {"AGENT_NETWORK": "on", "AGENT_IMAGE": "host", "AGENT_PIDS": str(pids)}
    env = {**environment(tmp_path / "home"), "PYTHONPATH": str(ROOT), **settings}
    command = [sys.executable, "-m", "agent", "serve", "--backend", "scripted", "--script", str(script), "--port", "0"]
    with subprocess.Popen(
        [*command, "--code-interpreter"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        request = {
            "input": "Go",
            "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
            "include": ["code_interpreter_call.outputs"],
        }
        answer = httpx2.post(f"{url}/responses", json=request, timeout=60).json()
        ran = containers(pids)
        process.send_signal(ending)
        assert process.wait(20) == (0 if ending is signal.SIGTERM else -signal.SIGKILL)
    assert answer["output"][0]["outputs"][0]["logs"].startswith("no ")  # also where the configuration has a network
    assert answer["output"][-1]["content"][0]["text"] == "Done."
    assert ran
    until(lambda: not containers(pids), 60.0)
