from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import LogError
from agent.events import (
    Checked,
    Compacted,
    Durable,
    MessageAdded,
    Outcome,
    PlanChanged,
    PlanStep,
    Repaired,
    Resumed,
    Retried,
    RunEnded,
    RunStarted,
    Sampled,
    ToolFinished,
    ToolResult,
    ToolStarted,
)
from agent.log import LOG_NAME, Log
from agent.record import Entry
from agent.report.junit import story_junit
from agent.report.markdown import story_markdown
from agent.report.page import story_page
from agent.report.story import Call, Note, Said, Seen, Story, Thought, read_story, tell
from tests.agent.report.stories import AFTER, BEFORE, PATCH, entries, run_events, write_run

STARTED = RunStarted("r", "task", "fix", Conversation(messages=(Message(Role.USER, "task"),)), "/r", "c", {})


def thought(text: str) -> MessageAdded:
    return MessageAdded(Message(Role.ASSISTANT, text, Channel.ANALYSIS))


def call(text: str) -> MessageAdded:
    return MessageAdded(Message(Role.ASSISTANT, text, Channel.COMMENTARY, "container.exec"))


def told(text: str) -> MessageAdded:
    return MessageAdded(Message(Role.USER, text))


def finished(index: int, text: str, tool: str = "shell") -> ToolFinished:
    return ToolFinished(index, tool, ToolResult(text), Message(Role.TOOL, text))


SAMPLED = Sampled(100, 10, "call", 50, 2.0, 0.5)


def story(*events: Durable) -> Story:
    return tell(entries([STARTED, *events]))


def test_a_turn_is_an_answer_and_what_was_done_for_it() -> None:
    found = story(
        thought("a"), call("ls"), SAMPLED, Checked("before", (BEFORE,)), Repaired("recipient", "the call"), ToolStarted(2, "shell"),
        finished(2, "x"), thought("b"), call("cat"), SAMPLED, ToolStarted(5, "shell"), finished(5, "y"),
    )  # fmt: skip
    first, second = found.turns
    assert first.items == (
        Thought("a"),
        Call("shell", "ls", ToolResult("x")),
        Seen("before", (BEFORE,)),
        Note("Repaired: recipient: the call"),
    )
    assert second.items == (Thought("b"), Call("shell", "cat", ToolResult("y")))
    assert (first.number, first.at_s, second.number, second.at_s) == (1, 0.0, 2, 8.0)
    assert found.before == (BEFORE,)
    assert found.after is None


def test_a_repair_before_the_next_answer_belongs_to_that_answer() -> None:
    found = story(call("ls"), SAMPLED, ToolStarted(1, "shell"), finished(1, "x"), Repaired("channel"), Retried("503", 1, 2.0), thought("b"), SAMPLED)  # fmt: skip
    assert [len(turn.items) for turn in found.turns] == [1, 3]
    assert found.turns[1].items[:2] == (Note("Repaired: channel"), Note("Retried in 2.0 s (attempt 1): 503"))


def test_several_calls_of_one_answer_are_one_turn() -> None:
    found = story(call("a"), call("b"), SAMPLED, ToolStarted(1, "shell"), finished(1, "x"), ToolStarted(2, "python"), finished(2, "y", "python"))  # fmt: skip
    (only,) = found.turns
    assert only.items == (Call("shell", "a", ToolResult("x")), Call("python", "b", ToolResult("y")))
    assert found.calls == only.items


def test_a_call_without_an_end_is_told_as_such() -> None:
    assert story(call("a"), SAMPLED, ToolStarted(1, "shell")).calls == (Call("shell", "a", None),)
    assert story(call("a"), SAMPLED).calls == (Call("container.exec", "a", None),)


def test_what_the_model_is_told_begins_the_next_turn() -> None:
    found = story(MessageAdded(Message(Role.ASSISTANT, "done", Channel.FINAL)), SAMPLED, Checked("after", (AFTER,)), told("it fails"), Repaired("checks_failed"), thought("oh"), SAMPLED)  # fmt: skip
    assert found.turns[0].items == (Said("done"), Seen("after", (AFTER,)))
    assert found.turns[1].items == (Said("it fails", by_model=False), Note("Repaired: checks failed"), Thought("oh"))


def test_calls_after_a_compaction_are_found_by_their_new_places() -> None:
    kept = (Message(Role.USER, "task"),)
    found = story(call("a"), SAMPLED, ToolStarted(1, "shell"), finished(1, "x"), Compacted(kept, "full", 9000, 10), call("b"), SAMPLED, ToolStarted(1, "shell"), finished(1, "y"))  # fmt: skip
    assert found.turns[1].items == (
        Note("The context window was full: 9,000 tokens compacted to 10."),
        Call("shell", "b", ToolResult("y")),
    )


