"""Limits shared by all workers: a token budget and a request rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol


class Grants(Protocol):
    """Decides whether a request may be made."""

    @property
    def stopped(self) -> str:
        """Why no more requests are allowed, "" while they are."""
        ...

    def permit(self) -> bool:
        """Wait until a request is allowed; return False if no more are."""
        ...


class Governor:
    """Permits requests. Counts sampled tokens by attempt, so that a repeated report is counted once. Thread-safe."""

    def __init__(
        self,
        budget_tokens: int | None = None,
        requests_per_minute: float | None = None,
        spent: Mapping[tuple[str, int], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_tokens = budget_tokens
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._spent = dict(spent or {})
        self._clock = clock
        self._next_s = 0.0
        self._stopped = ""
        self._state = threading.Condition()

    @property
    def stopped(self) -> str:
        """Why no more requests are granted, "" while they are."""
        return self._stopped

    @property
    def spent_tokens(self) -> int:
        """The sampled tokens of all attempts."""
        with self._state:
            return sum(self._spent.values())

    def spend(self, attempt: tuple[str, int], tokens: int) -> None:
        """Set how many tokens an attempt has sampled so far."""
        with self._state:
            self._spent[attempt] = max(tokens, self._spent.get(attempt, 0))
            total = sum(self._spent.values())
        if self._budget_tokens is not None and total >= self._budget_tokens:
            self.stop(f"the budget of {self._budget_tokens} tokens is used up ({total} sampled)")

    def permit(self) -> bool:
        """Wait until a request is allowed. False: no more are."""
        with self._state:
            at_s = max(self._next_s, self._clock())
            self._next_s = at_s + self._interval_s
            while not self._stopped and (rest_s := at_s - self._clock()) > 0:
                self._state.wait(rest_s)
            return not self._stopped

    def stop(self, why: str) -> None:
        """Permit no more requests; the first reason is kept."""
        with self._state:
            self._stopped = self._stopped or why
            self._state.notify_all()

    def wait(self, duration_s: float) -> bool:
        """Wait for ``duration_s``, or until stopped; return False if stopped."""
        with self._state:
            self._state.wait_for(lambda: bool(self._stopped), duration_s)
            return not self._stopped
