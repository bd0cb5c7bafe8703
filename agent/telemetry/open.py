"""Opens telemetry if the user has enabled it. Otherwise nothing of OpenTelemetry is loaded."""

from __future__ import annotations

from collections.abc import Callable

from agent.config import RunConfig
from agent.errors import UsageError
from agent.telemetry.base import Silent, Telemetry


def open_telemetry(
    config: RunConfig, run: str, mode: str, say: Callable[[str], None], *, resumed: bool = False
) -> Telemetry:
    """Return the listener that traces a run, or (``resumed``) the continuation of one.

    Raises UsageError if tracing is on and its packages are not installed, or a variable is invalid.
    """
    if not config.otel:
        return Silent()
    try:
        from agent.telemetry.send import otlp, traced
    except ModuleNotFoundError as error:
        raise UsageError(
            f"otel is on, and the package {error.name} is not installed: pip install 'gpt-oss-agent[otel]', or turn it off."
        ) from error
    return traced(config, run, mode, say, otlp, resumed=resumed)