def test_time_between_a_stop_and_its_resume_is_no_work() -> None:
    ended = RunEnded(Outcome.LIMIT, "enough")
    events = [Entry(0, 0.0, STARTED), Entry(1, 10.0, ended), Entry(2, 5000.0, Resumed("")), Entry(3, 5007.0, ended)]
    found = tell(events)
    assert (found.duration_s, found.state, found.ended) == (17.0, "limit", ended)
    assert tell(events[:3]).state == "stopped"


def test_tokens_and_times_are_summed() -> None:
    found = story(thought("a"), SAMPLED, thought("b"), SAMPLED)
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (200, 20, 100)
    assert [turn.model_s for turn in found.turns] == [2.0, 2.0]
    whole = tell(entries(run_events(4)))
    assert whole.turns[1].tools_s == 0.75
    assert whole.turns[0].checks_s == BEFORE.duration_s


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({}, None),
        ({"price_input": 1.0}, None),
        ({"price_output": 1.0}, None),
        ({"price_input": 2.0, "price_output": 10.0}, (200 * 2 + 20 * 10) / 1e6),
        ({"price_input": 2.0, "price_output": 10.0, "price_cached": 0.5}, (100 * 2 + 100 * 0.5 + 20 * 10) / 1e6),
        ({"price_input": 0.0, "price_output": 0.0}, 0.0),
    ],
)
def test_what_a_run_cost_is_said_where_prices_are(prices: dict[str, float], cost: float | None) -> None:
    found = tell(entries([replace(STARTED, config=prices), SAMPLED, SAMPLED]))
    assert found.cost == (None if cost is None else pytest.approx(cost))
    for shown, word in (
        (story_page(found), "<dt>Cost</dt>"),
        (story_markdown(found), ", cost "),
        (story_junit(found), '"cost"'),
    ):
        assert (word in shown) == (cost is not None)


def test_a_run_on_the_disk_with_its_change(tmp_path: Path) -> None:
    found = read_story(write_run(tmp_path / "r", run_events()))
    assert (found.state, found.patch, len(found.answers)) == ("passed", PATCH.encode(), 4)
    assert found.plan[1].text == "Fix"


def test_work_so_far_is_the_change_of_a_run_without_an_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", run_events(outcome=None), b"")
    (folder / "snapshot.diff").write_bytes(b"so far")
    assert (read_story(folder).state, read_story(folder).patch) == ("stopped", b"so far")
    with Log(folder / LOG_NAME):
        assert read_story(folder).state == "running"
    ended = write_run(tmp_path / "e", run_events(outcome=Outcome.NO_CHANGE), b"")
    (ended / "snapshot.diff").write_bytes(b"undone since")
    assert read_story(ended).patch == b""


@pytest.mark.parametrize("content", [b"", b'{"seq":0', b'{"seq":0,"at":1,"event":"Resumed"}\n'])
def test_what_is_not_the_log_of_a_run_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG_NAME).write_bytes(content)
    with pytest.raises(LogError, match="RunStarted"):
        read_story(tmp_path)


def test_an_empty_log_has_an_empty_story() -> None:
    assert tell([]) == Story()


EVENTS = st.one_of(
    st.builds(thought, st.text(max_size=3)),
    st.builds(call, st.text(max_size=3)),
    st.builds(told, st.text(max_size=3)),
    st.builds(finished, st.integers(-1, 12), st.text(max_size=3)),
    st.builds(ToolStarted, st.integers(-1, 12), st.just("shell")),
    st.sampled_from(
        [STARTED, SAMPLED, Repaired("x"), Retried("y", 1, 0.1), Resumed(), Compacted((), "z", 2, 1), PlanChanged((PlanStep("p"),)), Checked("before", (BEFORE,)), Checked("after", ()), RunEnded(Outcome.LIMIT, "l")]
    ),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=30))
def test_any_log_has_a_story_that_leaves_nothing_out(events: list[Durable]) -> None:
    found = tell(entries(events))
    items = [item for turn in found.turns for item in turn.items]
    messages = [event.message for event in events if isinstance(event, MessageAdded)]
    assert [item.asked for item in items if isinstance(item, Call)] == [m.text for m in messages if m.is_call]
    assert [item.text for item in items if isinstance(item, Thought | Said)] == [
        m.text for m in messages if not m.is_call
    ]
    assert len(found.answers) == sum(isinstance(event, Sampled) for event in events)
    assert [turn.number for turn in found.turns] == list(range(1, len(found.turns) + 1))
    assert found.duration_s == sum(not isinstance(event, Resumed) for event in events[1:])
