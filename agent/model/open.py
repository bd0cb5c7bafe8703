"""Opens the configured model: finds the endpoint, asks which models it has, and chooses the best wire that it offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.backends import BACKENDS, Needs
from agent.config import RunConfig
from agent.errors import EndpointRefused, EndpointUnreachable, ModelError, ModelUnfit, UsageError
from agent.harmony.tokens import is_text
from agent.model.base import Model
from agent.model.client import Client, Clock, Endpoint, persist
from agent.model.completions import STANDARD, CompletionsSource, Dialect
from agent.model.listing import Offer, Server, loaded_window, offers
from agent.model.spelling import Spelling
from agent.model.wires import offers_responses, raw_wires

if TYPE_CHECKING:
    from agent.harmony.codec import Codec
    from agent.model.local import LocalSource

# The default ports of the usual local servers.
LOCAL_PORTS: Mapping[str, int] = {"Ollama": 11434, "LM Studio": 1234, "vLLM": 8000, "llama.cpp": 8080}
_LOOK_TIMEOUT_S = 1.0
_ASK_TIMEOUT_S = 10.0
_SMALL_WINDOW_TOKENS = 16_384  # below this, a run is compacted every few turns


def open_model(
    config: RunConfig,
    say: Callable[[str], None] = lambda _: None,
    *,
    ports: Mapping[str, int] = LOCAL_PORTS,
    clock: Clock | None = None,
    shared: bool = False,
) -> Model:
    """Return the configured model. ``say`` is told what was chosen where the configuration left it open.

    ``shared``: several threads will use it, see ``Endpoint``.

    Raises ModelError if it is not available, UsageError if the configuration does not determine which model is meant.
    """
    wire = settled(config, say)
    match BACKENDS[wire].needs:
        case Needs.SCRIPT:
            model = _scripted(config)
        case Needs.CHECKPOINT:
            model = _local(replace(config, wire=wire), say)
        case _:
            try:
                client, offer = find_endpoint(config, say, ports=ports, clock=clock, shared=shared)
            except EndpointUnreachable:
                pulled = _pulled(config, say)
                if pulled is None:
                    raise
                return pulled
            try:
                model = _over(client, offer, config, say)
            except BaseException:
                client.close()
                raise
    if config.seed is not None and not model.capabilities.seed:
        say(f"the seed is not used: {model.name} does not support one")
    return model


def settled(config: RunConfig, say: Callable[[str], None]) -> str:
    """Return the name of the backend, or ``auto`` if only the endpoint can tell; ``say`` is told what was chosen.

    Raises ModelUnfit if it is a backend in this process and is not available.
    """
    if config.wire != "auto":
        return config.wire
    if config.script is not None:
        say(_taking("scripted", "a script was given"))
        return "scripted"
    if config.endpoint is None and config.model is not None and Path(config.model).is_dir():
        from agent.model.local import best_here

        name, why = best_here(config.model)
        say(
            _taking(
                name, f"no endpoint was given, {Path(config.model).name} is a checkpoint of this machine, and {why}"
            )
        )
        return name
    return "auto"


def _pulled(config: RunConfig, say: Callable[[str], None]) -> Model | None:
    """Return a model over a downloaded checkpoint if no endpoint was given and no local server answers, else None."""
    from agent.model.local import best_here, is_pulled

    if config.wire != "auto" or config.endpoint is not None or not config.model or not is_pulled(config.model):
        return None
    name, why = best_here(config.model)
    say(_taking(name, f"no local server answers, {config.model} was downloaded, and {why}"))
    return _local(replace(config, wire=name), say)


def _taking(name: str, why: str) -> str:
    return f"taking the {name} backend, because {why}"


def find_endpoint(
    config: RunConfig,
    say: Callable[[str], None],
    *,
    ports: Mapping[str, int] = LOCAL_PORTS,
    clock: Clock | None = None,
    shared: bool = False,
) -> tuple[Client, Offer]:
    """Return a client for the configured endpoint, and the model there. Raises as ``open_model`` does."""
    clock = clock or Clock()
    if config.wire == "ollama":
        ports = {name: port for name, port in ports.items() if name == Server.OLLAMA}
    url = config.endpoint or _look_around(config, ports, clock, say)
    endpoint = Endpoint(
        url, config.model or "", config.api_key, config.silence_timeout_s, config.endpoint_timeout_s, shared
    )
    client = Client(endpoint, clock)
    try:
        offer = _offer(config, client, say)
    except BaseException:
        client.close()
        raise
    client.endpoint = replace(endpoint, model=offer.model)
    return client, offer


def _scripted(config: RunConfig) -> Model:
    from agent.model.scripted import ScriptedModel, load_script

    if config.script is None:
        raise UsageError("the scripted wire needs a script: give --script FILE")
    return ScriptedModel(load_script(config.script), f"a recording ({config.script.name})", config.context_tokens)


def _local(config: RunConfig, say: Callable[[str], None]) -> Model:
    from agent.harmony.codec import open_codec
    from agent.harmony.constrain import open_guides
    from agent.model.patch_drafts import PatchDrafts
    from agent.model.raw import RawModel

    codec = open_codec(config.cache_dir)
    if BACKENDS[config.wire].kernels is None:
        _tell_unconstrained(config, say)
        return RawModel(codec, open_checkpoint(config, say))
    guides = open_guides(config.cache_dir, codec.encode) if config.constrain == "calls" else None
    drafts = PatchDrafts(codec.encode, codec.token_bytes)
    return RawModel(codec, open_checkpoint(config, say), guides=guides, drafts=drafts)


def open_checkpoint(config: RunConfig, say: Callable[[str], None]) -> LocalSource:
    """Open a source of tokens in this process. Raises UsageError without a checkpoint, ModelUnfit if it cannot be opened."""
    from agent.model.local import LocalOptions, open_local

    if not config.model:
        raise UsageError(f"the {config.wire} backend needs a checkpoint: give its folder with --model")
    said = 0

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal said
        percent = 100 * done_bytes // max(total_bytes, 1)
        if percent >= said + 10 or percent == 100 > said:
            said = percent
            say(f"loading {config.model}: {percent} % of {total_bytes / 2**30:.1f} GiB")

    options = LocalOptions(config.wire, context_tokens=config.context_tokens, cache_dir=config.cache_dir)
    return open_local(Path(config.model), options, progress, say)


def open_ollama(config: RunConfig, say: Callable[[str], None]) -> CompletionsSource:
    """Open Ollama's raw text for any model, even one that does not speak harmony. Raises as ``open_model`` does."""
    client, offer = find_endpoint(config, say)
    spelling = Vocabulary(config.cache_dir).spelling()
    return CompletionsSource(client, Dialect.OLLAMA, spelling, config.context_tokens or loaded_window(client, offer))


