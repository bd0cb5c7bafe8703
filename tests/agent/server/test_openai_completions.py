"""/v1/completions: openai-python, and this project's own raw wire with our server as its endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError
from openai.types import Completion

from agent.config import RunConfig
from agent.conversation import Conversation, Message, Role
from agent.events import MessageAdded
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, CHANNEL, RETURN
from agent.model.base import SamplingParams
from agent.model.open import open_model
from agent.model.raw import RawModel
from agent.server.responses import sealed, unsealed
from agent.server.stops import StopFilter
from tests.agent.server.conftest import client_of
from tests.agent.server.served import TURNS, by_turn, final, ids, raw, scripted, serving


def test_text_in_and_text_out(codec: Codec) -> None:
    answer = [*codec.encode("Grüße, 世界 👋"), RETURN, *codec.encode("never")]
    with serving(raw(codec, lambda _: answer)) as (url, _), client_of(url) as client:
        whole = client.completions.create(model="m", prompt="Say", max_tokens=99)
        Completion.model_validate(whole.to_dict(mode="json"))
        chunks = list(client.completions.create(model="m", prompt="Say", max_tokens=99, stream=True))
        short = client.completions.create(model="m", prompt="Say", max_tokens=2)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Grüße, 世界 👋", "stop")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Grüße, 世界 👋"
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_ids_in_and_ids_out(codec: Codec) -> None:
    prompts: list[Sequence[int]] = []
    answer = ids(codec, [final("Done.")])

    def play(prompt: Sequence[int]) -> Sequence[int]:
        prompts.append(prompt)
        return answer

    with serving(raw(codec, play)) as (url, _), client_of(url) as client:
        more: Any = {"return_token_ids": True, "skip_special_tokens": False}
        whole = client.completions.create(model="m", prompt=[[1, 2, CHANNEL]], max_tokens=99, extra_body=more)
    choice = whole.choices[0].to_dict()
    assert tuple(prompts[0]) == (1, 2, CHANNEL)
    assert choice["token_ids"] == answer
    assert choice["text"] == "<|channel|>final<|message|>Done."
    assert choice["stop_reason"] == RETURN


def test_control_tokens_in_a_text_prompt_count_unless_told_otherwise(codec: Codec) -> None:
    prompts: list[Sequence[int]] = []

    def play(prompt: Sequence[int]) -> Sequence[int]:
        prompts.append(prompt)
        return [RETURN]

    with serving(raw(codec, play)) as (url, _), client_of(url) as client:
        client.completions.create(model="m", prompt="<|channel|>final")
        client.completions.create(model="m", prompt="<|channel|>final", extra_body={"parse_special": False})
    assert CHANNEL in prompts[0]
    assert CHANNEL not in prompts[1]


def test_a_stop_sequence_across_tokens(codec: Codec) -> None:
    answer = [*codec.encode("one two three four five"), RETURN]
    with serving(raw(codec, lambda _: answer)) as (url, _), client_of(url) as client:
        whole = client.completions.create(model="m", prompt="x", stop=["o thr"], max_tokens=99)
    assert whole.choices[0].text == "one tw"


@pytest.mark.parametrize(
    "request_", [{"prompt": ""}, {"prompt": [-1]}, {"prompt": ["a", "b"]}, {"prompt": "x", "echo": True}]
)
def test_what_cannot_be_done_is_refused(codec: Codec, request_: dict[str, Any]) -> None:
    with serving(raw(codec, by_turn(codec))) as (url, _), client_of(url) as client, pytest.raises(BadRequestError):
        client.completions.create(model="m", **request_)


def test_a_backend_without_tokens_says_so() -> None:
    refusals = pytest.raises(BadRequestError, match="does not support raw completions")
    with serving(scripted()) as (url, _), client_of(url) as client, refusals:
        client.completions.create(model="m", prompt="x")


def test_our_own_agent_takes_us_for_the_best_kind_of_server(codec: Codec) -> None:
    """`--wire auto` finds raw completions with ids here, and reads a call with its reasoning through two codecs."""
    with serving(raw(codec, by_turn(codec))) as (url, _):
        model = open_model(RunConfig(endpoint=url, model="gpt-oss-test"))
        try:
            assert isinstance(model, RawModel)
            assert "completions, ids" in model.name
            assert model.context_tokens == 131_072
            task = Conversation("Help.", (), (Message(Role.USER, "Weather?"),))
            events = list(model.sample(task, SamplingParams(max_tokens=500)))
        finally:
            model.close()
    heard = [event.message for event in events if isinstance(event, MessageAdded)]
    assert [(m.channel, m.recipient, m.text) for m in heard] == [(m.channel, m.recipient, m.text) for m in TURNS[0]]
    assert heard[-1].tokens[-1] == CALL


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stops_do_not_depend_on_where_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    found = StopFilter(stops)
    said, rest = "", text
    while rest and not found.met:
        size = data.draw(st.integers(1, len(rest)))
        said += found.feed(rest[:size])
        rest = rest[size:]
    assert said + found.rest() == found.cut(text)
    assert found.met == any(stop in text for stop in stops)


@given(st.text())
def test_sealed_reasoning_opens_again(text: str) -> None:
    assert unsealed(sealed(text)) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "content", ["", "gAAAA", "gpt-oss-agent.1.", "gpt-oss-agent.1.!!!", "gpt-oss-agent.1.AAAA", "gpt-oss-agent.1.é"]
)
def test_what_is_not_our_seal_is_nothing(content: str) -> None:
    assert unsealed(content) == ""
