"""Raw completions over HTTP: the prompt is token ids; the answer is ids, or text that is carefully converted back to ids.

There are five dialects, taken from the sources of the servers:

- ``ids``: ``/completions`` with ``return_token_ids`` (vLLM since 0.10.2, SGLang since 0.5.6): each event has its new ids.
- ``llama.cpp``: its own ``/completion`` with ``return_tokens``. Stop ids are built into the model file. For a character of several
  tokens it streams only the last id: the others are reconstructed from the text.
- ``sglang``: its own ``/generate``, whose events have all ids so far, or only the new ones, depending on a flag of the server.
- ``text``: ``/completions`` that returns only text. A control token is accepted only if the server proves that it
  is one: it is alone in the list of tokens, or alone in an event. Inside a longer piece it is text, because
  the model may quote a file that spells it.
- ``ollama``: its own ``/api/generate``, where the prompt is text as well; see ``agent/model/ollama.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from agent.errors import ContextOverflow, ModelUnfit
from agent.events import Retried
from agent.model import ollama
from agent.model.base import Chunk, SamplingParams
from agent.model.capabilities import Capabilities
from agent.model.client import Client, persist
from agent.model.faults import Transient, cut, error_event
from agent.model.spelling import Piece, Spelling, text_ids
from agent.model.stream import count, decoded, mapping, sequence, string, token_ids

_TOKEN_ID = "token_id:"  # noqa: S105  how vLLM writes a token as its id

_STOPPING: Mapping[str, Any] = {"top_k": -1, "skip_special_tokens": False}


class Dialect(StrEnum):
    """The dialects of raw completions, best first."""

    IDS = "ids"
    LLAMA = "llama.cpp"
    SGLANG = "sglang"
    TEXT = "text"
    OLLAMA = "ollama"


# The dialects to try with a completions server, best first.
STANDARD = (Dialect.IDS, Dialect.LLAMA, Dialect.SGLANG, Dialect.TEXT)


_IDS = Capabilities(raw=True, ids_in=True, ids_out=True)
_CAPABILITIES: Mapping[Dialect, Capabilities] = {
    Dialect.IDS: _IDS,
    Dialect.LLAMA: _IDS,
    # It accepts a seed, but honours it only if it was started in deterministic mode.
    Dialect.SGLANG: replace(_IDS, seed=False),
    Dialect.TEXT: replace(_IDS, ids_out=False),
    Dialect.OLLAMA: Capabilities(raw=True, cached_tokens=False),
}


class CompletionsSource:
    """A TokenSource over a raw completions server."""

    def __init__(self, client: Client, dialect: Dialect, spelling: Spelling, context_tokens: int | None = None) -> None:
        self._client = client
        self._dialect = dialect
        self._spelling = spelling
        self._context_tokens = context_tokens
        self._sends_limit = True  # False once the server has counted max_tokens as part of the prompt

    @property
    def name(self) -> str:
        """The model's name, its endpoint and the dialect."""
        return f"{self._client.endpoint.model} at {self._client.endpoint.url} (completions, {self._dialect})"

    @property
    def context_tokens(self) -> int | None:
        """The window in tokens, if it is known."""
        return self._context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the dialect: whether it takes and returns ids, and whether it honours a seed."""
        return _CAPABILITIES[self._dialect]

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk | Retried]:
        """Continue ``prompt``; see ``agent.model.base.TokenSource``."""
        endpoint, clock = self._client.endpoint, self._client.clock
        yield from persist(lambda: self._attempt(prompt, params, stop), endpoint, clock, params.cancel)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _attempt(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk]:
        most = None if self._sends_limit else params.max_tokens
        read = reader(self._dialect, self._spelling)
        last: tuple[int, ...] = ()
        stopped = False
        prompt_tokens: int | None = None
        cached_tokens: int | None = None
        finish: str | None = None
        for document in self._documents(prompt, params, stop):
            piece = read(document)
            prompt_tokens = piece.prompt_tokens if piece.prompt_tokens is not None else prompt_tokens
            cached_tokens = piece.cached_tokens if piece.cached_tokens is not None else cached_tokens
            if stopped:
                if piece.ids:
                    break  # the server ignores our stop ids: closing the connection stops it
                continue  # later events are read only for their counts
            ids = piece.ids
            if piece.stopped_by is not None and piece.stopped_by in stop and (*last, *ids)[-1:] != (piece.stopped_by,):
                ids = (*ids, piece.stopped_by)
            end = next((place + 1 for place, token in enumerate(ids) if token in stop), None)
            stopped = end is not None
            finish = "stop" if stopped else piece.finish or finish
            if ids:
                last = ids[-1:]
                yield Chunk(ids[:end])
            if most is not None and not stopped and (most := most - len(ids)) <= 0:
                finish = "length"
                break
        if finish is None:
            raise cut("the stream ended without a finish reason")
        if finish not in {"stop", "length"}:
            raise cut(f"the server ended it with {finish!r}")
        # A prompt sent as text may have a few tokens less, because sampled tokens are not always the shortest encoding.
        least = len(prompt) * 3 // 4 if self._dialect is Dialect.OLLAMA else len(prompt)
        if prompt_tokens is not None and prompt_tokens < least:
            raise ContextOverflow(
                f"the server read only {prompt_tokens} of the prompt's {len(prompt)} tokens: its window is smaller than it says"
            )
        yield Chunk((), finish, prompt_tokens if prompt_tokens is not None else len(prompt), cached_tokens)

    def _documents(
        self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]
    ) -> Iterator[Mapping[str, Any]]:
        """Send the request and yield the documents of the answer. If only max_tokens does not fit the window, retry without it."""
        limited = self._sends_limit and params.max_tokens is not None
        asked = params if limited else replace(params, max_tokens=None)
        model, window = self._client.endpoint.model, self._context_tokens
        path, body = request(self._dialect, model, prompt, asked, stop, self._spelling, window)
        try:
            for event in self._client.post(path, body, params.timeout_s, params.cancel):
                if event.data.strip() == "[DONE]":
                    return
                document = decoded(event)
                if document.get("error"):
                    raise error_event(document["error"], wall_s=self._client.clock.wall())
                yield document
        except ContextOverflow as error:
            if not limited:
                raise
            self._sends_limit = False
            raise Transient(f"{error}; retrying without max_tokens", retry_after_s=0.0) from error


def request(
    dialect: Dialect,
    model: str,
    prompt: Sequence[int],
    params: SamplingParams,
    stop: Sequence[int],
    spelling: Spelling,
    context_tokens: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a streamed request. Every sampling setting is explicit for which servers have other defaults.

    ``spelling`` is for dialects that take text, ``context_tokens`` for those that choose the window per request.
    """
    ids = list(prompt)
    sampling: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p, "min_p": 0.0}
    match dialect:
        case Dialect.LLAMA:
            seed = {} if params.seed is None else {"seed": params.seed}
            most = -1 if params.max_tokens is None else params.max_tokens
            extra = {"n_predict": most, "top_k": 0, "repeat_penalty": 1.0, "return_tokens": True, "cache_prompt": True}
            return "//completion", {"prompt": ids, "stream": True, **sampling, **extra, **seed}
        case Dialect.SGLANG:
            seed = {} if params.seed is None else {"sampling_seed": params.seed}
            settings = {
                **sampling,
                **_STOPPING,
                "stop_token_ids": list(stop),
                "max_new_tokens": params.max_tokens,
                **seed,
            }
            return "//generate", {"input_ids": ids, "stream": True, "sampling_params": settings}
        case Dialect.IDS | Dialect.TEXT:
            seed = {} if params.seed is None else {"seed": params.seed}
            stopping = {**_STOPPING, "stop_token_ids": list(stop)}
            # max_tokens is sent even if it is None: when it is missing, it means 16.
            body = {"model": model, "prompt": ids, "stream": True, "max_tokens": params.max_tokens}
            usage = {"stream_options": {"include_usage": True}}
            back: dict[str, Any] = {"return_token_ids": True}
            if dialect is Dialect.TEXT:
                spaces = {"spaces_between_special_tokens": False, "include_stop_str_in_output": True}
                back = {"logprobs": 1, "return_tokens_as_token_ids": True, **spaces}
            return "/completions", {**body, **sampling, **stopping, **usage, **back, **seed}
        case Dialect.OLLAMA:
            return ollama.request(model, prompt, params, spelling, context_tokens)


