"""Where spans go: by OTLP over HTTP to where OTEL_* variables say.

The provider is this run's own, never the process's global one. A collector that is gone is said once, and holds a run
up by at most FLUSH_S, at its end.
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
    """Return what sends spans where the OTEL_ variables say. Raises ValueError where one of them cannot be used."""
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
    """Return what traces a run into the processor that ``make`` makes. Raises UsageError where it cannot be made."""
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
    """Return the version of this program, "source" where it runs from a checkout that was not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "source"


class _FirstIds(RandomIdGenerator):
    """Random ids, but for the trace and its first span: a process that goes on with the run must know them."""

    def __init__(self, first: SpanContext) -> None:
        self._trace_id, self._span_id = first.trace_id, first.span_id

    def generate_trace_id(self) -> int:
        """Return the run's, the only one."""
        return self._trace_id

    def generate_span_id(self) -> int:
        """Return the first span's once, then random ones."""
        given, self._span_id = self._span_id, super().generate_span_id()
        return given


class _Traced:
    """Spans, and what sends them."""

    def __init__(self, spans: Telemetry, shutdown: Callable[[], None], complaints: _Complaints, flush_s: float) -> None:
        self._spans, self._shutdown, self._complaints, self._flush_s = spans, shutdown, complaints, flush_s
        self._open = True

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        self._spans(event)

    def close(self) -> None:
        """End what is open and send what is left, for so long as that may take."""
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
        self._complaints.close()  # not before: what gives up late complains late


class _Complaints(logging.Handler):
    """What the packages log, said once; logging prints over the screen what nobody handles."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._said = say, False
        self._logger = logging.getLogger(LOGGER)
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Say the first."""
        self.say(record.getMessage())

    def say(self, text: str) -> None:
        """Say it, if nothing was said before."""
        if not self._said:
            self._said = True
            self._say(f"telemetry: {one_line(text, TOLD_CHARS)}")

    def close(self) -> None:
        """Let the packages log as before."""
        self._logger.removeHandler(self)
        super().close()
