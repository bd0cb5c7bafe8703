"""openai-python on /v1/responses: every object and event is validated by the package's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from agent.conversation import Channel, Role
from agent.events import Delta, MessageAdded, Retried, Sampled
from agent.harmony.codec import Codec
from agent.server.responses import sealed
from tests.agent.server.conftest import client_of
from tests.agent.server.served import (
    TURNS,
    WEATHER,
    Player,
    Talker,
    by_turn,
    call,
    final,
    ids,
    raw,
    said,
    scripted,
    serving,
    thought,
    until,
)

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather",
    "parameters": WEATHER,
    "strict": True,
}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def checked_stream(client: OpenAI, **request: Any) -> list[Any]:
    """Stream, and hold every event to the schema and to the order."""
    events = list(client.responses.create(model="m", stream=True, **request))
    for event in events:
        EVENT.validate_python(event.to_dict(mode="json"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    open_items: dict[int, str] = {}
    for event in events:
        if event.type == "response.output_item.added":
            assert event.output_index == len(open_items)
            open_items[event.output_index] = event.item.id
        elif hasattr(event, "output_index"):
            ident = event.item.id if hasattr(event, "item") else event.item_id
            assert open_items[event.output_index] == ident
    return events


def test_a_tool_loop_by_sending_everything_back(client: OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
    first = client.responses.create(model="m", input=items, tools=[TOOL], store=False)
    Response.model_validate(first.to_dict(mode="json"))
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    reasoning, _, asked = first.output
    assert reasoning.content[0].text == "I should look."
    assert (asked.name, json.loads(asked.arguments)) == ("get_weather", {"city": "Oslo"})
    items += [item.to_dict(mode="json") for item in first.output]
    items.append({"type": "function_call_output", "call_id": asked.call_id, "output": "sunny"})
    second = client.responses.create(model="m", input=items, tools=[TOOL], store=False)
    assert second.output_text == "Sunny in Oslo ☀."
    assert second.status == "completed"
    assert second.usage is not None
    assert second.usage.total_tokens == second.usage.input_tokens + second.usage.output_tokens
    assert 0 < second.usage.output_tokens_details.reasoning_tokens < second.usage.output_tokens


def test_a_tool_loop_by_the_stored_response(client: OpenAI) -> None:
    first = client.responses.create(model="m", input="Weather in Oslo?", tools=[TOOL])
    asked = first.output[-1]
    output: Any = {
        "type": "function_call_output",
        "call_id": asked.call_id,
        "output": [{"type": "input_text", "text": "sunny"}],
    }
    second = client.responses.create(model="m", input=[output], previous_response_id=first.id, tools=[TOOL])
    assert second.output_text == "Sunny in Oslo ☀."
    assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
    client.responses.delete(second.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(second.id)


def test_the_events_of_a_stream_in_the_documented_order(client: OpenAI) -> None:
    events = checked_stream(client, input="Weather in Oslo?", tools=[TOOL])
    kinds = [e.type.removeprefix("response.") for e in events]
    without_repeats = [kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]]
    assert without_repeats == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == "Looking."
    done = [e.item.to_dict() for e in events if e.type == "response.output_item.done"]
    assert done == [item.to_dict() for item in events[-1].response.output]


def test_the_stream_helper_which_is_strict_about_indices(client: OpenAI) -> None:
    with client.responses.stream(model="m", input="Weather in Oslo?", tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        response = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert response.output[-1].type == "function_call"


def test_a_whole_answer_and_a_streamed_one_are_the_same(client: OpenAI) -> None:
    whole = client.responses.create(model="m", input="Weather?", tools=[TOOL]).to_dict()
    streamed = checked_stream(client, input="Weather?", tools=[TOOL])[-1].response.to_dict()

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: bare(v) for k, v in value.items() if k not in {"id", "call_id", "created_at"}}
        return [bare(v) for v in value] if isinstance(value, list) else value

    assert bare(whole) == bare(streamed)


def test_sealed_reasoning_alone_continues_a_stateless_run(codec: Codec) -> None:
    seen: list[str] = []

    def play(prompt: Any) -> list[int]:
        seen.append(codec.decode(prompt))
        return by_turn(codec)(prompt)

    with serving(raw(codec, play)) as (url, service), client_of(url) as client:
        first = client.responses.create(
            model="m", input="Weather?", tools=[TOOL], store=False, include=["reasoning.encrypted_content"]
        )
        items = [item.to_dict(mode="json") for item in first.output]
        assert items[0].pop("content")
        assert items[0]["encrypted_content"]
        items[-1]["call_id"] = "unknown-here"  # so that nothing is recalled by the call's id
        result = {"type": "function_call_output", "call_id": "unknown-here", "output": "sunny"}
        user: Any = {"role": "user", "content": "Weather?"}
        client.responses.create(model="m", input=[user, *items, result], tools=[TOOL], store=False)
        assert len(service.store.responses) == 0
    assert "<|channel|>analysis<|message|>I should look.<|end|>" in seen[1]


def test_a_call_that_comes_back_is_put_to_the_model_id_for_id(codec: Codec) -> None:
    """Stripped of its reasoning and of its preamble: the prompt still goes on exactly where the answer ended."""
    prompts: list[list[int]] = []

    def play(prompt: Any) -> list[int]:
        prompts.append(list(prompt))
        return by_turn(codec)(prompt)

    with serving(raw(codec, play)) as (url, _), client_of(url) as client:
        first = client.responses.create(model="m", input="Weather?", tools=[TOOL], store=False)
        asked = first.output[-1].to_dict()
        result = {"type": "function_call_output", "call_id": asked["call_id"], "output": "sunny"}
        user: Any = {"role": "user", "content": "Weather?"}
        client.responses.create(model="m", input=[user, asked, result], tools=[TOOL], store=False)
    expected = prompts[0] + ids(codec, TURNS[0])
    assert prompts[1][: len(expected)] == expected


def test_the_limit_makes_it_incomplete_with_its_reason(codec: Codec) -> None:
    with serving(raw(codec, by_turn(codec, [(final("a long answer " * 50),)]))) as (url, _), client_of(url) as client:
        whole = client.responses.create(model="m", input="Go", max_output_tokens=20)
        events = checked_stream(client, input="Go", max_output_tokens=20)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert events[-1].type == "response.incomplete"
    assert whole.output[-1].status == "incomplete"
    assert whole.output_text
    assert whole.usage.output_tokens == 20


def test_roles_lists_and_unknown_tools_are_taken() -> None:
    model = Player([said(final("ok"))])
    with serving(model) as (url, _), client_of(url) as client:
        client.responses.create(
            model="m",
            instructions="Be brief.",
            input=[
                {"role": "developer", "content": [{"type": "input_text", "text": "No jokes."}]},
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                {"role": "developer", "content": "Now in French."},
            ],
            tools=[TOOL, {"type": "namespace", "name": "x", "tools": []}, {"type": "web_search"}],  # type: ignore[list-item]
            parallel_tool_calls=True,
            reasoning={"effort": "high", "summary": "auto"},
        )
    conversation, _ = model.asked[0]
    assert conversation.instructions == "Be brief.\n\nNo jokes.\n\nBe kind."
    assert [(m.role, m.text) for m in conversation.messages] == [(Role.USER, "ab"), (Role.DEVELOPER, "Now in French.")]
    assert [tool.name for tool in conversation.tools] == ["get_weather"]
    assert conversation.effort == "high"


def test_parallel_calls_in_the_history_are_put_one_after_the_other() -> None:
    model = Player([said(final("ok"))])
    calls: list[Any] = [
        {"type": "function_call", "call_id": f"c{n}", "name": "get_weather", "arguments": "{}"} for n in range(2)
    ]
    results: list[Any] = [{"type": "function_call_output", "call_id": f"c{n}", "output": f"r{n}"} for n in (1, 0)]
    with serving(model) as (url, _), client_of(url) as client:
        client.responses.create(model="m", input=[{"role": "user", "content": "x"}, *calls, *results], tools=[TOOL])
    told = [(m.role.value, m.text) for m in model.asked[0][0].messages[1:]]
    assert told == [("assistant", "{}"), ("tool", "r0"), ("assistant", "{}"), ("tool", "r1")]


@pytest.mark.parametrize("parallel", [True, False])
def test_several_calls_in_an_answer_come_unless_one_at_a_time_was_asked_for(parallel: bool) -> None:
    both = [call("get_weather", '{"city": "Oslo"}'), call("get_weather", '{"city": "Bergen"}')]
    with serving(Player([said(*both, finish="call")])) as (url, _), client_of(url) as client:
        response = client.responses.create(model="m", input="x", tools=[TOOL], parallel_tool_calls=parallel)
    assert [item.arguments for item in response.output if item.type == "function_call"] == [
        message.text for message in (both if parallel else both[:1])
    ]


def test_a_script_that_is_played_out_says_so() -> None:
    from openai import InternalServerError

    with serving(scripted([])) as (url, _), client_of(url) as client:
        with pytest.raises(InternalServerError, match=r"at its end \(answers: 0\)") as caught:
            client.responses.create(model="m", input="x")
        assert caught.value.code == "script_ended"


def test_tool_choice_none_hides_the_tools() -> None:
    model = Player([said(final("ok"))])
    with serving(model) as (url, _), client_of(url) as client:
        client.responses.create(model="m", input="x", tools=[TOOL], tool_choice="none")
    assert model.asked[0][0].tools == ()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_demanded_call_is_made_also_by_a_model_that_would_rather_talk(codec: Codec, choice: Any) -> None:
    forced = codec.call_opening(None if choice == "required" else "get_weather")

    def play(prompt: Any) -> list[int]:
        if tuple(prompt[-len(forced) :]) != forced:
            return ids(codec, [final("It is surely nice there.")])
        whole = ids(codec, [call("get_weather", '{"city": "Oslo"}')])
        return whole[len(forced) :]

    with serving(raw(codec, play)) as (url, _), client_of(url) as client:
        events = checked_stream(client, input="x", tools=[TOOL], tool_choice=choice)
    assert not [e for e in events if e.type == "response.output_text.delta"]
    assert [(item.type, item.name) for item in events[-1].response.output] == [("function_call", "get_weather")]


def test_a_demanded_call_that_never_comes_is_an_error_not_an_answer() -> None:
    model = Player([said(final("No."))])
    with (
        serving(model) as (url, _),
        client_of(url) as client,
        pytest.raises(Exception, match="did not call a function"),
    ):
        client.responses.create(model="m", input="x", tools=[TOOL], tool_choice="required")
    assert len(model.asked) == 3


class Weather(BaseModel):
    city: str
    degrees: int


def test_structured_output_is_validated_and_sampled_again() -> None:
    model = Player(
        [said(final("It is cold.")), said(final('{"city": "Oslo"}')), said(final('{"city": "Oslo", "degrees": -3}'))]
    )
    with serving(model) as (url, _), client_of(url) as client:
        parsed = client.responses.parse(model="m", input="Weather?", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Oslo", degrees=-3)
    assert len(model.asked) == 3
    assert '# Response Formats\n\n## Weather\n\n{"properties"' in model.asked[0][0].instructions


def test_structured_output_streams_only_what_is_valid() -> None:
    model = Player([said(thought("hm"), final("no")), said(thought("aha"), final('{"city": "Oslo", "degrees": 1}'))])
    with serving(model) as (url, _), client_of(url) as client:
        manager = client.responses.stream(model="m", input="Weather?", text_format=Weather)
        with manager as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            response = stream.get_final_response()
    assert texts == ['{"city": "Oslo", "degrees": 1}']
    assert response.output_parsed == Weather(city="Oslo", degrees=1)
    assert [item.status for item in response.output] == ["incomplete", "completed", "completed"]


def test_structured_output_that_never_fits_fails() -> None:
    with serving(Player([said(final("no"))])) as (url, _), client_of(url) as client:
        events = checked_stream(client, input="x", text={"format": {"type": "json_object"}})
    assert events[-1].type == "response.failed"
    assert "not JSON" in events[-1].response.error.message


def test_a_response_can_be_cancelled_while_it_streams() -> None:
    talker = Talker()
    with serving(talker) as (url, service), client_of(url) as client:
        stream = client.responses.create(model="m", input="Talk", stream=True)
        ident = next(iter(stream)).response.id
        assert client.responses.retrieve(ident).status == "in_progress"
        assert client.responses.cancel(ident).status == "cancelled"
        last = list(stream)[-1]
        assert last.response.status == "cancelled"
        assert talker.closed.wait(5)
        until(lambda: service.slots.taken == 0)


def test_a_backend_that_starts_over_voids_its_reasoning_only() -> None:
    model = Player([[Delta(Channel.ANALYSIS, "hm"), Retried("cut", 1, 0.0), *said(thought("aha"), final("Done."))]])
    with serving(model) as (url, _), client_of(url) as client:
        events = checked_stream(client, input="x")
    items = [(i.type, i.status) for i in events[-1].response.output]
    assert items == [("reasoning", "incomplete"), ("reasoning", "completed"), ("message", "completed")]


def test_text_that_was_said_cannot_be_unsaid() -> None:
    model = Player([[Delta(Channel.FINAL, "Half"), Retried("cut", 1, 0.0), *said(final("Whole."))]])
    with serving(model) as (url, _), client_of(url) as client:
        events = checked_stream(client, input="x")
    assert events[-1].type == "response.failed"
    assert events[-1].response.output[0].content[0].text == "Half"


def test_what_deltas_left_out_comes_with_the_messages() -> None:
    events = [Delta(Channel.FINAL, "Do"), MessageAdded(final("Done.")), Sampled(1, 2, "stop")]
    with serving(Player([events])) as (url, _), client_of(url) as client:
        seen = checked_stream(client, input="x")
    assert [e.delta for e in seen if e.type == "response.output_text.delta"] == ["Do", "ne."]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"input": []} | {"previous_response_id": "resp_no"}, "previous_response_id"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"input": "x", "tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(request_: dict[str, Any], param: str) -> None:
    refusals = pytest.raises((BadRequestError, NotFoundError))
    with serving(scripted()) as (url, _), client_of(url) as client, refusals as refused:
        client.responses.create(model="m", **request_)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["param"] == param
    assert param in refused.value.body["message"] or refused.value.status_code == 404


def test_a_client_that_uses_ids_again_gets_each_output_to_its_own_call() -> None:
    player = Player([said(final("Done."))])
    items: list[Any] = [{"role": "user", "content": "x"}]
    for city in ("Oslo", "Rome"):
        items += [
            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": json.dumps({"city": city})},
            {"type": "function_call_output", "call_id": "c", "output": f"sunny in {city}"},
        ]
    with serving(player) as (url, _), client_of(url) as client:
        client.responses.create(model="m", input=items, extra_body={"stop": ["."]})
        with pytest.raises(BadRequestError, match="top_k"):
            client.responses.create(model="m", input=items, extra_body={"top_k": 5})
    shown = [message.text for message in player.asked[0][0].messages[1:]]
    assert shown == ['{"city": "Oslo"}', "sunny in Oslo", '{"city": "Rome"}', "sunny in Rome"]


def test_sealed_reasoning_is_bounded_in_all() -> None:
    """A kilobyte can hold a megabyte, and a request thousands of them."""
    items: list[Any] = [
        {"type": "reasoning", "id": f"rs_{n}", "summary": [], "encrypted_content": sealed("x" * (1 << 20))}
        for n in range(9)
    ]
    with serving(Player([said(final("Done."))])) as (url, _), client_of(url) as client:
        assert client.responses.create(model="m", input=items[:8]).status == "completed"
        with pytest.raises(BadRequestError, match=r"input\[8\].encrypted_content comes to more than"):
            client.responses.create(model="m", input=items)
