"""A signal that comes in the middle of a destructor stops the program all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import signal, sys, time, weakref
import agent.cli.main as command_line

def on_signal(number, frame):
    raise {raised}

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def by_destructor():
    Last()

def by_weak_reference():
    class Thing: pass
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing

def work(*arguments, **settings):
    signal.signal(signal.SIGTERM, on_signal)
    {way}()
    time.sleep(60)

command_line.cli.main = work
command_line.main()
"""


@pytest.mark.parametrize("way", ["by_destructor", "by_weak_reference"])
@pytest.mark.parametrize(("raised", "code"), [("SystemExit(143)", 143), ("KeyboardInterrupt", 130)])
def test_what_python_drops_is_raised_again(way: str, raised: str, code: int) -> None:
    program = PROGRAM.format(way=way, raised=raised)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == code
    assert "Exception ignored" not in done.stderr


def test_other_errors_of_a_destructor_are_reported_as_ever() -> None:
    program = (
        "from agent.interrupts import keep_interrupts\n"
        "class Last:\n"
        "    def __del__(self): raise ValueError('a defect')\n"
        "keep_interrupts()\n"
        "Last()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Exception ignored" in done.stderr
    assert "a defect" in done.stderr
