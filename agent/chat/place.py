"""The World of a chat: our tools, with a sandbox that is opened by the first call that needs one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from agent.conversation import Message
from agent.events import CheckResult, Outcome, RunEnded, State, ToolResult
from agent.tools.base import Tool
from agent.tools.names import Unknown, resolve
from agent.workshop import last_words
from agent.world import Action
from sandbox.base import Sandbox
from sandbox.errors import SandboxError, WorktreeError

NO_SANDBOX = "There is no sandbox for this call, or it was lost in the middle of it: {why}"


@dataclass(slots=True)
class Place:
    """The World of a chat. A sandbox that is lost is replaced by the next call, with a fresh copy of the repository."""

    tools: Mapping[str, Tool]
    style: str
    start: Callable[[], Sandbox]
    sandbox: Sandbox | None = None

    def resolve(self, call: Message) -> Action:
        """Return what a call means; see World."""
        meant = resolve(call.recipient or "", call.text, self.tools, self.style)
        if isinstance(meant, Unknown):
            said = meant.answer
            return Action("unknown", lambda: ToolResult(said, ok=False))
        tool, body = self.tools[meant.tool], meant.text
        return Action(tool.name, lambda: self._run(tool, body), meant.repairs)

    def _run(self, tool: Tool, body: str) -> ToolResult:
        try:
            return tool.run(body, cast("Sandbox", _Late(self)))
        except (SandboxError, WorktreeError) as error:
            with suppress(SandboxError):  # Docker may be gone too, but the chat continues
                self.close()
            return ToolResult(NO_SANDBOX.format(why=error), ok=False)

    def opened(self) -> Sandbox:
        """Return the sandbox; start it if necessary. Raises SandboxError, and what reading the repository raises."""
        if self.sandbox is None:
            self.sandbox = self.start()
        return self.sandbox

    def close(self) -> None:
        """Close the sandbox, if there is one."""
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            sandbox.close()

    def check(self, when: str) -> tuple[CheckResult, ...]:
        """Return nothing: a chat has no checks; see World."""
        del when
        return ()

    def verdict(self, state: State) -> tuple[Outcome, str]:
        """Return ANSWERED: every turn of a chat ends with an answer; see World."""
        del state
        return Outcome.ANSWERED, ""

    def digests(self) -> dict[str, str]:
        """Return nothing: a chat does not track changed files; see World."""
        return {}

    def finish(self, state: State, outcome: Outcome, reason: str) -> RunEnded:
        """End a turn; see World."""
        return RunEnded(outcome, reason, last_words(state))

    def now_s(self) -> float:
        """Return a monotonic time; see World."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class _Late:
    """A lazy sandbox for tools that may not need one (the browser does not): it is started when it is first used."""

    place: Place

    def __getattr__(self, name: str) -> object:
        return getattr(self.place.opened(), name)
