"""Reads the position of a run from its last messages: pure functions, so that a resumed run is at the same position."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from agent.conversation import Conversation, Message, Role

# Messages of the harness start like this, to distinguish them from the user's messages.
HARNESS = "[harness] "
GO_ON = (
    f"{HARNESS}Your last answer had neither a tool call nor a final message, so nothing happened. "
    "Go on: make the next tool call now, or give the final message if the work is done."
)
CUT_OFF = (
    f"{HARNESS}Your last answer was cut off, because it was as long as an answer may be, and nothing of it was run. "
    "Go on in smaller steps: think less, and put less into one call."
)
MAKE_THE_CALL = (
    f"{HARNESS}Your final message contains an edit or a tool call, but written there it does nothing. If it is meant to happen, "
    "make the tool call for it now. If it has happened already, give the final message again without it."
)
DO_IT_NOW = (
    f"{HARNESS}Your final message ends with what you are going to do, but a final message ends the work. Do it now, with "
    "tool calls. If the work is done, give the final message again without the announcement."
)
NOTHING_CHANGED = (
    f"{HARNESS}You ended, but no file in the workspace has changed. If the task needs a change, make it now with the "
    "tools. If it truly needs none, give the final message again and say why."
)
NOT_ALLOWED = (
    f"{HARNESS}You ended, but your change may not leave the sandbox. Undo what the rule forbids, then end again: "
)
REPEATED = f"\n{HARNESS}You have made this same call "

STALLS_AT_MOST = 4
REPEATS_SAID = 3
REPEATS_AT_MOST = 8
LONGEST_CYCLE = 3

_EDIT_MARKS = re.compile(
    r"^[ \t]*\*\*\* Begin Patch\b|^diff --git |^--- \S.*\n\+\+\+ \S|^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@"
    r"|^<{7} SEARCH\b|apply_patch\s*<<"
    r"|\A\s*(?:```\w*\s*)?\{\s*\"(?:cmd|command|patch|tool|tool_calls|recipient_name)\"\s*:",  # a call's arguments
    re.MULTILINE,
)
# A last sentence that announces the next step: "Now let me run the tests."
_ANNOUNCES = re.compile(
    r"(?:^|[.!?:\n])[\s*_>-]*(?:(?:ok|okay|now|next|then|first|so)\b\W*)*"
    r"(?:(?:I|we)(?:['\u2019]ll| will|['\u2019]m going to|['\u2019]re going to| am going to| are going to| need to)(?! not)"
    r"|let(?:['\u2019]s| me(?! know)| us))\b[^.!?\n]*[.:!\u2026]*\s*$",
    re.IGNORECASE,
)
_DURATION = re.compile(r"\d+\.\d+")


def open_call(conversation: Conversation) -> int | None:
    """Return the index of the first call of the last answer that has no result yet, or None.

    Results follow their answer in the order of its calls.
    """
    messages = conversation.messages
    end = len(messages)
    while end and messages[end - 1].role is Role.TOOL:
        end -= 1
    answered = len(messages) - end
    start = end
    while start and messages[start - 1].role is Role.ASSISTANT:
        start -= 1
    calls = [index for index in range(start, end) if messages[index].is_call]
    return calls[answered] if answered < len(calls) else None


def is_answered(conversation: Conversation) -> bool:
    """Whether the last message is a final answer that is not empty."""
    last = conversation.last
    return last is not None and last.is_final and bool(last.text.strip())


def is_stalled(conversation: Conversation) -> bool:
    """Whether the last answer has neither a call nor a result: only reasoning, or an empty final message."""
    last = conversation.last
    return last is not None and last.role is Role.ASSISTANT and not last.is_call and not is_answered(conversation)


def stalls(conversation: Conversation) -> int:
    """Return how often in a row the model was told to continue and did not."""
    count = 0
    for message in reversed(conversation.messages):
        if message.role is Role.USER and message.text in {GO_ON, CUT_OFF}:
            count += 1
        elif message.role is not Role.ASSISTANT or message.is_call:
            break
    return count


def is_harness(message: Message) -> bool:
    """Whether a message with the role user is from the harness."""
    return message.role is Role.USER and message.text.startswith(HARNESS)


def writes_a_call(text: str) -> bool:
    """Whether a final message contains what should have been a call: a patch, a diff, a heredoc for apply_patch, arguments."""
    return _EDIT_MARKS.search(text) is not None


def announces(text: str) -> bool:
    """Whether a final message ends by announcing the next step: then the model meant to continue."""
    return _ANNOUNCES.search(text[-400:]) is not None


def repeats(conversation: Conversation) -> int:
    """Return how often in a row the latest calls were made with the same bodies and the same results.

    A cycle of up to three different calls counts as a repetition too. Numbers with a fraction compare as equal, because
    they are mostly durations.
    """
    newest = list(islice(_exchanges(conversation), LONGEST_CYCLE * REPEATS_AT_MOST))
    best = min(1, len(newest))
    for length in range(1, LONGEST_CYCLE + 1):
        same = 0
        while length + same < len(newest) and _alike(newest[same], newest[length + same]):
            same += 1
        best = max(best, 1 + same // length if len(newest) >= length else 0)
    return best


def _exchanges(conversation: Conversation) -> Iterator[tuple[Message, Message]]:
    """Yield (call, result) of the answered calls, latest first, back to the last message with the role user."""
    results: list[Message] = []
    calls: list[Message] = []
    for message in reversed(conversation.messages):
        if message.role is Role.ASSISTANT:
            if message.is_call:
                calls.append(message)
            continue
        if calls:
            yield from _pairs(calls, results)
            results, calls = [], []
        if message.role is not Role.TOOL:
            return
        results.append(message)
    yield from _pairs(calls, results)


def _pairs(calls: list[Message], results: list[Message]) -> Iterator[tuple[Message, Message]]:
    """Pair one answer's calls with its results, both latest first; the latest calls may have no result yet."""
    return zip(calls[max(0, len(calls) - len(results)) :], results, strict=False)


def _alike(one: tuple[Message, Message], other: tuple[Message, Message]) -> bool:
    (call, result), (other_call, other_result) = one, other
    return (
        call.recipient == other_call.recipient
        and call.text == other_call.text
        and _bare(result.text) == _bare(other_result.text)
    )


def _bare(result: str) -> str:
    return _DURATION.sub("#", result.partition(REPEATED)[0])


def repetition_notice(times: int) -> str:
    """Return the notice that is appended to a result if the call was made ``times`` times in a row with the same result."""
    return (
        f"{REPEATED}{times} times in a row with the same result. Repeating it will not change that: "
        f"try something else. At {REPEATS_AT_MOST} times the run ends."
    )
