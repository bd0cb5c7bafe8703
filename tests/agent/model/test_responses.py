"""The responses wire: what is sent, and the quirks of the servers that speak it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given

from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable
from agent.events import MessageAdded, Repaired, Retried, Sampled
from agent.model.base import ModelEvent, SamplingParams
from agent.model.client import Client, Clock, Endpoint
from agent.model.functions import Functions
from agent.model.responses import input_items, responses_model
from tests.agent.model.test_chat import MESSAGES, PARAMS, TASK
from tests.servers import Reply, document, event, head, serving

REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
CALL = {"type": "function_call", "call_id": "c", "name": "shell", "arguments": '{"command": "ls"}'}
FINAL = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]}


def done(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def completed(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"status": status, **more}}


def stream(*events: dict[str, Any]) -> Reply:
    return [head(), *(event(found, found["type"]) for found in events)]


ANSWER = stream(done(FINAL), completed())


def ask(replies: Sequence[Reply], conversation: Conversation = TASK) -> tuple[list[ModelEvent], list[dict[str, Any]]]:
    with serving(replies) as server:
        model = responses_model(Client(Endpoint(server.url, "m", patience_s=5.0), Clock(sleep=lambda _: None)))
        events = list(model.sample(conversation, PARAMS))
        model.close()
        return events, server.posts()


def messages(events: Sequence[ModelEvent]) -> list[Message]:
    return [e.message for e in events if isinstance(e, MessageAdded)]


def finish(events: Sequence[ModelEvent]) -> str:
    assert isinstance(events[-1], Sampled)
    return events[-1].finish


def test_what_is_sent() -> None:
    _, (body,) = ask([ANSWER])
    assert body["store"] is False
    assert body["stream"] is True
    assert "previous_response_id" not in body
    assert body["instructions"] == "Be useful."
    assert body["input"] == [{"type": "message", "role": "user", "content": "Fix it."}]
    assert body["reasoning"] == {"effort": "high"}
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, -1, 0.0)
    assert body["max_output_tokens"] == 100
    assert body["parallel_tool_calls"] is False
    assert [tool["name"] for tool in body["tools"]] == ["shell", "container_exec", "python"]
    assert all(tool["type"] == "function" for tool in body["tools"])


def test_the_history_goes_back_with_its_reasoning() -> None:
    history = TASK.add(
        Message(Role.ASSISTANT, "Hm.", Channel.ANALYSIS),
        Message(Role.ASSISTANT, "I will look.", Channel.COMMENTARY),
        Message(Role.ASSISTANT, '{"command": "ls"}', Channel.COMMENTARY, "functions.shell"),
        Message(Role.TOOL, "README", name="functions.shell"),
    )
    _, (body,) = ask([ANSWER], history)
    assert [item["type"] for item in body["input"]] == [
        "message",
        "reasoning",
        "message",
        "function_call",
        "function_call_output",
    ]
    assert body["input"][1]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert body["input"][3]["call_id"] == body["input"][4]["call_id"] == "call00003"
    assert body["input"][3]["name"] == "shell"
    assert body["input"][4]["output"] == "README"


def test_indexes_that_start_at_minus_one_and_calls_without_announcement_are_read() -> None:
    """As the reference server of gpt-oss sends them."""
    added = {"type": "response.output_item.added", "output_index": -1, "item": {"type": "reasoning"}}
    delta = {"type": "response.reasoning_text.delta", "output_index": -1, "delta": "Hm."}
    events, _ = ask([stream(added, delta, done(REASONING, 0), done(CALL, 1), completed())])
    assert [(m.channel, m.recipient, m.text) for m in messages(events)] == [
        (Channel.ANALYSIS, None, "Hm."),
        (Channel.COMMENTARY, "functions.shell", '{"command": "ls"}'),
    ]
    assert finish(events) == "call"


def test_a_call_that_the_server_did_not_parse_is_a_call_all_the_same() -> None:
    text = '<|channel|>commentary to=functions.shell <|constrain|>json<|message|>{"command": "ls"}<|call|>'
    item = {**FINAL, "content": [{"type": "output_text", "text": text}]}
    events, _ = ask([stream(done(REASONING), done(item, 1), completed())])
    assert [(m.channel, m.recipient, m.text) for m in messages(events)] == [
        (Channel.ANALYSIS, None, "Hm."),
        (Channel.COMMENTARY, "functions.shell", '{"command": "ls"}'),
    ]
    assert [e.kind for e in events if isinstance(e, Repaired)] == ["spelt"]
    assert finish(events) == "call"


def test_items_that_come_only_at_the_end_are_taken_from_there() -> None:
    events, _ = ask([stream(completed(output=[REASONING, FINAL]))])
    assert [m.text for m in messages(events)] == ["Hm.", "Done."]


def test_a_server_that_does_not_stream_is_understood() -> None:
    usage = {"input_tokens": 5, "output_tokens": 6}
    events, _ = ask(
        [document({"object": "response", "status": "completed", "error": None, "output": [FINAL], "usage": usage})]
    )
    assert [m.text for m in messages(events)] == ["Done."]
    assert isinstance(events[-1], Sampled)
    assert (events[-1].prompt_tokens, events[-1].completion_tokens) == (5, 6)


def test_a_summary_stands_in_for_reasoning_that_is_not_shown() -> None:
    hidden = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thought."}], "content": None}
    events, _ = ask([stream(done(hidden), done(FINAL), completed())])
    assert messages(events)[0].text == "Thought."


def test_a_preamble_is_commentary_and_what_follows_a_call_is_dropped() -> None:
    events, _ = ask([stream(done(FINAL), done(CALL), done({**CALL, "name": "python"}), done(FINAL), completed())])
    assert [(m.channel, m.recipient) for m in messages(events)] == [
        (Channel.COMMENTARY, None),
        (Channel.COMMENTARY, "functions.shell"),
        (Channel.COMMENTARY, "functions.python"),
    ]
    assert finish(events) == "call"
    assert not [e for e in events if isinstance(e, Repaired)]


@pytest.mark.parametrize(
    "end",
    [
        completed("incomplete", incomplete_details={"reason": "max_output_tokens"}),
        completed(usage={"input_tokens": 5, "output_tokens": 100}),  # says completed all the same
    ],
)
def test_the_limit_is_noticed_and_half_a_call_is_not_run(end: dict[str, Any]) -> None:
    events, _ = ask([stream(done({**CALL, "arguments": '{"command": "rm -rf /'}), end)])
    assert messages(events) == []
    assert finish(events) == "length"
    assert [e.kind for e in events if isinstance(e, Repaired)] == ["cut_call"]


def test_a_call_is_whole_without_the_closing_event_but_a_message_is_not() -> None:
    events, bodies = ask([stream(done(REASONING), done(CALL))])
    assert len(bodies) == 1
    assert finish(events) == "call"
    events, bodies = ask([stream(done(FINAL)), ANSWER])
    assert len(bodies) == 2
    assert [m.text for m in messages(events)] == ["Done."]


FAILURES = {
    "failed": completed("failed", error={"code": "server_error", "message": "it fell over"}),
    "cancelled": {"type": "response.completed", "response": {"status": "cancelled"}},
    "an error event": {"type": "error", "code": "server_error", "message": "it fell over"},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_inside_the_stream_is_asked_again(failure: str) -> None:
    events, _ = ask([stream(done(REASONING), FAILURES[failure]), ANSWER])
    assert [m.text for m in messages(events)] == ["Done."]
    assert [type(e) for e in events].count(Retried) == 1


def test_a_failure_that_speaks_of_the_window_is_an_overflow() -> None:
    failure = completed("failed", error={"code": "context_length_exceeded", "message": "too long"})
    with pytest.raises(ContextOverflow):
        ask([stream(failure)])


@pytest.mark.parametrize("field", ["parallel_tool_calls", "top_k", "min_p", "store"])
def test_a_field_that_the_server_refuses_by_name_is_done_without(field: str) -> None:
    refused = document({"detail": [{"loc": ["body", field], "msg": f"Extra inputs are not permitted: {field}"}]}, 422)
    events, bodies = ask([refused, ANSWER])
    assert bodies[0].keys() - bodies[1].keys() == {field}
    assert [m.text for m in messages(events)] == ["Done."]


def test_a_plain_refusal_is_raised() -> None:
    with pytest.raises(EndpointRefused, match="role"):
        ask([document({"error": {"message": "role is unknown"}}, 422)])


def test_an_overflow_by_the_answers_limit_is_cured_by_leaving_it_out() -> None:
    overflow = document({"error": {"message": "context_length_exceeded"}}, 400)
    _, bodies = ask([overflow, ANSWER])
    assert ["max_output_tokens" in body for body in bodies] == [True, False]
    with pytest.raises(ContextOverflow):
        ask([overflow])


def test_a_stream_that_never_closes_ends() -> None:
    with pytest.raises(EndpointUnreachable, match="closing event"):
        ask([stream(done(FINAL))])


@given(MESSAGES)
def test_whatever_happened_what_is_replayed_is_valid(said: list[Message]) -> None:
    items = input_items(Conversation("x", TASK.tools, tuple(said)), Functions(TASK.tools))
    for number, item in enumerate(items):
        if item["type"] == "function_call":
            assert isinstance(json.loads(item["arguments"]), dict)
            assert items[number + 1]["type"] == "function_call_output"
            assert items[number + 1]["call_id"] == item["call_id"]
        if item["type"] == "function_call_output":
            assert items[number - 1]["type"] == "function_call"
    ids = [item["id"] for item in items if "id" in item]
    assert len(ids) == len(set(ids))


def test_nothing_is_sent_that_was_not_wanted() -> None:
    with serving([ANSWER]) as server:
        model = responses_model(Client(Endpoint(server.url, "m")))
        list(model.sample(Conversation(messages=TASK.messages), SamplingParams()))
        model.close()
        (body,) = server.posts()
    assert not {"max_output_tokens", "tools", "parallel_tool_calls", "instructions"} & body.keys()
