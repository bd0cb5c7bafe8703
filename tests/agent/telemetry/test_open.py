"""Where spans go: real requests to a real receiver on loopback, and what happens where there is none."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import SpanProcessor

from agent.config import RunConfig, load
from agent.errors import ConfigError, UsageError
from agent.events import Outcome, RunEnded, Sampled, ToolFinished
from agent.session import fix, resume
from agent.telemetry.base import Silent
from agent.telemetry.open import open_telemetry
from agent.telemetry.send import FLUSH_S, traced
from tests.agent.test_session import BUGGY, CHECK, FIX, git, stop_at


class Collector:
    """An OTLP/HTTP receiver. ``requests`` are what came, as (path, headers, message)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                message = ExportTraceServiceRequest.FromString(body)
                collector.requests.append((self.path, dict(self.headers), message))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[Span]:
        return [
            span
            for _, _, message in self.requests
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans())

    def resource(self) -> dict[str, str]:
        (first, *_) = self.requests[0][2].resource_spans
        return {each.key: each.value.string_value for each in first.resource.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    found.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "calc.py").write_text(BUGGY)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "A start")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"turns": FIX}))
    return RunConfig(
        wire="scripted", script=script, sandbox="none", runs_dir=tmp_path / "runs", checks=(CHECK,), otel=True
    )  # fmt: skip


WHOLE = [
    "chat",
    "chat",
    "chat",
    "execute_tool apply_patch",
    "execute_tool open_file",
    "invoke_agent gpt-oss-agent",
    "turn",
    "turn",
    "turn",
]


def test_a_run_arrives_at_a_collector(collector: Collector, config: RunConfig, repository: Path) -> None:
    said: list[str] = []
    ended = fix(config, "Fix double.", repository, "fix", lambda _: None, said.append)
    assert ended.outcome is Outcome.PASSED
    assert collector.names() == WHOLE
    assert {path for path, _, _ in collector.requests} == {"/v1/traces"}
    assert collector.resource()["service.name"] == "gpt-oss-agent"
    assert not [line for line in said if "telemetry" in line]
    assert "multiply" not in str(collector.requests)


def test_the_standard_variables_are_followed(
    collector: Collector, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-bot")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=ci")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    telemetry = open_telemetry(config, "r", "fix", lambda _: None)
    telemetry(Sampled(1, 1, "stop"))
    telemetry.close()
    assert collector.resource().items() >= {"service.name": "our-bot", "deployment.environment": "ci"}.items()
    (_, headers, _) = collector.requests[0]
    assert (headers["x-team"], headers["Content-Encoding"]) == ("blue", "gzip")


def test_telemetry_can_be_switched_off_from_outside(collector: Collector, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = open_telemetry(config, "r", "fix", lambda _: None)
    telemetry(Sampled(1, 1, "stop"))
    telemetry.close()
    assert collector.requests == []


def test_what_goes_on_is_a_trace_linked_to_the_first(collector: Collector, config: RunConfig, repository: Path) -> None:
    ended = fix(config, "Fix double.", repository, "fix", stop_at(ToolFinished, 2))
    assert ended.outcome is Outcome.INTERRUPTED
    (folder,) = config.runs_dir.iterdir()
    before = collector.spans()
    assert resume(folder, lambda _: None).outcome is Outcome.PASSED
    after = collector.spans()[len(before) :]
    (first,), (second,) = ([span for span in spans if not span.parent_span_id] for spans in (before, after))
    assert {span.trace_id for span in before} == {first.trace_id}
    assert {span.trace_id for span in after} == {second.trace_id} != {first.trace_id}
    assert not first.links
    assert [(link.trace_id, link.span_id) for link in second.links] == [(first.trace_id, first.span_id)]
    assert len({span.span_id for span in before + after}) == len(before + after)


def test_a_collector_that_is_gone_is_said_once_and_holds_nothing_up(
    config: RunConfig, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    said: list[str] = []
    began_s = time.monotonic()
    ended = fix(config, "Fix double.", repository, "fix", lambda _: None, said.append)
    assert ended.outcome is Outcome.PASSED
    assert time.monotonic() - began_s < FLUSH_S + 60
    assert len([line for line in said if line.startswith("telemetry: ")]) == 1
    _comes_back()


def _comes_back() -> None:
    """What was changed of the process's logging is as it was before, once the sender has given up."""
    logger, give_up_s = logging.getLogger("opentelemetry"), time.monotonic() + 60
    while logger.handlers:
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def test_a_collector_that_never_answers_is_not_waited_for(config: RunConfig) -> None:
    answers = threading.Event()

    class Stuck(SpanProcessor):
        def shutdown(self) -> None:
            answers.wait(60)

    said: list[str] = []
    telemetry = traced(config, "r", "fix", said.append, Stuck, flush_s=0.05)
    telemetry(Sampled(1, 1, "stop"))
    began_s = time.monotonic()
    telemetry.close()
    telemetry.close()
    assert time.monotonic() - began_s < 30
    assert said == ["telemetry: the collector does not answer: the last spans of this run are lost"]
    answers.set()
    _comes_back()


def test_without_the_packages_it_says_what_to_install(
    config: RunConfig, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "agent.telemetry.send")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"pip install 'gpt-oss-agent\[otel\]'"):
        fix(config, "Fix double.", repository, "fix", lambda _: None)
    assert not config.runs_dir.exists()


def test_a_variable_that_cannot_be_used_is_said_before_the_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    with pytest.raises(UsageError, match="an OTEL_ variable cannot be used: max_export_batch_size"):
        open_telemetry(config, "r", "fix", lambda _: None)
    _comes_back()


def test_what_the_packages_complain_of_at_the_start_is_said(collector: Collector, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    said: list[str] = []
    open_telemetry(config, "r", "fix", said.append).close()
    assert said == ["telemetry: Invalid timeout value 'soon', using default of 10 seconds"]
    _comes_back()


def test_it_is_off_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    config = load(environ={}).config
    assert (config.otel, config.otel_content) == (False, False)
    telemetry = open_telemetry(config, "r", "fix", lambda _: None)
    assert isinstance(telemetry, Silent)
    telemetry(RunEnded(Outcome.PASSED, ""))
    telemetry.close()


def test_it_is_the_person_s_to_turn_on(tmp_path: Path) -> None:
    assert load(environ={"AGENT_OTEL": "1", "AGENT_OTEL_CONTENT": "yes"}).config.otel_content
    (tmp_path / "agent.toml").write_text("otel = true\n")
    with pytest.raises(ConfigError, match="cannot be set by a repository"):
        load(repository=tmp_path, environ={})
