"""What no model should emit, and any might."""

from __future__ import annotations

from hypothesis import strategies as st

from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, CHANNEL, CONSTRAIN, END, ENDOFTEXT, MESSAGE, RETURN, START

CONTROLS = (START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN, ENDOFTEXT)
PIECES = (
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to=",
    "container.exec",
    "python",
    "json",
    "code",
    "user",
    '{"command":["ls"]}',
)
PLAIN = st.integers(min_value=-1, max_value=201_100)


@st.composite
def garbage(draw: st.DrawFn) -> list[int | str]:
    """Ids with the frame's own tokens and words far more often than chance would have them."""
    token = st.one_of(st.sampled_from(CONTROLS), st.sampled_from(PIECES), PLAIN)
    return draw(st.lists(token, max_size=40))


def as_ids(codec: Codec, mixed: list[int | str]) -> list[int]:
    return [t for item in mixed for t in (codec.encode(item) if isinstance(item, str) else [item])]
