"""Constrained calls from the grammar to the tokens: the model over the runtime in this process, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from agent.config import RunConfig
from agent.conversation import Conversation, Message, Role, ToolSpec
from agent.events import MessageAdded, Repaired
from agent.harmony.codec import Codec, open_codec, recipients
from agent.harmony.constrain import Guides, open_guides
from agent.harmony.ladder import Tries
from agent.harmony.parser import Parser
from agent.harmony.tokens import CALL, CHANNEL, END, MESSAGE, OPENING, RETURN, START, STOPS
from agent.model.base import Chunk, SamplingParams
from agent.model.local import LocalOptions, LocalSource, open_local
from agent.model.open import open_model
from agent.model.raw import RawModel
from agent.tools.open import declare, open_tools
from tests.agent.harmony.guided import forbidden

TOOLS = declare(open_tools(RunConfig()), "trained")
SWITCH = ToolSpec(
    "switch",
    "Switch it.",
    {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "color": {"enum": ["red", "green"]}, "times": {"enum": [1, 2]}},
        "required": ["on", "times"],
    },
)
TASK = Conversation("Switch it on.", (SWITCH,), (Message(Role.USER, "Now."),))
TO_SWITCH = "<|channel|>commentary to=functions.switch <|constrain|>json<|message|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runtime.model.checkpoint import Layout
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, Layout.HUGGING_FACE, tiny_config(HARMONY_VOCABULARY, layers=2))
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def codec(cache_dir: Path) -> Codec:
    return open_codec(cache_dir)


@pytest.fixture(scope="module")
def guides(cache_dir: Path, codec: Codec) -> Guides:
    return open_guides(cache_dir, codec.encode)


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Iterator[LocalSource]:
    opened = open_local(checkpoint, LocalOptions(device="cpu", cache_bytes=16 << 20, context_tokens=2048))
    yield opened
    opened.close()


def sampled(source: LocalSource, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    chunks = [chunk for chunk in source.generate(prompt, params, STOPS) if isinstance(chunk, Chunk)]
    return [token for chunk in chunks for token in chunk.ids]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_held_the_tokens_are_the_same(
    source: LocalSource, codec: Codec, guides: Guides, temperature: float
) -> None:
    opening = (*OPENING, *codec.encode_sampled("<|channel|>analysis<|message|>"))
    prompt = [*codec.encode("Think about it. " * 10), *opening]
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=60)
    free = sampled(source, prompt, params)
    assert not set(free) & {START, CHANNEL, END, RETURN, CALL, MESSAGE}, "the noise stayed within the text"
    assert sampled(source, prompt, replace(params, guide=guides.guide(TOOLS, opening))) == free


def test_a_model_of_noise_calls_only_what_there_is_and_as_it_was_declared(
    source: LocalSource, codec: Codec, guides: Guides
) -> None:
    """Several at a time in one batch, a free one among them; then each again, alone: the same tokens."""
    opening = tuple(codec.encode_sampled(TO_SWITCH))
    prompt = codec.prompt(TASK, (*OPENING, *opening))
    free_params = SamplingParams(seed=50, max_tokens=25)
    answers: dict[int, list[int]] = {}

    def ask(seed: int) -> None:
        guide = guides.guide(TASK.tools, (*OPENING, *opening))
        answers[seed] = sampled(source, prompt, SamplingParams(seed=seed, max_tokens=200, guide=guide))

    threads = [Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    beside = sampled(source, prompt, free_params)
    for thread in threads:
        thread.join()
    together = dict(answers)
    for seed in range(3):
        ask(seed)
    assert answers == together
    assert beside == sampled(source, prompt, free_params)
    assert len({tuple(ids) for ids in answers.values()}) > 1
    for ids in answers.values():
        parser = Parser(codec.token_bytes, recipients(TASK.tools))
        parser.feed((*OPENING, *opening, *ids))
        (message,) = parser.finish(stopped=True).messages
        given = json.loads(message.text)
        assert (type(given["on"]), given["times"] in (1, 2)) == (bool, True)
        assert given.keys() <= {"on", "color", "times"}


def test_a_whole_answer_of_noise_has_whole_headers(source: LocalSource, codec: Codec, guides: Guides) -> None:
    model = RawModel(codec, source, tries=Tries(extend=0, prefill=(), resample=0), guides=guides)
    for seed in range(4):
        events = list(model.sample(TASK, SamplingParams(seed=seed, max_tokens=40)))
        assert [event.kind for event in events if isinstance(event, Repaired) and event.kind != "cut_call"] == []
        for event in events:
            if isinstance(event, MessageAdded):
                assert event.message.recipient in {None, "functions.switch"}
                assert event.message.channel is not None


def test_a_cut_call_goes_on_in_the_middle_of_its_body(source: LocalSource, codec: Codec, guides: Guides) -> None:
    model = RawModel(codec, source, guides=guides)
    opening = tuple(codec.encode_sampled(TO_SWITCH + '{"times": 2, "o'))
    for seed in range(5):
        events = list(model.sample(TASK, SamplingParams(seed=seed, max_tokens=300, opening=opening)))
        (message,) = [event.message for event in events if isinstance(event, MessageAdded)]
        given = json.loads(message.text)
        assert (given["times"], type(given["on"])) == (2, bool)
        assert not [event for event in events if isinstance(event, Repaired)]


class Deaf:
    """A source that is told what may come and says what it likes."""

    name, context_tokens = "deaf", None

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.params: list[SamplingParams] = []

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk]:
        self.params.append(params)
        assert params.guide is not None
        for token in self.ids:
            params.guide.take(token)
        yield Chunk(tuple(self.ids), "stop")

    def close(self) -> None:
        pass


def test_a_grammar_that_was_left_is_an_event(codec: Codec, guides: Guides) -> None:
    ids = codec.encode_sampled(
        '<|channel|>commentary to=functions.swich <|constrain|>json<|message|>{"on":true}<|call|>'
    )
    events = list(RawModel(codec, Deaf(ids), guides=guides).sample(TASK, SamplingParams()))
    kinds = [(event.kind, event.detail) for event in events if isinstance(event, Repaired)]
    assert ("let_go", "a token that does not fit") in kinds


def test_each_sample_has_a_guide_of_its_own_that_stands_behind_its_opening(codec: Codec, guides: Guides) -> None:
    thought = codec.encode_sampled("<|channel|>analysis<|message|>Hm.<|return|>")
    source = Deaf(thought)
    list(RawModel(codec, source, Tries(resample=0), guides=guides).sample(TASK, SamplingParams()))
    assert len(source.params) == 3, "an answer, then one from each prefill"
    assert len({id(params.guide) for params in source.params}) == 3
    fresh = guides.guide(TASK.tools, (*OPENING, *codec.encode_sampled("<|channel|>commentary")))
    assert forbidden(fresh, codec.encode_sampled(" to=functions.switch<|message|>")) is None


def test_the_setting_gives_the_local_model_guides(checkpoint: Path, cache_dir: Path) -> None:
    config = RunConfig(wire="local", model=str(checkpoint), context_tokens=1024, cache_dir=cache_dir)
    params = SamplingParams(seed=1, max_tokens=30)
    for constrain in ("calls", "off"):
        model = open_model(replace(config, constrain=constrain))
        try:
            assert isinstance(model, RawModel)
            kinds = {event.kind for event in model.sample(TASK, params) if isinstance(event, Repaired)}
        finally:
            model.close()
        assert bool(kinds & {"missing_message", "header_words", "stray_control"}) == (constrain == "off")
