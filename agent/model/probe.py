"""Tests of an endpoint for `agent doctor`: what it really does, within a minute, and what to do about problems.

Every statement comes from an experiment: a code word at the start of a long prompt, the same history with and
without its reasoning, the same question at two temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from agent.config import RunConfig
from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.errors import AgentError, ContextOverflow, EndpointUnreachable, ModelError
from agent.events import Delta, MessageAdded, Sampled
from agent.harmony.tokens import MESSAGE
from agent.model.base import Model, SamplingParams
from agent.model.client import Client, Clock, closing_iterator
from agent.model.completions import Dialect, reader, request
from agent.model.listing import Offer, Server
from agent.model.open import Vocabulary, dialects, find_endpoint, open_model
from agent.model.sse import ServerEvent
from agent.model.stream import decoded
from agent.model.wires import PROBE_PROMPT, TEXTS, Tried, raw_wires

LIMIT_S = 55.0
_PATIENCE_S = 5.0
_SILENCE_S = 25.0
_COLD = SamplingParams(temperature=0.0, max_tokens=24, seed=1)
_WARM = SamplingParams(temperature=1.0, max_tokens=24)
_NEEDLE = "PERIWINKLE"
_WINDOW_STEPS_TOKENS = (6_000, 24_000, 100_000)
_TOKENS_A_LINE = 16
_THOUGHT = "The owl counts the lanterns along the quiet harbour. " * 20
_THOUGHT_TOKENS = 150  # a lower bound of its tokens
_WIDEN: Mapping[Server, str] = {
    Server.OLLAMA: "start it with OLLAMA_CONTEXT_LENGTH=65536 ollama serve, or make an alias with PARAMETER num_ctx 65536",
    Server.LLAMA: "start llama-server with -c 65536, or -c 0 for all that the model can",
    Server.VLLM: "start vllm serve with a larger --max-model-len",
    Server.SGLANG: "start SGLang with a larger --context-length",
    Server.LM_STUDIO: "load the model with a larger context length in LM Studio's model settings",
    Server.OTHER: "raise the context length in the server's settings",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of one experiment. ``good`` is None if it was inconclusive; ``remedy`` says what to do about a bad one."""

    subject: str
    seen: str
    good: bool | None = True
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Heard:
    """One short answer."""

    text: str
    pieces: int
    sampled: Sampled | None  # None: the time ran out during the answer


def probe(config: RunConfig, clock: Clock | None = None, limit_s: float = LIMIT_S) -> Iterator[Observation]:
    """Test the configured endpoint and yield the observations one by one.

    Ends after about ``limit_s`` (at most one silence of the server later) and reports what was not tried by then.
    """
    clock = clock or Clock()
    config = replace(
        config,
        endpoint_timeout_s=min(config.endpoint_timeout_s, _PATIENCE_S),
        silence_timeout_s=min(config.silence_timeout_s, _SILENCE_S),
    )
    ends_s = clock.now() + limit_s
    said: list[str] = []
    try:
        client, offer = find_endpoint(config, said.append, clock=clock)
    except AgentError as error:
        yield Observation("endpoint", "; ".join([*said, str(error)]), good=False)
        return
    with closing(client):
        yield Observation("endpoint", "; ".join([*said, f"{offer.model} at {client.endpoint.url}, {offer.server}"]))
        try:
            yield from _raw(client, offer, config)
        except EndpointUnreachable as error:
            yield Observation("raw completions", str(error), good=False)
            return
    try:
        model = open_model(replace(config, endpoint=client.endpoint.url, model=offer.model), said.append, clock=clock)
    except ModelError as error:
        yield Observation("wire", str(error), good=False)
        return
    with closing(model):
        yield Observation("wire", f"a run would use {model.name}")
        checks: Mapping[str, Callable[[], Observation]] = {
            "speed": lambda: _speed(model, clock, ends_s),
            "reasoning": lambda: _round_trip(model, clock, ends_s),
            "sampling": lambda: _sampling(model, clock, ends_s),
            "window": lambda: _window(model, offer.server, clock, ends_s),
        }
        for subject, check in checks.items():
            if clock.now() >= ends_s:
                yield Observation(subject, "not tried: the time is up", good=None)
                continue
            try:
                yield check()
            except ModelError as error:
                yield Observation(subject, str(error), good=False)


