"""The display of a chat: answers as they stream, reasoning folded to one line, calls with the end of their results.

Text from a model, a page or a tool passes ``clean`` before it reaches the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from agent.conversation import Channel, Message, Role
from agent.events import (
    Delta,
    Event,
    MessageAdded,
    Outcome,
    Retried,
    RunEnded,
    Sampled,
    State,
    ToolFinished,
)
from agent.lines import clean, event_lines, one_line, seconds
from agent.position import is_harness
from agent.tools.browser.citations import Citations, Sources
from agent.view import write

DIM, RED, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"
REDRAW_S = 0.2
FOLDED_CHARS = 100

Spell = Callable[[Message], str]


class Screen:
    """Shows the events of a chat on ``stream``; ``live``: it is a terminal, with colours and a line that is redrawn.

    ``sources`` resolves the cursor of a citation (None: there is no browser). With ``spell``, each complete message is
    shown as its tokens instead (`--raw`).
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        live: bool,
        sources: Sources | None = None,
        spell: Spell | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._live, self._spell, self._clock = stream, live, spell, clock
        self._sources: Sources = sources or (lambda _: None)
        self._begin()

    def _begin(self) -> None:
        """Reset the state for the next answer."""
        self._channel: Channel | None = None  # of the current text
        self._heard: dict[Channel | None, str] = {}
        self._since_s = self._drawn_s = self._clock()
        self._thought_s = 0.0
        self._folded = False
        self._citations = Citations(self._sources)
        self._open_line = False  # the cursor is after text

    def __call__(self, event: Event, state: State) -> None:
        """Show one event; ``state`` is the state before it."""
        match event:
            case _ if self._spell is not None and not isinstance(event, RunEnded | Retried):
                self._raw(event, self._spell)
            case Delta():
                self._hear(event)
            case MessageAdded(message):
                self._end_segment()
                self._whole(message)
            case Sampled():
                self._end_segment()
                self._begin()
            case RunEnded():
                self._end_segment()
                self._begin()
                if event.outcome is not Outcome.ANSWERED:
                    self.say(f"{event.outcome}: {event.reason}", RED)
            case _:
                self._end_segment()
                if isinstance(event, Retried):
                    self._begin()
                for line in event_lines(event, state):
                    self.say(line, DIM)

    def say(self, text: str, style: str = "") -> None:
        """Show a line of our own."""
        shown = clean(text)
        write(self._stream, f"{style}{shown}{PLAIN}\n" if style and self._live else f"{shown}\n")

    def _hear(self, delta: Delta) -> None:
        if delta.channel is not self._channel:
            self._end_segment()
            if delta.channel is Channel.FINAL and (thought := self._heard.get(Channel.ANALYSIS, "")).strip():
                self._fold(thought)
            self._channel, self._since_s = delta.channel, self._clock()
        self._heard[delta.channel] = self._heard.get(delta.channel, "") + delta.text
        if delta.channel is Channel.FINAL:
            self._print(self._citations.feed(delta.text)[0])
        elif self._live and self._clock() - self._drawn_s >= REDRAW_S:
            self._drawn_s = self._clock()
            doing = "thinking" if delta.channel is Channel.ANALYSIS else "writing a call"
            write(self._stream, f"{ERASE_LINE}{DIM}✻ {doing}, {seconds(self._clock() - self._since_s)}{PLAIN}")

    def _end_segment(self) -> None:
        """Finish the current text: end an answer's line, or remove the redrawn line."""
        channel, self._channel = self._channel, None
        if channel is Channel.ANALYSIS:
            self._thought_s += self._clock() - self._since_s
        if channel is Channel.FINAL:
            self._print(self._citations.finish())
            self._citations = Citations(self._sources)
            if self._open_line:
                write(self._stream, "\n")
                self._open_line = False
            return
        if channel is not None and self._live:
            write(self._stream, ERASE_LINE)

    def _fold(self, thought: str) -> None:
        """Show the first words of the reasoning, once per answer."""
        if not self._folded:
            spent = f" for {seconds(self._thought_s)}" if self._thought_s >= 0.05 else ""
            self.say(f"✻ thought{spent}: {one_line(thought, FOLDED_CHARS)}", DIM)
        self._folded = True

    def _print(self, text: str) -> None:
        if text:
            write(self._stream, clean(text))
            self._open_line = not text.endswith("\n")

    def _whole(self, message: Message) -> None:
        """Show what was not streamed: preambles, and reasoning before calls, because calls use the same channels."""
        if message.is_call or not message.text.strip():
            return
        if message.role is Role.USER:
            if is_harness(message):
                self.say(f"told the model: {one_line(message.text)}", DIM)
        elif message.channel is Channel.ANALYSIS:
            self._fold(message.text)
        elif not message.is_final or not self._heard.get(Channel.FINAL, "").strip():
            self.say(self._linked(message.text).strip())

    def _linked(self, text: str) -> str:
        citations = Citations(self._sources)
        return citations.feed(text)[0] + citations.finish()

    def _raw(self, event: Event, spell: Spell) -> None:
        match event:
            case MessageAdded(message) | ToolFinished(message=message):
                self.say(spell(message))
            case _:
                return
