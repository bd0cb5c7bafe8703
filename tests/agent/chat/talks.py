"""Ways to a chat for tests: a scripted or faulty model, tools that are functions, and a sandbox in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.chat.place import Place
from agent.chat.talk import Talk
from agent.config import RunConfig
from agent.conversation import Message, ToolSpec
from agent.events import Event, RunEnded, State, ToolResult
from agent.model.base import Model
from agent.model.scripted import ScriptedModel
from agent.tools.base import Tool
from sandbox import plumbing
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.errors import SandboxLost
from sandbox.open import SandboxOptions, open_sandbox


@dataclass(frozen=True)
class FunctionTool:
    """A tool that is a function of its body."""

    name: str
    act: Callable[[str, Sandbox], ToolResult]
    writes: bool = True

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, "A function.", {"type": "object", "properties": {}})

    def run(self, text: str, sandbox: Sandbox) -> ToolResult:
        return self.act(text, sandbox)


@dataclass
class Shown:
    """A screen that keeps what it was shown."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event, state: State) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ended(self) -> RunEnded:
        last = self.events[-1]
        assert isinstance(last, RunEnded)
        return last


def no_sandbox() -> Sandbox:
    raise SandboxLost("there is none in this test")


def talk_with(
    model: Model | Sequence[Sequence[Message]],
    tools: Mapping[str, Tool] | None = None,
    start: Callable[[], Sandbox] = no_sandbox,
    steps: int = 10,
    system: str | None = None,
    **keys: object,
) -> Talk:
    """A chat with a model, or with one that plays these turns."""
    config = RunConfig(**keys)  # type: ignore[arg-type]
    played = ScriptedModel(model) if isinstance(model, Sequence) else model
    return Talk(config, played, Place(tools or {}, config.tools, start), "chat-1", system, steps)


def folder_sandbox(folder: Path) -> Callable[[], Sandbox]:
    """What starts a sandbox over an empty repository."""

    def start() -> Sandbox:
        repository = folder / "repository"
        if not repository.exists():
            repository.mkdir()
            plumbing.run(["init", "-q"], repository)
        state = folder / f"state{len(list(folder.glob('state*')))}"
        return open_sandbox(SandboxOptions("chat-1", "none"), snapshots.take(repository, state))

    return start
