"""The doctor's look at an endpoint: one fake server per quirk, and what is said of each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import RunConfig
from agent.conversation import Channel, Message, Role
from agent.harmony.codec import Codec
from agent.harmony.tokens import CHANNEL, MESSAGE, RETURN
from agent.model.client import Clock
from agent.model.probe import Observation, probe
from tests.agent.model.endpoints import Endpoint, Handler, gives_lines, models, refuses
from tests.agent.model.players import CHAT
from tests.servers import Reply, document, nobody, serving, stream

NO_WAIT = Clock(sleep=lambda _: None)
NEEDLE = "PERIWINKLE"


@dataclass
class Brain:
    """A chat server that reads what it is sent as far as its quirks let it."""

    window_tokens: int = 200_000
    refuses_long: bool = False
    counts_what_it_read: bool = True  # rather than what it was sent
    keeps_reasoning: bool = True
    obeys_temperature: bool = True
    streams: bool = True
    calls: int = field(default=0)

    def __call__(self, body: Any) -> Reply:
        self.calls += 1
        shown = [
            m if self.keeps_reasoning else {k: v for k, v in m.items() if "reasoning" not in k}
            for m in body["messages"]
        ]
        text = json.dumps(shown)
        tokens = sent = len(text) // 4
        if tokens > self.window_tokens:
            if self.refuses_long:
                return document({"error": {"message": "exceeds the available context size"}}, 400)
            tokens = self.window_tokens
            text = text[-4 * self.window_tokens :]
        said = (
            NEEDLE
            if NEEDLE in text
            else f"number {self.calls if body['temperature'] and self.obeys_temperature else 0}"
        )
        answer = (Message(Role.ASSISTANT, said, Channel.FINAL),)
        tokens = tokens if self.counts_what_it_read else sent
        if not self.streams:
            usage = {"prompt_tokens": tokens, "completion_tokens": 3}
            return document({"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage})
        events = [json.loads(e.decode()[6:]) for e in CHAT.say(answer)[:-1]]
        events[-1]["usage"] = {"prompt_tokens": tokens, "completion_tokens": 3}
        return stream(events)


def look(
    paths: dict[str, Handler], cache_dir: Path, limit_s: float = 60.0, clock: Clock = NO_WAIT
) -> dict[str, Observation]:
    with serving(Endpoint(paths)) as server:
        found = list(probe(RunConfig(endpoint=server.url, cache_dir=cache_dir), clock, limit_s))
    assert len({o.subject for o in found}) == len(found)
    return {o.subject: o for o in found}


def chat(brain: Brain, cache_dir: Path, owner: str = "library", **entry: Any) -> dict[str, Observation]:
    paths: dict[str, Handler] = {
        "/v1/models": models(owned_by=owner, **entry),
        "/v1/completions": refuses("prompt must be a string"),
        "/v1/chat/completions": brain,
        "/api/generate": gives_lines("analysis"),
    }
    return look(paths, cache_dir)


def test_a_good_chat_server(cache_dir: Path) -> None:
    found = chat(Brain(), cache_dir)
    assert {s: o.good for s, o in found.items()} == {
        "endpoint": True, "id prompts": False, "wire": True, "speed": True, "reasoning": True, "sampling": True, "window": True,
    }  # fmt: skip
    assert "Ollama strips them since 0.30" in found["id prompts"].seen
    assert "vLLM" in found["id prompts"].remedy
    assert "(chat)" in found["wire"].seen
    assert "100000 tokens is read from its beginning" in found["window"].seen


def test_a_window_that_cuts_in_silence_is_seen_and_the_remedy_is_the_servers(cache_dir: Path) -> None:
    found = chat(Brain(window_tokens=4096), cache_dir)["window"]
    assert found.good is False
    assert "silently loses its beginning: 4096 were read" in found.seen
    assert "OLLAMA_CONTEXT_LENGTH" in found.remedy


def test_a_silent_cut_behind_a_wrong_count_is_not_taken_for_a_whole_prompt(cache_dir: Path) -> None:
    found = chat(Brain(window_tokens=4096, counts_what_it_read=False), cache_dir)["window"]
    assert found.good is None
    assert "the first words of a prompt of 6000 tokens, the answer lacks them" in found.seen


def test_a_window_that_is_smaller_than_stated_is_seen(cache_dir: Path) -> None:
    found = chat(Brain(window_tokens=10_000, refuses_long=True), cache_dir, "llamacpp", max_model_len=131_072)["window"]
    assert found.good is False
    assert "24000 tokens is refused (131072 tokens are stated)" in found.seen
    assert "-c 65536" in found.remedy


def test_a_small_window_that_is_stated_is_small(cache_dir: Path) -> None:
    found = chat(Brain(), cache_dir, "vllm", max_model_len=8192)["window"]
    assert found.good is False
    assert "8192 tokens are stated, and 6000 were read whole" in found.seen
    assert "--max-model-len" in found.remedy


def test_reasoning_that_is_dropped_is_seen(cache_dir: Path) -> None:
    found = chat(Brain(keeps_reasoning=False), cache_dir)["reasoning"]
    assert found.good is False
    assert "drops it" in found.seen


def test_a_temperature_that_is_ignored_is_seen(cache_dir: Path) -> None:
    assert chat(Brain(obeys_temperature=False), cache_dir)["sampling"].good is False


def test_a_server_that_does_not_stream_is_seen(cache_dir: Path) -> None:
    found = chat(Brain(streams=False), cache_dir)["speed"]
    assert found.good is False
    assert "not streamed" in found.seen


@pytest.mark.parametrize(("stops", "good"), [(True, True), (False, False)])
def test_raw_completions(stops: bool, good: bool, codec: Codec, cache_dir: Path) -> None:
    head = [CHANNEL, *codec.encode("analysis"), MESSAGE]
    final = [CHANNEL, *codec.encode("final"), MESSAGE]

    def complete(body: Any) -> Reply:
        prompt = codec.decode(body["prompt"])
        said = NEEDLE if NEEDLE in prompt else f"{len(prompt)} {body['temperature']} {body.get('seed')}"
        ids = [*final, *codec.encode(said), RETURN] if "Be brief." in prompt else [*head, *codec.encode("Hm. " * 9)]
        if stops and MESSAGE in body["stop_token_ids"]:
            ids = ids[: ids.index(MESSAGE) + 1]
        ids = ids[: body["max_tokens"]]
        finish = "stop" if ids[-1] in body["stop_token_ids"] else "length"
        events: list[Any] = [{"choices": [{"text": "…", "token_ids": [token]}]} for token in ids]
        events += [{"choices": [{"text": "", "token_ids": [], "finish_reason": finish}]}]
        return stream([*events, {"choices": [], "usage": {"prompt_tokens": len(body["prompt"])}}])

    found = look({"/v1/models": models(owned_by="vllm", max_model_len=131_072), "/v1/completions": complete}, cache_dir)
    assert found["id prompts"].good is True
    assert found["control tokens"].seen == "they come back as ids"
    assert found["stop ids"].good is good
    assert "(completions, ids)" in found["wire"].seen
    assert found["reasoning"].good is True
    assert found["window"].good is True


def test_nobody_there_is_said_at_once() -> None:
    with nobody() as url:
        (found,) = probe(RunConfig(endpoint=url), NO_WAIT)
    assert found.subject == "endpoint"
    assert found.good is False
    assert url in found.seen


def test_a_server_that_dies_after_its_list_is_said(cache_dir: Path) -> None:
    found = look({"/v1/models": models(), "/v1/completions": refuses("down", 503)}, cache_dir)
    assert found["raw completions"].good is False
    assert "wire" not in found


def test_a_failure_of_one_check_does_not_end_the_others(cache_dir: Path) -> None:
    brain = Brain()

    def moody(body: Any) -> Reply:
        return document({"error": "no tools here"}, 400) if "tools" in body else brain(body)

    paths: dict[str, Handler] = {"/v1/models": models(), "/v1/chat/completions": moody}
    found = look(paths, cache_dir)
    assert found["reasoning"].good is False
    assert "no tools here" in found["reasoning"].seen
    assert found["window"].good is True


def test_what_there_is_no_time_for_is_said(cache_dir: Path) -> None:
    hands = [0.0]
    clock = replace(NO_WAIT, now=lambda: hands[0])

    def slow(body: Any) -> Reply:
        hands[0] += 40.0
        return Brain()(body)

    paths: dict[str, Handler] = {"/v1/models": models(), "/v1/chat/completions": slow}
    found = look(paths, cache_dir, clock=clock)
    assert [o.subject for o in found.values() if o.seen == "not tried: the time is up"] == ["sampling", "window"]
