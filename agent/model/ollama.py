"""Ollama's own ``/api/generate`` with ``raw``: text goes in and text comes out, and no ids at all.

Read from its source, and handled here:

- Up to 0.29 it shows control tokens as their text, one event for each token; from 0.30 on (llama-server inside) raw answers have
  them stripped, so that nothing proves a header, and the wire is not taken.
- A prompt beyond the window silently loses its beginning unless ``truncate`` and ``shift`` say no. The window is the request's
  to choose (``num_ctx``), which the OpenAI routes do not let it.
- The tokens that end an answer are built into the model file and never shown.
- ``think`` is true where it is left out, and may then split the text by tags found in the chat template.
- A fault after the first byte is a line of its own, ``{"error": …}``. There is no count of what the cache held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.harmony.tokens import RETURN, is_text
from agent.model.base import SamplingParams
from agent.model.spelling import Piece, Spelling, text_ids
from agent.model.stream import count, string

_KEEP_ALIVE = "30m"  # a check of the repository may take longer than its five minutes, and loading a model takes long
_SEEDS = 1 << 31
_CONTROL = re.compile(r"<\|[a-z0-9_]+\|>")


def request(
    model: str, prompt: Sequence[int], params: SamplingParams, spelling: Spelling, context_tokens: int | None
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a streamed request. Every sampling setting that a Modelfile may change is given."""
    options: dict[str, Any] = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "num_predict": -1 if params.max_tokens is None else params.max_tokens,
        "stop": [],
    }
    if params.seed is not None:
        options["seed"] = params.seed % _SEEDS
    if context_tokens is not None:
        options["num_ctx"] = context_tokens
    body = {
        "model": model,
        "prompt": spelt(prompt, spelling),
        "raw": True,
        "stream": True,
        "think": False,
        "truncate": False,
        "shift": False,
        "keep_alive": _KEEP_ALIVE,
        "options": options,
    }
    return "//api/generate", body


def read(document: Mapping[str, Any], spelling: Spelling) -> Piece:
    """Read one line of an answer."""
    ids = text_ids(string(document.get("response")), spelling)
    if not document.get("done"):
        return Piece(ids)
    finish = string(document.get("done_reason")) or "stop"
    # Which token it was is not said. In a prompt a call is ended by its own all the same (agent/harmony/codec.py).
    ended = RETURN if finish == "stop" else None
    return Piece(ids, finish, ended, count(document.get("prompt_eval_count")))


def spelt(ids: Sequence[int], spelling: Spelling) -> str:
    """Return a prompt as text in which only our own control tokens are control tokens.

    Ollama takes for one whatever spells one, also in a file that a tool has read. There a character of no width goes between
    the bracket and the bar: the model reads nearly the same, and nothing is forged.
    """
    parts: list[str] = []
    start = 0
    for place, token in enumerate([*ids, -1]):
        if is_text(token):
            continue
        if start < place:
            parts.append(_CONTROL.sub(lambda found: _apart(found[0], spelling), spelling.decode(ids[start:place])))
        if token >= 0:
            parts.append(spelling.decode([token]))
        start = place + 1
    return "".join(parts)


def _apart(text: str, spelling: Spelling) -> str:
    return text if spelling.control(text) is None else f"<\u200b{text[1:]}"
