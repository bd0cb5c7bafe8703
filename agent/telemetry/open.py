"""Whether a run is traced: only if the person wants it. Nothing of OpenTelemetry is loaded otherwise."""

from __future__ import annotations

from collections.abc import Callable

from agent.config import RunConfig
from agent.errors import UsageError
from agent.telemetry.base import Silent, Telemetry


def open_telemetry(
    config: RunConfig, run: str, mode: str, say: Callable[[str], None], *, resumed: bool = False
) -> Telemetry:
    """Return what traces a run, or (``resumed``) what another process began of it.

    Raises UsageError where spans are wanted and the packages for them are not installed, or a variable cannot be used.
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
