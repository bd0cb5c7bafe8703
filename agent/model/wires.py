"""Finds out which wires an endpoint offers, by requests for a few tokens.

A raw wire is proven by an answer in harmony: after ``<|start|>assistant``, gpt-oss samples ``<|channel|>``. A server that
returns that id understands ids, runs a harmony model, and shows its control tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.errors import ContextOverflow, EndpointRefused, ModelUnfit
from agent.harmony.tokens import CHANNEL, END, MESSAGE, OPENING, START, STOPS
from agent.model.base import Chunk, SamplingParams
from agent.model.client import Client
from agent.model.completions import STANDARD, CompletionsSource, Dialect
from agent.model.spelling import Spelling

_USER, _HI = 1428, 3686  # ids of two plain words, so that probing does not need the vocabulary
PROBE_PROMPT = (START, _USER, MESSAGE, _HI, END, *OPENING)
_PROBE_PARAMS = SamplingParams(temperature=0.0, max_tokens=2)
_ASK_TIMEOUT_S = 20.0
TEXTS = frozenset({Dialect.TEXT, Dialect.OLLAMA})  # the dialects that return only text
_NO_SUCH_PLACE = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of trying a raw dialect. ``ids`` came back; ``why`` says why the dialect is unusable, and is empty if it works."""

    dialect: Dialect
    ids: tuple[int, ...] = ()
    why: str = ""


def raw_wires(client: Client, spelling: Spelling, dialects: Sequence[Dialect] = STANDARD) -> Iterator[Tried]:
    """Try raw dialects, best first, until one works or shows that none can work.

    Raises EndpointUnreachable if the endpoint does not answer.
    """
    for dialect in dialects:
        tried = try_dialect(client, dialect, spelling)
        yield tried
        if not tried.why or (tried.ids and dialect not in TEXTS):
            return  # ids came back: if they are not harmony, they will not be in another dialect either


def try_dialect(client: Client, dialect: Dialect, spelling: Spelling) -> Tried:
    """Request two tokens. Raises EndpointUnreachable if the endpoint does not answer."""
    source = CompletionsSource(client, dialect, spelling)
    ids: tuple[int, ...] = ()
    try:
        for chunk in source.generate(PROBE_PROMPT, _PROBE_PARAMS, STOPS):
            ids = ids + chunk.ids if isinstance(chunk, Chunk) else ()
    except (EndpointRefused, ModelUnfit, ContextOverflow) as error:
        return Tried(dialect, ids, str(error))
    if ids[:1] == (CHANNEL,):
        return Tried(dialect, ids)
    if dialect in TEXTS:
        said = "the text that comes back does not prove its control tokens (they are stripped, or run together)"
        since = "; Ollama strips them since 0.30" if dialect is Dialect.OLLAMA else ""
        return Tried(dialect, ids, said + since)
    return Tried(
        dialect, ids, "the answer to a harmony prompt is not harmony: this is not gpt-oss, or it does not take ids"
    )


def offers_responses(client: Client) -> bool:
    """Whether the endpoint has ``/responses``. Nothing is sampled: the request is invalid on purpose."""
    try:
        client.ask("/responses", {}, _ASK_TIMEOUT_S)
    except EndpointRefused as error:
        return error.status not in _NO_SUCH_PLACE and error.status in range(400, 500)
    except ModelUnfit:
        return False
    return True
