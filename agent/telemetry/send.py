"""Sends spans by OTLP over HTTP, to the collector that the OTEL_* variables name.

The provider is this run's own, never the process's global one. An unreachable collector is reported once, and delays the end
of a run by at most FLUSH_S.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext

from agent.config import RunConfig
from agent.errors import UsageError
from agent.events import Event
from agent.lines import one_line
from agent.telemetry.base import Telemetry
from agent.telemetry.spans import Spans, first_span

FLUSH_S = 5.0
PACKAGE = "gpt-oss-agent"
LOGGER = "opentelemetry"
TOLD_CHARS = 240


def otlp() -> SpanProcessor:
    """Return a processor that sends spans as the OTEL_ variables say. Raises ValueError if one of them is invalid."""
    return BatchSpanProcessor(OTLPSpanExporter())


def traced(
    config: RunConfig,
    run: str,
    mode: str,
    say: Callable[[str], None],
    make: Callable[[], SpanProcessor],
    flush_s: float = FLUSH_S,
    *,
    resumed: bool = False,
) -> Telemetry:
    """Return a listener that traces a run into the processor that ``make`` returns. Raises UsageError if that fails."""
    complaints = _Complaints(say)
    release = _release()
    try:
        resource = Resource.create({SERVICE_VERSION: release})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # without OTEL_SERVICE_NAME
            resource = resource.merge(Resource({SERVICE_NAME: PACKAGE}))
        ids = RandomIdGenerator() if resumed else _FirstIds(first_span(run))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=ids)
        provider.add_span_processor(make())
    except ValueError as error:
        complaints.close()
        raise UsageError(f"otel is on, and an OTEL_ variable cannot be used: {error}") from error
    links = (Link(first_span(run)),) if resumed else ()
    spans = Spans(provider.get_tracer(PACKAGE, release), config, run, mode, release, links)
    return _Traced(spans, provider.shutdown, complaints, flush_s)


def _release() -> str:
    """Return the version of this program, "source" if it runs from a checkout without being installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "source"


class _FirstIds(RandomIdGenerator):
    """Random ids, except for the trace and its first span, which a process that resumes the run must know."""

    def __init__(self, first: SpanContext) -> None:
        self._trace_id, self._span_id = first.trace_id, first.span_id

    def generate_trace_id(self) -> int:
        """Return the run's trace id, the only one."""
        return self._trace_id

    def generate_span_id(self) -> int:
        """Return the first span's id once, then random ones."""
        given, self._span_id = self._span_id, super().generate_span_id()
        return given


class _Traced:
    """The spans of a run, and their provider."""

    def __init__(self, spans: Telemetry, shutdown: Callable[[], None], complaints: _Complaints, flush_s: float) -> None:
        self._spans, self._shutdown, self._complaints, self._flush_s = spans, shutdown, complaints, flush_s
        self._open = True

    def __call__(self, event: Event) -> None:
        """Process one event."""
        self._spans(event)

    def close(self) -> None:
        """End open spans and send the remaining ones, within the time limit."""
        if not self._open:
            return
        self._open = False
        self._spans.close()
        sender = threading.Thread(target=self._send, name="telemetry", daemon=True)
        sender.start()
        sender.join(self._flush_s)
        if sender.is_alive():
            self._complaints.say("the collector does not answer: the last spans of this run are lost")

    def _send(self) -> None:
        self._shutdown()
        self._complaints.close()  # only now, because a late failure logs late


class _Complaints(logging.Handler):
    """Handles the packages' log messages and reports only the first; without a handler, logging would print over the screen."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._said = say, False
        self._logger = logging.getLogger(LOGGER)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Report the first message."""
        self.say(record.getMessage())

    def say(self, text: str) -> None:
        """Report a text, if nothing was reported before."""
        if not self._said:
            self._said = True
            self._say(f"telemetry: {one_line(text, TOLD_CHARS)}")

    def close(self) -> None:
        """Restore the packages' logging."""
        self._logger.removeHandler(self)
        super().close()
