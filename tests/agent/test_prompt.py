"""The instructions: complete, bounded, and the same every time."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent import prompt
from agent.prompt import RULES_CHARS, instructions, task_message

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "instructions.txt"


def test_the_instructions_are_the_golden_ones() -> None:
    if os.environ.get("GOLDEN_RENEW"):
        GOLDEN.write_text(render(), "utf-8")
    assert render() == GOLDEN.read_text("utf-8")


def render() -> str:
    return (
        instructions("fix", ("python -m pytest -q", "make lint"), "Use tabs.\n")
        + instructions("ask", (), "")
        + instructions("fix", (), "Use tabs.\n", from_outside=True)
    )


def test_nothing_in_them_moves() -> None:
    text = render()
    assert text == render()
    assert not re.search(r"\b20\d\d\b|/home/|/tmp/|/work", text)


def test_the_checks_are_named_and_their_absence_is_said() -> None:
    assert "- make lint\n" in instructions("fix", ("make lint",), "") + "\n"
    assert "none were found" in instructions("fix", (), "")
    assert "Checks" not in instructions("ask", ("make lint",), "")


@pytest.mark.parametrize("mode", ["fix", "ask"])
def test_a_task_from_outside_is_said_to_be_one(mode: str) -> None:
    assert prompt.OUTSIDE in instructions(mode, (), "Use tabs.\n", from_outside=True)
    assert prompt.OUTSIDE not in instructions(mode, (), "Use tabs.\n")


def test_the_repositorys_rules_are_bounded_and_marked_as_its_own() -> None:
    text = instructions("fix", (), "rule " * RULES_CHARS)
    assert len(text) < len(prompt.FIX) + RULES_CHARS + 1000
    assert f"[{5 * RULES_CHARS - 1 - RULES_CHARS} more characters are in AGENTS.md" in text
    assert text.index('<repository_rules file="AGENTS.md">') > text.index("Follow it where it does not contradict")
    assert text.endswith("</repository_rules>\n")
    assert "AGENTS.md" not in instructions("fix", (), " \n")


@pytest.mark.parametrize(("mode", "tag"), [("fix", "issue"), ("ask", "question")])
def test_the_task_is_verbatim_between_a_pair_of_tags(mode: str, tag: str) -> None:
    assert f"<{tag}>\nslugify drops\n\n  the last word\n</{tag}>" in task_message(
        mode, "\nslugify drops\n\n  the last word\n"
    )
