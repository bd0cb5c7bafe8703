"""The interface to a model, and the one below it to a source of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.conversation import Conversation
from agent.events import Delta, MessageAdded, Repaired, Retried, Sampled
from agent.model.cancel import Cancel
from agent.model.capabilities import Capabilities

ModelEvent = Delta | Retried | Repaired | MessageAdded | Sampled


class Guide(Protocol):
    """Restricts which token may come next, for one answer (``Mask`` in runtime/request.py says when each method is called)."""

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        ...

    def is_free(self, coming: Sequence[int | None]) -> bool:
        """Whether any token is allowed next, and after each token of ``coming``; None stands for a token not known yet."""
        ...

    def allowed(self, draft: Sequence[int]) -> Sequence[bytes | None]:
        """Return the tokens allowed next, and after each token of ``draft``: a bit for each token of the vocabulary; None: any."""
        ...


class Drafter(Protocol):
    """Guesses what one answer says next, so that the runtime can verify several tokens at once (``Drafter`` in runtime/request.py)."""

    @property
    def priors(self) -> Mapping[str, float]:
        """The kinds of its guesses, and how often each is right."""
        ...

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        ...

    def draft(self) -> Sequence[tuple[int, str]]:
        """Return the tokens that are likely to follow, each with its kind."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Temperature and top_p are always sent explicitly: servers ship other defaults.

    ``max_tokens`` bounds one answer (None: the rest of the window). ``seed`` None leaves the choice to the source.
    ``opening`` are ids that the answer must begin with, after ``<|start|>assistant``: only a model over a TokenSource
    supports that. ``timeout_s`` is the time that the run has left for the answer: a server that is silent, or only keeps
    its connection alive, cannot delay it longer. ``cancel`` ends the answer from another thread, with Cancelled.
    ``guide`` restricts the tokens of this one answer, and ``drafter`` guesses them: only the runtime in this process uses these.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    opening: tuple[int, ...] = ()
    timeout_s: float | None = None
    cancel: Cancel | None = field(default=None, repr=False, compare=False)
    guide: Guide | None = field(default=None, repr=False, compare=False)
    drafter: Drafter | None = field(default=None, repr=False, compare=False)


def later_seed(seed: int | None, step: int) -> int | None:
    """Return the seed of a later attempt, because the same seed gives the same answer. The largest, 2^63 - 1, is followed by 0."""
    if seed is None:
        return None
    return seed + step if seed + step < 1 << 63 else seed + step - (1 << 63)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Newly sampled ids. ``finish`` is None until the last chunk, then stop, length or cancelled.

    The stop token that ended the answer is part of ``ids``. ``prompt_tokens`` and ``cached_tokens`` are set on the last
    chunk if the source knows them.
    """

    ids: tuple[int, ...]
    finish: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class TokenSource(Protocol):
    """Something that continues token ids: a raw completions server, or the runtime in this process."""

    @property
    def name(self) -> str:
        """What to call it on the screen and in the log."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """The window in tokens, where it is known."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities."""
        ...

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk | Retried]:
        """Continue ``prompt`` until one of ``stop`` was sampled or ``max_tokens`` are reached.

        Closing the iterator stops the work. A Retried invalidates every chunk before it.
        Raises ModelError and nothing else.
        """
        ...

    def close(self) -> None:
        """Release connections or memory. May be called twice."""
        ...


class Model(Protocol):
    """Something that answers a conversation."""

    @property
    def name(self) -> str:
        """What to call it on the screen and in the log."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """The window in tokens, where it is known."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities."""
        ...

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Answer: Delta as text arrives, then MessageAdded for each complete message, and at the end one Sampled.

        Messages are yielded only once the whole answer has arrived, so a Retried never invalidates a MessageAdded.
        Closing the iterator stops the work. Raises ModelError and nothing else.
        """
        ...

    def close(self) -> None:
        """Release connections or memory. May be called twice."""
        ...