def _raw(client: Client, offer: Offer, config: RunConfig) -> Iterator[Observation]:
    """Test whether prompts of ids are accepted, ids and control tokens come back, and stop ids end the answer."""
    spelling = Vocabulary(config.cache_dir).spelling()
    tried: list[Tried] = list(raw_wires(client, spelling, dialects(offer, config.wire)))
    taken = next((found for found in tried if not found.why), None)
    if taken is None:
        seen = "; ".join(f"{found.dialect}: {found.why}" for found in tried)
        remedy = "for full quality serve gpt-oss with vLLM 0.10.2 or newer, llama.cpp's llama-server, or SGLang"
        yield Observation("id prompts", seen, good=False, remedy=remedy)
        return
    if taken.dialect is Dialect.OLLAMA:
        yield Observation("id prompts", "prompts go as raw text, which Ollama turns into ids (ollama)")
    else:
        yield Observation("id prompts", f"prompts go as token ids ({taken.dialect})")
    kind = "as text, each proven by standing alone" if taken.dialect in TEXTS else "as ids"
    yield Observation("control tokens", f"they come back {kind}")
    if taken.dialect in {Dialect.LLAMA, Dialect.OLLAMA}:
        yield Observation("stop ids", "built into the model file; the agent also hangs up at them")
        return
    # Use a word that surely comes soon as a stop id: the server should end there by itself.
    path, body = request(
        taken.dialect, client.endpoint.model, PROBE_PROMPT, SamplingParams(0.0, max_tokens=8), [MESSAGE], spelling
    )
    read = reader(taken.dialect, spelling)
    pieces = [read(document) for document in _documents(client.post(path, body))]
    ids = [token for piece in pieces for token in piece.ids]
    stopped = MESSAGE not in ids[:-1] and any(piece.finish == "stop" for piece in pieces)
    remedy = "the agent hangs up by itself at a stop id, at the cost of a few tokens; update the server"
    yield Observation(
        "stop ids", "they stop the answer" if stopped else "ignored", good=stopped, remedy="" if stopped else remedy
    )


def _speed(model: Model, clock: Clock, ends_s: float) -> Observation:
    conversation = Conversation("Be brief.", (), (_user("Count from 1 to 100, one number a line."),), effort="low")
    heard = _hear(model, conversation, SamplingParams(0.0, max_tokens=128), clock, ends_s)
    if heard.sampled is None:
        return Observation("speed", "the answer did not end in time", good=False, remedy="is the model on the GPU?")
    first_s, all_s = heard.sampled.first_token_s, heard.sampled.duration_s
    rate = heard.sampled.completion_tokens / max(all_s - first_s, 1e-3)
    streams = heard.pieces > 1 and first_s < all_s
    seen = f"first token after {first_s:.2f} s, then {rate:.0f} tokens a second, {'' if streams else 'not '}streamed"
    return Observation(
        "speed", seen, good=streams, remedy="" if streams else "a proxy in between may collect the stream"
    )


def _round_trip(model: Model, clock: Clock, ends_s: float) -> Observation:
    """Send the same history with and without reasoning before a call: the prompts must differ by that reasoning."""
    tool = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})

    def history(*thoughts: Message) -> Conversation:
        call = Message(Role.ASSISTANT, "{}", Channel.COMMENTARY, "functions.look", "json")
        result = Message(Role.TOOL, "nothing", Channel.COMMENTARY, "assistant", name="functions.look")
        return Conversation("Be brief.", (tool,), (_user("Look."), *thoughts, call, result), effort="low")

    params = replace(_COLD, max_tokens=16)
    plain = _hear(model, history(), params, clock, ends_s).sampled
    thought = _hear(model, history(Message(Role.ASSISTANT, _THOUGHT, Channel.ANALYSIS)), params, clock, ends_s).sampled
    if plain is None or thought is None:
        return Observation("reasoning", "not told in time", good=None)
    more = thought.prompt_tokens - plain.prompt_tokens
    if more >= _THOUGHT_TOKENS:
        return Observation("reasoning", f"it is sent back between calls ({more} tokens of it were read)")
    remedy = "the model forgets why it made a call: use a raw completions wire, or a newer server"
    return Observation("reasoning", "the server drops it between calls", good=False, remedy=remedy)


