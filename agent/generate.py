"""Plain completion: a text goes in, its continuation comes out, without roles, tools or a template."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from agent.backends import BACKENDS, Kind, Needs
from agent.config import RunConfig
from agent.conversation import Conversation, Message, Role
from agent.errors import EndpointUnreachable, UsageError
from agent.events import MessageAdded, Retried
from agent.model.base import SamplingParams, TokenSource

Say = Callable[[str], None]


def generate(config: RunConfig, text: str, say: Say) -> Iterator[str]:
    """Yield the continuation of ``text`` in pieces as it is sampled.

    It uses an endpoint's raw completions (any model), the engine in this process, or a script. Raises ModelError
    (EndpointUnreachable if an answer breaks off after its first piece), and UsageError for a wire that has only messages.
    """
    from agent.model.open import open_checkpoint, open_ollama, settled

    params = SamplingParams(config.temperature, config.top_p, config.max_answer_tokens, config.seed)
    config = replace(config, wire=settled(config, say))
    match BACKENDS[config.wire]:
        case Kind(needs=Needs.SCRIPT):
            return _scripted(config, text, params)
        case Kind(needs=Needs.CHECKPOINT):
            return _over(lambda: open_checkpoint(config, say), config, text, params)
        case _ if config.wire == "ollama":
            return _over(lambda: open_ollama(config, say), config, text, params)
        case _ if config.wire in {"auto", "completions"}:
            return _remote(config, text, params, say)
        case _:
            raise UsageError(f"the {config.wire} wire cannot continue plain text: use --wire completions or local")


def _scripted(config: RunConfig, text: str, params: SamplingParams) -> Iterator[str]:
    from agent.model.open import open_model

    model = open_model(config)
    for event in model.sample(Conversation(messages=(Message(Role.USER, text),)), params):
        if isinstance(event, MessageAdded) and event.message.is_final:
            yield event.message.text


def _over(
    open_source: Callable[[], TokenSource], config: RunConfig, text: str, params: SamplingParams
) -> Iterator[str]:
    from agent.harmony.codec import open_codec
    from agent.harmony.tokens import ENDOFTEXT, RETURN

    codec = open_codec(config.cache_dir)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    given = False
    with contextlib.closing(open_source()) as source:
        for chunk in source.generate(codec.encode(text), params, (ENDOFTEXT, RETURN)):
            if isinstance(chunk, Retried):
                if given:
                    raise EndpointUnreachable(f"the continuation broke off: {chunk.reason}")
                continue
            given = given or bool(chunk.ids)
            yield decoder.decode(b"".join(map(codec.token_bytes, chunk.ids)))
    yield decoder.decode(b"", final=True)


def _remote(config: RunConfig, text: str, params: SamplingParams, say: Say) -> Iterator[str]:
    from agent.model.client import closing_iterator, persist
    from agent.model.open import find_endpoint

    client, _ = find_endpoint(config, say)
    body: dict[str, Any] = {"model": client.endpoint.model, "prompt": text, "stream": True}
    body |= {"max_tokens": params.max_tokens, "temperature": params.temperature, "top_p": params.top_p}
    body |= {} if params.seed is None else {"seed": params.seed}
    given = False
    with contextlib.closing(client):
        answer = persist(lambda: _pieces(client.post("/completions", body)), client.endpoint, client.clock)
        with closing_iterator(answer) as pieces:
            for piece in pieces:
                if isinstance(piece, Retried):
                    if given:
                        raise EndpointUnreachable(f"the continuation broke off: {piece.reason}")
                    say(f"retrying: {piece.reason}")
                else:
                    given = given or bool(piece)
                    yield piece


def _pieces(events: Iterator[Any]) -> Iterator[str]:
    """Yield the text of a stream of completions. An answer that ends without a finish reason was cut off."""
    from agent.model.faults import cut, error_event
    from agent.model.stream import decoded

    finished = False
    for event in events:
        if event.data.strip() == "[DONE]":
            break
        document = decoded(event)
        if document.get("error"):
            raise error_event(document["error"], wall_s=0.0)
        for choice in document.get("choices") or []:
            finished = finished or choice.get("finish_reason") is not None
            if isinstance(choice.get("text"), str):
                yield choice["text"]
    if not finished:
        raise cut("the stream ended without a finish reason")
