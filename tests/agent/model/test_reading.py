"""What of a conversation is a text to copy from."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel, Message, Role
from agent.model.reading import read_text, shown, unescaped


def call(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.COMMENTARY, "repo_browser.open_file")


@pytest.mark.parametrize(
    "output",
    [
        "     8\tdef f():\n     9\t    return 1\n    10\t\n",  # cat -n
        "8\tdef f():\n9\t    return 1\n10\t\n",  # open_file
        "8:def f():\n9:    return 1\n10:\n",  # grep -n
        "8:def f():\r\n9:    return 1\r\n10:\r\n",
    ],
)
def test_line_numbers_are_no_part_of_a_line(output: str) -> None:
    assert read_text(output).lines[:3] == ("def f():", "    return 1", "")


def test_a_number_that_follows_no_other_is_part_of_its_line() -> None:
    text = "1: one\n3: three\nx\n8\t9\n"
    assert read_text(text).lines == ("1: one", "3: three", "x", "8\t9", "")


def test_lines_are_found_by_what_they_say_and_by_how_they_begin() -> None:
    read = read_text("if x:\n    go(1)\nelse:\n    go(2)\n    go(1)")
    assert read.places["go(1)"] == [1, 4]
    assert read.beginning("    go(") == [1, 3, 4]
    assert read.beginning("els") == [2]
    assert read.beginning("no") == []


def test_of_equal_lines_the_next_one_is_found_else_the_last() -> None:
    read = read_text("a\n  a\na\n\na\nb")
    assert [read.same("a", after) for after in range(7)] == [[0], [2], [2], [4], [4], [4], [4]]
    assert read.same("  a", 0) == read.same("  a", 9) == [1]
    assert read.same(" a", 0) == read.same("c", 0) == []


def test_a_call_is_read_in_no_time_whatever_it_says() -> None:
    """A regular expression for paths took 4 s for a thousand dots."""
    began = time.process_time()
    for text in (".", "-.", "a", "./"):
        assert all(len(path) < 1000 for path in shown(call(text * 1000)).paths)
    assert time.process_time() - began < 1


def test_a_tools_output_and_the_users_text_are_read() -> None:
    for role in (Role.TOOL, Role.USER):
        text = shown(Message(role, "one\ntwo")).text
        assert text is not None
        assert text.lines == ("one", "two")
    assert shown(Message(Role.ASSISTANT, "one", Channel.ANALYSIS)).text is None
    assert shown(Message(Role.DEVELOPER, "one")).text is None


def test_a_call_names_paths() -> None:
    asked = '{"cmd": ["bash", "-lc", "sed -n \'1,20p\' src/app/main.py; cat ./setup.cfg Makefile"]}'
    assert shown(call(asked)).paths == ("src/app/main.py", "./setup.cfg")
    assert shown(call("x" * 2000 + " a.py")).paths == ()
    assert shown(call("-x ... 1. a/ ./b- .c v1.2.")).paths == ("./b", ".c", "v1.2")


PATCH = '*** Begin Patch\n*** Update File: a.py\n@@ def f():\n kept = "1"\n-gone\n+new\t\n*** End Patch'


@pytest.mark.parametrize(
    "body", [PATCH, json.dumps({"patch": PATCH}), json.dumps({"cmd": f"apply_patch <<'E'\n{PATCH}\nE\n"})]
)
def test_a_patch_shows_the_lines_that_it_leaves(body: str) -> None:
    text = shown(call(body)).text
    assert text is not None
    assert text.lines == ('kept = "1"', "new\t")


def test_a_part_of_a_json_string_is_text_unless_it_ends_within_an_escape() -> None:
    assert unescaped('a\\tb \\"c\\u00e9') == 'a\tb "cé'
    assert unescaped("raw\ttab") == "raw\ttab"
    for broken in ("a\\", "a\\u00", 'a"b', "\\x"):
        assert unescaped(broken) is None
    assert unescaped("\\ud800") == "?", "a lone surrogate could not be encoded"


@given(st.text(st.characters(blacklist_categories=())), st.sampled_from(list(Role)), st.booleans())
def test_any_message_can_be_read(text: str, role: Role, patch: bool) -> None:
    message = Message(role, f"{'*** Begin Patch' * patch}{text}", recipient="x" if role is Role.ASSISTANT else None)
    read = shown(message).text
    if read is not None:
        assert all(line.encode() is not None for line in read.lines)
        assert all(read.lines[place].strip() == said for said, places in read.places.items() for place in places)
        assert [list(places) for places in read.places.values()] == [sorted(p) for p in read.places.values()]
