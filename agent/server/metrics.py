"""Metrics for Prometheus. Each server has a registry of its own: nothing is global."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The server's counters. Names follow Prometheus' conventions: base units, ``_total`` for counters."""

    def __init__(self, in_flight: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("agent_requests", "Requests answered.", ("route", "status"), registry=self._registry)
        self._duration_s = Histogram(
            "agent_request_duration_seconds",
            "Length of requests.",
            ("route",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.first_token_s = Histogram(
            "agent_first_token_seconds", "Wait for the first token.", registry=self._registry, buckets=_SECONDS
        )
        self._tokens = Counter("agent_tokens", "Tokens, by kind.", ("kind",), registry=self._registry)
        gauge = Gauge("agent_requests_in_flight", "Requests being answered.", registry=self._registry)
        gauge.set_function(in_flight)

    def request(self, route: str, status: int, duration_s: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._duration_s.labels(route).observe(duration_s)

    def tokens(self, prompt: int, cached: int, completion: int) -> None:
        """Count an answer's tokens."""
        for kind, amount in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            self._tokens.labels(kind).inc(amount)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