def reader(dialect: Dialect, spelling: Spelling) -> Callable[[Mapping[str, Any]], Piece]:
    """Return a function that reads one event of an answer. It may have state: use a new one for each answer."""
    match dialect:
        case Dialect.IDS:
            return lambda document: _openai(document, _token_ids)
        case Dialect.TEXT:
            return lambda document: _openai(document, lambda choice: choice_ids(choice, spelling))
        case Dialect.LLAMA:
            return _LlamaReader(spelling).read
        case Dialect.SGLANG:
            return _SGLangReader().read
        case Dialect.OLLAMA:
            return lambda document: ollama.read(document, spelling)


def _openai(document: Mapping[str, Any], ids_of: Callable[[Mapping[str, Any]], tuple[int, ...]]) -> Piece:
    usage = mapping(document.get("usage"))
    details = mapping(usage.get("prompt_tokens_details"))
    choice = mapping(next(iter(sequence(document.get("choices"))), None))
    stopped_by = choice.get("stop_reason", choice.get("matched_stop"))
    return Piece(
        ids_of(choice),
        string(choice.get("finish_reason")) or None,
        count(stopped_by),
        count(usage.get("prompt_tokens")),
        count(details.get("cached_tokens")),
    )


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...]:
    if choice.get("text") and choice.get("token_ids") is None:
        raise ModelUnfit("the server sent text without the token ids that were requested: try another --wire")
    return token_ids(choice.get("token_ids"))


