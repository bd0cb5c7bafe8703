"""Typing: keys as a terminal sends them, the history file, and lines from a pipe."""

from __future__ import annotations

import io
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from agent.chat.terminal import piped, typed
from agent.errors import UsageError

UP = "\x1b[A"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as opened:
        yield opened


def what_is_typed(keyboard: PipeInput, history: Path, keys: str) -> list[str]:
    keyboard.send_text(keys)
    return list(typed(history, ["help", "save"], keyboard, DummyOutput()))


def test_enter_sends_and_ctrl_d_leaves(keyboard: PipeInput, tmp_path: Path) -> None:
    assert what_is_typed(keyboard, tmp_path / "h", "one\rtwo\r\x04") == ["one", "two"]


@pytest.mark.parametrize("key", ["\x1b\r", "\n"], ids=["alt-enter", "ctrl-j"])
def test_a_message_of_several_lines(keyboard: PipeInput, tmp_path: Path, key: str) -> None:
    assert what_is_typed(keyboard, tmp_path / "h", f"one{key}two\r\x04") == ["one\ntwo"]


def test_what_is_pasted_keeps_its_lines(keyboard: PipeInput, tmp_path: Path) -> None:
    pasted = "\x1b[200~def f():\n    return 1\n\x1b[201~"
    assert what_is_typed(keyboard, tmp_path / "h", f"{pasted}\r\x04") == ["def f():\n    return 1\n"]


def test_a_colour_in_what_is_pasted_as_keys_is_no_click_of_a_mouse(keyboard: PipeInput, tmp_path: Path) -> None:
    assert what_is_typed(keyboard, tmp_path / "h", "a\x1b[31mb\r\x04") == ["ab"]


def test_ctrl_c_drops_the_line_and_empty_ones_say_nothing(keyboard: PipeInput, tmp_path: Path) -> None:
    assert what_is_typed(keyboard, tmp_path / "h", "never\x03\r  \rwell\r\x04") == ["well"]


class Screen(DummyOutput):
    """Tells when a text was shown."""

    def __init__(self, awaited: str) -> None:
        self.awaited, self.written, self.shown = awaited, "", threading.Event()

    def write(self, data: str) -> None:
        self.written += data
        if self.awaited in self.written:
            self.shown.set()


def test_commands_are_completed(keyboard: PipeInput, tmp_path: Path) -> None:
    screen = Screen("lp")

    def go_on() -> None:  # completion happens beside the typing
        screen.shown.wait(60)
        keyboard.send_text("\r\x04")

    completing = threading.Thread(target=go_on)
    completing.start()
    keyboard.send_text("/he\t")
    assert list(typed(tmp_path / "h", ["help", "save"], keyboard, screen)) == ["/help"]
    completing.join()


def test_the_history_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    with create_pipe_input() as first:
        what_is_typed(first, history, "one\x1b\rmore\r\x04")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with create_pipe_input() as second:
        assert what_is_typed(second, history, f"{UP}\r\x04") == ["one\nmore"]


def test_a_history_that_cannot_be_kept(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--history"):
        what_is_typed(keyboard, tmp_path / "file" / "history", "x")


def test_lines_from_a_pipe() -> None:
    assert list(piped(io.StringIO("one\n\n  \ntwo \\\nlines\nlast"))) == ["one", "two \nlines", "last"]
    assert list(piped(io.StringIO("cut\\\n"))) == ["cut"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\\"), min_size=1).filter(str.strip)))
def test_every_line_of_a_pipe_is_a_message(lines: list[str]) -> None:
    assert list(piped(io.StringIO("".join(f"{line}\n" for line in lines), newline="\n"))) == lines


def test_what_is_not_text_is_said() -> None:
    lines = piped(io.TextIOWrapper(io.BytesIO(b"one\n" + b"x" * 9000 + b"\n\xff\n"), encoding="utf-8"))
    assert next(lines) == "one"
    with pytest.raises(UsageError, match="standard input is not text"):
        list(lines)
