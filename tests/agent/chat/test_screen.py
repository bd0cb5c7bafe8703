"""What a person sees of a chat: on a terminal and in a pipe, hostile text included."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from agent.chat.screen import Screen
from agent.conversation import Channel, Conversation, Message
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
    ToolResult,
    ToolStarted,
)
from agent.position import GO_ON
from agent.tools.browser.citations import Source
from tests.fakes import analysis, call, final, user

ANALYSIS, COMMENTARY, FINAL = Channel.ANALYSIS, Channel.COMMENTARY, Channel.FINAL
END = Sampled(10, 5, "stop")


def ticking(step_s: float = 0.0) -> Iterator[float]:
    return (number * step_s for number in count())


def shown(events: Sequence[Event], *, live: bool = False, step_s: float = 0.0, **options: object) -> str:
    stream, clock = io.StringIO(), ticking(step_s)
    screen = Screen(stream, live=live, clock=lambda: next(clock), **options)  # type: ignore[arg-type]
    state = State(conversation=Conversation(messages=(user("x"), call("python", code="print(1)"))))
    for event in events:
        screen(event, state)
    return stream.getvalue()


def test_an_answer_streams_and_its_reasoning_is_folded() -> None:
    deltas = [Delta(ANALYSIS, "first I "), Delta(ANALYSIS, "think"), Delta(FINAL, "It "), Delta(FINAL, "is so.")]
    whole = [MessageAdded(analysis("first I think")), MessageAdded(final("It is so.")), END]
    assert shown([*deltas, *whole]) == "✻ thought: first I think\nIt is so.\n"
    assert shown(deltas) == "✻ thought: first I think\nIt is so."  # each piece at once


def test_what_did_not_stream_is_shown_whole() -> None:
    preamble = Message(final("").role, "I will look.", COMMENTARY)
    events = [MessageAdded(analysis("hm")), MessageAdded(preamble), MessageAdded(final("Yes.")), END]
    assert shown(events) == "✻ thought: hm\nI will look.\nYes.\n"


def test_a_call_shows_its_reasoning_its_title_and_the_end_of_its_result() -> None:
    result = ToolResult("\n".join(f"line {number}" for number in range(50)), exit_code=1, duration_s=1.5)
    finished = ToolFinished(1, "python", result, final(""))
    events = [
        Delta(ANALYSIS, "compute"), Delta(ANALYSIS, "print(1)"), MessageAdded(analysis("compute")),
        MessageAdded(call("python", code="print(1)")), END, ToolStarted(1, "python"), finished,
    ]  # fmt: skip
    lines = shown(events).splitlines()
    assert lines[:3] == ["✻ thought: compute", "python: print(1)", "exit 1 in 1.5 s"]
    assert lines[-1] == "  | line 49"
    assert len(lines) < 12


def test_a_terminal_has_a_line_that_lives() -> None:
    text = shown([Delta(ANALYSIS, "a"), Delta(ANALYSIS, "b"), Delta(FINAL, "c"), END], live=True, step_s=0.15)
    assert "\r\x1b[2K\x1b[2m✻ thinking, 0." in text
    assert text.endswith("\r\x1b[2K\x1b[2m✻ thought for 1.1 s: ab\x1b[0m\nc\n"), text


def test_a_repeated_answer_begins_on_a_line_of_its_own() -> None:
    events = [Delta(FINAL, "It is n"), Retried("the connection broke", 1, 0.5), Delta(FINAL, "It is."), END]
    assert shown(events) == "It is n\nretrying in 0.5 s (attempt 1): the connection broke\nIt is.\n"


def test_how_a_turn_ended_is_said_unless_it_was_answered() -> None:
    assert shown([Delta(FINAL, "Yes."), END, RunEnded(Outcome.ANSWERED, "")]) == "Yes.\n"
    assert shown([RunEnded(Outcome.LIMIT, "30 turns")]) == "limit: 30 turns\n"
    assert shown([RunEnded(Outcome.LIMIT, "30 turns")], live=True) == "\x1b[31mlimit: 30 turns\x1b[0m\n"


def test_the_persons_words_are_not_repeated_and_the_harness_is() -> None:
    assert shown([MessageAdded(user("hi"))]) == ""
    assert shown([MessageAdded(user(GO_ON))]).startswith("told the model: [harness] ")


def test_citations_become_links_also_across_pieces() -> None:
    pages = {2: Source("https://e.org/a", "A")}
    expected = "So ([e.org](https://e.org/a)) .\n"
    pieces = [Delta(FINAL, "So【2†"), Delta(FINAL, "L1-L3】."), END]
    assert shown(pieces, sources=pages.get) == expected
    assert shown([MessageAdded(final("So【2†L1-L3】.")), END], sources=pages.get) == expected
    assert shown([Delta(FINAL, "So【2"), END], sources=pages.get) == "So【2\n"


def test_raw_shows_every_message_as_its_tokens_and_nothing_else() -> None:
    finished = ToolFinished(1, "python", ToolResult("1"), Message(user("").role, "1", name="python"))
    events = [
        MessageAdded(user("hi")), Delta(ANALYSIS, "x"), MessageAdded(analysis("hm")), END, ToolStarted(1, "python"), finished,
        RunEnded(Outcome.LIMIT, "30 turns"),
    ]  # fmt: skip
    assert shown(events, spell=lambda message: f"<{message.text}>") == "<hi>\n<hm>\n<1>\nlimit: 30 turns\n"


HOSTILE = st.text(st.sampled_from("ab\n\t\r\x1b\x07\u202e\x9b[]31m【】†1"), max_size=30)


@given(st.lists(st.tuples(st.sampled_from([ANALYSIS, COMMENTARY, FINAL, None]), HOSTILE), max_size=6), st.booleans())
def test_nothing_that_moves_the_cursor_gets_through(said: list[tuple[Channel | None, str]], whole: bool) -> None:
    events: list[Event] = [Delta(channel, text) for channel, text in said]
    if whole:
        events = [MessageAdded(Message(final("").role, text, channel)) for channel, text in said]
    text = shown([*events, END, RunEnded(Outcome.ENDPOINT, "\x1b[2J")])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
