"""Where a conversation stands, read off its tail."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Conversation, Message, Role
from agent.position import (
    GO_ON,
    REPEATS_AT_MOST,
    announces,
    is_answered,
    is_harness,
    is_stalled,
    open_call,
    repeats,
    repetition_notice,
    stalls,
    writes_a_call,
)
from tests.fakes import analysis, call, final, user


def result(text: str = "ok") -> Message:
    return Message(Role.TOOL, text, name="look")


def talk(*messages: Message) -> Conversation:
    return Conversation(messages=messages)


LOOK, EDIT = call("look", n=1), call("edit", n=2)


@pytest.mark.parametrize(
    ("messages", "index"),
    [
        ([], None),
        ([user("hi")], None),
        ([user("hi"), LOOK], 1),
        ([user("hi"), analysis("hm"), LOOK], 2),
        ([user("hi"), LOOK, result()], None),
        ([user("hi"), LOOK, EDIT], 1),
        ([user("hi"), LOOK, EDIT, result()], 2),
        ([user("hi"), LOOK, analysis("and"), EDIT, result()], 3),
        ([user("hi"), LOOK, EDIT, result(), result()], None),
        ([user("hi"), LOOK, final("done")], 1),
        ([user("hi"), LOOK, user("stop")], None),
        ([user("hi"), LOOK, result(), EDIT], 3),
        ([result(), result()], None),
    ],
)
def test_the_open_call_is_the_oldest_without_a_result(messages: list[Message], index: int | None) -> None:
    assert open_call(talk(*messages)) == index


@given(st.lists(st.sampled_from([user("u"), analysis("a"), LOOK, EDIT, result(), final("f")]), max_size=12))
def test_answering_open_calls_comes_to_an_end_and_each_is_a_call(messages: list[Message]) -> None:
    conversation = talk(*messages)
    for _ in range(len(messages) + 1):
        index = open_call(conversation)
        if index is None:
            return
        assert conversation.messages[index].is_call
        conversation = conversation.add(result())
    pytest.fail("there was always one more open call")


@pytest.mark.parametrize(
    ("last", "answered", "stalled"),
    [
        (final("done"), True, False),
        (final(" \n"), False, True),
        (analysis("hm"), False, True),
        (Message(Role.ASSISTANT, "I will look"), False, True),
        (LOOK, False, False),
        (user("hi"), False, False),
        (result(), False, False),
    ],
)
def test_answers_and_stalls(last: Message, answered: bool, stalled: bool) -> None:
    conversation = talk(user("hi"), last)
    assert (is_answered(conversation), is_stalled(conversation)) == (answered, stalled)


def test_stalls_are_counted_in_a_row_only() -> None:
    go_on = user(GO_ON)
    assert stalls(talk(user("hi"))) == 0
    assert stalls(talk(user("hi"), analysis("a"), go_on, analysis("b"), go_on)) == 2
    assert stalls(talk(user("hi"), go_on, go_on)) == 2
    assert stalls(talk(user("hi"), go_on, LOOK, result(), go_on)) == 1
    assert is_harness(go_on)
    assert not is_harness(user("hi"))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("*** Begin Patch\n*** Update File: a", True),
        ("Here it is:\n```\n*** Begin Patch\n```", True),
        ("diff --git a/x b/x\n", True),
        ("```diff\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n```", True),
        ("@@ -1,3 +1,4 @@ def f", True),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", True),
        ("apply_patch <<'EOF'\n", True),
        ('{"command": ["bash", "-lc", "pytest -q"]}', True),
        ('```json\n{"cmd": "ls"}\n```', True),
        ('The call was {"command": ["ls"]}.', False),
        ('{"name": "the new field of the answer"}', False),
        ("I changed `slugify` in text.py so that the last word stays.", False),
        ("Run `pytest -q`; the --- line and @@ marks are only mentioned", False),
        ("See:\n```python\ndef f(): ...\n```", False),
        ("--- \nA horizontal rule", False),
    ],
)
def test_a_call_in_a_final_message_is_seen(text: str, written: bool) -> None:
    assert writes_a_call(text) is written


def test_a_message_of_empty_lines_is_looked_at_in_time() -> None:
    began = time.process_time()
    assert not writes_a_call("\n" * 100_000 + "Done.")
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("text", "announced"),
    [
        ("I changed a.py. Now let me run the tests.", True),
        ("Found it in slug.py.\n\nNext, I'll fix the loop:", True),
        ("Let\u2019s look at the callers\u2026", True),
        ("We need to update the docs.", True),
        ("I am going to apply this patch now", True),
        ("Fixed. Let me know if something is missing.", False),
        ("I will run the tests. All 12 pass.", False),
        ("It is fixed; callers that let me pass None still work.", False),
        ("Done. I will not touch the tests.", False),
        ("The loop now ends. `let me = 1` stays.", False),
        ("", False),
    ],
)
def test_a_final_message_that_only_announces_is_seen(text: str, announced: bool) -> None:
    assert announces(text) is announced


def test_repetition_needs_the_same_call_and_the_same_result() -> None:
    same = [LOOK, result("took 0.31 s")]
    assert repeats(talk(user("hi"))) == 0
    assert repeats(talk(user("hi"), *same)) == 1
    assert repeats(talk(user("hi"), *same, LOOK, result("took 1.20 s"))) == 2
    assert repeats(talk(user("hi"), *same, *same, LOOK, result("different"))) == 1
    assert repeats(talk(user("hi"), *same, *same, EDIT, result("took 0.31 s"))) == 1
    assert repeats(talk(*same, EDIT, result(), *same, EDIT, result(), *same, EDIT, result())) == 3
    assert repeats(talk(*same * 100)) == REPEATS_AT_MOST * 3


def test_the_notice_does_not_hide_the_repetition() -> None:
    noticed = [LOOK, result("ok" + repetition_notice(3))]
    assert repeats(talk(LOOK, result("ok"), *noticed, *noticed)) == 3


def test_two_calls_in_one_answer_are_paired_with_their_results() -> None:
    answer = [LOOK, EDIT, result("one"), result("two")]
    assert repeats(talk(*answer, *answer)) == 2
    assert repeats(talk(*answer, LOOK, EDIT, result("two"), result("one"))) == 1
    assert repeats(talk(LOOK, result("one"), LOOK, EDIT, result("one"))) == 2


def test_a_word_from_the_person_starts_the_count_again() -> None:
    assert repeats(talk(LOOK, result(), LOOK, result(), user("go on"), LOOK, result())) == 1
