"""The seam: whoever hears a run's events to trace them, and the one that does not."""

from __future__ import annotations

from typing import Protocol

from agent.events import Event


class Telemetry(Protocol):
    """Whoever hears a run's events to trace them."""

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        ...

    def close(self) -> None:
        """End what is open and send what is left. May be called twice."""
        ...


class Silent:
    """No telemetry."""

    def __call__(self, event: Event) -> None:
        """Hear nothing."""

    def close(self) -> None:
        """Nothing is open."""
