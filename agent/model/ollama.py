"""Ollama's own ``/api/generate`` with ``raw``: prompt and answer are text, without any ids.

Its behaviour, read from its source and handled here:

- Up to 0.29 it returns control tokens as text, one event per token; from 0.30 on (llama-server inside) it strips them from raw
  answers, so headers cannot be proven, and this wire is not used.
- A prompt longer than the window silently loses its beginning unless ``truncate`` and ``shift`` are false. The request chooses the
  window (``num_ctx``), which is impossible with the OpenAI routes.
- The tokens that end an answer are built into the model file and never shown.
- ``think`` defaults to true, and may then split the text by tags found in the chat template.
- An error after the first byte is a line of its own, ``{"error": …}``. It does not report cached tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.harmony.tokens import RETURN, is_text
from agent.model.base import SamplingParams
from agent.model.spelling import Piece, Spelling, text_ids
from agent.model.stream import count, string

_KEEP_ALIVE = "30m"  # the default is 5 minutes; a check of the repository may take longer, and loading a model is slow
_SEEDS = 1 << 31
_CONTROL = re.compile(r"<\|[a-z0-9_]+\|>")


def request(
    model: str, prompt: Sequence[int], params: SamplingParams, spelling: Spelling, context_tokens: int | None
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a streamed request. Every sampling setting that a Modelfile may change is explicit."""
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
    # It does not report which token ended the answer. In a prompt, the codec ends a call with <|call|> anyway (agent/harmony/codec.py).
    ended = RETURN if finish == "stop" else None
    return Piece(ids, finish, ended, count(document.get("prompt_eval_count")))


def spelt(ids: Sequence[int], spelling: Spelling) -> str:
    """Return a prompt as text in which only real control tokens are spelt as such.

    Ollama treats any text that spells a control token as one, even in a file that a tool has read. There a zero-width space is
    inserted between the bracket and the bar: the model reads nearly the same, and no structure can be forged.
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