def _sampling(model: Model, clock: Clock, ends_s: float) -> Observation:
    conversation = Conversation("Be brief.", (), (_user("Write ten random words."),), effort="low")
    cold = {_hear(model, conversation, _COLD, clock, ends_s).text for _ in range(2)}
    warm = {_hear(model, conversation, _WARM, clock, ends_s).text for _ in range(3)}
    if len(warm) == 1 and len(cold | warm) == 1:
        remedy = "the server ignores the temperature; look for a fixed one in its settings"
        return Observation("sampling", "temperature 1 gives the same answer as 0", good=False, remedy=remedy)
    if len(cold) > 1:
        return Observation("sampling", "temperature 0 gives different answers (batching does that too)", good=None)
    return Observation("sampling", "temperature is obeyed")


def _window(model: Model, server: Server, clock: Clock, ends_s: float) -> Observation:
    """Put a code word first and ever more filler after it, as long as the time and the stated window allow."""
    stated = model.context_tokens
    told = f"{stated} tokens are stated" if stated else "no window is stated"
    fits = unsure = 0
    began_s = clock.now()
    for tokens in _WINDOW_STEPS_TOKENS:
        if stated is not None and tokens > stated - 512:
            break
        took_s, began_s = clock.now() - began_s, clock.now()
        if fits and clock.now() + took_s * tokens / fits > ends_s:
            break
        try:
            heard = _hear(model, _haystack(tokens), SamplingParams(0.0, max_tokens=200), clock, ends_s)
        except ContextOverflow as error:
            seen = f"a prompt of {tokens} tokens is refused ({told}): {error}"
            return Observation("window", seen, good=False, remedy=_WIDEN[server])
        if heard.sampled is None:
            break
        if _NEEDLE not in heard.text.upper():
            if heard.sampled.prompt_tokens < tokens * 3 // 4:
                seen = f"a prompt of about {tokens} tokens silently loses its beginning: {heard.sampled.prompt_tokens} were read ({told})"
                return Observation("window", seen, good=False, remedy=_WIDEN[server])
            unsure = tokens
            break
        fits = tokens
    if stated is not None and stated < _WINDOW_STEPS_TOKENS[1]:
        return Observation(
            "window", f"{told}, and {fits} were read whole: small for an agent", good=False, remedy=_WIDEN[server]
        )
    if unsure:  # either truncated by a server that does not count, or not understood by a weak model
        seen = f"asked for the first words of a prompt of {unsure} tokens, the answer lacks them ({told})"
        return Observation("window", seen, good=None, remedy=_WIDEN[server])
    if not fits:
        return Observation("window", f"{told}; a long prompt was not answered in time", good=None)
    return Observation("window", f"a prompt of {fits} tokens is read from its beginning ({told})")


def _haystack(tokens: int) -> Conversation:
    lines = [f"The code word is {_NEEDLE}. Remember it."]
    lines += [f"Entry {number}: a grey stone lies beside the old road." for number in range(tokens // _TOKENS_A_LINE)]
    question = "What is the code word in the first line? Answer with that word alone."
    return Conversation("Be brief.", (), (_user("\n".join([*lines, question])),), effort="low")


def _hear(model: Model, conversation: Conversation, params: SamplingParams, clock: Clock, ends_s: float) -> _Heard:
    """Sample one answer, but stop at the deadline."""
    texts: list[str] = []
    pieces = 0
    with closing_iterator(model.sample(conversation, params)) as events:
        for event in events:
            match event:
                case Delta():
                    pieces += 1
                    if clock.now() > ends_s:
                        break
                case MessageAdded(message):
                    texts.append(message.text)
                case Sampled():
                    return _Heard("\n".join(texts), pieces, event)
                case _:
                    pass
    return _Heard("\n".join(texts), pieces, None)


def _documents(events: Iterator[ServerEvent]) -> Iterator[dict[str, Any]]:
    return (decoded(event) for event in events if event.data.strip() != "[DONE]")


def _user(text: str) -> Message:
    return Message(Role.USER, text)
