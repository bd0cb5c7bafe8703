"""The kinds of repair, from the lightest to the heaviest. Each one made is an event, so that a run can say how often.

===================  ==================================================================================================
header               the message is whole; something around its text was wrong and was read past
boundary             a start, end or message marker was missing or stood where none belongs
channel              the channel was none of the three and was inferred
control in text      a control id stood in the text and was left out of it
truncated            what was sampled after the call, or under somebody else's name, was dropped
continued            the turn was continued: exactly where it was cut, or from a prefill that asks for an action
resampled            nothing usable came; the turn was sampled again
===================  ==================================================================================================
"""

from __future__ import annotations

from enum import StrEnum

from agent.events import Repaired


class Kind(StrEnum):
    """What was mended. The values are what a log holds: never change one."""

    HEADER_WORDS = "header_words"
    CONTENT_TYPE = "content_type"
    RECIPIENT = "recipient"
    MISSING_START = "missing_start"
    MISSING_MESSAGE = "missing_message"
    MISSING_END = "missing_end"
    STRAY_HEADER = "stray_header"
    STRAY_END = "stray_end"
    SPLIT_BODY = "split_body"
    CHANNEL = "channel"
    STRAY_CONTROL = "stray_control"
    FINAL_BEFORE_CALL = "final_before_call"
    AFTER_CALL = "after_call"
    FOREIGN_ROLE = "foreign_role"
    CUT_CALL = "cut_call"
    CUT_LOOP = "cut_loop"
    CUT_THINKING = "cut_thinking"
    EXTENDED = "extended"
    PREFILLED = "prefilled"
    RESAMPLED = "resampled"


def repaired(kind: Kind, detail: str = "") -> Repaired:
    """The event of one repair; what the model wrote is quoted in it, so it is kept short."""
    return Repaired(kind.value, detail if len(detail) <= 200 else detail[:199] + "…")
