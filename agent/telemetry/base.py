"""The interface of telemetry: a listener to a run's events, and one that does nothing."""

from __future__ import annotations

from typing import Protocol

from agent.events import Event


class Telemetry(Protocol):
    """A listener that traces a run's events."""

    def __call__(self, event: Event) -> None:
        """Process one event."""
        ...

    def close(self) -> None:
        """End open spans and send the remaining ones. May be called twice."""
        ...


class Silent:
    """No telemetry."""

    def __call__(self, event: Event) -> None:
        """Ignore the event."""

    def close(self) -> None:
        """Do nothing."""
