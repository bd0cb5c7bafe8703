"""Compaction: shortens the conversation when the window is nearly full, from the State, without a model.

First, old tool output is removed. If that is not enough, everything between the user's messages and the latest turns is
replaced by a summary: plan, changed files, commands, checks, next step. It is built from the State each time, never
from an earlier summary, so repeated compaction loses nothing more. Instructions (the rules) are not messages: they stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from agent.conversation import Conversation, Message, Role
from agent.events import CallRecord, CheckResult, Compacted, State, StepState
from agent.position import HARNESS, is_harness

SUMMARY_HEAD = (
    f"{HARNESS}The conversation grew too long and was shortened. The task and all rules stand. What is known:"
)
LOOK_AGAIN = "Look at the workspace (git status, git diff) and go on from there."
PRUNED_CHARS = 200
MESSAGE_OVERHEAD_TOKENS = 8
LEAST_TOKENS = 600
LEAST_SUMMARY_TOKENS = 200
LISTED_COMMANDS = 40
LISTED_FILES = 200
LISTED_TESTS = 50
_MARKS = {StepState.PENDING: "[ ]", StepState.IN_PROGRESS: "[>]", StepState.COMPLETED: "[x]"}


def text_tokens(text: str) -> int:
    """Return an estimate of a text's tokens: three and a half bytes each, rounded up."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size * 2 // 7)


def message_tokens(message: Message) -> int:
    """Return the tokens of a message: exact if it was sampled with ids, otherwise an estimate."""
    return len(message.tokens) or text_tokens(message.text) + MESSAGE_OVERHEAD_TOKENS


def estimate(conversation: Conversation) -> int:
    """Return an estimate of a conversation's tokens as a prompt."""
    tools = sum(
        text_tokens(spec.name + spec.description + json.dumps(spec.parameters, default=dict))
        for spec in conversation.tools
    )
    return text_tokens(conversation.instructions) + tools + sum(map(message_tokens, conversation.messages))


def used_tokens(state: State) -> int:
    """Return an estimate of the next prompt's tokens: the latest reported count, plus an estimate of what was added since."""
    messages = state.conversation.messages
    if not state.prompt_tokens:
        return estimate(state.conversation)
    start = len(messages)
    while start and messages[start - 1].role is not Role.ASSISTANT:
        start -= 1
    while start and messages[start - 1].role is Role.ASSISTANT:
        start -= 1
    return state.prompt_tokens + sum(map(message_tokens, messages[start:]))


