"""What the documents name is there: commands with their flags, files, links, extras."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from agent.cli.main import cli
from runtime.cli import parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "AGENTS.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
FILE = re.compile(
    r"(?<![\w/.~-])(?:agent|runtime|sandbox|tests|docs|benchmarks|scripts|tasks)/(?:[\w./-]+\.\w+|(?:[\w-]+/)+(?=$))"
)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)")
EXTRA = re.compile(r"\[([a-z]+(?:,[a-z]+)*)\]['\"`)]")
RAYS_OWN = {"--num-cpus"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def flags_of(command: click.Command) -> set[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {"-h", "--help"}.union(*(option.opts + option.secondary_opts for option in options))


def commands() -> dict[tuple[str, ...], set[str]]:
    """Every command of `agent` by its words, with its flags."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: click.Command, words: tuple[str, ...]) -> None:
        found[words] = flags_of(command)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(below, (*words, name))

    walk(cli, ())
    return found


def runtime_flags() -> set[str]:
    (below,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {flag for each in below.choices.values() for action in each._actions for flag in action.option_strings}


COMMANDS = commands()
ANY_FLAG = set().union(*COMMANDS.values(), runtime_flags(), RAYS_OWN)


def code(text: str) -> list[str]:
    """What stands in spans and fences, a line each."""
    fenced = [line for block in FENCE.findall(text) for line in block.splitlines()]
    return fenced + SPAN.findall(FENCE.sub("", text))


def wrong(line: str) -> list[str]:
    """What is wrong with a line of code that names `agent` or a flag alone."""
    if line.startswith("-"):
        return [flag for flag in FLAG.findall(line) if flag not in ANY_FLAG]
    words = shlex.split(line.replace("…", "..."), comments=True) if line.startswith("agent ") else []
    if not words:
        return []
    name: tuple[str, ...] = ()
    for word in words[1:]:
        if (*name, word) not in COMMANDS:
            break
        name = (*name, word)
    group = any(other[:-1] == name for other in COMMANDS)
    unknown = [words[len(name) + 1]] if group and len(words) > len(name) + 1 else []
    return [word for word in unknown if not word.startswith("-")] + [
        flag for flag in FLAG.findall(" ".join(words[1:])) if flag not in COMMANDS[name]
    ]


def test_the_reader_of_this_test_sees_what_is_wrong() -> None:
    assert wrong("agent fix '…' --wire local  # --not-read") == []
    assert wrong("agent tasks run DIR -j 4 --engine ray") == []
    assert wrong("agent fix TEXT --engine ray") == ["--engine"]
    assert wrong("agent repair TEXT") == ["repair"]
    assert wrong("agent tasks list") == ["list"]
    assert wrong("--timeout-s") == ["--timeout-s"]
    assert code("a `b` c\n```\nd\ne\n```\n`f`") == ["d", "e", "b", "f"]


@each_document
def test_commands_and_flags_are_those_of_the_program(document: Path) -> None:
    found = {line: names for line in code(document.read_text()) if (names := wrong(line))}
    assert not found


@each_document
def test_links_and_files_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    named = [document.parent / target for target in LINK.findall(text) if target]
    named += [ROOT / name for line in code(text) for name in FILE.findall(line)]
    assert [path for path in named if not path.exists()] == []


@each_document
def test_extras_are_declared(document: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for names in EXTRA.findall(document.read_text()) for name in names.split(",")}
    assert named <= declared.keys()