def choice_ids(choice: Mapping[str, Any], spelling: Spelling) -> tuple[int, ...]:
    """Return the ids of one event's text. Exact if the text is split at token boundaries, as servers do when they stream."""
    tokens = sequence(mapping(choice.get("logprobs")).get("tokens")) or [choice.get("text")]
    ids: list[int] = []
    for token in map(string, tokens):
        if token.startswith(_TOKEN_ID) and token[len(_TOKEN_ID) :].isdecimal():
            ids.append(int(token[len(_TOKEN_ID) :]))
        else:
            ids += text_ids(token, spelling)
    return token_ids(ids)


class _LlamaReader:
    """Reads llama.cpp's own events and reconstructs the ids that it leaves out."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._predicted = 0

    def read(self, document: Mapping[str, Any]) -> Piece:
        ids = token_ids(document.get("tokens"))
        predicted = count(document.get("tokens_predicted")) or 0
        if ids and predicted - self._predicted > len(ids):
            ids = self._filled(ids, string(document.get("content")))
        self._predicted = max(predicted, self._predicted)
        if not document.get("stop"):
            return Piece(ids)
        limited = document.get("stop_type") == "limit" or document.get("stopped_limit") or document.get("truncated")
        cached = mapping(document.get("timings")).get("cache_n")
        read_tokens = count(document.get("tokens_evaluated"))
        return Piece(ids, "length" if limited else "stop", None, read_tokens, count(cached))

    def _filled(self, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        """Return all ids of ``text``, of which only the last arrived: the text is sent when its last character is complete."""
        found = tuple(self._spelling.encode(text))
        return found or ids


class _SGLangReader:
    """Reads SGLang's own events."""

    def __init__(self) -> None:
        self._seen = 0

    def read(self, document: Mapping[str, Any]) -> Piece:
        about = mapping(document.get("meta_info"))
        output = token_ids(document.get("output_ids"))
        total = count(about.get("completion_tokens"))
        # These are all ids so far; if they are fewer than the server has counted, they are only the new ones.
        ids = output[self._seen :] if total is None or len(output) == total else output
        self._seen += len(ids)
        finish = mapping(about.get("finish_reason"))
        return Piece(
            ids,
            string(finish.get("type")) or None,
            count(finish.get("matched")),
            count(about.get("prompt_tokens")),
            count(about.get("cached_tokens")),
        )
