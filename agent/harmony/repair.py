"""The kinds of repair, from the lightest to the heaviest. Each repair is an event, so that a run can count them.

=================  =====================================================================================
ignored            the message is complete
header_words       meaningless words in a header
content_type       a ``<|constrain|>`` without a type
channel            a channel that is not one of the three: inferred
recipient          a call whose header names a declared tool, but not after ``to=``
missing_start      a message began without ``<|start|>``
missing_message    no ``<|message|>`` between a header and its text
missing_end        a message was not ended before the next began, or the server removed the stop token
stray_end          an end with nothing to end
split_body         a marker in the middle of a text, which continued after it
stray_control      another control id in a text or header
final_before_call  a final that was followed by more: it counts as a preamble
spelt              a server returned harmony as text: the messages were read from it
dropped            part of what was sampled is not kept
after_call         what the model wrote after its call
foreign_role       a message in another role (system, user, a tool)
continued          the turn continues after what was sampled
extended           cut by the server: continued exactly there
prefilled          reasoning only, then a stop: continued with a prefill for a call, then for an answer
cut_loop           the same words over and over: cut before they repeat
cut_thinking       reasoning that would leave no room to act: ended, so that the model acts
given up           no tries were left
cut_call           a call that was cut: kept as text, because an incomplete call must not run
resampled          nothing usable came; the turn was sampled again
constrained calls  (agent/harmony/constrain.py)
let_go             the guide let go: a token did not match the grammar, or the grammar allowed none
=================  =====================================================================================
"""

from __future__ import annotations

from enum import StrEnum

from agent.events import Repaired


class Kind(StrEnum):
    """What was repaired. Logs contain the values: never change one."""

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
    """Return the event of one repair. ``detail`` may quote the model, so it is shortened."""
    return Repaired(kind.value, detail if len(detail) <= 200 else detail[:199] + "…")
