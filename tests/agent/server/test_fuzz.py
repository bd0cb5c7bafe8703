"""Requests that are nearly right: whatever a client sends, it never gets a 500, and what it gets has OpenAI's shape."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from agent.conversation import Conversation, Message
from agent.events import Delta, MessageAdded, Sampled
from agent.harmony.codec import Codec
from agent.model.base import ModelEvent, SamplingParams
from agent.model.capabilities import OF_MESSAGES
from agent.server.gate import Limits
from tests.agent.server.equipment import Web, equipment
from tests.agent.server.served import WEATHER, Backend, call, final, ids, raw, serving, thought, web

EVENTS = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}
STATUSES = {200, 400, 404, 502}  # 502: a demanded form that this model does not meet
FUNCTION = {"name": "get_weather", "description": "Weather", "parameters": WEATHER, "strict": True}
RESPONSES: list[dict[str, Any]] = [
    {"model": "m", "input": "Hello", "stream": False},
    {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "No jokes."}]},
            {"type": "message", "role": "user", "content": "a"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
            {
                "type": "code_interpreter_call", "id": "ci_1", "status": "completed", "code": "1", "container_id": "x",
                "outputs": [{"type": "logs", "logs": "1"}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
        "tools": [{"type": "function", **FUNCTION}, {"type": "web_search", "filters": {"allowed_domains": ["a.b"]}}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "stream": True,
        "store": False,
    },
    {
        "model": "m",
        "input": "x",
        "tools": [{"type": "web_search", "user_location": {"type": "approximate", "city": "Oslo"}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
        "max_output_tokens": 500,
        "max_tool_calls": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "text": {"format": {"type": "text"}},
        "stream": True,
    },
]  # fmt: skip
CHATS: list[dict[str, Any]] = [
    {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant", "content": None, "reasoning": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["\n\n"],
        "max_completion_tokens": 100,
        "seed": 7,
    },
    {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}},
        "web_search_options": {"user_location": {"type": "approximate", "approximate": {"city": "Oslo"}}},
        "reasoning_effort": "low",
        "n": 1,
    },
]  # fmt: skip
COMPLETIONS: list[dict[str, Any]] = [
    {"model": "m", "prompt": "Once", "max_tokens": 16, "stop": "x", "stream": False, "temperature": 0},
    {"model": "m", "prompt": [1, 2, 3], "max_tokens": 16, "return_token_ids": True, "stream": True, "seed": 1},
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    st.sampled_from(["\ud800", "\x00", "<|start|>", "function", "a b", "🙂" * 10, ""]),
    st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=3),
    st.dictionaries(
        st.sampled_from(["type", "name", "text", "$ref", "x"]), st.text(max_size=5) | st.integers(), max_size=3
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from places(below, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, corpus: list[dict[str, Any]]) -> dict[str, Any]:
    """A request that is right but for up to three things."""
    body = copy.deepcopy(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(body))
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        holder: Any = body
        for key in path:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "double", "other"])):
            case "replace":
                holder[last] = draw(ODD)
            case "remove":
                del holder[last]
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case _ if isinstance(holder, dict):
                holder[
                    draw(st.sampled_from(["type", "role", "stream", "tools", "input", "top_logprobs", "n", "x"]))
                ] = draw(ODD)
    return body


class Answering:
    """Searches once where it may, and answers; calls the function where it is there and nothing was said yet."""

    name = "answering"
    context_tokens: int | None = None
    capabilities = OF_MESSAGES

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        names = [tool.name for tool in conversation.tools]
        said: list[Message] = [thought("Hm."), final("It is 【0†L0】 fine.")]
        if "# Response Formats" in conversation.instructions:
            said = [final('{"city": "Oslo", "days": [1, null]}')]
        if not conversation.messages or conversation.messages[-1].role.value == "user":
            if "browser.search" in names:
                said = [web("search", query="q")]
            elif "get_weather" in names:
                said = [call("get_weather", '{"city": "Oslo"}')]
        for message in said:
            yield Delta(message.channel, message.text, message.recipient)
        yield from map(MessageAdded, said)
        yield Sampled(10, 5, "call" if said[-1].is_call else "stop")

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", params=["messages", "tokens"])
def client(request: pytest.FixtureRequest, codec: Codec) -> Iterator[httpx2.Client]:
    tokens = raw(codec, lambda _: ids(codec, [thought("Hm."), final("It is fine.")]))
    backend: Backend = Backend("m", Answering()) if request.param == "messages" else tokens
    with (
        equipment(Web()) as tools,
        serving(backend, builtins=tools, limits=Limits(request_timeout_s=20)) as (url, _),
        httpx2.Client(base_url=url, timeout=30) as opened,
    ):
        yield opened


def ask(client: httpx2.Client, path: str, body: dict[str, Any]) -> httpx2.Response:
    content = json.dumps(body).encode()
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


def check(answer: httpx2.Response, whole: Callable[[Any], Any], part: Callable[[Any], Any]) -> None:
    """Hold an answer to the schema, an error to OpenAI's shape."""
    assert answer.status_code in STATUSES, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["code"] != "internal_error"
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        for event in map(json.loads, events):
            if "error" in event and "choices" not in event and "type" not in event:
                assert event["error"]["code"] != "internal_error"
            else:
                part(event)
        assert '"internal_error"' not in answer.text
        assert "internal error" not in answer.text
    else:
        whole(answer.json())


@given(data=st.data())
@settings(max_examples=200)
def test_responses(client: httpx2.Client, data: st.DataObject) -> None:
    body = data.draw(mutated(RESPONSES))
    check(
        ask(client, "/responses", body),
        Response.model_validate,
        lambda event: EVENTS[event["type"]].model_validate(event),
    )


@given(data=st.data())
@settings(max_examples=200)
def test_chat_completions(client: httpx2.Client, data: st.DataObject) -> None:
    body = data.draw(mutated(CHATS))
    check(ask(client, "/chat/completions", body), ChatCompletion.model_validate, ChatCompletionChunk.model_validate)


def piece(event: Any) -> None:
    """A piece of a streamed completion, which has no reason to have ended; the schema has none that says so, and OpenAI sends null."""
    for choice in event["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    Completion.model_validate(event)


@given(data=st.data())
@settings(max_examples=100)
def test_completions(client: httpx2.Client, data: st.DataObject) -> None:
    body = data.draw(mutated(COMPLETIONS))
    check(ask(client, "/completions", body), Completion.model_validate, piece)


@pytest.mark.parametrize(
    ("path", "corpus"), [("/responses", RESPONSES), ("/chat/completions", CHATS), ("/completions", COMPLETIONS)]
)
def test_unchanged_they_are_right(client: httpx2.Client, path: str, corpus: list[dict[str, Any]]) -> None:
    for body in corpus:
        answer = ask(client, path, body)
        assert answer.status_code in {200, 400, 502}, answer.text
        if answer.status_code == 400:  # a model of messages has no tokens to complete
            assert path == "/completions"
