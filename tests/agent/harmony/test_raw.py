"""RawModel over a scripted source: the repair ladder, rung by rung."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel, Conversation, Message
from agent.errors import ContextOverflow, EndpointUnreachable
from agent.events import Delta, MessageAdded, Repaired, Retried, Sampled
from agent.harmony.codec import Codec
from agent.harmony.ladder import ASK_FOR_A_CALL, ASK_FOR_AN_ANSWER
from agent.harmony.tokens import END, OPENING, RETURN
from agent.model.base import Chunk, ModelEvent, SamplingParams
from agent.model.capabilities import Capabilities
from agent.model.raw import RawModel
from agent.model.scripted_tokens import ScriptedTokens
from tests.agent.harmony.cases import TRAINED, user
from tests.agent.harmony.garbage import as_ids, garbage
from tests.agent.harmony.streams import STREAMS

TASK = Conversation("Fix it.", TRAINED, (user("It breaks."),))
CALL = STREAMS["a call, recipient after the channel"]
FINAL = STREAMS["a final answer"]
THOUGHT = "<|channel|>analysis<|message|>Let me think."


class Server:
    """Answers one text after another and keeps what it was asked; the last answer is repeated."""

    def __init__(self, codec: Codec, *answers: str | Sequence[Chunk | Retried] | Exception, **options) -> None:
        self.codec, self.answers, self.options = codec, answers, options
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.closed = self.finished = 0

    name = "server"
    capabilities = Capabilities(raw=True)

    @property
    def context_tokens(self) -> int | None:
        return self.options.get("context_tokens")

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk | Retried]:
        answer = self.answers[min(len(self.prompts), len(self.answers) - 1)]
        self.prompts.append(list(prompt))
        self.params.append(params)
        if isinstance(answer, Exception):
            raise answer
        try:
            if isinstance(answer, str):
                ids = self.codec.encode_sampled(answer)
                yield from ScriptedTokens(lambda _: ids).generate(prompt, params, stop)
            else:
                yield from answer
            self.finished += 1
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def ask(server: Server, params: SamplingParams | None = None, task: Conversation = TASK) -> list[ModelEvent]:
    return list(RawModel(server.codec, server).sample(task, params or SamplingParams()))


def messages(events: Sequence[ModelEvent]) -> list[Message]:
    return [event.message for event in events if isinstance(event, MessageAdded)]


def kinds(events: Sequence[ModelEvent]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Repaired)]


def sampled(events: Sequence[ModelEvent]) -> Sampled:
    assert isinstance(events[-1], Sampled)
    return events[-1]


@pytest.mark.parametrize("name", STREAMS)
def test_a_well_formed_answer_is_given_as_it_is(codec, name: str) -> None:
    server = Server(codec, STREAMS[name])
    events = ask(server)
    given = messages(events)
    assert kinds(events) == []
    assert [token for message in given for token in message.tokens] == [*OPENING, *codec.encode_sampled(STREAMS[name])]
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "".join(message.text for message in given)
    assert sampled(events).finish == ("call" if given[-1].is_call else "stop")
    assert sampled(events).prompt_tokens == len(server.prompts[0])
    assert sampled(events).completion_tokens == len(codec.encode_sampled(STREAMS[name]))
    assert len(server.prompts) == 1


def test_reasoning_alone_is_asked_for_a_call(codec) -> None:
    rest = CALL.removeprefix("<|channel|>commentary")
    server = Server(codec, THOUGHT + "<|return|>", rest)
    events = ask(server)
    thought, call = messages(events)
    assert kinds(events) == ["prefilled"]
    assert (thought.channel, call.recipient) == (Channel.ANALYSIS, "container.exec")
    opened = [*server.prompts[0][: -len(OPENING)], *thought.tokens[:-1], END, *ASK_FOR_A_CALL]
    assert server.prompts[1] == opened
    assert codec.prompt(TASK.add(thought, call))[: len(opened)] == opened


def test_reasoning_that_will_not_call_is_asked_for_an_answer(codec) -> None:
    server = Server(codec, THOUGHT + "<|return|>", "<|message|>I shall run it.<|return|>", "<|message|>Done.<|return|>")
    events = ask(server)
    assert [(m.channel, m.text) for m in messages(events)] == [
        (Channel.ANALYSIS, "Let me think."),
        (Channel.COMMENTARY, "I shall run it."),
        (Channel.FINAL, "Done."),
    ]
    assert kinds(events) == ["prefilled", "prefilled"]
    assert tuple(server.prompts[2][-len(ASK_FOR_AN_ANSWER) :]) == ASK_FOR_AN_ANSWER


def test_a_stream_that_the_server_cut_goes_on_exactly_there(codec) -> None:
    ids = codec.encode_sampled(CALL)
    for cut in range(1, len(ids)):
        server = Server(codec, [Chunk(tuple(ids[:cut]), "length")], [Chunk(tuple(ids[cut:]), "stop")])
        events = ask(server)
        assert [token for m in messages(events) for token in m.tokens] == [*OPENING, *ids], cut
        assert kinds(events) == ["extended"], cut
        assert server.prompts[1] == [*server.prompts[0], *ids[:cut]], cut


def test_an_answer_without_sense_is_sampled_again_under_another_seed(codec) -> None:
    server = Server(codec, "<|return|>", "<|channel|><|return|>", CALL)
    events = ask(server, SamplingParams(seed=7))
    assert messages(events)[-1].is_call
    assert "resampled" in kinds(events)
    assert server.params[0].seed == 7
    assert all(params.temperature == 1.0 for params in server.params)


def test_resampling_ends(codec) -> None:
    server = Server(codec, "<|return|>")
    events = ask(server, SamplingParams(seed=7))
    assert messages(events) == []
    assert kinds(events) == ["resampled"] * 3 + ["stray_end"]
    assert [params.seed for params in server.params] == [7, 8, 9, 10]
    assert [e.attempt for e in events if isinstance(e, Retried)] == [1, 2, 3]
    assert sampled(events).completion_tokens == 4


def test_a_model_that_goes_on_after_its_call_is_stopped(codec) -> None:
    invented = CALL.replace("<|call|>", "<|end|>") + (
        "<|start|>container.exec to=assistant<|channel|>commentary<|message|>all passed<|end|>"
        "<|start|>assistant<|channel|>final<|message|>All tests pass.<|return|>"
    )
    server = Server(codec, invented)
    events = ask(server)
    (call,) = messages(events)
    assert call.is_call
    assert kinds(events) == ["foreign_role"]
    assert (server.closed, server.finished) == (1, 0)
    assert codec.prompt(TASK.add(call))[-len(OPENING) - 1] == END


def test_a_server_that_ignores_our_stop_ids_is_stopped(codec) -> None:
    ids = tuple(codec.encode_sampled(FINAL))
    server = Server(codec, [Chunk(ids), Chunk(ids), Chunk(ids, "stop")])
    events = ask(server)
    assert len(messages(events)) == 1
    assert server.finished == 0


def test_what_a_retry_made_void_is_forgotten(codec) -> None:
    ids = tuple(codec.encode_sampled(FINAL))
    server = Server(codec, [Chunk(ids[:5]), Retried("cut", 1, 0.5), Chunk(ids, "stop")])
    events = ask(server)
    assert [e.reason for e in events if isinstance(e, Retried)] == ["cut"]
    assert [m.tokens for m in messages(events)] == [(*OPENING, *ids)]


def test_a_server_that_swallows_the_stop_token(codec) -> None:
    ids = tuple(codec.encode_sampled(CALL))[:-1]
    server = Server(codec, [Chunk(ids, "stop")])
    events = ask(server)
    assert messages(events)[0].is_call
    assert kinds(events) == ["missing_end"]
    ended = codec.prompt(TASK.add(*messages(events)))
    assert ended == [*server.prompts[0], *codec.encode_sampled(CALL), *OPENING]


def test_the_answer_is_bounded_by_the_window(codec) -> None:
    prompt = len(codec.prompt(TASK))
    server = Server(codec, FINAL, context_tokens=prompt + 300)
    ask(server)
    assert server.params[0].max_tokens == 300
    server = Server(codec, FINAL, context_tokens=prompt + 300)
    ask(server, SamplingParams(max_tokens=100))
    assert server.params[0].max_tokens == 100


def test_a_full_window_is_said_before_anything_is_sent(codec) -> None:
    server = Server(codec, FINAL, context_tokens=len(codec.prompt(TASK)) + 10)
    with pytest.raises(ContextOverflow, match="Compact"):
        ask(server)
    assert server.prompts == []


def test_half_a_call_is_never_given_as_a_call(codec) -> None:
    server = Server(codec, CALL)
    events = ask(server, SamplingParams(max_tokens=20))
    (message,) = messages(events)
    assert not message.is_call
    assert message.channel is Channel.COMMENTARY
    assert kinds(events) == ["cut_call"]
    assert sampled(events).finish == "length"
    assert len(server.prompts) == 1
    assert codec.prompt(TASK.add(message))[-len(OPENING) - 1] == END


def test_what_was_begun_after_the_answer_is_dropped_when_the_tokens_are_spent(codec) -> None:
    answer = FINAL.replace("<|return|>", "<|end|>")
    ids = codec.encode_sampled(answer + "<|start|>assistant<|channel|>analysis<|message|>But wait, there is")
    (message,) = messages(ask(Server(codec, [Chunk(tuple(ids), "length")]), SamplingParams(max_tokens=len(ids))))
    assert message.is_final
    assert message.tokens == (*OPENING, *codec.encode_sampled(answer))


LOOPS = {"exact": "so it is not so, ", "nearly": "wait, "}


@pytest.mark.parametrize("words", LOOPS.values(), ids=LOOPS)
def test_reasoning_in_a_loop_is_cut_and_asked_to_act(codec, words: str) -> None:
    rest = CALL.removeprefix("<|channel|>commentary")
    server = Server(codec, THOUGHT + words * 5000, rest)
    events = ask(server)
    thought, call = messages(events)
    assert call.is_call
    assert kinds(events) == ["cut_loop", "prefilled"]
    assert thought.text.startswith("Let me think.")
    assert len(thought.tokens) < 600
    assert server.finished == 1  # the first stream was closed
    assert sampled(events).completion_tokens < 2500


def test_a_loop_across_messages_is_seen_too(codec) -> None:
    again = "<|end|><|start|>assistant<|channel|>analysis<|message|>Let me think."
    events = ask(Server(codec, THOUGHT + again * 1000, CALL.removeprefix("<|channel|>commentary")))
    assert "cut_loop" in kinds(events)
    assert messages(events)[-1].is_call


def test_a_loop_in_a_call_is_sampled_again(codec) -> None:
    loop = CALL.split("pytest")[0] + "echo " * 9000
    events = ask(Server(codec, loop, CALL))
    assert kinds(events) == ["resampled"]
    assert messages(events)[-1].is_call


def test_a_loop_in_the_answer_ends_as_a_short_answer(codec) -> None:
    events = ask(Server(codec, "<|channel|>final<|message|>Done. " + "Really. " * 5000))
    assert messages(events)[-1].is_final
    assert len(messages(events)[-1].text) < 8000
    assert kinds(events)[-1] == "cut_loop"


def test_a_table_of_zeros_in_a_call_is_no_loop(codec) -> None:
    call = CALL.replace("pytest", "0, " * 1000)
    events = ask(Server(codec, call))
    assert kinds(events) == []
    assert messages(events)[-1].is_call


def test_long_reasoning_leaves_room_to_act(codec) -> None:
    varied = " ".join(str(number * 7919) for number in range(3000))
    server = Server(codec, THOUGHT + varied, CALL.removeprefix("<|channel|>commentary"))
    events = ask(server, SamplingParams(max_tokens=4000))
    assert kinds(events) == ["cut_thinking", "prefilled"]
    assert messages(events)[-1].is_call
    assert server.params[1].max_tokens is not None
    assert 500 < server.params[1].max_tokens < 1000


def test_errors_of_the_source_pass(codec) -> None:
    with pytest.raises(EndpointUnreachable):
        ask(Server(codec, EndpointUnreachable("nobody answers")))


def test_closing_the_answer_stops_the_source(codec) -> None:
    server = Server(codec, FINAL)
    answer = RawModel(codec, server).sample(TASK, SamplingParams())
    next(answer)
    answer.close()
    assert (server.closed, server.finished) == (1, 0)


def test_a_final_before_a_call_is_a_word_on_the_way(codec) -> None:
    server = Server(codec, FINAL.replace("<|return|>", "<|end|>") + "<|start|>assistant" + CALL)
    events = ask(server)
    word, call = messages(events)
    assert (word.channel, call.is_call) == (Channel.COMMENTARY, True)
    assert kinds(events) == ["final_before_call"]


def test_the_return_of_an_answer_becomes_an_end(codec) -> None:
    (answer,) = messages(ask(Server(codec, FINAL)))
    assert answer.tokens[-1] == RETURN
    assert RETURN not in codec.prompt(TASK.add(answer))


@given(
    answers=st.lists(garbage(), min_size=1, max_size=6),
    finishes=st.lists(st.sampled_from(["stop", "length"]), min_size=1),
    most=st.sampled_from([20, 60, 10_000]),
)
def test_whatever_a_server_sends_the_answer_ends(encoding, answers, finishes: list[str], most: int) -> None:
    """Nothing raises, the ladder has an end, half a call is no call, and the next prompt begins as this one did."""
    codec = Codec(encoding)
    server = Server(
        codec,
        *([Chunk(tuple(as_ids(codec, answer)), finishes[n % len(finishes)])] for n, answer in enumerate(answers)),
    )
    events = ask(server, SamplingParams(max_tokens=most))
    assert len(server.prompts) <= 10
    given_messages = messages(events)
    assert all(not message.is_call and not message.is_final for message in given_messages[:-1])
    assert all(message.tokens for message in given_messages)
    assert (sampled(events).finish == "call") == (given_messages != [] and given_messages[-1].is_call)
    begun = server.prompts[0][: -len(OPENING)]
    after = codec.prompt(TASK.add(*given_messages))
    if not any(message.is_final for message in given_messages):
        assert after[: len(begun)] == begun
    assert after[-len(OPENING) :] == list(OPENING)
    assert RETURN not in after or any(RETURN in message.tokens[:-1] for message in given_messages)


def test_an_answer_can_be_made_to_begin_with_a_call(codec: Codec) -> None:
    forced = tuple(codec.encode_sampled("<|channel|>commentary to=functions.plan <|constrain|>json<|message|>"))
    server = Server(codec, '{"steps": []}<|call|>')
    events = ask(server, SamplingParams(opening=forced))
    assert tuple(server.prompts[0][-len(forced) - 2 :]) == (*OPENING, *forced)
    assert [(m.recipient, m.text) for m in messages(events)] == [("functions.plan", '{"steps": []}')]


def test_deltas_tell_the_body_of_a_call_from_what_is_said(codec: Codec) -> None:
    deltas = [event for event in ask(Server(codec, CALL)) if isinstance(event, Delta)]
    assert {delta.recipient for delta in deltas if delta.channel is Channel.COMMENTARY} == {recipient_of(codec, CALL)}
    assert {event.recipient for event in ask(Server(codec, FINAL)) if isinstance(event, Delta)} == {None}


def recipient_of(codec: Codec, answer: str) -> str | None:
    """The recipient of an answer's call."""
    return messages(ask(Server(codec, answer)))[-1].recipient
