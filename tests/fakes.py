"""Fakes that several suites share: a world without a sandbox, and short ways to write answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.check import verdict
from agent.conversation import Channel, Conversation, Message, Role
from agent.events import CheckResult, Outcome, RunEnded, RunStarted, State, ToolResult
from agent.model.base import ModelEvent, SamplingParams
from agent.model.capabilities import OF_MESSAGES, Capabilities
from agent.world import Action


def analysis(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.ANALYSIS)


def call(tool: str, **arguments: object) -> Message:
    return Message(Role.ASSISTANT, json.dumps(arguments), Channel.COMMENTARY, tool, "json")


def final(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.FINAL)


def user(text: str) -> Message:
    return Message(Role.USER, text)


def started(task: str = "fix it", mode: str = "fix", run: str = "r1") -> RunStarted:
    return RunStarted(run, task, mode, Conversation("Be careful.", (), (user(task),)), "/repo", "0" * 40)


Effect = Callable[[str], ToolResult]


@dataclass
class FakeWorld:
    """A workspace that is a list of what was done to it. ``tools`` map our names to what a call with that body does."""

    tools: Mapping[str, Effect] = field(default_factory=dict)
    checks: Mapping[str, tuple[CheckResult, ...]] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    clock: Iterator[float] | None = None

    def resolve(self, call: Message) -> Action:
        name = call.recipient or ""

        def run() -> ToolResult:
            self.done.append((name, call.text))
            if name == "edit":
                self.files["a.py"] = call.text
                return ToolResult("edited", changed_paths=("a.py",))
            effect = self.tools.get(name)
            return effect(call.text) if effect else ToolResult(f"there is no tool {name}", ok=False)

        return Action(name, run)

    def check(self, when: str) -> tuple[CheckResult, ...]:
        self.checked.append(when)
        return self.checks.get(when, ())

    def verdict(self, state: State) -> tuple[Outcome, str]:
        return verdict(state.checks_before or (), state.checks_after, self.files)

    def digests(self) -> dict[str, str]:
        return dict.fromkeys(self.files, "0123456789ab")

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        last = state.conversation.last
        claimed = last.text if last is not None and last.is_final else ""
        return RunEnded(outcome, reason, claimed, tuple(sorted(self.files)))

    def now_s(self) -> float:
        return 0.0 if self.clock is None else next(self.clock)


@dataclass
class FaultyModel:
    """Plays a list of answers, each a list of events or an error to raise, and remembers what it was asked."""

    answers: Sequence[Sequence[ModelEvent] | Exception]
    asked: list[Conversation] = field(default_factory=list)
    closed: int = 0
    name: str = "faulty"
    context_tokens: int | None = None
    capabilities: Capabilities = OF_MESSAGES

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        answer = self.answers[len(self.asked)]
        self.asked.append(conversation)
        if isinstance(answer, Exception):
            raise answer
        try:
            yield from answer
        finally:
            self.closed += 1

    def close(self) -> None:
        """Nothing to give back."""
