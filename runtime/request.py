"""What a caller asks of the engine, and what it gets back: tokens only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.errors import RequestRefused


class Mask(Protocol):
    """Which tokens of one request may come next. The engine's thread tells it each token that was sampled and asks it.

    It is asked while the device computes the step that samples next, so what it does in less time than that costs nothing.
    """

    def take(self, token: int) -> None:
        """Note the next sampled token."""
        ...

    def is_free(self, coming: Sequence[int | None]) -> bool:
        """Whether any token may come next, and after each further one of ``coming``; None is one that is not known yet.

        False where that is not sure. As long as it is true, a step costs what it costs without a mask.
        """
        ...

    def allowed(self, draft: Sequence[int]) -> Sequence[bytes | None]:
        """Return what may come next, and after each token of ``draft``: len(draft) + 1 masks; None: any may.

        Bit ``t % 8`` of byte ``t // 8`` stands for token ``t``; a mask must allow something. What is said after a token of
        the draft that may not come itself is of no matter.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick a token.

    ``temperature`` 0 is greedy. ``top_p`` keeps the smallest set of tokens whose probability reaches it. ``seed`` makes a
    request repeatable whatever else is in the batch; None draws one. ``logprobs`` asks for the log-probability of each
    picked token under the untempered distribution.
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
    """One continuation: ``prompt`` ids, until one of ``stop`` was sampled or ``max_tokens`` are reached.

    ``mask`` makes what decides which tokens may come next, for one run of this request. It is called when that begins.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    stop: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    mask: Callable[[], Mask] | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestRefused("the prompt is empty: a continuation needs at least one token")
        if self.max_tokens < 1:
            raise RequestRefused(f"max_tokens is {self.max_tokens}: it must be at least 1")


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One sampled token of one request. ``finish`` is None until the last: stop, length or cancelled.

    A cancelled request's last TokenOut has no token. ``cached_tokens`` is how much of the prompt came from the prefix
    cache.
    """

    id: str
    token: int | None
    finish: str | None = None
    logprob: float | None = None
    cached_tokens: int = 0


class Streams(Protocol):
    """Something that answers requests token by token; any number of threads may ask."""

    @property
    def stopped(self) -> str | None:
        """Why nothing will be answered any more, None while it is: closed, or ended by a fault that only a new start cures."""
        ...

    def stream(self, request: Request, unwanted: Callable[[], bool] = ...) -> Generator[TokenOut]:
        """Yield the request's tokens as they are sampled; closing the iterator cancels it. Raises RuntimeFault.

        ``unwanted`` is asked once, when ``cancel`` can find the request: whether it came too late to.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a stream from another thread, at once."""
        ...

    def close(self) -> None:
        """End all streams, and the work. May be called twice."""
        ...
