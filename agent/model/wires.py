"""Which wires an endpoint offers, found out by asking: a few tokens at most.

The proof of a raw wire is an answer in harmony: continued from ``<|start|>assistant``, gpt-oss says ``<|channel|>``. A server that
gives back that very id has understood the ids, runs a harmony model, and shows its control tokens.
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

_USER, _HI = 1428, 3686  # plain words of the vocabulary, so that probing needs none of it loaded
PROBE_PROMPT = (START, _USER, MESSAGE, _HI, END, *OPENING)
_PROBE_PARAMS = SamplingParams(temperature=0.0, max_tokens=2)
_ASK_TIMEOUT_S = 20.0
TEXTS = frozenset({Dialect.TEXT, Dialect.OLLAMA})  # the dialects in which nothing but text comes back
_NO_SUCH_PLACE = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of trying a raw dialect. ``ids`` are what came back; ``why`` says why it is of no use, empty if it is."""

    dialect: Dialect
    ids: tuple[int, ...] = ()
    why: str = ""


def raw_wires(client: Client, spelling: Spelling, dialects: Sequence[Dialect] = STANDARD) -> Iterator[Tried]:
    """Try raw dialects, best first, up to the first that is of use or that shows that none can be.

    Raises EndpointUnreachable when the endpoint is not there.
    """
    for dialect in dialects:
        tried = try_dialect(client, dialect, spelling)
        yield tried
        if not tried.why or (tried.ids and dialect not in TEXTS):
            return  # ids came back: if they are not harmony, no other dialect will make them so


def try_dialect(client: Client, dialect: Dialect, spelling: Spelling) -> Tried:
    """Ask for two tokens. Raises EndpointUnreachable when the endpoint is not there."""
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
    """Whether there is a ``/responses`` to post to. Nothing is sampled: the request is one that must be refused."""
    try:
        client.ask("/responses", {}, _ASK_TIMEOUT_S)
    except EndpointRefused as error:
        return error.status not in _NO_SUCH_PLACE and error.status in range(400, 500)
    except ModelUnfit:
        return False
    return True
