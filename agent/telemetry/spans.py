"""Converts a run's events to spans, with the names of OpenTelemetry's semantic conventions for generative AI.

::

    invoke_agent gpt-oss-agent            the run, or one process's part of it (linked to the first)
    └─ turn                               an answer of the model and its tool calls
       ├─ chat MODEL                      the request; retries and repairs are its events
       └─ execute_tool TOOL               one per call

Messages and output are in the spans only with ``otel_content``. Names: the conventions' pages on agent spans and
inference spans (github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai); our own begin with gpt_oss_agent.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from agent.config import RunConfig
from agent.conversation import Channel, Message, Role
from agent.events import (
    EXIT_CODES,
    Checked,
    Compacted,
    Delta,
    Event,
    MessageAdded,
    Outcome,
    PlanChanged,
    Repaired,
    Resumed,
    Retried,
    RunEnded,
    RunStarted,
    Sampled,
    ToolFinished,
    ToolStarted,
)
from agent.lines import VERDICTS

AGENT = "gpt-oss-agent"
HERE = ("local", "scripted")  # wires to a model in this process
FINISH: Mapping[str, str] = {"call": "tool_call"}  # our finish reason: that of the conventions
Attributes = dict[str, AttributeValue]


class Spans:
    """Converts a run's events to spans. Times are those of receiving the events, or computed back from them."""

    def __init__(
        self,
        tracer: Tracer,
        config: RunConfig,
        run: str,
        mode: str,
        release: str,
        links: Sequence[Link] = (),
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer, self._config, self._clock_ns = tracer, config, clock_ns
        self._run = run
        self._model: Attributes = _model(config) | {"gen_ai.conversation.id": run}
        self._asked_ns = clock_ns()  # since when the run waits for the model
        self._turns = self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self._notes: list[tuple[str, Attributes, int]] = []  # for the next answer or call
        self._said: list[Message] = []
        self._calls: deque[str] = deque()  # bodies of calls that have not started yet; they run in order
        self._tool: Span | None = None
        self._turn: Span | None = None
        agent: Attributes = {"gen_ai.agent.name": AGENT, "gen_ai.agent.version": release, "gpt_oss_agent.mode": mode}
        self._root = self._start(
            f"invoke_agent {AGENT}", _operation("invoke_agent") | self._model | agent, self._asked_ns, None, links=links
        )
        self._open = True

    def __call__(self, event: Event) -> None:
        """Process one event."""
        now_ns = self._clock_ns()
        match event:
            case Delta():
                return
            case Retried():
                self._notes.append(("retried", {"attempt": event.attempt, "wait_s": event.wait_s}, now_ns))
            case Repaired(kind):
                self._notes.append(("repaired", {"kind": kind}, now_ns))
            case MessageAdded(message) if message.role is Role.ASSISTANT:
                self._said.append(message)
                self._calls += [message.text] * message.is_call
            case Sampled():
                self._answered(event, now_ns)
            case ToolStarted():
                self._call_began(event, now_ns)
            case ToolFinished():
                self._call_ended(event, now_ns)
            case RunEnded():
                self._ended(event, now_ns)
            case _:
                self._marked(event, now_ns)

    def close(self) -> None:
        """End open spans."""
        if self._open:
            self._open = False
            now_ns = self._clock_ns()
            self._tell_notes(self._here())
            self._end_turn(now_ns)
            self._root.end(now_ns)

    def _marked(self, event: Event, now_ns: int) -> None:
        """Record an event without a span of its own. The next request to the model comes after it."""
        self._asked_ns = now_ns
        match event:
            case RunStarted(task=task):
                if self._config.otel_content:
                    self._root.set_attribute("gen_ai.input.messages", _json([_message("user", [_text(task)])]))
            case Resumed():
                self._root.set_attribute("gpt_oss_agent.resumed", True)
            case Compacted():
                sizes = {"tokens_before": event.tokens_before, "tokens_after": event.tokens_after}
                self._root.add_event("compacted", sizes, now_ns)
            case Checked(when, results):
                failing = sum(result.exit_code != 0 for result in results)
                self._here().add_event("checked", {"when": when, "checks": len(results), "failing": failing}, now_ns)
            case PlanChanged(steps):
                self._here().add_event("plan_changed", {"steps": len(steps)}, now_ns)
            case _:
                pass

    def _answered(self, event: Sampled, now_ns: int) -> None:
        self._turns += 1
        self._prompt_tokens += event.prompt_tokens
        self._completion_tokens += event.completion_tokens
        self._cached_tokens += event.cached_tokens
        lasted_ns = round(event.duration_s * 1e9)
        start_ns = max(now_ns - lasted_ns, self._asked_ns) if lasted_ns else self._asked_ns
        chat = self._chat(start_ns, self._turns)
        finish = FINISH.get(event.finish, event.finish)
        chat.set_attributes(
            _usage(event.prompt_tokens, event.completion_tokens, event.cached_tokens)
            | {"gen_ai.response.finish_reasons": [finish]}
        )
        if event.first_token_s:
            chat.set_attribute("gen_ai.response.time_to_first_chunk", event.first_token_s)
        if self._config.otel_content:
            parts = [_part(message) for message in self._said]
            chat.set_attribute(
                "gen_ai.output.messages", _json([{**_message("assistant", parts), "finish_reason": finish}])
            )
        self._said.clear()
        chat.end(now_ns)
        self._asked_ns = now_ns

    def _chat(self, start_ns: int, number: int) -> Span:
        """Begin a turn and its request; retries belong to it."""
        config = self._config
        start_ns = min([start_ns, *(at_ns for _, _, at_ns in self._notes)])
        self._end_turn(self._asked_ns)
        self._turn = self._start("turn", {"gpt_oss_agent.turn": number}, start_ns, self._root)
        sampling: Attributes = {
            "gen_ai.request.temperature": config.temperature,
            "gen_ai.request.top_p": config.top_p,
            "gen_ai.request.max_tokens": config.max_answer_tokens,
            "gen_ai.request.stream": True,
        }
        if config.seed is not None:
            sampling["gen_ai.request.seed"] = config.seed
        kind = SpanKind.INTERNAL if config.wire in HERE else SpanKind.CLIENT
        name = f"chat {config.model}" if config.model else "chat"
        chat = self._start(name, _operation("chat") | self._model | sampling, start_ns, self._turn, kind)
        self._tell_notes(chat)
        return chat

    def _call_began(self, event: ToolStarted, now_ns: int) -> None:
        self._asked_ns = now_ns
        told: Attributes = {
            "gen_ai.tool.name": event.tool,
            "gen_ai.tool.type": "function",
            "gen_ai.conversation.id": self._run,
            "gpt_oss_agent.call": event.call,
        }
        body = self._calls.popleft() if self._calls else None  # None: the call was made in a process that was killed
        if self._config.otel_content and body is not None:
            told["gen_ai.tool.call.arguments"] = body
        self._tool = self._start(
            f"execute_tool {event.tool}", _operation("execute_tool") | told, now_ns, self._turn or self._root
        )
        self._tell_notes(self._tool)

    def _call_ended(self, event: ToolFinished, now_ns: int) -> None:
        tool, self._tool = self._tool, None
        self._asked_ns = now_ns
        if tool is None:  # it was started by a process that was killed
            return
        result = event.result
        if result.exit_code is not None:
            tool.set_attribute("process.exit.code", result.exit_code)
        if self._config.otel_content:
            tool.set_attribute("gen_ai.tool.call.result", result.text)
        if not result.ok:
            _fail(tool, "tool_error", "the call was answered with an error")
        tool.end(now_ns)

    def _ended(self, event: RunEnded, now_ns: int) -> None:
        if event.outcome is Outcome.ENDPOINT:
            chat = self._chat(self._asked_ns, self._turns + 1)
            _fail(chat, event.outcome.value, VERDICTS[event.outcome])
            chat.end(now_ns)
        self._tell_notes(self._here())
        self._end_turn(now_ns)
        self._root.set_attributes(
            _usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens)
            | {
                "gpt_oss_agent.outcome": event.outcome.value,
                "gpt_oss_agent.turns": self._turns,
                "gpt_oss_agent.changed_files": len(event.changed_paths),
            }
        )
        if self._config.otel_content and event.claimed:
            parts = [_text(event.claimed)]
            self._root.set_attribute(
                "gen_ai.output.messages", _json([{**_message("assistant", parts), "finish_reason": "stop"}])
            )
        if EXIT_CODES[event.outcome] != 0:
            _fail(self._root, event.outcome.value, VERDICTS[event.outcome])

    def _here(self) -> Span:
        return self._turn or self._root

    def _tell_notes(self, span: Span) -> None:
        for name, attributes, at_ns in self._notes:
            span.add_event(name, attributes, at_ns)
        self._notes.clear()

    def _end_turn(self, now_ns: int) -> None:
        if self._tool is not None:
            _fail(self._tool, "interrupted", "the run ended before the call did")
            self._tool.end(now_ns)
        if self._turn is not None:
            self._turn.end(now_ns)
        self._tool = self._turn = None

    def _start(
        self,
        name: str,
        attributes: Attributes,
        at_ns: int,
        parent: Span | None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> Span:
        # An empty context, not the process's, because a run does not belong to whatever else is being traced.
        context = set_span_in_context(parent, Context()) if parent is not None else Context()
        return self._tracer.start_span(name, context, kind, attributes, links, start_time=at_ns)


def first_span(run: str) -> SpanContext:
    """Return the first span of a run. Its ids are derived from the run's id, so that a resumed run can link to it.

    A resumed run is a new trace with a link, not more spans in the first trace. OpenTelemetry recommends that for work that
    continues in another process at another time: the first trace may have been closed, sampled out or stored long ago.
    """
    digest = hashlib.sha256(run.encode()).digest()
    trace_id, span_id = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _operation(name: str) -> Attributes:
    return {"gen_ai.operation.name": name}


def _model(config: RunConfig) -> Attributes:
    """Return the attributes of the model. By the conventions, the provider is the kind of API, not the model's maker."""
    told: Attributes = {"gen_ai.provider.name": "gpt_oss_agent" if config.wire in HERE else "openai"}
    if config.model:
        told["gen_ai.request.model"] = config.model
    if config.endpoint and config.wire not in HERE:
        parts = urlsplit(config.endpoint)
        told["server.address"] = parts.hostname or ""
        told["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
    return told


def _usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Attributes:
    return {
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": cached_tokens,
    }


def _fail(span: Span, kind: str, description: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, description))


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "content": text}


def _part(message: Message) -> dict[str, object]:
    """Return a message of the model as a part, in the form of the conventions' JSON schema for output messages."""
    if message.is_call:
        return {"type": "tool_call", "id": None, "name": message.recipient, "arguments": message.text}
    kind = "reasoning" if message.channel is Channel.ANALYSIS else "text"
    return {"type": kind, "content": message.text}


def _message(role: str, parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {"role": role, "parts": parts}


def _json(messages: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(messages, ensure_ascii=False)
