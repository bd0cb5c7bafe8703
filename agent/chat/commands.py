"""The commands of a chat: lines that begin with a slash. An error in one never ends the chat."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.chat.talk import Talk
from agent.config import RULES, RunConfig
from agent.errors import AgentError, UsageError
from agent.landing import bring_in
from agent.model.base import Model
from sandbox.errors import DiffRefused, SandboxError, WorktreeError

Say = Callable[[str], None]
_SHORT: Mapping[str, str] = {"quit": "exit", "q": "exit", "h": "help", "": "help"}
_COMMAND = re.compile(r"/(\w*)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Desk:
    """The objects that commands act on. ``open_model`` opens the model of a configuration; ``repository`` is None outside of one."""

    talk: Talk
    say: Say
    open_model: Callable[[RunConfig], Model]
    repository: Path | None


def is_command(text: str) -> bool:
    """Whether a line is a command: a slash and one word, so that a path at the beginning of a message does not count."""
    return _COMMAND.fullmatch(text.strip()) is not None


def obey(text: str, desk: Desk) -> bool:
    """Execute a command and return whether the chat continues. Errors are shown."""
    found = _COMMAND.fullmatch(text.strip())
    assert found is not None
    name, argument = _SHORT.get(found[1], found[1]), (found[2] or "").strip()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        desk.say(f"there is no /{name}" + (f"; did you mean /{near[0]}?" if near else "; /help lists all commands"))
        return True
    try:
        COMMANDS[name][1](desk, argument)
    except (AgentError, SandboxError, DiffRefused, WorktreeError) as error:
        desk.say(f"/{name}: {error}")
    except KeyboardInterrupt:
        desk.say(f"/{name}: stopped")
    return name != "exit"


def _help(desk: Desk, argument: str) -> None:
    del argument
    width = max(len(_usage(name)) for name in COMMANDS)
    desk.say("\n".join(f"{_usage(name):<{width}}  {line}" for name, (line, _) in COMMANDS.items()))


def _usage(name: str) -> str:
    return f"/{name} {ARGUMENTS[name]}".rstrip()


def _save(desk: Desk, argument: str) -> None:
    path = _path(argument, "save")
    desk.say(f"saved {desk.talk.save(path)} messages in {path}")


def _load(desk: Desk, argument: str) -> None:
    path = _path(argument, "load")
    desk.say(f"loaded {desk.talk.load(path)} messages from {path}")


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise UsageError(f"which file? /{name} FILE")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{argument}: there is no such user on this machine") from error


def _undo(desk: Desk, argument: str) -> None:
    del argument
    said = desk.talk.undo()
    kept = " (the workspace stays as it is)" if desk.talk.place.sandbox is not None else ""
    desk.say("there is nothing to take back" if said is None else f"taken back{kept}: {said}")


def _clear(desk: Desk, argument: str) -> None:
    del argument
    desk.talk.clear()
    desk.say("a new conversation")


def _model(desk: Desk, argument: str) -> None:
    talk = desk.talk
    if argument:
        config = replace(talk.config, model=argument)
        opened = desk.open_model(config)
        talk.model.close()
        talk.model, talk.config = opened, config
    desk.say(talk.model.name)


def _effort(desk: Desk, argument: str) -> None:
    if argument and argument not in RULES["effort"].choices:
        raise UsageError(f"{argument!r} is not one of {', '.join(RULES['effort'].choices)}")
    if argument:
        desk.talk.set_effort(argument)
    desk.say(f"reasoning effort: {desk.talk.state.conversation.effort}")


def _reasoning(desk: Desk, argument: str) -> None:
    del argument
    desk.say(desk.talk.reasoning or "there was none in the last turn")


def _diff(desk: Desk, argument: str) -> None:
    del argument
    desk.say(_changes(desk).decode("utf-8", "replace") or "nothing has changed in the workspace")


def _apply(desk: Desk, argument: str) -> None:
    del argument
    if desk.repository is None:
        raise UsageError("this chat was not started in a repository: /diff shows the change")
    patch = _changes(desk)
    if not patch:
        raise UsageError("nothing has changed in the workspace")
    desk.say("written into your checkout, uncommitted: " + ", ".join(bring_in(desk.repository, patch)))


def _changes(desk: Desk) -> bytes:
    sandbox = desk.talk.place.sandbox
    return b"" if sandbox is None else sandbox.diff()


# name: (one line of help, what it does)
COMMANDS: Mapping[str, tuple[str, Callable[[Desk, str], None]]] = {
    "help": ("list the commands", _help),
    "save": ("save the chat; --wire scripted --script FILE replays it", _save),
    "load": ("continue a saved chat, or a run's events.jsonl", _load),
    "undo": ("take back your last message and what followed", _undo),
    "clear": ("start a new conversation", _clear),
    "model": ("show the model, or switch to another one", _model),
    "effort": ("show or set the reasoning effort: low, medium, high", _effort),
    "reasoning": ("show what the model thought in the last turn", _reasoning),
    "diff": ("show what changed in the sandbox's workspace", _diff),
    "apply": ("apply that change to your checkout, uncommitted", _apply),
    "exit": ("leave (so does Ctrl-D)", lambda desk, _: desk.say("bye")),
}
ARGUMENTS: Mapping[str, str] = {
    **dict.fromkeys(COMMANDS, ""),
    "save": "FILE",
    "load": "FILE",
    "model": "[NAME]",
    "effort": "[LEVEL]",
}
