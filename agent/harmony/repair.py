"""The kinds of repair, from the lightest to the heaviest. Each one is an event, so that a run can count them.

=================  =====================================================================================
read past          the message is complete all the same
header_words       words in a header that mean nothing
content_type       a ``<|constrain|>`` without a type
channel            a channel that is not one of the three: inferred
recipient          a call whose header names a declared tool, but not after ``to=``
missing_start      a message began without ``<|start|>``
missing_message    a header ran into its text without ``<|message|>``
missing_end        a message was not ended before the next began, or the server swallowed the stop token
stray_end          an end with nothing to end
split_body         a marker in the middle of a text, which continued after it
stray_control      another control id in a text or header
final_before_call  a final that was followed by more: it counts as a preamble
spelt              a server handed harmony on as text: read from it
dropped            what was sampled is not kept
after_call         what the model invented after its call
foreign_role       a message under another's name (system, user, a tool)
continued          the turn continues from what it has
extended           cut by the server: continued exactly there
prefilled          reasoning only, then a stop: asked for a call, then for an answer
cut_loop           the same words over and over: cut before they repeat
cut_thinking       reasoning that would leave no room to act: ended, so that the model acts
given up           there was nothing left to try
cut_call           a call that was cut: kept as text, since half a call must not run
resampled          nothing usable came; the turn was sampled again
constrained calls  (agent/harmony/constrain.py)
let_go             the grammar of a call was left: what came did not fit it, or nothing could
=================  =====================================================================================
"""

from __future__ import annotations

from enum import StrEnum

from agent.events import Repaired


class Kind(StrEnum):
    """What was repaired. The values are what a log holds: never change one."""

    HEADER_WORDS = "header_words"
    CONTENT_TYPE = "content_type"
    CHANNEL = "channel"
    RECIPIENT = "recipient"
    MISSING_START = "missing_start"
    MISSING_MESSAGE = "missing_message"
    MISSING_END = "missing_end"
    STRAY_END = "stray_end"
    SPLIT_BODY = "split_body"
    STRAY_CONTROL = "stray_control"
    FINAL_BEFORE_CALL = "final_before_call"
    SPELT = "spelt"
    AFTER_CALL = "after_call"
    FOREIGN_ROLE = "foreign_role"
    EXTENDED = "extended"
    PREFILLED = "prefilled"
    CUT_LOOP = "cut_loop"
    CUT_THINKING = "cut_thinking"
    CUT_CALL = "cut_call"
    RESAMPLED = "resampled"
    LET_GO = "let_go"


def repaired(kind: Kind, detail: str = "") -> Repaired:
    """The event of one repair; what the model wrote is quoted in it, so it is kept short."""
    return Repaired(kind.value, detail if len(detail) <= 200 else detail[:199] + "…")
