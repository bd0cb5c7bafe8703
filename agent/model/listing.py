"""Reads what an endpoint says about its models: names, kind of server, and window, wherever that kind of server reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agent.errors import ModelError
from agent.model.client import Client
from agent.model.stream import sequence

_ASK_TIMEOUT_S = 5.0
# The fields in which servers report the window of a model: vLLM and SGLang, llama.cpp, gateways.
_WINDOW_KEYS = ("max_model_len", "n_ctx", "context_length", "context_window", "max_context_length")


class Server(StrEnum):
    """The kinds of server that we treat differently."""

    VLLM = "vLLM"
    SGLANG = "SGLang"
    LLAMA = "llama.cpp"
    OLLAMA = "Ollama"
    LM_STUDIO = "LM Studio"
    OTHER = "a server of a kind unknown here"


_OWNERS: Mapping[str, Server] = {
    "vllm": Server.VLLM,
    "sglang": Server.SGLANG,
    "llamacpp": Server.LLAMA,
    "library": Server.OLLAMA,
    "organization_owner": Server.LM_STUDIO,
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One model: its name on the server, its window in tokens if it is reported, and the kind of server."""

    model: str
    context_tokens: int | None = None
    server: Server = Server.OTHER


def offers(listing: Mapping[str, Any]) -> list[Offer]:
    """Return the models of a ``/models`` document, in the server's order."""
    entries = sequence(listing.get("data")) or sequence(listing.get("models"))
    return [
        Offer(
            str(entry.get("id") or entry["name"]),
            _window(entry, entry.get("meta")),
            _OWNERS.get(str(entry.get("owned_by")), Server.OTHER),
        )
        for entry in entries
        if isinstance(entry, dict) and (entry.get("id") or entry.get("name"))
    ]


def loaded_window(client: Client, offer: Offer) -> int | None:
    """Return the window the model is loaded with, which Ollama and LM Studio report elsewhere; None if it is not reported.

    Ollama reports it only for a model in memory. Its default (4,096 tokens on a small GPU) is far below what the model
    supports, and a longer prompt loses its beginning without an error.
    """
    place = {Server.OLLAMA: "//api/ps", Server.LM_STUDIO: "//api/v0/models"}.get(offer.server)
    if offer.context_tokens is not None or place is None:
        return offer.context_tokens
    try:
        found = client.get(place, _ASK_TIMEOUT_S)
    except ModelError:
        return None  # an older or newer server without this path: the window is unknown
    for entry in sequence(found.get("models")) or sequence(found.get("data")):
        if isinstance(entry, dict) and offer.model in (entry.get("name"), entry.get("model"), entry.get("id")):
            loaded = entry.get("loaded_context_length")
            return loaded if isinstance(loaded, int) else _window(entry)
    return None


def _window(*places: object) -> int | None:
    for place in places:
        for key in _WINDOW_KEYS:
            value = place.get(key) if isinstance(place, dict) else None
            if isinstance(value, int) and value > 0:
                return value
    return None
