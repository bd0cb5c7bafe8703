"""openai-python and the OpenAI Agents SDK on /v1/chat/completions (and the SDK on responses too)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, InternalServerError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from agent.conversation import Channel
from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable, ModelError
from agent.events import Delta, Retried
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL
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
)

TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}
ASK: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]


def test_a_tool_loop(client: OpenAI) -> None:
    messages = list(ASK)
    first = client.chat.completions.create(model="m", messages=messages, tools=[TOOL])
    ChatCompletion.model_validate(first.to_dict(mode="json"))
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    told = choice.message.to_dict()
    assert told["reasoning"] == told["reasoning_content"] == "I should look."
    assert told["content"] == "Looking."
    asked = choice.message.tool_calls[0]
    assert (asked.function.name, json.loads(asked.function.arguments)) == ("get_weather", {"city": "Oslo"})
    messages += [told, {"role": "tool", "tool_call_id": asked.id, "content": "sunny"}]
    second = client.chat.completions.create(model="m", messages=messages, tools=[TOOL])
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("Sunny in Oslo ☀.", "stop")
    assert second.usage.completion_tokens_details.reasoning_tokens > 0


def test_a_stream_is_the_whole_answer_in_chunks(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="m", messages=ASK, tools=[TOOL], stream=True, stream_options=options)
    )
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.to_dict(mode="json"))
    assert len({chunk.id for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens > 0) == ([], True)
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks[:-1]]
    assert deltas[0]["role"] == "assistant"
    for name in ("reasoning", "reasoning_content"):
        assert "".join(str(delta.get(name, "")) for delta in deltas) == "I should look."
    assert "".join(str(delta.get("content") or "") for delta in deltas) == "Looking."
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["tool_calls"]


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=ASK, tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"content.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.tool_calls[0].function.name == "get_weather"


def test_a_client_that_drops_reasoning_and_rewrites_arguments_loses_nothing(codec: Codec) -> None:
    prompts: list[list[int]] = []

    def play(prompt: Any) -> list[int]:
        prompts.append(list(prompt))
        return by_turn(codec)(prompt)

    with serving(raw(codec, play)) as (url, _), client_of(url) as client:
        first = client.chat.completions.create(model="m", messages=ASK, tools=[TOOL])
        sent = first.choices[0].message.tool_calls[0].to_dict()
        sent["function"]["arguments"] = '{"city":"Oslo"}'
        back: list[Any] = [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [sent]},
            {"role": "tool", "tool_call_id": sent["id"], "content": "sunny"},
        ]
        client.chat.completions.create(model="m", messages=back, tools=[TOOL])
        back[1]["tool_calls"][0]["function"]["arguments"] = (
            '{"city":"Rome"}'  # another call than was made: believed as sent
        )
        client.chat.completions.create(model="m", messages=back, tools=[TOOL])
    expected = prompts[0] + ids(codec, TURNS[0])
    assert prompts[1][: len(expected)] == expected
    assert "Rome" in codec.decode(prompts[2])
    assert "I should look." not in codec.decode(prompts[2])


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_comes_back_under_either_name(name: str) -> None:
    model = Player([said(final("ok"))])
    sent = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    back: list[Any] = [
        *ASK,
        {"role": "assistant", "content": None, name: "because", "tool_calls": [sent]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]},
    ]
    with serving(model) as (url, _), client_of(url) as client:
        client.chat.completions.create(model="m", messages=back, tools=[TOOL])
    told = [(m.channel, m.text) for m in model.asked[0][0].messages[1:]]
    assert told == [(Channel.ANALYSIS, "because"), (Channel.COMMENTARY, "{}"), (None, "sunny")]


def test_a_stop_sequence_ends_the_answer_and_the_work() -> None:
    talker = Talker()
    with serving(talker) as (url, _), client_of(url) as client:
        whole = client.chat.completions.create(model="m", messages=ASK, stop=["7 8", "never"])
        assert whole.choices[0].message.content == "0 1 2 3 4 5 6 "
        assert whole.choices[0].finish_reason == "stop"
        assert talker.closed.is_set()
        chunks = client.chat.completions.create(model="m", messages=ASK, stop="7 8", stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "0 1 2 3 4 5 6 "


def test_settings_reach_the_model() -> None:
    model = Player([said(final("ok"))])
    with serving(model, effort="high") as (url, _), client_of(url) as client:
        client.chat.completions.create(
            model="m", messages=ASK, temperature=0.5, top_p=0.9, max_completion_tokens=33, seed=7
        )
        client.chat.completions.create(model="m", messages=ASK, reasoning_effort="minimal")
    conversation, params = model.asked[0]
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.5, 0.9, 33, 7)
    assert [asked.effort for asked, _ in model.asked] == ["high", "low"]
    assert conversation.messages[0].text == "Weather in Oslo?"


class Weather(BaseModel):
    city: str


def test_structured_output() -> None:
    model = Player([said(final("hm")), said(final('{"city": "Oslo"}'))])
    with serving(model) as (url, _), client_of(url) as client:
        parsed = client.chat.completions.parse(model="m", messages=ASK, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Oslo")


def test_a_cut_answer_says_length(codec: Codec) -> None:
    with serving(raw(codec, by_turn(codec, [(final("word " * 99),)]))) as (url, _), client_of(url) as client:
        whole = client.chat.completions.create(model="m", messages=ASK, max_tokens=9)
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 9)


def test_a_damaged_call_is_repaired_before_anybody_sees_it(codec: Codec) -> None:
    broken = ids(codec, [call("get_weather", '{"city": "Oslo",}')])
    with serving(raw(codec, lambda _: broken)) as (url, _), client_of(url) as client:
        whole = client.chat.completions.create(model="m", messages=ASK, tools=[TOOL])
    assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert broken[-1] == CALL


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[0].tool_call_id"),
        ({"messages": ASK, "n": 2}, "n"),
        ({"messages": ASK, "logprobs": True}, "logprobs"),
        ({"messages": ASK, "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"messages": ASK, "extra_body": {"top_k": 40}}, "top_k"),
        ({"messages": ASK, "stop": [""]}, "stop"),
        ({"messages": ASK, "tool_choice": "required"}, "tool_choice"),
        ({"messages": ASK, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(request_: dict[str, Any], param: str) -> None:
    refusals = pytest.raises(BadRequestError)
    with serving(scripted()) as (url, _), client_of(url) as client, refusals as refused:
        client.chat.completions.create(model="m", **request_)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["param"] == param


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextOverflow("/home/ada/secret is too long"), 400, "context_length_exceeded"),
        (EndpointUnreachable("http://10.0.0.7 /home/ada/secret"), 503, "backend_unreachable"),
        (EndpointRefused("slow down /home/ada/secret", 429), 429, "rate_limit_exceeded"),
        (ModelError("/home/ada/secret broke"), 502, "backend_error"),
        (KeyError("/home/ada/secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_openais_shape_and_tell_nothing_of_this_machine(
    error: Exception, status: int, code: str, *, stream: bool
) -> None:
    import httpx2

    with serving(Player([[error]])) as (url, _):
        body = {"model": "m", "messages": ASK, "stream": stream}
        answer = httpx2.post(f"{url}/chat/completions", json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (status in {429, 503})


def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    events = [Delta(Channel.FINAL, "Half"), Retried("cut /home/ada/secret", 1, 0.0)]
    with serving(Player([events])) as (url, _), client_of(url) as client:
        stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
        with pytest.raises(Exception, match="failed") as raised:
            list(stream)
    assert not isinstance(raised.value, InternalServerError)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_the_agents_sdk_runs_a_tool_loop(codec: Codec, api: str) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
    from agents.run import RunConfig

    asked: list[str] = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    async def talk(url: str) -> str:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            kind = OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel
            agent = Agent("Weather", instructions="Help.", tools=[get_weather], model=kind("m", client))
            result = Runner.run_streamed(agent, "Weather in Oslo?", run_config=RunConfig(tracing_disabled=True))
            async for _ in result.stream_events():
                pass
            return str(result.final_output)

    with serving(raw(codec, by_turn(codec))) as (url, _):
        assert asyncio.run(talk(url)) == "Sunny in Oslo ☀."
    assert asked == ["Oslo"]


def test_two_thoughts_are_not_mixed_into_the_answer() -> None:
    with serving(Player([said(thought("a"), thought("b"), final("c"))])) as (url, _), client_of(url) as client:
        told = client.chat.completions.create(model="m", messages=ASK).choices[0].message.to_dict()
    assert (told["reasoning"], told["content"]) == ("ab", "c")


def test_a_client_that_uses_ids_again_gets_each_result_to_its_own_call() -> None:
    player = Player([said(final("Done."))])
    history: list[Any] = [{"role": "user", "content": "x"}]
    for city in ("Oslo", "Rome"):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        history += [
            {"role": "assistant", "tool_calls": [{"id": "call_0", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "call_0", "content": f"sunny in {city}"},
        ]
    with serving(player) as (url, _), client_of(url) as client:
        client.chat.completions.create(model="m", messages=history)
    shown = [message.text for message in player.asked[0][0].messages[1:]]
    assert shown == ['{"city": "Oslo"}', "sunny in Oslo", '{"city": "Rome"}', "sunny in Rome"]