def room_tokens(window_tokens: int, answer_tokens: int) -> int:
    """Return the most tokens of a prompt: the window minus an answer (at most a quarter of it) and one large tool result."""
    return window_tokens - min(answer_tokens, window_tokens // 4) - min(4096, window_tokens // 8)


def is_full(state: State, window_tokens: int | None, answer_tokens: int) -> bool:
    """Whether the conversation must be compacted before the next request."""
    return window_tokens is not None and used_tokens(state) > room_tokens(window_tokens, answer_tokens)


def target_tokens(state: State, room: int) -> int:
    """Return the size to compact to, in this module's estimate: half of the available part of ``room``.

    What cannot be left out does not count as available. A small window gives more than half, because it must hold a summary
    and the latest turn.
    """
    used, counted = used_tokens(state), estimate(state.conversation)
    fixed = estimate(replace(state.conversation, messages=tuple(_goal(state.conversation))))
    free = max(0, min(room, used) * counted // max(used, 1) - fixed)
    return fixed + max(free // 2, min(free, LEAST_TOKENS))


def compact(state: State, target_tokens: int, digests: Mapping[str, str], reason: str) -> Compacted:
    """Return the event that shortens the conversation to about ``target_tokens`` (more only if that is impossible).

    ``digests`` are the changed files with a short hash each ("" for a removed one). Pure.
    """
    conversation = state.conversation
    before = estimate(conversation)
    goal = _goal(conversation)
    turns = _turns(conversation.messages)
    pruned = [*_without_turns(conversation.messages), *_prune(turns, target_tokens // 4)]
    if estimate(replace(conversation, messages=tuple(pruned))) > target_tokens:
        fixed = estimate(replace(conversation, messages=tuple(goal)))
        newest = sum(message_tokens(_shorten(m, PRUNED_CHARS)) for turn in turns[-1:] for m in turn)
        free = target_tokens - fixed - newest
        summary = Message(Role.USER, summarize(state, digests, max(free // 2, min(free, LEAST_SUMMARY_TOKENS))))
        room = target_tokens - fixed - message_tokens(summary)
        pruned = [*goal, summary, *_newest(turns, room)]
    after = estimate(replace(conversation, messages=tuple(pruned)))
    return Compacted(tuple(pruned), reason, before, after)


def _goal(conversation: Conversation) -> list[Message]:
    """Return the user's own messages."""
    return [m for m in conversation.messages if m.role is Role.USER and not is_harness(m)]


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Split messages into turns: an answer and what follows it. Messages before the first answer are in no turn."""
    turns: list[list[Message]] = []
    previous: Message | None = None
    for message in messages:
        if message.role is Role.ASSISTANT and (previous is None or previous.role is not Role.ASSISTANT):
            turns.append([])
        if turns:
            turns[-1].append(message)
        previous = message
    return turns


def _without_turns(messages: Sequence[Message]) -> list[Message]:
    return list(messages[: len(messages) - sum(map(len, _turns(messages)))])


def _prune(turns: Sequence[Sequence[Message]], keep_tokens: int) -> list[Message]:
    """Return the turns' messages, with long tool output shortened in all but the latest turns (``keep_tokens``, at least one turn)."""
    pruned: list[list[Message]] = []
    for index, turn in enumerate(reversed(turns)):
        keep_tokens -= sum(map(message_tokens, turn))
        pruned.append(list(turn) if index == 0 or keep_tokens >= 0 else [_shorten(m, PRUNED_CHARS) for m in turn])
    return [message for turn in reversed(pruned) for message in turn]


def _newest(turns: Sequence[Sequence[Message]], room_tokens: int) -> list[Message]:
    """Return the latest turns that fit, without the user's messages (they are kept separately) and earlier summaries.

    The last turn is shortened to fit, as far as its tool output allows.
    """
    kept: list[Message] = []
    for turn in reversed(turns):
        messages = [m for m in turn if m.role is not Role.USER or (is_harness(m) and not _is_summary(m))]
        if not kept:
            messages = _fitted(messages, room_tokens)
        size = sum(map(message_tokens, messages))
        if size > room_tokens:
            break
        room_tokens -= size
        kept = [*messages, *kept]
    return kept


def _fitted(messages: Sequence[Message], room_tokens: int) -> list[Message]:
    """Shorten tool output only as much as necessary: without it the model would make the same call again."""
    if sum(map(message_tokens, messages)) <= room_tokens:
        return list(messages)
    outputs = [m for m in messages if m.role is Role.TOOL]
    spare = room_tokens - sum(message_tokens(m) for m in messages if m.role is not Role.TOOL)
    chars = max(PRUNED_CHARS, 2 * spare // max(1, len(outputs)))  # two bytes per token, as in text full of numbers
    return [_shorten(m, chars) for m in messages]


def _is_summary(message: Message) -> bool:
    return message.text.startswith(SUMMARY_HEAD)


def _shorten(message: Message, chars: int) -> Message:
    """Cut the middle out of a tool's long output. Short output is unchanged, so cutting is idempotent."""
    if message.role is not Role.TOOL or len(message.text) <= chars + PRUNED_CHARS:
        return message
    head, tail = message.text[: chars // 2], message.text[len(message.text) - chars // 2 :]
    left_out = len(message.text) - len(head) - len(tail)
    return replace(message, text=f"{head}\n[{left_out} characters of old output left out]\n{tail}")


def summarize(state: State, digests: Mapping[str, str], most_tokens: int) -> str:
    """Return a summary of the State of about ``most_tokens`` at most; the oldest commands are left out first."""
    commands = [_command(record) for record in state.calls if record.tool not in {"plan"}][-LISTED_COMMANDS:]
    while True:
        sections = (
            ("Plan", [f"{_MARKS[each.state]} {each.text}" for each in state.plan]),
            ("Files changed so far (with a hash of their content now)", _files(digests)),
            ("Newest calls, oldest first, with exit codes", commands),
            ("Checks", _checks(state)),
            ("Next step", [_next_step(state)]),
        )
        text = "\n\n".join(
            [
                SUMMARY_HEAD,
                *(f"## {title}\n" + "\n".join(f"- {line}" for line in lines) for title, lines in sections if lines),
            ]
        )
        if not commands or text_tokens(text) <= most_tokens:
            return text
        commands = commands[(len(commands) + 1) // 2 :]


def _files(digests: Mapping[str, str]) -> list[str]:
    lines = [f"{path} ({digest or 'removed'})" for path, digest in sorted(digests.items())]
    return _first(lines, LISTED_FILES, "files")


def _command(record: CallRecord) -> str:
    body = " ".join(record.text.split())[:160]
    end = "ok" if record.ok else "failed"
    if record.exit_code is not None:
        end = f"exit code {record.exit_code}"
    changed = f", changed {', '.join(record.changed_paths[:5])}" if record.changed_paths else ""
    return f"{record.tool} {body} → {end}{changed}"


def _checks(state: State) -> list[str]:
    lines = [f"before any change: {_observed(each)}" for each in state.checks_before or ()]
    if state.checks_latest != (state.checks_before or ()):
        lines += [f"last seen: {_observed(each)}" for each in state.checks_latest]
    return lines


def _observed(result: CheckResult) -> str:
    end = "ran out of time" if result.exit_code is None else f"exit code {result.exit_code}"
    failing = sorted(test for test, how in result.tests.items() if how in {"failed", "error"})
    named = f"; failing: {', '.join(_first(failing, LISTED_TESTS, 'tests'))}" if failing else ""
    return f"`{result.command}` → {end}{named}"


def _next_step(state: State) -> str:
    undone = [each.text for each in state.plan if each.state is not StepState.COMPLETED]
    return f"{undone[0]} ({LOOK_AGAIN})" if undone else LOOK_AGAIN


def _first(lines: Iterable[str], most: int, what: str) -> list[str]:
    found = list(lines)
    return found if len(found) <= most else [*found[:most], f"and {len(found) - most} more {what}"]
