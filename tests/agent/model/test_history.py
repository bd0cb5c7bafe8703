"""The order in which the chat and responses wires replay a conversation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel, Conversation, Message, Role
from agent.model.history import NOT_RUN, entries, last_final, orphan
from agent.position import open_call
from tests.fakes import analysis, call, final, user


def result(text: str) -> Message:
    return Message(Role.TOOL, text, name="look")


ANY = st.one_of(
    st.builds(user, st.text(max_size=3)),
    st.builds(analysis, st.text(max_size=3)),
    st.builds(final, st.text(max_size=3)),
    st.builds(result, st.text(max_size=3)),
    st.builds(call, st.sampled_from(["look", "edit"])),
    st.builds(Message, st.sampled_from([Role.SYSTEM, Role.DEVELOPER]), st.text(max_size=3)),
)


def replayed(*messages: Message) -> list[tuple[str, str]]:
    return [(entry.message.text, entry.result) for entry in entries(Conversation(messages=messages))]


def test_results_go_to_the_calls_of_their_answer_in_order() -> None:
    one, two, three = (call("look", n=n) for n in range(3))
    assert replayed(analysis("hm"), one, two, result("a"), result("b"), three, result("c"), final("done")) == [
        ("hm", ""),
        (one.text, "a"),
        (two.text, "b"),
        (three.text, "c"),
        ("done", ""),
    ]


def test_a_call_that_was_never_run_says_so_and_a_result_without_a_call_stands_alone() -> None:
    one, two = call("look", n=1), call("look", n=2)
    assert replayed(one, two, result("a"), user("stop")) == [(one.text, "a"), (two.text, NOT_RUN), ("stop", "")]
    assert replayed(one, result("a"), result("b")) == [(one.text, "a"), ("b", "")]
    assert orphan(result("b")) == "Output of look:\nb"


def test_the_last_final_answer_retires_what_was_thought_before_it() -> None:
    assert last_final(Conversation(messages=(final("a"), analysis("b"), final("c"), analysis("d")))) == 2
    assert last_final(Conversation(messages=(user("a"), call("look")))) == -1


@given(st.lists(ANY, max_size=12))
def test_nothing_is_lost_and_open_calls_are_those_that_the_loop_sees(messages: list[Message]) -> None:
    conversation = Conversation(messages=tuple(messages))
    found = list(entries(conversation))
    assert all(messages[entry.index] is entry.message for entry in found)
    places = [entry.index for entry in found]
    assert len(places) == len(set(places))
    answered = sum(entry.message.is_call and entry.result != NOT_RUN for entry in found)
    assert len(found) + answered == len(messages)
    waiting = open_call(conversation)
    if waiting is not None:
        assert next(entry for entry in found if entry.index == waiting).result == NOT_RUN
    assert all(entry.message.channel is not None or entry.message.role is not Role.ASSISTANT for entry in found)
    assert Channel.FINAL in {None, *(e.message.channel for e in found)} or last_final(conversation) == -1
