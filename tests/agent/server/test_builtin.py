"""The server's own tools through openai-python: a web search and a code interpreter, streamed, continued, sent back, cut short."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response

from agent.conversation import Channel, Message, Role
from agent.events import MessageAdded, Sampled
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL
from agent.server.bench import BUSY, FRESH, LOST, MOST_CALLS, MOST_RUNNING
from agent.server.interpreters import Interpreters
from sandbox.base import Sandbox
from tests.agent.server.conftest import client_of
from tests.agent.server.equipment import Web, equipment, pool, starter
from tests.agent.server.served import (
    Player,
    by_turn,
    call,
    code,
    final,
    heard_until,
    ids,
    preamble,
    raw,
    said,
    scripted,
    serving,
    thought,
    until,
    web,
)
from tests.agent.server.test_access import open_stream
from tests.agent.server.test_openai_responses import TOOL, checked_stream

SEARCH: Any = {"type": "web_search"}
CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
INCLUDE: Any = ["code_interpreter_call.outputs", "web_search_call.action.sources"]
WEB_TURNS = (
    (thought("I should search."), web("search", query="people in Oslo")),
    (thought("The first looks good."), web("open", id=0)),
    (web("find", pattern="717"),),
    (thought("There."), final("It has 717,710 people 【1†L0】, they say.")),
)
CODE_TURNS = (
    (thought("Let me compute."), code("x = 6\nprint(x * 7)")),
    (code("x + 1"),),
    (final("It is 42, and then 7."),),
)


@pytest.fixture
def interpreters(tmp_path: Path) -> Iterator[Interpreters]:
    with pool(starter(tmp_path)) as opened:
        yield opened


def kinds(events: list[Any]) -> list[str]:
    found = [event.type.removeprefix("response.") for event in events]
    return [kind for place, kind in enumerate(found) if found[place - 1 : place] != [kind]]


class TestWeb:
    @pytest.mark.parametrize("kind", ["scripted", "raw"])
    def test_search_open_find_and_a_citation(self, codec: Codec, kind: str) -> None:
        backend = scripted(WEB_TURNS) if kind == "scripted" else raw(codec, by_turn(codec, WEB_TURNS))
        service = Web()
        with equipment(service) as tools, serving(backend, builtins=tools) as (url, _), client_of(url) as client:
            events = checked_stream(client, input="How many?", tools=[SEARCH], include=INCLUDE)
        response = events[-1].response
        Response.model_validate(response.to_dict(mode="json"))
        types = [item.type for item in response.output]
        assert types == [
            "reasoning", "web_search_call", "reasoning", "web_search_call", "web_search_call", "reasoning", "message",
        ]  # fmt: skip
        search, opened, found = (item.to_dict() for item in response.output if item.type == "web_search_call")
        assert search["action"]["query"] == "people in Oslo"
        assert search["action"]["sources"] == [{"type": "url", "url": page} for page in service.pages]
        assert opened["action"] == {"type": "open_page", "url": "https://example.org/oslo"}
        assert found["action"] == {"type": "find_in_page", "pattern": "717", "url": "https://example.org/oslo"}
        assert {item["status"] for item in (search, opened, found)} == {"completed"}
        text = response.output[-1].content[0]
        assert text.text == "It has 717,710 people  ([example.org](https://example.org/oslo)) , they say."
        [cited] = text.annotations
        assert text.text[cited.start_index : cited.end_index].strip() == "([example.org](https://example.org/oslo))"
        assert (cited.type, cited.url, cited.title) == ("url_citation", "https://example.org/oslo", "Oslo")
        assert response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens

    def test_the_events_in_the_documented_order(self) -> None:
        turns = [(web("search", query="a"),), (final("b 【0†L1】 c"),)]
        first = (web("open", id="https://example.org/oslo"),)
        with (
            equipment(Web()) as tools,
            serving(scripted([first, *turns]), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            events = checked_stream(client, input="x", tools=[SEARCH])
        call_events = [
            "output_item.added", "web_search_call.in_progress", "web_search_call.searching", "web_search_call.completed",
            "output_item.done",
        ]  # fmt: skip
        assert kinds(events) == [
            "created", "in_progress", *call_events, *call_events, "output_item.added", "content_part.added",
            "output_text.delta", "output_text.annotation.added", "output_text.done", "content_part.done",
            "output_item.done", "completed",
        ]  # fmt: skip
        done = [e.item.to_dict() for e in events if e.type == "response.output_item.done"]
        assert done == [item.to_dict() for item in events[-1].response.output]
        assert "sources" not in done[1]["action"]  # which nobody asked for

    def test_each_text_counts_its_citations_from_its_own_beginning(self) -> None:
        turns = [
            (web("open", id="https://example.org/oslo"),),
            (preamble("Hm 【0†L0】."), web("search", query="q")),
            (final("a 【0†L1】 and 【0†L2】"),),
        ]
        with (
            equipment(Web()) as tools,
            serving(scripted(turns), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            response = client.responses.create(model="m", input="x", tools=[SEARCH])
        texts = [item.content[0] for item in response.output if item.type == "message"]
        assert [len(text.annotations) for text in texts] == [1, 2]
        for text in texts:
            for cited in text.annotations:
                assert text.text[cited.start_index : cited.end_index] == " ([example.org](https://example.org/oslo)) "

    @pytest.mark.parametrize("stored", [True, False])
    def test_the_next_answer_goes_on_with_what_is_open(self, stored: bool) -> None:
        model = Player(
            [said(web("open", id="https://example.org/oslo"), finish="call"), said(final("Oslo.")),
             said(web("open", cursor=0, id=0), finish="call"), said(final("Founded in 1040 【1†L0】 and 【0†L0】."))]
        )  # fmt: skip
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            first = client.responses.create(model="m", input="x", tools=[SEARCH], store=stored)
            if stored:
                request: dict[str, Any] = {"input": "And?", "previous_response_id": first.id}
            else:
                items = [item.to_dict() for item in first.output]
                request = {"input": [{"role": "user", "content": "x"}, *items, {"role": "user", "content": "And?"}]}
            second = client.responses.create(model="m", tools=[SEARCH], store=stored, **request)
        opened = second.output[0]
        assert opened.type == "web_search_call"
        assert opened.to_dict()["action"]["url"] == "https://b.example/x"
        assert [a.url for a in second.output[-1].content[0].annotations] == [
            "https://b.example/x",
            "https://example.org/oslo",
        ]
        roles = [m.role for m in model.asked[2][0].messages]
        assert roles == [Role.USER, Role.ASSISTANT, Role.TOOL, Role.ASSISTANT, Role.USER]
        assert "717,710" in model.asked[2][0].messages[2].text

    def test_a_search_that_is_not_remembered_is_left_out(self) -> None:
        model = Player([said(final("ok"))])
        item: Any = {
            "type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"},
        }  # fmt: skip
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            client.responses.create(model="m", input=[{"role": "user", "content": "x"}, item], tools=[SEARCH])
        assert [m.text for m in model.asked[0][0].messages] == ["x"]

    def test_what_goes_wrong_is_told_to_the_model(self) -> None:
        model = Player(
            [said(web("open", id="https://nowhere.example/"), finish="call"), said(web("open", id=7), finish="call"),
             said(Message(Role.ASSISTANT, "{", Channel.ANALYSIS, "browser.search", "code"), finish="call"),
             said(web("click", id=7), finish="call"), said(final("I could not."))]
        )  # fmt: skip
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            events = checked_stream(client, input="x", tools=[SEARCH])
        items = [(item.type, item.status) for item in events[-1].response.output]
        assert items == [("web_search_call", "failed")] * 3 + [("message", "completed")]
        assert not [e for e in events if e.type == "response.web_search_call.completed"]
        told = [m.text for m in model.asked[-1][0].messages if m.role is Role.TOOL]
        assert [
            part in text
            for part, text in zip(("could not fetch", "Nothing is open", "JSON", "no tool"), told, strict=True)
        ]
        assert "browser.search" in told[3]

    def test_the_settings_of_a_search_are_honoured(self) -> None:
        turns = [(web("search", query="q"),), (web("open", id="https://evil.example/"),), (final("ok"),)]
        model = Player([said(*turn) for turn in turns])
        tool = {
            **SEARCH,
            "filters": {"allowed_domains": ["example.org"]},
            "user_location": {"type": "approximate", "city": "Oslo", "country": "NO", "timezone": "Europe/Oslo"},
            "search_context_size": "low",
        }
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            client.responses.create(model="m", input="x", tools=[tool], instructions="Be brief.")
        conversation = model.asked[-1][0]
        found, refused = (m.text for m in conversation.messages if m.role is Role.TOOL)
        assert "example.org" in found
        assert "b.example" not in found
        assert "Only pages of example.org" in refused
        assert (
            conversation.instructions
            == "Be brief.\n\nThe person you answer is in or near Oslo, NO (time zone Europe/Oslo)."
        )

    def test_chat_completions_have_it_too(self) -> None:
        turns = [(web("open", id="https://example.org/oslo"),), (preamble("So: "), final("many 【0†L0】."))]
        with (
            equipment(Web()) as tools,
            serving(scripted(turns), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            ask: Any = {"model": "m", "messages": [{"role": "user", "content": "x"}], "web_search_options": {}}
            message = client.chat.completions.create(**ask).choices[0].message
            chunks = list(client.chat.completions.create(**ask, stream=True))
        assert message.content == "So: many  ([example.org](https://example.org/oslo)) ."
        assert message.annotations is not None
        [cited] = message.annotations
        place = cited.url_citation
        assert message.content[place.start_index : place.end_index] == " ([example.org](https://example.org/oslo)) "
        streamed = [c.choices[0].delta.to_dict().get("annotations") for c in chunks if c.choices]
        assert [cited.to_dict()] in streamed


class TestCode:
    @pytest.mark.parametrize("kind", ["scripted", "raw"])
    def test_code_runs_and_variables_live(self, codec: Codec, interpreters: Interpreters, kind: str) -> None:
        backend = scripted(CODE_TURNS) if kind == "scripted" else raw(codec, by_turn(codec, CODE_TURNS))
        with (
            equipment(None, interpreters) as tools,
            serving(backend, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            events = checked_stream(client, input="6 x 7?", tools=[CODE], include=INCLUDE)
        response = events[-1].response
        assert [item.type for item in response.output] == [
            "reasoning",
            "code_interpreter_call",
            "code_interpreter_call",
            "message",
        ]
        first, second = response.output[1:3]
        assert (first.code, first.outputs[0].logs.strip(), first.status) == ("x = 6\nprint(x * 7)", "42", "completed")
        assert second.outputs[0].logs.strip() == "7"
        assert first.container_id == second.container_id
        assert first.container_id.startswith("cntr_")
        assert kinds(events)[8:16] == [
            "output_item.added", "code_interpreter_call.in_progress", "code_interpreter_call_code.delta",
            "code_interpreter_call_code.done", "code_interpreter_call.interpreting", "code_interpreter_call.completed",
            "output_item.done", "output_item.added",
        ]  # fmt: skip

    def test_the_prompt_goes_on_id_for_id_through_the_calls(self, codec: Codec, interpreters: Interpreters) -> None:
        prompts: list[list[int]] = []

        def play(prompt: Any) -> list[int]:
            prompts.append(list(prompt))
            return ids(codec, CODE_TURNS[min(list(prompt).count(CALL), 2)])

        with (
            equipment(None, interpreters) as tools,
            serving(raw(codec, play), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            first = client.responses.create(model="m", input="Go", tools=[CODE], store=False)
            items = [item.to_dict() for item in first.output]
            user: Any = {"role": "user", "content": "Go"}
            client.responses.create(model="m", input=[user, *items[:-1]], tools=[CODE], store=False)
            client.responses.create(model="m", input=[user, *items[1:-1]], tools=[CODE], store=False)
        for n, turn in enumerate(CODE_TURNS[:2]):
            expected = prompts[n] + ids(codec, turn)
            assert prompts[n + 1][: len(expected)] == expected
        assert prompts[3] == prompts[2]  # sent back by a client, also without its reasoning: the very same prompt
        assert prompts[4] == prompts[2]
        assert "<|start|>python to=assistant<|channel|>analysis<|message|>42" in codec.decode(prompts[2])
        assert "namespace" not in codec.decode(prompts[0]).partition("## python")[2]

    def test_the_next_answer_finds_the_variables_and_a_stranger_does_not(self, interpreters: Interpreters) -> None:
        model = Player(
            [said(code("x = 41"), finish="call"), said(final("ok")), said(code("x + 1"), finish="call"), said(final("42")),
             said(code("x"), finish="call"), said(final("?"))]
        )  # fmt: skip
        with (
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            first = client.responses.create(model="m", input="a", tools=[CODE])
            second = client.responses.create(
                model="m", input="b", tools=[CODE], previous_response_id=first.id, include=INCLUDE
            )
            third = client.responses.create(model="m", input="c", tools=[CODE], include=INCLUDE)
        assert first.output[0].to_dict()["outputs"] is None
        assert second.output[0].outputs[0].logs.strip() == "42"
        assert second.output[0].container_id == first.output[0].container_id
        assert "NameError" in third.output[0].outputs[0].logs
        assert third.output[0].container_id != first.output[0].container_id

    def test_a_container_that_is_gone_is_replaced_and_the_model_is_told(self, interpreters: Interpreters) -> None:
        item: Any = {
            "type": "code_interpreter_call", "id": "ci_x", "status": "completed", "code": "x = 1",
            "container_id": "cntr_gone", "outputs": [{"type": "logs", "logs": "fine"}],
        }  # fmt: skip
        model = Player([said(code("print(2)"), finish="call"), said(final("ok"))])
        with (
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            user: Any = {"role": "user", "content": "Go"}
            client.responses.create(model="m", input=[user, item], tools=[CODE])
            with pytest.raises(NotFoundError):
                client.responses.create(
                    model="m", input="x", tools=[{"type": "code_interpreter", "container": "cntr_gone"}]
                )
        messages = model.asked[-1][0].messages
        assert [(m.role.value, m.text) for m in messages] == [
            ("user", "Go"), ("assistant", "x = 1"), ("tool", "fine"), ("assistant", "print(2)"), ("tool", f"{FRESH}2\n"),
        ]  # fmt: skip

    def test_a_named_container_is_used(self, interpreters: Interpreters) -> None:
        model = Player(
            [said(code("y = 5"), finish="call"), said(final("ok")), said(code("y"), finish="call"), said(final("5"))]
        )
        with (
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            first = client.responses.create(model="m", input="a", tools=[CODE], store=False)
            named: Any = {"type": "code_interpreter", "container": first.output[0].to_dict()["container_id"]}
            second = client.responses.create(model="m", input="b", tools=[named], store=False, include=INCLUDE)
        assert second.output[0].outputs[0].logs.strip() == "5"

    def test_code_that_raises_is_a_result(self, interpreters: Interpreters) -> None:
        model = Player([said(code("1 / 0"), finish="call"), said(final("It cannot be."))])
        with (
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            response = client.responses.create(model="m", input="a", tools=[CODE], include=INCLUDE)
        assert response.status == "completed"
        assert "ZeroDivisionError" in response.output[0].outputs[0].logs

    def test_a_sandbox_that_is_lost_is_a_result_and_replaced(self, tmp_path: Path) -> None:
        start, opened = starter(tmp_path), []

        def remembered() -> Sandbox:
            opened.append(start())
            return opened[-1]

        model = Player([said(code("1"), finish="call"), said(code("2"), finish="call"), said(final("ok"))])
        with (
            pool(remembered, most=1) as interpreters,
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            opened[0].close()
            response = client.responses.create(model="m", input="a", tools=[CODE], include=INCLUDE)
        logs = [item.to_dict()["outputs"][0]["logs"].strip() for item in response.output[:2]]
        assert logs == [LOST, f"{FRESH}2"]

    def test_all_taken_is_a_result(self, tmp_path: Path) -> None:
        model = Player([said(code("1"), finish="call"), said(final("Later then."))])
        with (
            pool(starter(tmp_path), most=1) as interpreters,
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            held = interpreters.take(None)
            assert held is not None
            response = client.responses.create(model="m", input="a", tools=[CODE], include=INCLUDE)
            interpreters.give(held)
        assert response.output[0].outputs[0].logs == BUSY
        assert response.output_text == "Later then."


class TestBoth:
    def test_a_function_ends_the_turn_and_comes_back_to_where_it_was(
        self, codec: Codec, interpreters: Interpreters
    ) -> None:
        turns = (
            (thought("Compute."), code("print(6)")),
            (thought("Ask."), call("get_weather", '{"city": "Oslo"}')),
            (final("Done."),),
        )
        prompts: list[list[int]] = []

        def play(prompt: Any) -> list[int]:
            prompts.append(list(prompt))
            return by_turn(codec, turns)(prompt)

        with (
            equipment(Web(), interpreters) as tools,
            serving(raw(codec, play), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            first = client.responses.create(model="m", input="Go", tools=[TOOL, CODE, SEARCH], store=False)
            items = [item.to_dict() for item in first.output]
            assert [item["type"] for item in items] == [
                "reasoning",
                "code_interpreter_call",
                "reasoning",
                "function_call",
            ]
            result = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "sunny"}
            user: Any = {"role": "user", "content": "Go"}
            request = {"tools": [TOOL, CODE, SEARCH], "store": False}
            second = client.responses.create(model="m", input=[user, *items, result], **request)  # type: ignore[call-overload]
        assert second.output_text == "Done."
        expected = prompts[1] + ids(codec, turns[1])
        assert prompts[2][: len(expected)] == expected

    def test_chat_remembers_the_calls_before_a_function(self, codec: Codec) -> None:
        turns = ((web("search", query="q"),), (call("get_weather", '{"city": "Oslo"}'),), (final("Done."),))
        prompts: list[list[int]] = []

        def play(prompt: Any) -> list[int]:
            prompts.append(list(prompt))
            return by_turn(codec, turns)(prompt)

        function: Any = {"type": "function", "function": {k: TOOL[k] for k in ("name", "description", "parameters")}}
        ask: Any = {"model": "m", "tools": [function], "web_search_options": {}}
        with equipment(Web()) as tools, serving(raw(codec, play), builtins=tools) as (url, _), client_of(url) as client:
            messages: list[Any] = [{"role": "user", "content": "Go"}]
            asked = client.chat.completions.create(**ask, messages=messages).choices[0].message
            assert asked.tool_calls
            messages += [asked.to_dict(), {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "sunny"}]
            client.chat.completions.create(**ask, messages=messages)
        expected = prompts[1] + ids(codec, turns[1])
        assert prompts[2][: len(expected)] == expected

    def test_several_calls_of_one_answer(self, interpreters: Interpreters) -> None:
        """Only chat servers give them: ours are run in their order, then the client's are handed out."""
        model = Player(
            [said(call("get_weather", "{}"), code("print(1)"), code("print(2)"), finish="call"), said(final("ok"))]
        )
        with (
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            first = client.responses.create(model="m", input="a", tools=[TOOL, CODE], include=INCLUDE)
            types = [item.type for item in first.output]
            result: Any = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "r"}
            client.responses.create(model="m", input=[result], previous_response_id=first.id, tools=[TOOL, CODE])
        assert types == ["code_interpreter_call", "code_interpreter_call", "function_call"]
        told = [(m.role.value, m.text) for m in model.asked[1][0].messages[1:]]
        assert told == [
            ("assistant", "print(1)"), ("tool", "1\n"), ("assistant", "print(2)"), ("tool", "2\n"),
            ("assistant", "{}"), ("tool", "r"),
        ]  # fmt: skip

    def test_a_call_of_nothing_goes_to_whose_it_looks_like(self) -> None:
        turns = [(web("click", id=7),), (call("get_wether", "{}"),)]
        model = Player([said(*turn, finish="call") for turn in turns])
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            response = client.responses.create(model="m", input="x", tools=[TOOL, SEARCH])
        assert [item.to_dict().get("name") for item in response.output] == ["get_wether"]
        assert "There is no tool 'browser.click'" in model.asked[1][0].messages[-1].text

    def test_the_limits_of_calls_and_tokens(self) -> None:
        model = Player([said(web("search", query="q"), finish="call")])
        with equipment(Web()) as tools, serving(model, builtins=tools) as (url, _), client_of(url) as client:
            events = checked_stream(client, input="x", tools=[SEARCH], max_tool_calls=2)
            assert [item.type for item in events[-1].response.output] == ["web_search_call"] * 2
            assert events[-1].type == "response.failed"
            assert "may not call" in events[-1].response.error.message
            model.asked.clear()
            cut = client.responses.create(model="m", input="x", tools=[SEARCH], max_output_tokens=12)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [params.max_tokens for _, params in model.asked] == [12, 7, 2]  # of which each answer took five
        assert MOST_CALLS > 16

    @pytest.mark.parametrize(
        ("choice", "name"), [(SEARCH, "browser"), ({"type": "code_interpreter"}, "python"), ("required", "")]
    )
    def test_a_demanded_tool_is_called(self, codec: Codec, interpreters: Interpreters, choice: Any, name: str) -> None:
        forced = codec.built_in_opening(name)
        calls = {"browser": web("search", query="q"), "python": code("1"), "": code("1")}

        def play(prompt: Any) -> list[int]:
            if list(prompt).count(CALL):
                return ids(codec, [final("Done.")])
            whole = ids(codec, [calls[name]])
            return whole[len(forced) :] if tuple(prompt[-len(forced) :]) == forced else ids(codec, [final("No.")])

        with (
            equipment(Web(), interpreters) as tools,
            serving(raw(codec, play), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            response = client.responses.create(model="m", input="x", tools=[SEARCH, CODE], tool_choice=choice)
        assert response.output[0].type == ("web_search_call" if name == "browser" else "code_interpreter_call")
        assert response.output_text == "Done."

    def test_allowed_tools_and_none(self, interpreters: Interpreters) -> None:
        model = Player([said(final("ok"))])
        with (
            equipment(Web(), interpreters) as tools,
            serving(model, builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            allowed: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
            client.responses.create(model="m", input="x", tools=[SEARCH, CODE, TOOL], tool_choice=allowed)
            client.responses.create(model="m", input="x", tools=[SEARCH, CODE, TOOL], tool_choice="none")
        names = [[tool.name for tool in conversation.tools] for conversation, _ in model.asked]
        assert names == [["browser.search", "browser.open", "browser.find"], []]


class TestOff:
    def test_a_web_search_is_left_out(self) -> None:
        model = Player([said(final("ok"))])
        with serving(model) as (url, _), client_of(url) as client:
            response = client.responses.create(model="m", input="x", tools=[SEARCH, TOOL])
        assert [tool.type for tool in response.tools] == ["function"]  # so that a client can see it
        assert [tool.name for tool in model.asked[0][0].tools] == ["get_weather"]

    @pytest.mark.parametrize(
        ("request_", "param", "told"),
        [
            ({"tools": [CODE]}, "tools[0].type", "--code-interpreter"),
            ({"tools": [SEARCH], "tool_choice": SEARCH}, "tool_choice", "not enabled"),
        ],
    )
    def test_what_is_wanted_on_purpose_is_refused(self, request_: Any, param: str, told: str) -> None:
        with serving(scripted()) as (url, _), client_of(url) as client, pytest.raises(BadRequestError) as refused:
            client.responses.create(model="m", input="x", **request_)
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["param"] == param
        assert told in refused.value.body["message"]

    def test_chat_says_so(self) -> None:
        with (
            serving(scripted()) as (url, _),
            client_of(url) as client,
            pytest.raises(BadRequestError, match="--web-search"),
        ):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], web_search_options={}
            )

    @pytest.mark.parametrize(
        ("tool", "param"),
        [
            ({**SEARCH, "filters": {"allowed_domains": [1]}}, "tools[0].filters.allowed_domains"),
            ({**SEARCH, "filters": {"blocked_domains": ["x"]}}, "tools[0].filters.blocked_domains"),
            ({**SEARCH, "search_context_size": "huge"}, "tools[0].search_context_size"),
            (
                {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}},
                "tools[0].container.file_ids",
            ),
            (
                {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}},
                "tools[0].container.memory_limit",
            ),
            (
                {"type": "code_interpreter", "container": {"type": "auto", "network_policy": {"type": "allowlist"}}},
                "tools[0].container.network_policy",
            ),
            ({"type": "code_interpreter", "container": {"type": "robot"}}, "tools[0].container.type"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_by_name(
        self, interpreters: Interpreters, tool: dict[str, Any], param: str
    ) -> None:
        with (
            equipment(Web(), interpreters) as tools,
            serving(scripted(), builtins=tools) as (url, _),
            client_of(url) as client,
            pytest.raises(BadRequestError) as refused,
        ):
            client.responses.create(model="m", input="x", tools=[tool])
        assert isinstance(refused.value.body, dict)
        assert refused.value.body["param"] == param

    def test_a_function_of_the_same_name_is_refused(self, interpreters: Interpreters) -> None:
        with (
            equipment(Web(), interpreters) as tools,
            serving(scripted(), builtins=tools) as (url, _),
            client_of(url) as client,
        ):
            for tool, name in ((CODE, "python"), (SEARCH, "browser_open")):
                with pytest.raises(BadRequestError, match="name of a requested built-in"):
                    client.responses.create(model="m", input="x", tools=[tool, {**TOOL, "name": name}])
            function: Any = {"type": "function", "function": {"name": "browser", "parameters": {}}}
            with pytest.raises(BadRequestError, match="name of a requested built-in"):
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], tools=[function], web_search_options={}
                )


class TestEnds:
    """A request that ends in the middle of a call ends the call, and holds nothing."""

    @pytest.mark.parametrize("how", ["gone", "cancelled", "timeout"])
    def test_code_that_runs(self, tmp_path: Path, how: str) -> None:
        opened: list[Sandbox] = []
        start = starter(tmp_path)

        def remembered() -> Sandbox:
            opened.append(start())
            return opened[-1]

        from agent.server.gate import Limits

        limits = Limits(request_timeout_s=2.0 if how == "timeout" else 60.0, keep_alive_s=0.1)
        model = Player([said(code("import time; time.sleep(60)"), finish="call")])
        with (
            pool(remembered, most=1) as interpreters,
            equipment(None, interpreters) as tools,
            serving(model, builtins=tools, limits=limits) as (url, service),
        ):
            stream = open_stream(url, "/v1/responses", input="x", tools=[CODE])
            heard = heard_until(stream, b"interpreting")
            if how == "cancelled":
                ident = json.loads(heard.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
                assert httpx2.post(f"{url}/responses/{ident}/cancel").json()["status"] == "cancelled"
            if how == "gone":
                stream.close()
                until(lambda: service.slots.taken == 0)
            else:
                heard = heard_until(stream, b"event: response.incomplete", b"event: response.failed", heard=heard)
                assert b'"status":"incomplete"' in heard
                until(lambda: service.slots.taken == 0)
                stream.close()
            until(lambda: not interpreters._taken)
            until(lambda: len(opened) == 2)  # the one that ran is closed, and another is warm in its place
            with pytest.raises(Exception, match="closed"):
                opened[0].exec(["true"], 1.0)

    def test_a_search_that_hangs(self) -> None:
        service_ = Web()
        service_.gate.clear()
        search = said(web("search", query="q"), finish="call")
        model = Player([search, search, said(final("Later then."))])
        with equipment(service_) as tools, serving(model, builtins=tools) as (url, service):
            stream = open_stream(url, "/v1/responses", input="x", tools=[SEARCH])
            until(lambda: bool(service_.asked))
            stream.close()
            until(lambda: service.slots.taken == 0)
            free = [tools.running.acquire(blocking=False) for _ in range(MOST_RUNNING)]
            assert free.count(True) == MOST_RUNNING - 1  # the call is not over, and is counted until it is
            answer = httpx2.post(f"{url}/responses", json={"input": "x", "tools": [SEARCH]}).json()
            assert [item["status"] for item in answer["output"]] == ["failed", "completed"]
            assert model.asked[-1][0].messages[-1].text == BUSY
            service_.gate.set()

    def test_a_client_that_goes_away_in_a_search_keeps_its_sandbox(self, interpreters: Interpreters) -> None:
        service_ = Web()
        service_.gate.clear()
        model = Player([said(code("z = 1"), finish="call"), said(web("search", query="q"), finish="call")])
        with equipment(service_, interpreters) as tools, serving(model, builtins=tools) as (url, service):
            stream = open_stream(url, "/v1/responses", input="x", tools=[CODE, SEARCH])
            until(lambda: bool(service_.asked))
            (kept,) = interpreters._taken
            stream.close()
            until(lambda: service.slots.taken == 0)
            assert list(interpreters._idle) == [kept]
            service_.gate.set()

    def test_a_client_that_goes_away_between_calls_keeps_its_sandbox(self, interpreters: Interpreters) -> None:
        """Nothing ran: it is idle, and is found by the next request."""
        from tests.agent.server.served import Talker

        class Coder(Talker):
            def sample(self, conversation: Any, params: Any) -> Iterator[Any]:
                if conversation.messages[-1].role is Role.TOOL:
                    yield from super().sample(conversation, params)
                    return
                yield MessageAdded(code("z = 1"))
                yield Sampled(1, 1, "call")

        with equipment(None, interpreters) as tools, serving(Coder(), builtins=tools) as (url, service):
            stream = open_stream(url, "/v1/responses", input="x", tools=[CODE])
            heard_until(stream, b"output_text.delta")
            stream.close()
            until(lambda: service.slots.taken == 0)
            until(lambda: len(interpreters._idle) == 1)


def test_the_agents_sdk_uses_hosted_tools_beside_its_own(codec: Codec, interpreters: Interpreters) -> None:
    """It sends everything back in every turn, hosted calls among it: the prompts go on id for id."""
    from agents import Agent, CodeInterpreterTool, OpenAIResponsesModel, Runner, WebSearchTool, function_tool
    from agents.run import RunConfig

    turns = (
        (thought("Search."), web("search", query="Oslo")),
        (code("print(6 * 7)"),),
        (thought("Ask."), call("get_weather", '{"city": "Oslo"}')),
        (final("Sunny, and 42."),),
    )
    prompts: list[list[int]] = []

    def play(prompt: Any) -> list[int]:
        prompts.append(list(prompt))
        return by_turn(codec, turns)(prompt)

    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    async def talk(url: str) -> str:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            hosted = [WebSearchTool(), CodeInterpreterTool(CODE)]
            agent = Agent("Weather", tools=[*hosted, get_weather], model=OpenAIResponsesModel("m", client))
            result = Runner.run_streamed(agent, "Weather?", run_config=RunConfig(tracing_disabled=True))
            async for _ in result.stream_events():
                pass
            return str(result.final_output)

    with equipment(Web(), interpreters) as tools, serving(raw(codec, play), builtins=tools) as (url, _):
        assert asyncio.run(talk(url)) == "Sunny, and 42."
    for n, turn in enumerate(turns[:-1]):
        expected = prompts[n] + ids(codec, turn)
        assert prompts[n + 1][: len(expected)] == expected
