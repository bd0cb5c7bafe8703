"""``/v1/completions``: raw text or token ids in and out. Only for backends with a source of tokens.

A prompt of ids is used as it is. In a prompt of text, spelt-out control tokens become control tokens, as in vLLM and llama.cpp;
a client whose prompts contain untrusted text should send ids, or ``"parse_special": false``.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.errors import ModelError
from agent.events import Retried
from agent.harmony.codec import Codec
from agent.harmony.tokens import ENDOFTEXT, STOPS, VOCABULARY_SIZE
from agent.model.base import SamplingParams, TokenSource
from agent.model.cancel import Cancel
from agent.model.client import closing_iterator
from agent.server.ask import UNHEEDED, sampling, stops
from agent.server.faults import BadRequest, Refusal
from agent.server.fields import Fields
from agent.server.responses import new_id
from agent.server.sse import DONE, event
from agent.server.stops import StopFilter

_DEFAULT_TOKENS = 16  # OpenAI's
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNHEEDED,
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A parsed request. ``ids``: return token ids. ``special``: spell out control tokens in the text."""

    prompt: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    stream: bool
    ids: bool
    special: bool
    usage: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the completion."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the completion. ``stop_id`` is the stop token, if one ended it."""

    finish: str
    completion_tokens: int
    cached_tokens: int
    stop_id: int | None = None


def read_completion(body: Fields, codec: Codec | None) -> CompletionRequest:
    """Parse a request. Raises BadRequest, which names the field."""
    if codec is None:
        raise BadRequest(
            "The backend of this server does not support raw completions; use chat completions or responses.",
            "prompt",
            "unsupported_parameter",
        )
    body.refuse(_UNSUPPORTED)
    params = sampling(body, "max_tokens")
    if "max_tokens" not in body:
        params = SamplingParams(params.temperature, params.top_p, _DEFAULT_TOKENS, params.seed)
    options = body.object("stream_options")
    return CompletionRequest(
        _prompt(body, codec),
        params,
        (*STOPS, ENDOFTEXT, *_ids(body, "stop_token_ids")),
        stops(body),
        body.flag("stream"),
        body.flag("return_token_ids"),
        not body.flag("skip_special_tokens", default=True),
        options is not None and options.flag("include_usage"),
    )


def _prompt(body: Fields, codec: Codec) -> tuple[int, ...]:
    value = body.raw("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value:
        special = body.flag("parse_special", default=True)
        return tuple(codec.encode_sampled(value) if special else codec.encode(value))
    if isinstance(value, list) and value and all(map(_is_id, value)):
        return tuple(value)
    raise body.wrong("prompt", "must be one text, or one array of token ids of this vocabulary")


def _ids(body: Fields, name: str) -> tuple[int, ...]:
    found = body.list(name)
    if not all(map(_is_id, found)):
        raise body.wrong(name, "must be an array of token ids of this vocabulary")
    return tuple(found)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < VOCABULARY_SIZE


def complete(
    source: TokenSource, codec: Codec, request: CompletionRequest, cancel: Cancel | None = None
) -> Iterator[Piece | Finished]:
    """Sample. Closing the iterator stops the work, and so does ``cancel``. Raises ModelError."""
    params = replace(request.params, cancel=cancel)
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    stop = StopFilter(request.stop)
    tokens = cached_tokens = 0
    finish, stop_id = "stop", None
    with closing_iterator(source.generate(request.prompt, params, request.stop_ids)) as chunks:
        for chunk in chunks:
            if isinstance(chunk, Retried):
                if tokens:
                    raise ModelError(f"the completion broke off after part of it was sent: {chunk.reason}")
                continue
            tokens += len(chunk.ids)
            cached_tokens = chunk.cached_tokens or cached_tokens
            finish = chunk.finish or finish
            if chunk.ids and chunk.ids[-1] in request.stop_ids:
                stop_id = chunk.ids[-1]
            if chunk.ids:
                yield Piece(stop.feed(utf8.decode(b"".join(_spell(codec, t, request) for t in chunk.ids))), chunk.ids)
            if stop.met:
                finish = "stop"
                break
    if rest := stop.rest():
        yield Piece(rest, ())
    yield Finished("length" if finish == "length" else "stop", tokens, cached_tokens, stop_id)


def _spell(codec: Codec, token: int, request: CompletionRequest) -> bytes:
    if request.special and token not in request.stop_ids:
        return codec.token_bytes(token) or codec.decode([token]).encode()
    return codec.token_bytes(token)


@dataclass(slots=True)
class CompletionWriter:
    """Writes pieces as one completion."""

    model: str
    created_s: int
    request: CompletionRequest
    id: str = field(default_factory=lambda: new_id("cmpl"))
    _text: list[str] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _finished: Finished | None = None

    def start(self) -> bytes:
        """Return nothing: a stream of completions has no opening chunk."""
        return b""

    def part(self, part: Piece | Finished) -> bytes:
        """Return the chunks for a piece."""
        if isinstance(part, Piece):
            self._text.append(part.text)
            self._ids += part.ids
            return event(self._chunk(part.text, list(part.ids), None))
        self._finished = part
        out = event(self._chunk("", [], part))
        if self.request.usage:
            out += event({**self._head(), "choices": [], "usage": self._usage(part)})
        return out + DONE

    def fail(self, error: Refusal) -> bytes:
        """Return the last event of a stream that broke off."""
        return event(error.body())

    def cancel(self) -> bytes:
        """Return nothing: a completion can only be cancelled by disconnecting."""
        return b""

    def document(self) -> dict[str, Any]:
        """Return the whole completion after its end."""
        assert self._finished is not None
        whole = self._chunk("".join(self._text), self._ids, self._finished)
        return {**whole, "usage": self._usage(self._finished)}

    def _chunk(self, text: str, ids: list[int], finished: Finished | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
        if finished is not None:
            choice["finish_reason"] = finished.finish
            choice["stop_reason"] = finished.stop_id
        if self.request.ids:
            choice["token_ids"] = ids
        return {**self._head(), "choices": [choice]}

    def _usage(self, finished: Finished) -> dict[str, Any]:
        prompt = len(self.request.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": finished.completion_tokens,
            "total_tokens": prompt + finished.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created_s, "model": self.model}