def _tell_unconstrained(config: RunConfig, say: Callable[[str], None]) -> None:
    if config.constrain == "calls":
        say("calls are not constrained: only the bundled engine (--wire local) supports that")


def _over(client: Client, offer: Offer, config: RunConfig, say: Callable[[str], None]) -> Model:
    """Return the model over the configured wire, or over the best one that the endpoint offers."""
    context_tokens = config.context_tokens or loaded_window(client, offer)
    _tell_unconstrained(config, say)
    _tell_window(context_tokens, say)
    why = ""
    if config.wire in {"auto", "completions", "ollama"}:
        raw, why = _raw(client, offer, config, context_tokens, say)
        if raw is not None:
            return raw
        if config.wire != "auto":
            raise ModelUnfit(f"{client.endpoint.url} offers no raw completions for gpt-oss: {why}; try --wire auto")
    wire = config.wire
    if wire == "auto":
        wire = "responses" if offers_responses(client) else "chat"
        say(_taking(wire, f"raw completions are not offered: {why}"))
        if context_tokens is None:  # Ollama reports it for a model in memory, and the probe has loaded it
            context_tokens = loaded_window(client, offer)
            _tell_window(context_tokens, say)
    client.openai()  # the import takes half a second: do it now, while the sandbox starts
    if wire == "responses":
        from agent.model.responses import responses_model

        return responses_model(client, context_tokens)
    from agent.model.chat import chat_model

    return chat_model(client, context_tokens)


def _tell_window(context_tokens: int | None, say: Callable[[str], None]) -> None:
    if context_tokens is not None and context_tokens < _SMALL_WINDOW_TOKENS:
        say(f"the model's window is only {context_tokens} tokens: `agent doctor` says how to enlarge it")


