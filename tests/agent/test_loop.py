"""The loop: every position, and a kill after every event."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path

import pytest

from agent.conversation import Message, Role
from agent.errors import ContextOverflow, EndpointUnreachable
from agent.events import (
    Checked,
    CheckResult,
    Compacted,
    Delta,
    Event,
    MessageAdded,
    Outcome,
    PlanChanged,
    PlanStep,
    Repaired,
    Resumed,
    Retried,
    RunEnded,
    Sampled,
    State,
    ToolFinished,
    ToolResult,
    ToolStarted,
    fold,
)
from agent.log import Log, read
from agent.loop import EFFECT_UNKNOWN, OUT_OF_TIME, run
from agent.model.base import Model, SamplingParams
from agent.model.scripted import ScriptedModel
from agent.position import (
    CUT_OFF,
    DO_IT_NOW,
    GO_ON,
    MAKE_THE_CALL,
    NOT_ALLOWED,
    NOTHING_CHANGED,
    REPEATS_AT_MOST,
    STALLS_AT_MOST,
    stalls,
)
from agent.world import Action, Limits
from tests.fakes import FakeWorld, FaultyModel, analysis, call, final, started

PASSING = CheckResult("pytest", 0, 0.1, "1 passed")
FAILING = CheckResult("pytest", 1, 0.1, "1 failed")
CHECKS = {"before": (FAILING,), "after": (PASSING,)}
TOOLS = {"look": lambda body: ToolResult(f"saw {body}")}
FIX = [[analysis("hm"), call("look", path="a")], [call("edit", n=1)], [analysis("done"), final("fixed")]]


def play(
    model: Model, world: FakeWorld, limits: Limits | None = None, state: State | None = None
) -> tuple[list[Event], RunEnded]:
    state = fold([started()]) if state is None else state
    events = list(islice(run(state, model, SamplingParams(), world, limits or Limits()), 2000))
    ended = events[-1]
    assert isinstance(ended, RunEnded), "the loop did not end"
    return events, ended


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, Delta)]


def told(events: list[Event]) -> list[str]:
    return [e.message.text for e in events if isinstance(e, MessageAdded) and e.message.role is Role.USER]


def test_a_run_in_order() -> None:
    world = FakeWorld(TOOLS, CHECKS)
    events, ended = play(ScriptedModel(FIX), world)
    assert names(events) == [
        *("MessageAdded", "MessageAdded", "Sampled", "Checked", "ToolStarted", "ToolFinished"),
        *("MessageAdded", "Sampled", "ToolStarted", "ToolFinished"),
        *("MessageAdded", "MessageAdded", "Sampled", "Checked", "RunEnded"),
    ]
    assert ended == RunEnded(Outcome.PASSED, "`pytest` passes (it failed before)", "fixed", ("a.py",))
    assert world.checked == ["before", "after"]
    finished = [event for event in events if isinstance(event, ToolFinished)]
    assert finished[0].message == Message(Role.TOOL, 'saw {"path": "a"}', FIX[0][1].channel, "assistant", name="look")
    assert [record.tool for record in fold([started(), *events]).calls] == ["look", "edit"]


def test_asking_runs_no_check_and_ends_with_the_answer() -> None:
    world = FakeWorld(TOOLS, CHECKS)
    _, ended = play(ScriptedModel([FIX[0], [final("it is so")]]), world, state=fold([started(mode="ask")]))
    assert (ended.outcome, ended.claimed, world.checked) == (Outcome.ANSWERED, "it is so", [])


# -- kills ----------------------------------------------------------------------------------------------------------


def resumable(log: Path, world: FakeWorld, turns: list[list[Message]], stop_after: int | None) -> bool:
    """Play a run over its log as the session does, dying after ``stop_after`` durable events. True when it ended."""
    with Log(log) as writer:
        state = fold(entry.event for entry in writer.entries)
        written = 0
        for event in run(state, ScriptedModel(turns), SamplingParams(), world, Limits()):
            writer.append(event)
            written += not isinstance(event, Delta)
            if written == stop_after:
                return False
    return True


def new_log(folder: Path) -> Path:
    path = folder / "events.jsonl"
    with Log(path, new=True) as log:
        log.append(started())
    return path


# Where the edit's effect was lost with the process, the model is told that nothing changed, and edits again.
AGAIN = [[call("edit", n=3)], [final("fixed")]]
ONE_CALL = [*FIX, *AGAIN]
TWO_CALLS = [[call("look", n=1), call("edit", n=2)], *FIX, *AGAIN]


@pytest.mark.parametrize("turns", [ONE_CALL, TWO_CALLS], ids=["one call", "two calls in one answer"])
def test_killed_after_every_event_it_ends_the_same_and_runs_no_call_twice(
    tmp_path: Path, turns: list[list[Message]]
) -> None:
    whole_world = FakeWorld(TOOLS, CHECKS)
    whole = new_log(tmp_path / "whole")
    assert resumable(whole, whole_world, turns, None)
    events = [entry.event for entry in read(whole)]
    for stop in range(1, len(events) - 1):
        world = FakeWorld(TOOLS, CHECKS)
        path = new_log(tmp_path / str(stop))
        assert not resumable(path, world, turns, stop)
        assert resumable(path, world, turns, None)
        final_state = fold(entry.event for entry in read(path))
        assert final_state.ended == fold(events).ended, f"killed after {events[stop]}"
        assert len(world.done) == len(set(world.done)), f"a call ran twice after {events[stop]}"
        # The one call whose effect was unknown was told so; every other one ran.
        unknown = [m for m in final_state.conversation.messages if m.text == EFFECT_UNKNOWN]
        assert len(unknown) == isinstance(events[stop], ToolStarted)
        edited_again = ("edit", AGAIN[0][0].text) in world.done
        assert len(world.done) + len(unknown) == len(whole_world.done) + edited_again


def test_killed_after_every_single_event_in_turn(tmp_path: Path) -> None:
    world = FakeWorld(TOOLS, CHECKS, files={"a.py": "as the sandbox kept it"})
    path = new_log(tmp_path)
    for _ in range(60):
        if resumable(path, world, FIX, 1):
            break
    assert fold(entry.event for entry in read(path)).ended is not None
    assert not world.done, "each call died between its start and its effect; none may run after that"


def test_with_the_log_cut_at_every_byte_it_ends_and_no_finished_call_runs_again(tmp_path: Path) -> None:
    world = FakeWorld(TOOLS, CHECKS)
    whole = new_log(tmp_path / "whole")
    assert resumable(whole, world, FIX, None)
    data = whole.read_bytes()
    first = data.index(b"\n") + 1  # without a whole RunStarted there is no run
    path = tmp_path / "cut.jsonl"
    ends = set()
    for cut in range(first, len(data)):
        path.write_bytes(data[:cut])
        kept = [entry.event for entry in read(path)]
        assert kept == [entry.event for entry in read(whole)][: data[:cut].count(b"\n")]
        # A run goes on from its whole lines: once in the middle of each line is every case there is.
        if len(kept) in ends or data[:cut].endswith(b"\n"):
            continue
        ends.add(len(kept))
        again = FakeWorld(TOOLS, CHECKS, files={"a.py": "as the sandbox kept it"})
        assert resumable(path, again, FIX, None)
        state = fold(entry.event for entry in read(path))
        assert state.ended is not None
        assert state.ended.outcome is Outcome.PASSED
        assert len(again.done) == 2 - len(fold(kept).calls) - (fold(kept).pending is not None)
    assert len(ends) == data.count(b"\n") - 1


# -- what the model does wrong ------------------------------------------------------------------------------------------


def test_reasoning_only_is_not_an_end() -> None:
    turns = [[analysis("I should edit.")], *FIX]
    events, ended = play(ScriptedModel(turns), FakeWorld(TOOLS, CHECKS))
    assert ended.outcome is Outcome.PASSED
    assert told(events) == [GO_ON]
    assert Repaired("stalled") in events


def test_an_empty_answer_is_not_an_end() -> None:
    empty = [Sampled(5, 0, "stop")]
    blank = [MessageAdded(final("  \n")), Sampled(5, 1, "stop")]
    spoken = [[MessageAdded(m) for m in turn] + [Sampled(5, 5, "stop")] for turn in FIX]
    events, ended = play(FaultyModel([empty, blank, *spoken]), FakeWorld(TOOLS, CHECKS))
    assert ended.outcome is Outcome.PASSED
    assert told(events) == [GO_ON, GO_ON]


@pytest.mark.parametrize("answer", [[], [MessageAdded(analysis("on and on"))]], ids=["a call", "reasoning"])
def test_an_answer_that_was_cut_off_is_told_so(answer: list[MessageAdded]) -> None:
    spoken = [[MessageAdded(m) for m in turn] + [Sampled(5, 5, "stop")] for turn in FIX]
    cut = [*answer, Sampled(5, 9, "length")]
    events, ended = play(FaultyModel([cut, cut, *spoken]), FakeWorld(TOOLS, CHECKS))
    assert ended.outcome is Outcome.PASSED
    assert told(events) == [CUT_OFF, CUT_OFF]
    assert stalls(fold([started(), *events[: events.index(MessageAdded(FIX[0][0]))]]).conversation) == 2


@pytest.mark.parametrize("answer", [[], [MessageAdded(analysis("hm"))]], ids=["nothing", "reasoning"])
def test_a_model_that_only_stalls_meets_a_limit(answer: list[MessageAdded]) -> None:
    model = FaultyModel([[*answer, Sampled(5, 0, "stop")]] * 50)
    _, ended = play(model, FakeWorld())
    assert ended.outcome is Outcome.LIMIT
    assert "5 times in a row with neither" in ended.reason
    assert len(model.asked) == STALLS_AT_MOST + 1


def test_an_announcement_in_place_of_a_result_is_no_end_but_once() -> None:
    """Agents end their turn with the next step on their lips: the most reported way of stopping early."""
    turns = [[call("edit", n=1)], [final("Next I will run the tests.")], [call("look")], [final("I will go on.")]]
    events, ended = play(ScriptedModel(turns), FakeWorld(TOOLS, CHECKS))
    assert told(events) == [DO_IT_NOW]
    assert ended.outcome is Outcome.PASSED


def test_an_edit_in_the_final_message_is_asked_for_once_as_a_call() -> None:
    patch = final("Here:\n*** Begin Patch\n*** Update File: a.py\n")
    events, ended = play(ScriptedModel([FIX[0], [patch], FIX[1], [patch]]), FakeWorld(TOOLS, CHECKS))
    assert told(events) == [MAKE_THE_CALL]
    assert ended.outcome is Outcome.PASSED


def test_ending_without_a_change_is_questioned_once() -> None:
    events, ended = play(ScriptedModel([FIX[0], [final("done")], [final("really")]]), FakeWorld(TOOLS, CHECKS))
    assert told(events) == [NOTHING_CHANGED]
    assert (ended.outcome, ended.claimed) == (Outcome.NO_CHANGE, "really")
    assert "Checked" not in names(events)[-3:]


def test_a_resumed_run_whose_work_was_lost_is_questioned_again() -> None:
    turns = [[final("done")], [final("really")], [call("edit", n=1)], [final("now it is")]]
    model = ScriptedModel(turns)
    begun, _ = play(model, FakeWorld(TOOLS, CHECKS))
    asked = begun.index(Repaired("no_change"))
    resumed = fold([*begun[: asked + 1], Resumed("restored")], fold([started()]))
    events, ended = play(model, FakeWorld(TOOLS, CHECKS), state=resumed)
    assert told(events) == [NOTHING_CHANGED]
    assert ended.outcome is Outcome.PASSED


def test_failing_checks_are_told_and_the_claim_does_not_count() -> None:
    world = FakeWorld(TOOLS, {"before": (FAILING,), "after": (FAILING,)})
    turns = [*FIX, [call("edit", n=2)], [final("now it passes")], [final("I swear")]]
    events, ended = play(ScriptedModel(turns), world)
    assert (ended.outcome, ended.claimed) == (Outcome.CHECKS_FAILED, "I swear")
    assert len(told(events)) == 2
    assert all("1 failed" in text and "checks do not pass" in text for text in told(events))
    assert world.checked == ["before", "after", "after", "after"]


def test_a_call_wins_over_a_final_message_in_one_answer() -> None:
    turns = [[call("edit", n=1), final("edited")], [final("done")]]
    _, ended = play(ScriptedModel(turns), FakeWorld(TOOLS, CHECKS))
    assert (ended.outcome, ended.claimed) == (Outcome.PASSED, "done")


def test_an_unknown_tool_is_an_answer() -> None:
    turns = [[call("teleport")], *FIX[1:]]
    events, ended = play(ScriptedModel(turns), FakeWorld(TOOLS, CHECKS))
    (first, *_) = [event for event in events if isinstance(event, ToolFinished)]
    assert (first.result.ok, first.message.text) == (False, "there is no tool teleport")
    assert ended.outcome is Outcome.PASSED


@pytest.mark.parametrize("cycle", [1, 2, 3])
def test_repeating_the_same_calls_is_said_and_then_ends(cycle: int) -> None:
    turns = [[call("look", n=number % cycle)] for number in range(100)]
    timed = (ToolResult(f"took {number}.5 s") for number in count())
    events, ended = play(ScriptedModel(turns), FakeWorld({"look": lambda _: next(timed)}))
    assert ended.outcome is Outcome.LIMIT
    assert f"{REPEATS_AT_MOST} times in a row with the same result" in ended.reason
    results = [event.message.text for event in events if isinstance(event, ToolFinished)]
    assert len(results) == cycle * REPEATS_AT_MOST
    assert ["same result" in text for text in results] == [n >= cycle * 3 - 1 for n in range(len(results))]


def test_the_same_call_with_other_results_is_no_loop() -> None:
    ticks = count()
    turns = [*([[call("look")]] * 30), FIX[1], FIX[2]]
    # A script of equal messages cannot be told apart by its tail alone, but by its length it can.
    _, ended = play(ScriptedModel(turns), FakeWorld({"look": lambda _: ToolResult(f"line {next(ticks)}")}, CHECKS))
    assert ended.outcome is Outcome.PASSED


# -- limits ---------------------------------------------------------------------------------------------------------


def looking() -> ScriptedModel:
    return ScriptedModel([[call("look", n=n)] for n in range(100)])


def test_the_turn_limit_counts_answers_and_the_last_call_still_runs() -> None:
    world = FakeWorld(TOOLS)
    _, ended = play(looking(), world, Limits(turns=4))
    assert (ended.outcome, ended.reason) == (Outcome.LIMIT, "4 turns were made, and that is the limit")
    assert len(world.done) == 4


def test_an_answer_on_the_last_turn_counts() -> None:
    _, ended = play(ScriptedModel(FIX), FakeWorld(TOOLS, CHECKS), Limits(turns=3))
    assert ended.outcome is Outcome.PASSED


def test_on_the_last_turn_failing_checks_end_the_run_as_what_they_are() -> None:
    world = FakeWorld(TOOLS, {"before": (PASSING,), "after": (FAILING,)})
    events, ended = play(ScriptedModel(FIX), world, Limits(turns=3))
    assert ended.outcome is Outcome.CHECKS_FAILED
    assert told(events) == []


def test_the_token_limit_counts_sampled_tokens() -> None:
    _, ended = play(looking(), FakeWorld(TOOLS), Limits(tokens=30))
    assert ended.outcome is Outcome.LIMIT
    assert "30 is the limit" in ended.reason


def test_out_of_time_the_open_call_does_not_run() -> None:
    world = FakeWorld(TOOLS, clock=iter([0.0, 1.0, 11.0, 12.0, 13.0]))
    _, ended = play(looking(), world, Limits(deadline_s=10.0))
    assert (ended.outcome, ended.reason, world.done) == (Outcome.LIMIT, OUT_OF_TIME, [])


def test_out_of_time_in_the_middle_of_an_answer_it_is_closed_and_dropped() -> None:
    model = FaultyModel([[Delta(None, "a"), Delta(None, "b"), MessageAdded(final("late"))]])
    events, ended = play(model, FakeWorld(clock=iter([0.0, 5.0, 11.0])), Limits(deadline_s=10.0))
    assert (ended.outcome, ended.reason, model.closed) == (Outcome.LIMIT, OUT_OF_TIME, 1)
    assert names(events) == ["RunEnded"]


def test_an_endpoint_that_fails_when_the_time_is_up_does_not_change_how_the_run_ends() -> None:
    world = FakeWorld(clock=iter([0.0, 5.0, 11.0]))
    _, ended = play(FaultyModel([EndpointUnreachable("no time left")]), world, Limits(deadline_s=10.0))
    assert (ended.outcome, ended.reason) == (Outcome.LIMIT, OUT_OF_TIME)


def test_an_answer_is_not_asked_for_again_when_the_time_is_up() -> None:
    model = FaultyModel([[Retried("silent", 1, 9.0), MessageAdded(final("late"))]])
    events, ended = play(model, FakeWorld(clock=iter([0.0, 5.0, 11.0])), Limits(deadline_s=10.0))
    assert (ended.outcome, ended.reason, model.closed) == (Outcome.LIMIT, OUT_OF_TIME, 1)
    assert names(events) == ["Retried", "RunEnded"]


def test_leaving_the_loop_closes_the_answer() -> None:
    model = FaultyModel([[Delta(None, "a"), Delta(None, "b")]])
    events = run(fold([started()]), model, SamplingParams(), FakeWorld(), Limits())
    next(events)
    assert isinstance(events, Iterator)
    events.close()  # type: ignore[attr-defined]
    assert model.closed == 1


def test_a_dead_endpoint_is_the_callers_business() -> None:
    with pytest.raises(EndpointUnreachable):
        play(FaultyModel([EndpointUnreachable("nobody answers")]), FakeWorld())


# -- the window -----------------------------------------------------------------------------------------------------


def test_a_long_run_is_compacted_before_the_window_fills_and_still_ends() -> None:
    world = FakeWorld({"look": lambda body: ToolResult(body + "x" * 3000)}, CHECKS)
    turns = [*([call("look", n=n)] for n in range(60)), *FIX[1:]]
    limits = Limits(window_tokens=8192, answer_tokens=1024)
    events, ended = play(ScriptedModel(turns), world, limits)
    compacted = [event for event in events if isinstance(event, Compacted)]
    assert ended.outcome is Outcome.PASSED
    assert len(world.done) == 61, "every call ran once, compaction or not"
    assert compacted
    assert all(event.tokens_after <= 4096 < event.tokens_before for event in compacted)
    assert max(event.prompt_tokens for event in events if isinstance(event, Sampled)) < 8192 - 1024


def test_an_overflow_compacts_and_asks_again() -> None:
    spoken = [[MessageAdded(m) for m in turn] + [Sampled(0, 5, "stop")] for turn in FIX]
    long = FakeWorld({"look": lambda _: ToolResult("y" * 5000)}, CHECKS)
    turns = [spoken[0], ContextOverflow("the prompt has 9000 tokens"), *spoken[1:]]
    events, ended = play(FaultyModel(turns), long)
    assert [event.reason for event in events if isinstance(event, Compacted)] == ["the prompt has 9000 tokens"]
    assert ended.outcome is Outcome.PASSED


def test_an_overflow_that_compaction_cannot_cure_is_a_limit() -> None:
    model = FaultyModel([ContextOverflow("far too long")] * 50)
    _, ended = play(model, FakeWorld())
    assert ended.outcome is Outcome.LIMIT
    assert "too small" in ended.reason
    assert len(model.asked) < 5


# -- the plan -------------------------------------------------------------------------------------------------------


def test_a_plan_is_an_event_and_survives_a_kill_before_it() -> None:
    steps = (PlanStep("look"), PlanStep("fix"))
    world = FakeWorld({"plan": lambda _: ToolResult("noted", plan=steps)}, CHECKS)
    events, _ = play(ScriptedModel([[call("plan")], *FIX[1:]]), world)
    at = events.index(PlanChanged(steps))
    assert isinstance(events[at - 1], ToolFinished)
    assert fold([started(), *events[:at]]).plan == steps
    assert isinstance(events[at - 2], ToolStarted)


def test_the_checks_before_come_before_the_first_call_of_a_run() -> None:
    events, _ = play(ScriptedModel(FIX), FakeWorld(TOOLS, CHECKS))
    order = [e.when if isinstance(e, Checked) else "call" for e in events if isinstance(e, Checked | ToolStarted)]
    assert order == ["before", "call", "call", "after"]


def test_what_may_not_leave_is_told_once() -> None:
    class Strict(FakeWorld):
        def verdict(self, state: State) -> tuple[Outcome, str]:
            return Outcome.REFUSED, "'x': no links"

    events, ended = play(ScriptedModel([*FIX, [final("still there")]]), Strict(TOOLS, CHECKS))
    assert (ended.outcome, ended.reason) == (Outcome.REFUSED, "'x': no links")
    assert told(events) == [NOT_ALLOWED + "'x': no links"]


def test_what_had_to_be_repaired_to_understand_a_call_is_an_event() -> None:
    class Repairing(FakeWorld):
        def resolve(self, call: Message) -> Action:
            return replace(super().resolve(call), repairs=("json", "name"))

    events, _ = play(ScriptedModel(FIX), Repairing(TOOLS, CHECKS))
    at = next(number for number, event in enumerate(events) if isinstance(event, ToolStarted))
    assert [event.kind for event in events[at - 2 : at] if isinstance(event, Repaired)] == ["json", "name"]


def test_a_late_turn_costs_the_loop_what_an_early_one_does() -> None:
    """Counted in calls of Python functions, which no neighbour on the machine can slow down."""
    turns = [[Sampled(9, 9, "call"), MessageAdded(call("look", n=n))] for n in range(300)]
    events = run(fold([started()]), FaultyModel(turns), SamplingParams(), FakeWorld(TOOLS), Limits(turns=300))
    calls, marks = 0, []

    def count_calls(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        for event in islice(events, 1400):
            if isinstance(event, ToolStarted):
                marks.append(calls)
    finally:
        sys.setprofile(before)
    costs = [after - before for before, after in pairwise(marks)]
    # From the turn on at which the loop detector's window (24 calls) is full.
    assert max(costs[30:]) <= 1.05 * max(costs[25:30]), costs
