"""The contract of a Model, over every wire: what the loop may rely on whoever answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable
from agent.events import Delta, MessageAdded, Retried, Sampled
from agent.harmony.codec import Codec
from agent.model.base import Model, ModelEvent, SamplingParams
from agent.model.client import Client, Clock, Endpoint
from agent.model.open import Vocabulary
from agent.model.scripted import ScriptedModel
from tests.agent.model.players import OVERFLOW, Player, players
from tests.servers import Pause, Reply, Reset, document, nobody, serving

SHELL = ToolSpec("shell", "Runs a command.", {"type": "object", "properties": {"command": {"type": "string"}}})
TASK = Conversation("Be useful.", (SHELL,), (Message(Role.USER, "Fix it."),))
PARAMS = SamplingParams(max_tokens=512)
LOOK = (
    Message(Role.ASSISTANT, "I have to look naïvely 🙂.", Channel.ANALYSIS),
    Message(Role.ASSISTANT, '{"command": "cat naïve 🙂"}', Channel.COMMENTARY, "functions.shell"),
)
DONE = (Message(Role.ASSISTANT, "All is well now.", Channel.ANALYSIS), Message(Role.ASSISTANT, "Fixed.", Channel.FINAL))
WIRES = (
    "completions: ids",
    "completions: llama.cpp",
    "completions: sglang",
    "completions: text",
    "completions: ollama",
    "responses",
    "chat",
)
NO_WAIT = Clock(sleep=lambda _: None)


@pytest.fixture(scope="module")
def all_players(codec: Codec, cache_dir: Path) -> dict[str, Player]:
    return players(codec, Vocabulary(cache_dir))


@pytest.fixture(params=WIRES)
def player(request: pytest.FixtureRequest, all_players: dict[str, Player]) -> Player:
    return all_players[request.param]


def client(url: str, **options: Any) -> Client:
    return Client(Endpoint(url, "gpt-oss-20b", **{"silence_timeout_s": 20.0, "patience_s": 5.0, **options}), NO_WAIT)


def play(player: Player, replies: Sequence[Reply], **options: Any) -> tuple[list[ModelEvent], list[Any]]:
    with serving(replies) as server:
        model = player.build(client(server.url, **options))
        events = list(model.sample(TASK, PARAMS))
        model.close()
        model.close()
        return events, server.posts()


def said(events: Sequence[ModelEvent]) -> list[tuple[Channel | None, str | None, str]]:
    return [(e.message.channel, e.message.recipient, e.message.text) for e in events if isinstance(e, MessageAdded)]


def shape(messages: Sequence[Message]) -> list[tuple[Channel | None, str | None, str]]:
    return [(m.channel, m.recipient, m.text) for m in messages]


@pytest.mark.parametrize(("answer", "finish"), [(LOOK, "call"), (DONE, "stop")])
def test_an_answer_is_given_whole_after_it_was_shown(player: Player, answer: Sequence[Message], finish: str) -> None:
    events, _ = play(player, [player.reply(answer)])
    assert said(events) == shape(answer)
    shown = [type(e) for e in events]
    assert shown == sorted(shown, key=[Delta, MessageAdded, Sampled].index)
    for channel in (Channel.ANALYSIS, Channel.FINAL):
        wanted = "".join(m.text for m in answer if m.channel is channel)
        assert "".join(e.text for e in events if isinstance(e, Delta) and e.channel is channel) == wanted
    ended = events[-1]
    assert isinstance(ended, Sampled)
    assert (ended.finish, ended.cached_tokens) == (finish, player.cached_tokens)
    assert ended.prompt_tokens > 0
    assert ended.completion_tokens > 0
    assert 0 <= ended.first_token_s <= ended.duration_s


def test_reasoning_and_results_are_shown_to_the_model_in_the_next_request(player: Player) -> None:
    with serving([player.reply(LOOK), player.reply(DONE)]) as server:
        model = player.build(client(server.url))
        first = [e.message for e in model.sample(TASK, PARAMS) if isinstance(e, MessageAdded)]
        result = Message(Role.TOOL, "README", Channel.COMMENTARY, "assistant", name="functions.shell")
        list(model.sample(TASK.add(*first, result), PARAMS))
        bodies = server.posts()
    before, after = map(player.heard, bodies)
    assert "Be useful." in before
    assert "Fix it." in before
    assert "I have to look naïvely 🙂." in after
    assert "README" in after
    # Turn two begins as turn one did: a server's cache of the prefix holds.
    assert after.startswith(before.rstrip("]"))


def test_sampling_is_always_explicit(player: Player) -> None:
    _, (body,) = play(player, [player.reply(DONE)])
    assert player.sampling(body) == (1.0, 1.0, 512)


FAULTS: dict[str, Callable[[Player], Sequence[Any]]] = {
    "reset": lambda _: [Reset()],
    "cut": lambda _: [],
    "error inside": lambda player: [player.frame({"error": {"message": "CUDA error", "code": 500}})],
    "garbage inside": lambda player: [player.frame("{broken")],
    "silence inside": lambda _: [Pause(60)],
}
SILENCE_S = {"silence_timeout_s": 0.5}  # only where there is to be one: a busy machine makes some of its own


@pytest.mark.parametrize("fault", FAULTS)
def test_half_an_answer_is_dropped_and_asked_again(player: Player, fault: str) -> None:
    half = player.half(LOOK, FAULTS[fault](player))
    silent = SILENCE_S if fault == "silence inside" else {}
    events, bodies = play(player, [half, player.reply(DONE)], **silent)
    assert said(events) == shape(DONE)
    retried = [n for n, e in enumerate(events) if isinstance(e, Retried)]
    assert len(retried) == 1
    assert not any(isinstance(e, MessageAdded) for e in events[: retried[0]])
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    "reply", [document({"error": "busy"}, 429, Retry_After="0"), document({"error": "x"}, 503), [Reset()], [Pause(60)]]
)
def test_a_request_that_failed_is_asked_again(player: Player, reply: Reply) -> None:
    events, _ = play(player, [reply, player.reply(DONE)], **(SILENCE_S if reply == [Pause(60)] else {}))
    assert said(events) == shape(DONE)


def test_a_limit_is_told(player: Player) -> None:
    events, _ = play(player, [[player.head(), *player.length()]])
    ended = events[-1]
    assert isinstance(ended, Sampled)
    assert ended.finish == "length"


def test_an_overflow_is_raised(player: Player) -> None:
    with pytest.raises(ContextOverflow):
        play(player, [OVERFLOW])


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_raised_at_once(player: Player, status: int) -> None:
    with serving([document({"error": {"message": "no"}}, status)]) as server:
        model = player.build(client(server.url))
        with pytest.raises(EndpointRefused, match=str(status)):
            list(model.sample(TASK, PARAMS))
        model.close()
        assert len(server.requests) == 1


def test_a_dead_endpoint_ends(player: Player) -> None:
    with nobody() as url:
        model = player.build(client(url, patience_s=1.0))
        with pytest.raises(EndpointUnreachable, match="no connection"):
            list(model.sample(TASK, PARAMS))
        model.close()


def test_closing_the_iterator_hangs_up(player: Player) -> None:
    with serving([player.half(LOOK, [Pause(60)])]) as server:
        model = player.build(client(server.url, silence_timeout_s=60.0))
        events = model.sample(TASK, PARAMS)
        assert isinstance(next(events), Delta)
        events.close()  # type: ignore[attr-defined]
        assert server.hung_up.wait(30)
        model.close()


def test_the_name_says_model_place_and_wire(player: Player) -> None:
    model = player.build(client("http://127.0.0.1:1/v1"))
    assert "gpt-oss-20b at http://127.0.0.1:1/v1" in model.name
    assert player.name.split(":")[0] in model.name
    assert model.context_tokens == 131_072
    model.close()


def test_a_recording_keeps_the_same_contract() -> None:
    model: Model = ScriptedModel([LOOK, DONE], context_tokens=131_072)
    events = list(model.sample(TASK, PARAMS))
    assert said(events) == shape(LOOK)
    shown = [type(e) for e in events]
    assert shown == sorted(shown, key=[Delta, MessageAdded, Sampled].index)
    answered = TASK.add(*LOOK, Message(Role.TOOL, "README", Channel.COMMENTARY, "assistant", name="functions.shell"))
    assert said(list(model.sample(answered, PARAMS))) == shape(DONE)
    model.close()
    model.close()