def _raw(
    client: Client, offer: Offer, config: RunConfig, context_tokens: int | None, say: Callable[[str], None]
) -> tuple[Model | None, str]:
    """Return the model over raw completions, or None and the reason."""
    from agent.model.raw import RawModel

    vocabulary = Vocabulary(config.cache_dir)
    if config.wire != "auto" or "gpt-oss" in client.endpoint.model.lower():
        vocabulary.start()
    why = ""
    for tried in raw_wires(client, vocabulary.spelling(), dialects(offer, config.wire)):
        if not tried.why:
            if (
                context_tokens is None and tried.dialect is Dialect.OLLAMA
            ):  # Ollama reports it for a model in memory, and now it is loaded
                context_tokens = loaded_window(client, replace(offer, server=Server.OLLAMA))
                _tell_window(context_tokens, say)
            if config.wire == "auto":
                name = "ollama" if tried.dialect is Dialect.OLLAMA else "completions"
                say(_taking(name, f"{client.endpoint.url} continues raw tokens ({tried.dialect})"))
            source = CompletionsSource(client, tried.dialect, vocabulary.spelling(), context_tokens)
            return RawModel(vocabulary.codec(), source), ""
        why = tried.why if not why or tried.ids else why
    return None, why


def dialects(offer: Offer, wire: str) -> tuple[Dialect, ...]:
    """Return the raw dialects that are worth trying with an endpoint."""
    if wire == "ollama" or (wire == "auto" and offer.server is Server.OLLAMA):
        return (Dialect.OLLAMA,)
    return STANDARD


class Vocabulary:
    """The codec, loaded at its first use, or earlier in a thread."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._loading: Future[Codec] | None = None

    def start(self) -> None:
        """Start loading in a thread."""
        if self._loading is None:
            thread = ThreadPoolExecutor(1)
            self._loading = thread.submit(_codec, self._cache_dir)
            thread.shutdown(wait=False)

    def codec(self) -> Codec:
        """Return the codec; wait for it if necessary. Raises AgentError if the vocabulary is not available."""
        self.start()
        assert self._loading is not None
        return self._loading.result()

    def spelling(self) -> Spelling:
        """Return the functions that a source of text needs; the vocabulary is loaded at their first use."""
        return Spelling(lambda text: self.codec().encode(text), self._control, lambda ids: self.codec().decode(ids))

    def _control(self, text: str) -> int | None:
        ids = self.codec().encode_sampled(text)
        return ids[0] if len(ids) == 1 and not is_text(ids[0]) else None


def _codec(cache_dir: Path) -> Codec:
    from agent.harmony.codec import open_codec

    return open_codec(cache_dir)


def _look_around(config: RunConfig, ports: Mapping[str, int], clock: Clock, say: Callable[[str], None]) -> str:
    """Return the URL of the first local server that answers."""
    for server, port in ports.items():
        url = f"http://127.0.0.1:{port}/v1"
        client = Client(Endpoint(url, "", config.api_key), clock)
        try:
            client.get("/models", _LOOK_TIMEOUT_S)
        except ModelError:
            continue
        finally:
            client.close()
        say(f"no endpoint was given: taking the one at {url} ({server}'s usual port)")
        return url
    tried = ", ".join(f"{server} {port}" for server, port in ports.items())
    raise EndpointUnreachable(
        f"no endpoint was given and no server answers on the usual local ports ({tried}): "
        "start a model server, or give its URL with --endpoint or OPENAI_BASE_URL"
    )


def _offer(config: RunConfig, client: Client, say: Callable[[str], None]) -> Offer:
    """Return the model to use: the configured one, the only one, or the only gpt-oss model."""
    if config.model and config.context_tokens:
        return Offer(config.model, config.context_tokens)
    try:
        # Ollama's own list has only names, but it is available even if the URL has no /v1.
        found = offers(_patiently(client, "//api/tags" if config.wire == "ollama" else "/models"))
    except (EndpointRefused, ModelUnfit):
        if not config.model:
            raise
        return Offer(config.model)  # a gateway without a list may still know the name
    if config.model:
        return next((offer for offer in found if offer.model == config.model), Offer(config.model))
    fitting = [offer for offer in found if "gpt-oss" in offer.model.lower()] or found
    if len(fitting) != 1:
        names = ", ".join(offer.model for offer in fitting) or "none at all"
        raise UsageError(f"{client.endpoint.url} offers several models ({names}): choose one with --model")
    say(f"no model was given: taking {fitting[0].model}")
    return fitting[0]


def _patiently(client: Client, path: str) -> dict[str, Any]:
    """Get a document with the same retries as an answer: the server may be starting."""
    for found in persist(lambda: iter([client.get(path, _ASK_TIMEOUT_S)]), client.endpoint, client.clock):
        if isinstance(found, dict):
            return found
    raise AssertionError("persist gives a document or raises")
