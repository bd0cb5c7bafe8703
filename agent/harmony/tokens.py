"""The control ids of o200k_harmony. Ids below ``FIRST_CONTROL`` are text; all others are structure.

The ids are OpenAI's (openai/harmony, ``src/tiktoken_ext/public_encodings.rs``); a test compares them with the library's.
"""

from __future__ import annotations

from typing import Final

FIRST_CONTROL: Final = 199_998
VOCABULARY_SIZE: Final = 201_088  # rows of the model's embedding

ENDOFTEXT: Final = 199_999
RETURN: Final = 200_002
CONSTRAIN: Final = 200_003
CHANNEL: Final = 200_005
START: Final = 200_006
END: Final = 200_007
MESSAGE: Final = 200_008
CALL: Final = 200_012

ENDS: Final = frozenset({END, RETURN, CALL, ENDOFTEXT})  # any of them ends a message
STOPS: Final = (RETURN, CALL)  # sampling ends at one of these: an answer, or a call

# Every prompt ends with these: ``<|start|>assistant``.
ASSISTANT: Final = 173_781
OPENING: Final = (START, ASSISTANT)


def is_text(token: int) -> bool:
    """Whether an id is text; a control, reserved or unknown id is not."""
    return 0 <= token < FIRST_CONTROL
