"""What a caller asks of the engine, and what it gets back: tokens only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.errors import RequestRefused


class Mask(Protocol):
    """Restricts which token one request may sample next. The engine's thread calls it, and reports each sampled token to it.

    The calls are made while the device runs the forward pass of the step, so what takes less time than that costs nothing.
    """

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        ...

    def is_free(self, coming: Sequence[int | None]) -> bool:
        """Whether every token is allowed next, and after each token of ``coming``; None stands for a token not known yet.

        False if that is uncertain. While it is True, a step costs no more than without a mask.
        """
        ...

    def allowed(self, draft: Sequence[int]) -> Sequence[bytes | None]:
        """Return the tokens allowed next, and after each token of ``draft``: len(draft) + 1 masks (None: every token is allowed).

        Bit ``t % 8`` of byte ``t // 8`` is 1 if token ``t`` is allowed; a mask must allow at least one. After a token of the
        draft that is itself forbidden, the masks do not matter.
        """
        ...


class Drafter(Protocol):
    """Knows more than the prompt about what one request may say next. The engine's thread calls it, while nothing else runs.

    What it drafts is verified like any other draft: it changes how fast tokens come, never which. If it raises, that is logged and
    the answer goes on without it.
    """

    @property
    def priors(self) -> Mapping[str, float]:
        """Each kind of guess that ``draft`` makes, and how often such a guess is right before anything is known of this text."""
        ...

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        ...

    def draft(self) -> Sequence[tuple[int, str]]:
        """Return the tokens that are likely to follow, each with the kind of guess that it is, or none."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick a token.

    ``temperature`` 0 is greedy. ``top_p`` keeps the smallest set of tokens whose probability reaches it. ``seed`` makes a
    request reproducible, whatever else is in the batch; None draws one. ``logprobs`` asks for the log-probability of each
    picked token at temperature 1.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise RequestRefused(f"temperature is {self.temperature}: it must be between 0 and 100")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestRefused(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise RequestRefused(f"seed is {self.seed}: it must be between 0 and 2^63 - 1")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue until one of ``stop`` is sampled or ``max_tokens`` are reached.

    ``mask`` creates the request's Mask; it is called once, when the request is queued. ``drafter`` is this request's own.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    stop: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    mask: Callable[[], Mask] | None = None
    drafter: Drafter | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestRefused("the prompt is empty: a continuation needs at least one token")
        if self.max_tokens < 1:
            raise RequestRefused(f"max_tokens is {self.max_tokens}: it must be at least 1")


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One sampled token of one request. ``finish`` is None until the last one: stop, length or cancelled.

    The last TokenOut of a cancelled request has no token. ``cached_tokens`` is the part of the prompt that was found in the
    prefix cache.
    """

    id: str
    token: int | None
    finish: str | None = None
    logprob: float | None = None
    cached_tokens: int = 0


class Streams(Protocol):
    """Something that answers requests token by token, for any number of threads."""

    @property
    def stopped(self) -> str | None:
        """Why no request is answered any more (closed, or stopped by an error that needs a restart); None while it runs."""
        ...

    def stream(self, request: Request, unwanted: Callable[[], bool] = ...) -> Generator[TokenOut]:
        """Yield the request's tokens as they are sampled; closing the iterator cancels it. Raises RuntimeFault.

        ``unwanted`` is called once, as soon as ``cancel`` can find the request: True if it was cancelled before that.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a stream from another thread, at once."""
        ...

    def close(self) -> None:
        """End all streams and stop the work. May be called twice."""
        ...
