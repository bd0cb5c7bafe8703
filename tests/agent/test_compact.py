"""Compaction: it fits, it keeps what matters, and doing it again loses nothing more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compact import (
    PRUNED_CHARS,
    SUMMARY_HEAD,
    compact,
    estimate,
    is_full,
    message_tokens,
    room_tokens,
    summarize,
    target_tokens,
    text_tokens,
    used_tokens,
)
from agent.conversation import Conversation, Message, Role, ToolSpec
from agent.events import (
    CallRecord,
    Checked,
    CheckResult,
    MessageAdded,
    PlanChanged,
    PlanStep,
    Sampled,
    State,
    StepState,
    ToolFinished,
    ToolResult,
    ToolStarted,
    fold,
    step,
)
from agent.position import open_call
from tests.fakes import analysis, call, started, user

PLAN = (
    PlanStep("find slugify", StepState.COMPLETED),
    PlanStep("fix the cut", StepState.IN_PROGRESS),
    PlanStep("run the tests"),
)
BEFORE = CheckResult("pytest -q", 1, 1.0, "", {"t.py::test_a": "failed", "t.py::test_b": "passed"})
LATEST = CheckResult("pytest -q", 1, 1.0, "", {"t.py::test_c": "error", "t.py::test_a": "passed"})
DIGESTS = {"slug.py": "sha256 0123456789ab", "old.py": ""}


def long_run(turns: int = 30, chars: int = 2000) -> State:
    state = fold([started("slugify drops the last word"), PlanChanged(PLAN), Checked("before", (BEFORE,))])
    for number in range(turns):
        asked = call("shell", command=f"pytest -k test_{number}")
        state = fold([MessageAdded(analysis(f"thought {number}")), MessageAdded(asked)], state)
        at = len(state.conversation.messages) - 1
        result = ToolResult("x" * chars, exit_code=number % 2, changed_paths=("slug.py",) if number == 3 else ())
        message = Message(Role.TOOL, result.text, name="shell")
        state = fold(
            [Sampled(0, 10, "call"), ToolStarted(at, "shell"), ToolFinished(at, "shell", result, message)], state
        )
    return replace(state, checks_latest=(LATEST,))


def test_pruning_old_output_comes_first_and_keeps_every_word_of_the_model() -> None:
    state = long_run(30, 2000)
    event = compact(state, 6000, {}, "full")
    assert event.tokens_after <= 6000 < event.tokens_before
    kept = [m for m in event.messages if m.role is Role.ASSISTANT]
    assert kept == [m for m in state.conversation.messages if m.role is Role.ASSISTANT]
    assert event.messages[0] == state.conversation.messages[0]
    assert event.messages[-1] == state.conversation.messages[-1], "the newest output is whole"
    assert "characters of old output left out" in event.messages[3].text
    assert not any(m.text.startswith(SUMMARY_HEAD) for m in event.messages)


def test_the_summary_holds_what_matters() -> None:
    state = long_run(60, 3000)
    event = compact(state, 2500, DIGESTS, "full")
    assert event.tokens_after <= 2500
    goal, summary, *newest = event.messages
    assert goal.text == state.conversation.messages[0].text
    for part in (
        "- [x] find slugify", "- [>] fix the cut", "- [ ] run the tests",
        "- slug.py (sha256 0123456789ab)", "- old.py (removed)",
        "test_59", "→ exit code 1",
        "before any change: `pytest -q` → exit code 1; failing: t.py::test_a",
        "last seen: `pytest -q` → exit code 1; failing: t.py::test_c",
        "## Next step\n- fix the cut",
    ):  # fmt: skip
        assert part in summary.text
    assert newest[0].role is Role.ASSISTANT
    assert newest[-2].text == '{"command": "pytest -k test_59"}'


def test_what_was_summed_up_still_says_which_files_a_call_changed() -> None:
    text = summarize(long_run(5), {}, 10_000)
    assert "pytest -k test_3" in text
    assert "→ exit code 1, changed slug.py" in text


@pytest.mark.parametrize("target", [2500, 1200, 400])
def test_compacting_again_converges_and_never_sums_up_a_summary(target: int) -> None:
    state = long_run(40, 3000)
    sizes = []
    for _ in range(5):
        event = compact(state, target, DIGESTS, "again")
        sizes.append(event.tokens_after)
        state = step(state, event)
        assert sum(m.text.startswith(SUMMARY_HEAD) for m in event.messages) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == sizes[-2]
    assert state.plan == PLAN
    assert len(state.calls) == 40


@pytest.mark.parametrize("window", [4_096, 8_192, 16_384, 131_072])
def test_the_newest_output_stays_in_part_in_every_window(window: int) -> None:
    """Without it the model would make the same call again, and again fill the window."""
    state = long_run(30, 10_000)
    room = room_tokens(window, 32_768)
    event = compact(state, target_tokens(state, room), DIGESTS, "full")
    assert event.tokens_after <= room
    assert event.messages[-2].text == '{"command": "pytest -k test_29"}'
    kept = event.messages[-1].text
    assert kept.startswith("x" * PRUNED_CHARS)
    assert kept.endswith("x" * (PRUNED_CHARS // 2))


def test_the_persons_words_stay_verbatim_and_the_harnesss_do_not() -> None:
    state = long_run(20, 3000)
    messages = state.conversation.messages
    spoken = (*messages[:4], user("and keep the API"), user("[harness] go on"), *messages[4:])
    state = replace(state, conversation=replace(state.conversation, messages=spoken))
    event = compact(state, 1200, {}, "full")
    texts = [m.text for m in event.messages]
    assert texts[:2] == [messages[0].text, "and keep the API"]
    assert "[harness] go on" not in texts


def test_instructions_and_tools_are_not_touched() -> None:
    state = long_run()
    tools = (ToolSpec("shell", "Run", {"type": "object"}),)
    state = replace(state, conversation=replace(state.conversation, instructions="Use tabs.", tools=tools))
    after = step(state, compact(state, 1200, {}, "full"))
    assert (after.conversation.instructions, after.conversation.tools) == ("Use tabs.", tools)


def test_no_call_is_open_after_a_compaction() -> None:
    for target in (200, 1000, 3000, 9000):
        state = long_run(15, 3000)
        assert open_call(step(state, compact(state, target, {}, "full")).conversation) is None


def test_one_huge_newest_result_is_cut_to_fit() -> None:
    state = long_run(1, 200_000)
    event = compact(state, 2000, {}, "full")
    assert event.tokens_after <= 2000
    assert "characters of old output left out" in event.messages[-1].text


@given(st.integers(1, 12), st.integers(0, 6000), st.integers(300, 20_000))
def test_it_never_grows_and_every_result_follows_its_call(turns: int, chars: int, target: int) -> None:
    state = long_run(turns, chars)
    event = compact(state, target, DIGESTS, "full")
    # A conversation that is short already may only be pruned, never inflated by a summary it does not need.
    if event.tokens_before <= target:
        assert event.messages == state.conversation.messages or event.tokens_after <= event.tokens_before
    results = [i for i, m in enumerate(event.messages) if m.role is Role.TOOL]
    assert all(event.messages[i - 1].is_call for i in results)


# -- when -----------------------------------------------------------------------------------------------------------


def test_the_window_keeps_room_for_an_answer_and_a_result() -> None:
    assert room_tokens(131_072, 32_768) == 131_072 - 32_768 - 4096
    assert room_tokens(8192, 32_768) == 8192 - 2048 - 1024
    assert not is_full(long_run(), None, 32_768)


def test_what_the_model_counted_is_believed_and_what_came_since_is_added() -> None:
    state = long_run(10, 700)
    counted = step(state, Sampled(5000, 10, "call"))
    newest = state.conversation.messages[-3:]
    assert used_tokens(counted) == 5000 + sum(map(message_tokens, newest))
    assert used_tokens(state) == estimate(state.conversation)
    assert used_tokens(step(counted, compact(counted, 1200, {}, "full"))) <= 1200
    assert is_full(counted, 7000, 1000) is (used_tokens(counted) > room_tokens(7000, 1000))


def test_sampled_ids_count_exactly_and_text_by_its_bytes() -> None:
    assert message_tokens(Message(Role.ASSISTANT, "x" * 700, tokens=(1, 2, 3))) == 3
    assert text_tokens("x" * 700) == 200
    assert text_tokens("語" * 7) == 6
    assert text_tokens("\ud800") > 0
    assert estimate(Conversation()) == 0


def test_calls_of_a_run_are_remembered_in_the_state() -> None:
    records = long_run(2, 10).calls
    assert records[0] == CallRecord("shell", '{"command": "pytest -k test_0"}', True, 0)
    assert records[1].exit_code == 1
