"""The server's backend: a model and, if it has one, its source of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.backends import BACKENDS, Needs
from agent.config import RunConfig
from agent.errors import UsageError
from agent.harmony.codec import Codec
from agent.model.base import Model, TokenSource
from agent.model.local import LocalSource
from agent.model.open import open_model
from agent.model.raw import RawModel
from agent.model.scripted import ScriptedModel


@dataclass(frozen=True, slots=True)
class Backend:
    """A model and the name that clients use for it. ``source`` and ``codec`` are set if token ids are available."""

    id: str
    model: Model
    source: TokenSource | None = None
    codec: Codec | None = None

    @property
    def stopped(self) -> str | None:
        """Why this will never answer again, or None. Only an engine in this process can stop for good."""
        return self.source.stopped if isinstance(self.source, LocalSource) else None

    def close(self) -> None:
        """Release connections or memory. May be called twice."""
        self.model.close()


def open_backend(config: RunConfig, say: Callable[[str], None]) -> Backend:
    """Open the configured backend. Raises ModelError if it is not available, UsageError if a setting is missing."""
    if BACKENDS[config.wire].needs is Needs.ENDPOINT and config.endpoint is None:
        raise UsageError(f"The backend {config.wire} is a server: give its URL with --endpoint.")
    model = open_model(config, say, shared=True)
    if not model.capabilities.parallel_requests:
        say("this backend answers one request at a time: others get a 429 meanwhile and can retry")
    return as_backend(_id(config, model), model)


def as_backend(ident: str, model: Model) -> Backend:
    """Return the backend over a model, with its source of tokens if it has one."""
    if isinstance(model, RawModel):
        return Backend(ident, model, model.source, model.codec)
    return Backend(ident, model)


def _id(config: RunConfig, model: Model) -> str:
    """Return a name without paths of this machine: the checkpoint's folder name, the kind of script, or the endpoint's name for it."""
    if isinstance(model, ScriptedModel):
        return config.model or "scripted"
    return (
        Path(config.model).name
        if config.model and "/" in config.model and Path(config.model).is_dir()
        else (config.model or model.name.partition(" at ")[0])
    )
