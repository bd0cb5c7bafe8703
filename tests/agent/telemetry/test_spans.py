"""A run's spans: their tree, names, times and attributes, and that nothing which was said is in them unasked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from agent.config import RunConfig
from agent.conversation import Channel, Message, Role
from agent.events import (
    Delta,
    Event,
    MessageAdded,
    Outcome,
    Resumed,
    Retried,
    RunEnded,
    Sampled,
    ToolFinished,
    ToolResult,
    ToolStarted,
)
from agent.telemetry.spans import Spans
from tests.agent.report.stories import run_events
from tests.agent.report.test_story import EVENTS

SECOND = 10**9
CONFIG = RunConfig(endpoint="http://models.example:8000/v1", model="gpt-oss-20b", wire="completions", seed=7, otel=True)
MARK = "Qx7"
KNOWN = {
    value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_") and isinstance(value, str)
}


def spans(events: Sequence[Event], config: RunConfig = CONFIG) -> list[ReadableSpan]:
    """What a run's events, one a second, are exported as, in the order in which they began."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    now_s = -1

    def clock_ns() -> int:
        nonlocal now_s
        now_s += 1
        return now_s * SECOND

    heard = Spans(provider.get_tracer("t"), config, "run-1", "fix", "1.2.3", clock_ns=clock_ns)
    for event in events:
        heard(event)
    heard.close()
    heard.close()
    provider.shutdown()
    found = list(exporter.get_finished_spans())
    assert len({span.context.span_id for span in found}) == len(found)
    return sorted(found, key=lambda span: (span.start_time or 0, span.parent is not None, span.name != "turn"))


def by_name(found: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in found if span.name == name]


def told(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_the_tree_of_a_run() -> None:
    found = spans(run_events(3))
    root, turns = found[0], by_name(found, "turn")
    assert root.name == "invoke_agent gpt-oss-agent"
    assert root.parent is None
    assert len(turns) == 4
    assert all(turn.parent == root.context for turn in turns)
    for turn, tool in zip(turns, ("plan", "shell", "apply_patch", None), strict=True):
        below = [span.name for span in found if span.parent == turn.context]
        assert below == ["chat gpt-oss-20b", *([f"execute_tool {tool}"] if tool else [])]
    assert {span.context.trace_id for span in found} == {root.context.trace_id}


def test_a_request_says_who_was_asked_for_what_and_what_it_cost() -> None:
    chat = by_name(spans(run_events(1)), "chat gpt-oss-20b")[0]
    assert chat.kind is SpanKind.CLIENT
    assert told(chat) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-oss-20b",
        "gen_ai.conversation.id": "run-1", "server.address": "models.example", "server.port": 8000,
        "gen_ai.request.temperature": 1.0, "gen_ai.request.top_p": 1.0, "gen_ai.request.max_tokens": 32768,
        "gen_ai.request.stream": True, "gen_ai.request.seed": 7, "gen_ai.usage.input_tokens": 1500,
        "gen_ai.usage.output_tokens": 40, "gen_ai.usage.cache_read.input_tokens": 750,
        "gen_ai.response.finish_reasons": ("tool_call",), "gen_ai.response.time_to_first_chunk": 0.1,
    }  # fmt: skip
    assert chat.end_time is not None
    assert chat.end_time - (chat.start_time or 0) == SECOND // 2


def test_the_run_says_what_came_of_it() -> None:
    root = spans(run_events(3))[0]
    assert root.status.status_code is StatusCode.UNSET
    assert told(root).items() >= {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "gpt-oss-agent", "gen_ai.agent.version": "1.2.3",
        "gpt_oss_agent.mode": "fix", "gpt_oss_agent.outcome": "passed", "gpt_oss_agent.turns": 4,
        "gpt_oss_agent.changed_files": 1, "gen_ai.usage.input_tokens": 1500 + 1590 + 1680 + 2500,
        "gen_ai.usage.output_tokens": 40 + 41 + 42 + 30,
    }.items()  # fmt: skip


def test_a_call_takes_its_time_and_says_how_it_ended() -> None:
    found = spans(run_events(4))
    (shell,), (search,) = by_name(found, "execute_tool shell"), by_name(found, "execute_tool search")
    assert told(shell) == {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "shell", "gen_ai.tool.type": "function",
        "gen_ai.conversation.id": "run-1", "gpt_oss_agent.call": 5, "process.exit.code": 1,
    }  # fmt: skip
    assert (shell.end_time or 0) - (shell.start_time or 0) == SECOND
    assert shell.status.status_code is StatusCode.UNSET  # the command failed, not the call
    assert (told(search)["error.type"], search.status.status_code) == ("tool_error", StatusCode.ERROR)


@pytest.mark.parametrize("outcome", [*Outcome])
def test_a_run_that_failed_is_an_error(outcome: Outcome) -> None:
    good = outcome in (Outcome.PASSED, Outcome.ANSWERED, Outcome.UNVERIFIED)
    root = spans([RunEnded(outcome, "because")])[0]
    assert (root.status.status_code is StatusCode.UNSET) == good
    assert told(root).get("error.type") == (None if good else outcome.value)


def test_a_request_that_nobody_answered_is_one_all_the_same() -> None:
    found = spans([*run_events(1, outcome=None), Retried("503", 1, 2.0), RunEnded(Outcome.ENDPOINT, "gone")])
    chat = by_name(found, "chat gpt-oss-20b")[-1]
    assert told(chat)["error.type"] == "endpoint"
    assert [event.name for event in chat.events] == ["retried"]
    assert dict(chat.events[0].attributes or {}) == {"attempt": 1, "wait_s": 2.0}
    assert (chat.start_time or 0) < (chat.end_time or 0)


