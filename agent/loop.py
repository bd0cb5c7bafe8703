"""The agent loop: State in, events out. It decides by the last message and has no state of its own, so it can resume after any event.

::

    a call of unknown effect → ToolFinished (it says so)
    an open call             → Checked{before} once · ToolStarted → ToolFinished
    a final answer           → Checked{after} → RunEnded, or another chance with feedback on what was observed
    a limit reached          → RunEnded
    a nearly full window     → Compacted
    otherwise                → Delta… · MessageAdded… · Sampled
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from agent.check import feedback
from agent.compact import compact, is_full, room_tokens, target_tokens, used_tokens
from agent.conversation import Message, Role
from agent.errors import ContextOverflow, ModelError
from agent.events import (
    Checked,
    Delta,
    Event,
    MessageAdded,
    Outcome,
    PlanChanged,
    Repaired,
    Retried,
    Sampled,
    State,
    ToolFinished,
    ToolResult,
    ToolStarted,
    step,
)
from agent.model.base import Model, SamplingParams
from agent.position import (
    CUT_OFF,
    DO_IT_NOW,
    GO_ON,
    MAKE_THE_CALL,
    NOT_ALLOWED,
    NOTHING_CHANGED,
    REPEATS_AT_MOST,
    REPEATS_SAID,
    STALLS_AT_MOST,
    announces,
    is_answered,
    is_stalled,
    open_call,
    repeats,
    repetition_notice,
    stalls,
    writes_a_call,
)
from agent.world import Limits, World

EFFECT_UNKNOWN = (
    "The run was cut off while this call was being made: whether it took effect is unknown. "
    "Look at the workspace before you repeat it."
)
OUT_OF_TIME = "the time is up"
CHECK_CHANCES = 2


def run(state: State, model: Model, params: SamplingParams, world: World, limits: Limits) -> Iterator[Event]:
    """Yield the events of a run from ``state`` to its RunEnded. The caller must store each event before it asks for the next.

    Raises ModelError (except ContextOverflow, which compaction handles) and what ``world`` raises.
    """
    while state.ended is None:
        for event in _turn(state, model, params, world, limits):
            yield event
            state = step(state, event)


def _turn(state: State, model: Model, params: SamplingParams, world: World, limits: Limits) -> Iterator[Event]:
    said = state.conversation
    call = open_call(said)
    limit = _limit(state, limits, world)
    if state.pending is not None:
        yield _answer(state, state.pending, ToolResult(EFFECT_UNKNOWN, ok=False))
    elif call is not None and limit != OUT_OF_TIME:
        yield from _act(state, call, world)
    elif call is None and is_answered(said):
        yield from _conclude(state, world, last_chance=limit is not None)
    elif limit is not None:
        yield world.finish(state, Outcome.LIMIT, limit)
    elif is_stalled(said):
        yield from _stall(state, world)
    elif is_full(state, limits.window_tokens, limits.answer_tokens):
        yield from _compact(state, world, limits, "the window was about to fill")
    else:
        yield from _sample(state, model, params, world, limits)


def _is_late(limits: Limits, world: World) -> bool:
    return limits.deadline_s is not None and world.now_s() > limits.deadline_s


def _limit(state: State, limits: Limits, world: World) -> str | None:
    if _is_late(limits, world):
        return OUT_OF_TIME
    if state.turns >= limits.turns:
        return f"{state.turns} turns were made, and that is the limit"
    if limits.tokens is not None and state.completion_tokens >= limits.tokens:
        return f"{state.completion_tokens} tokens were sampled, and {limits.tokens} is the limit"
    if repeats(state.conversation) >= REPEATS_AT_MOST:
        return f"the model made the same call {REPEATS_AT_MOST} times in a row with the same result"
    return None


def _act(state: State, call: int, world: World) -> Iterator[Event]:
    """Run an open call. Before the first call, run the checks on the untouched workspace."""
    if state.mode == "fix" and state.checks_before is None:
        yield Checked("before", world.check("before"))
    action = world.resolve(state.conversation.messages[call])
    yield from (Repaired(kind, f"the call of {action.tool}") for kind in action.repairs)
    started = ToolStarted(call, action.tool)
    yield started
    finished = _answer(state, started, action.run())
    times = repeats(state.conversation.add(finished.message))
    if times >= REPEATS_SAID:
        finished = _answer(
            state, started, replace(finished.result, text=finished.result.text + repetition_notice(times))
        )
    yield finished
    if finished.result.plan is not None:
        yield PlanChanged(finished.result.plan)


def _answer(state: State, started: ToolStarted, result: ToolResult) -> ToolFinished:
    call = state.conversation.messages[started.call]
    message = Message(Role.TOOL, result.text, call.channel, "assistant", name=call.recipient)
    return ToolFinished(started.call, started.tool, result, message)


def _conclude(state: State, world: World, last_chance: bool) -> Iterator[Event]:
    """End the run by what is observed, not by what the final message claims; before failing, tell the model and let it try again."""
    final = state.conversation.messages[-1].text
    if state.mode == "ask":
        yield world.finish(state, Outcome.ANSWERED, "the question was answered")
        return
    outcome, reason = world.verdict(state)
    if writes_a_call(final) and not last_chance and not state.repairs.get("edit_in_final"):
        yield from _tell(MAKE_THE_CALL, "edit_in_final")
    elif announces(final) and not last_chance and not state.repairs.get("announced"):
        yield from _tell(DO_IT_NOW, "announced")
    elif outcome is Outcome.NO_CHANGE and not last_chance and not state.repairs.get("no_change"):
        yield from _tell(NOTHING_CHANGED, "no_change")
    elif outcome is Outcome.REFUSED and not last_chance and not state.repairs.get("refused"):
        yield from _tell(NOT_ALLOWED + reason, "refused")
    elif outcome not in {Outcome.NO_CHANGE, Outcome.REFUSED} and state.checks_after is None:
        yield Checked("after", world.check("after"))
    elif outcome is Outcome.CHECKS_FAILED and not last_chance and state.repairs.get("checks_failed", 0) < CHECK_CHANCES:
        yield from _tell(feedback(reason, state.checks_after or ()), "checks_failed")
    else:
        yield world.finish(state, outcome, reason)


def _stall(state: State, world: World) -> Iterator[Event]:
    if stalls(state.conversation) >= STALLS_AT_MOST:
        reason = f"the model stopped {STALLS_AT_MOST + 1} times in a row with neither a call nor a final message"
        yield world.finish(state, Outcome.LIMIT, reason)
    else:
        yield from _tell(CUT_OFF if state.finish == "length" else GO_ON, "stalled")


def _tell(text: str, kind: str) -> Iterator[Event]:
    """Tell the model something, then count it. A crash between the two gives one chance too many, but never an endless loop."""
    yield MessageAdded(Message(Role.USER, text))
    yield Repaired(kind)


def _compact(state: State, world: World, limits: Limits, reason: str) -> Iterator[Event]:
    room = room_tokens(limits.window_tokens, limits.answer_tokens) if limits.window_tokens else used_tokens(state)
    event = compact(state, target_tokens(state, room), world.digests(), reason)
    if event.tokens_after < event.tokens_before:
        yield event
    else:
        yield world.finish(state, Outcome.LIMIT, f"the model's window is too small for this task ({reason})")


def _sample(
    state: State, model: Model, params: SamplingParams, world: World, limits: Limits
) -> Generator[Event, None, None]:
    """Sample the model's next answer. If the deadline passes in the middle of it, the partial answer is dropped."""
    empty = True
    left_s = None if limits.deadline_s is None else max(limits.deadline_s - world.now_s(), 0.0)
    answer = model.sample(state.conversation, replace(params, timeout_s=left_s))
    try:
        for event in answer:
            yield event
            empty = empty and not isinstance(event, MessageAdded)
            if isinstance(event, Sampled):  # _stall needs to know how the answer ended
                state = step(state, event)
            if isinstance(event, Delta | Retried) and _is_late(limits, world):
                yield world.finish(state, Outcome.LIMIT, OUT_OF_TIME)
                return
    except ContextOverflow as error:
        yield from _compact(state, world, limits, str(error))
        return
    except ModelError:
        if not _is_late(limits, world):
            raise
        yield world.finish(state, Outcome.LIMIT, OUT_OF_TIME)
        return
    finally:
        if isinstance(answer, Generator):
            answer.close()
    if empty:
        yield from _stall(state, world)
