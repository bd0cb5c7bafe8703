"""The lines that begin with a slash."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.chat.commands import ARGUMENTS, COMMANDS, Desk, is_command, obey
from agent.chat.talk import Talk
from agent.config import RunConfig
from agent.errors import EndpointUnreachable
from agent.model.base import Model
from agent.model.scripted import ScriptedModel
from tests.agent.chat.talks import Shown, folder_sandbox, talk_with
from tests.fakes import FaultyModel, analysis, final

HELLO = [analysis("greet them"), final("Hello.")]


@dataclass
class Typist:
    """Types commands into a chat and reads what comes back."""

    talk: Talk
    repository: Path | None = None
    said: list[str] = field(default_factory=list)

    def open_model(self, config: RunConfig) -> Model:
        if config.model == "missing":
            raise EndpointUnreachable("nobody has that model")
        return ScriptedModel([[final("As another.")]], config.model or "scripted")

    def __call__(self, text: str) -> str:
        self.said.clear()
        self.goes_on = obey(text, Desk(self.talk, self.said.append, self.open_model, self.repository))
        return "\n".join(self.said)


@pytest.fixture
def typist() -> Typist:
    talk = talk_with([HELLO])
    talk.turn("hi", Shown())
    return Typist(talk)


@pytest.mark.parametrize("text", ["/help", "/effort high", " /save a b ", "/x", "/", "/save a\nb"])
def test_a_command(text: str) -> None:
    assert is_command(text)


@pytest.mark.parametrize("text", ["hello", "/etc/passwd is what?", "/usr/bin", "a /help", "//help", "/a-b"])
def test_no_command(text: str) -> None:
    assert not is_command(text)


def test_help_lists_all(typist: Typist) -> None:
    said = typist("/help")
    assert [line.split()[0] for line in said.splitlines()] == [f"/{name}" for name in COMMANDS]
    assert typist("/") == typist("/h") == said
    assert ARGUMENTS.keys() == COMMANDS.keys()


def test_what_is_no_command_is_said(typist: Typist) -> None:
    assert typist("/efort high") == "there is no /efort; did you mean /effort?"
    assert typist("/xyz") == "there is no /xyz; /help lists all commands"
    assert typist.goes_on


@pytest.mark.parametrize("text", ["/exit", "/quit", "/q"])
def test_leaving(typist: Typist, text: str) -> None:
    typist(text)
    assert not typist.goes_on


def test_save_and_load(typist: Typist, tmp_path: Path) -> None:
    path = tmp_path / "my chat.jsonl"
    assert typist(f"/save {path}") == f"saved 3 messages in {path}"
    typist("/clear")
    assert typist(f"/load {path}") == f"loaded 3 messages from {path}"
    assert typist("/save") == "/save: which file? /save FILE"
    assert "cannot be written" in typist("/save /no/such/folder/x")
    assert "/load: " in typist("/load /no/such/file")
    assert "no such user" in typist("/save ~no-such-person/x")
    assert len(typist.talk.state.conversation.messages) == 3
    assert typist.goes_on


def test_undo_and_clear(typist: Typist) -> None:
    assert typist("/undo") == "taken back: hi"
    assert typist("/undo") == "there is nothing to take back"
    assert typist("/clear") == "a new conversation"


def test_effort(typist: Typist) -> None:
    assert typist("/effort") == "reasoning effort: medium"
    assert typist("/effort high") == "reasoning effort: high"
    assert "not one of low, medium, high" in typist("/effort enormous")
    assert typist.talk.state.conversation.effort == "high"


def test_model(typist: Typist) -> None:
    assert typist("/model") == "scripted"
    assert typist("/model other") == "other"
    assert typist.talk.turn("hi", Shown()).claimed == "As another."
    assert typist("/model missing") == "/model: nobody has that model"
    assert typist("/model") == "other"
    assert typist.talk.config.model == "other"


def test_reasoning(typist: Typist) -> None:
    assert typist("/reasoning") == "greet them"
    typist("/clear")
    assert typist("/reasoning") == "there was none in the last turn"


def test_the_workspace_is_shown_and_brought_into_the_checkout(tmp_path: Path) -> None:
    typist = Typist(talk_with(FaultyModel([]), start=folder_sandbox(tmp_path)))
    assert typist("/diff") == "nothing has changed in the workspace"
    sandbox = typist.talk.place.opened()
    sandbox.write("new.txt", b"made in the sandbox\n")
    assert "+made in the sandbox" in typist("/diff")
    assert "not started in a repository" in typist("/apply")
    typist.repository = tmp_path / "repository"
    assert typist("/apply") == "written into your checkout, uncommitted: new.txt"
    assert (typist.repository / "new.txt").read_text() == "made in the sandbox\n"
    assert (
        b"new.txt"
        in subprocess.run(["git", "status", "--short"], cwd=typist.repository, check=True, capture_output=True).stdout
    )
    sandbox.write(".gitmodules", b"[submodule]\n")
    assert typist("/apply").startswith("/apply: ")
    sandbox.remove(".gitmodules")
    sandbox.remove("new.txt")
    assert typist("/apply") == "/apply: nothing has changed in the workspace"
    typist.talk.place.close()


@given(st.text(max_size=20), st.text(max_size=10))
def test_no_command_raises(name: str, argument: str) -> None:
    text = f"/{name} {argument}"
    if is_command(text) and not name.startswith("save"):
        Typist(talk_with([HELLO]))(text)


def test_ctrl_c_stops_a_command_and_not_the_chat(typist: Typist) -> None:
    def slow(config: RunConfig) -> Model:
        raise KeyboardInterrupt

    said: list[str] = []
    assert obey("/model other", Desk(typist.talk, said.append, slow, None))
    assert said == ["/model: stopped"]
    assert typist("/model") == "scripted"