def test_checks_plan_and_repairs_are_events_where_they_happened() -> None:
    found = spans(run_events(4))
    first = by_name(found, "turn")[0]
    assert [event.name for event in first.events] == ["plan_changed", "checked"]
    assert dict(first.events[1].attributes or {}) == {"when": "before", "checks": 1, "failing": 1}
    last = by_name(found, "chat gpt-oss-20b")[-1]
    assert [dict(event.attributes or {}) for event in last.events] == [{"kind": "header_words"}]


def test_a_run_that_goes_on_is_a_trace_of_the_same_conversation() -> None:
    finished = ToolFinished(5, "shell", ToolResult("x"), Message(Role.TOOL, "x"))
    found = spans([Resumed("in the sandbox it left"), finished, ToolStarted(8, "shell"), finished])
    assert told(found[0])["gpt_oss_agent.resumed"] is True
    assert told(found[0])["gen_ai.conversation.id"] == "run-1"
    (tool,) = by_name(found, "execute_tool shell")
    assert tool.parent == found[0].context


def test_what_is_open_when_a_run_stops_is_ended() -> None:
    found = spans([*run_events(1, outcome=None)[:-3], ToolStarted(2, "shell"), RunEnded(Outcome.INTERRUPTED, "Ctrl-C")])
    (tool,) = by_name(found, "execute_tool shell")
    assert told(tool)["error.type"] == "interrupted"


@pytest.mark.parametrize(("wire", "provider", "kind"), [("scripted", "gpt_oss_agent", SpanKind.INTERNAL), ("local", "gpt_oss_agent", SpanKind.INTERNAL), ("chat", "openai", SpanKind.CLIENT)])  # fmt: skip
def test_a_model_in_this_process_is_no_server(wire: str, provider: str, kind: SpanKind) -> None:
    chat = by_name(spans([Sampled(1, 1, "stop")], replace(CONFIG, wire=wire, model=None)), "chat")[0]
    assert (told(chat)["gen_ai.provider.name"], chat.kind) == (provider, kind)
    assert ("server.address" in told(chat)) == (wire == "chat")


@pytest.mark.parametrize(("endpoint", "port"), [("https://x.example/v1", 443), ("http://x.example/v1", 80)])
def test_the_port_is_the_scheme_s_own_where_none_is_named(endpoint: str, port: int) -> None:
    assert told(spans([], replace(CONFIG, endpoint=endpoint))[0])["server.port"] == port


def shown(found: Sequence[ReadableSpan]) -> str:
    return "".join(span.to_json() for span in found)


@pytest.mark.parametrize("outcome", [*Outcome])
def test_nothing_that_was_said_is_in_a_span(outcome: Outcome) -> None:
    events = [*run_events(6, text=MARK, outcome=None), Retried(MARK, 1, 0.1), Delta(None, MARK)]
    ended = RunEnded(outcome, MARK, MARK, (MARK,), (MARK,), MARK, MARK)
    assert MARK not in shown(spans([*events, ended]))


def test_what_was_said_is_there_for_those_who_ask() -> None:
    found = spans(run_events(4, text=MARK), replace(CONFIG, otel_content=True))
    root, chat = found[0], by_name(found, "chat gpt-oss-20b")[1]
    (asked,) = json.loads(str(told(root)["gen_ai.input.messages"]))
    assert asked == {"role": "user", "parts": [{"type": "text", "content": f"Fix the price.{MARK}"}]}
    (answer,) = json.loads(str(told(root)["gen_ai.output.messages"]))
    assert answer["parts"][0]["content"] == f"It is fixed.{MARK}"
    (said,) = json.loads(str(told(chat)["gen_ai.output.messages"]))
    assert said["finish_reason"] == "tool_call"
    assert [part["type"] for part in said["parts"]] == ["reasoning", "tool_call"]
    shell = told(by_name(found, "execute_tool shell")[0])
    assert json.loads(str(shell["gen_ai.tool.call.arguments"]))["command"][2] == f"python -m pytest -q{MARK}"
    assert MARK in str(shell["gen_ai.tool.call.result"])


def test_several_calls_of_one_answer_have_their_own_arguments() -> None:
    calls = [MessageAdded(Message(Role.ASSISTANT, body, Channel.COMMENTARY, "x")) for body in "ab"]
    done = [ToolFinished(n, "shell", ToolResult("r"), Message(Role.TOOL, "r")) for n in (1, 2)]
    events = [*calls, Sampled(1, 1, "call"), ToolStarted(1, "shell"), done[0], ToolStarted(2, "shell"), done[1]]
    found = by_name(spans(events, replace(CONFIG, otel_content=True)), "execute_tool shell")
    assert [told(span)["gen_ai.tool.call.arguments"] for span in found] == ["a", "b"]


@settings(max_examples=80)
@given(st.lists(EVENTS, max_size=30), st.booleans())
def test_any_run_is_one_tree_whose_names_are_the_conventions(events: list[Event], content: bool) -> None:
    found = spans(events, replace(CONFIG, otel_content=content))
    known = {span.context.span_id: span for span in found}
    assert sum(span.parent is None for span in found) == 1
    for span in found:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        if span.parent is not None:
            assert span.end_time <= (known[span.parent.span_id].end_time or 0)
        ours = [name for name in told(span) if name.startswith("gen_ai.")]
        assert set(ours) <= KNOWN
        assert span.name == "turn" or "gen_ai.operation.name" in ours
