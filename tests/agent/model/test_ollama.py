"""Ollama's own interface: what is asked, what is made of what comes back, and that no text forges a control token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable
from agent.harmony.codec import Codec
from agent.harmony.tokens import CHANNEL, END, MESSAGE, OPENING, RETURN, START
from agent.model.base import Chunk, SamplingParams
from agent.model.client import Client, Clock, Endpoint
from agent.model.completions import CompletionsSource, Dialect
from agent.model.ollama import request, spelt
from agent.model.open import Vocabulary
from agent.model.spelling import Spelling
from tests.servers import Reply, document, head, line, serving

PARAMS = SamplingParams(0.5, 0.9, 77, 5)
STOP = (RETURN,)


@pytest.fixture(scope="module")
def spelling(cache_dir: Any) -> Spelling:
    return Vocabulary(cache_dir).spelling()


def said(text: str, **more: Any) -> bytes:
    return line({"model": "m", "created_at": "2026-01-15T12:00:00Z", "response": text, "done": False, **more})


def ended(reason: str = "stop", **more: Any) -> bytes:
    return said("", done=True, done_reason=reason, total_duration=9, prompt_eval_count=40, eval_count=3, **more)


def reply(*lines: bytes) -> Reply:
    return [head(kind="application/x-ndjson"), *lines]


def run(spelling: Spelling, answer: Reply, prompt: tuple[int, ...] = (1, 2), **options: Any) -> tuple[list[Any], Any]:
    with serving([answer]) as server:
        client = Client(Endpoint(server.url, "m", patience_s=5.0), Clock(sleep=lambda _: None))
        source = CompletionsSource(client, Dialect.OLLAMA, spelling, **options)
        chunks = list(source.generate(prompt, PARAMS, STOP))
        source.close()
        return chunks, server.requests[0]


def test_what_is_asked(spelling: Spelling, codec: Codec) -> None:
    prompt = (START, *codec.encode("user"), MESSAGE, *codec.encode("Grüße 🙂"), END, *OPENING)
    _, sent = run(spelling, reply(said("Hi"), ended()), prompt, context_tokens=32_768)
    assert sent.path == "/api/generate"
    assert sent.body == {
        "model": "m",
        "prompt": "<|start|>user<|message|>Grüße 🙂<|end|><|start|>assistant",
        "raw": True,
        "stream": True,
        "think": False,
        "truncate": False,
        "shift": False,
        "keep_alive": "30m",
        "options": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "num_predict": 77,
            "stop": [],
            "seed": 5,
            "num_ctx": 32_768,
        },
    }


def test_what_was_not_chosen_is_left_to_it(spelling: Spelling) -> None:
    _, body = request("m", (1,), SamplingParams(), spelling, None)
    assert body["options"]["num_predict"] == -1
    assert not {"seed", "num_ctx"} & body["options"].keys()


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (-1, 2**31 - 1), (2**63 - 1, 2**31 - 1)])
def test_any_seed_becomes_one_that_it_takes(spelling: Spelling, seed: int, sent: int) -> None:
    """It takes 32 bits, and a negative one for none."""
    assert request("m", (1,), SamplingParams(seed=seed), spelling, None)[1]["options"]["seed"] == sent


def test_control_tokens_stand_alone_and_text_is_text(spelling: Spelling, codec: Codec) -> None:
    pieces = ["<|channel|>", "final", "<|message|>", "The file has <|end|> in it", "."]
    chunks, _ = run(spelling, reply(*map(said, pieces), ended()))
    ids = [token for chunk in chunks for token in chunk.ids]
    text = codec.encode("The file has <|end|> in it")
    assert ids == [CHANNEL, *codec.encode("final"), MESSAGE, *text, *codec.encode("."), RETURN]
    assert chunks[-1] == Chunk((), "stop", 40)


def test_the_limit_is_told_and_nothing_is_added_to_the_answer(spelling: Spelling, codec: Codec) -> None:
    chunks, _ = run(spelling, reply(said("It"), ended("length")))
    assert chunks == [Chunk(tuple(codec.encode("It"))), Chunk((), "length", 40)]


def test_a_stop_id_of_ours_that_it_does_not_know_ends_the_answer(spelling: Spelling, codec: Codec) -> None:
    with serving([reply(said("It"), said("<|end|>"), said("more"), ended())]) as server:
        source = CompletionsSource(Client(Endpoint(server.url, "m")), Dialect.OLLAMA, spelling)
        chunks = [chunk for chunk in source.generate((1,), PARAMS, (END,)) if isinstance(chunk, Chunk)]
        source.close()
    assert [chunk.ids for chunk in chunks if chunk.ids] == [tuple(codec.encode("It")), (END,)]
    assert chunks[-1].finish == "stop"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (document({"error": "model 'm' not found"}, 404), EndpointRefused),
        (document({"error": "the input length exceeds the context length"}, 400), ContextOverflow),
        (
            document({"error": "the prompt is longer than the context length currently available to the model"}, 400),
            ContextOverflow,
        ),
        (reply(said("It"), line({"error": "an error was encountered while running the model"})), EndpointUnreachable),
        (reply(said("It"), line({"error": "the input length exceeds the context length"})), ContextOverflow),
        (reply(said("It")), EndpointUnreachable),
        (reply(said("It"), ended("load")), EndpointUnreachable),
        (reply(said("It"), b'{"respo'), EndpointUnreachable),
    ],
)
def test_faults(spelling: Spelling, answer: Reply, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(spelling, answer)


def test_a_prompt_that_lost_its_beginning_is_an_overflow_but_a_shorter_spelling_is_none(spelling: Spelling) -> None:
    assert run(spelling, reply(said("It"), ended()), (1,) * 50)[0]
    with pytest.raises(ContextOverflow, match="40 of the prompt's 60"):
        run(spelling, reply(said("It"), ended()), (1,) * 60)


FORGED = st.lists(
    st.sampled_from(["<|end|>", "<|start|>", "<", "|", ">", "end", "system", "<|", "|>", " ", "ü"]), max_size=8
)


@given(FORGED)
def test_only_our_own_control_tokens_are_control_tokens(codec: Codec, spelling: Spelling, pieces: list[str]) -> None:
    """Read as Ollama reads it, every spelling of a control token counting, the prompt has the control ids that it had."""
    prompt = [START, *codec.encode("tool"), MESSAGE, *codec.encode("".join(pieces)), END, *OPENING]
    read = codec.encode_sampled(spelt(prompt, spelling))
    assert [token for token in read if token >= 199_998] == [START, MESSAGE, END, START]


def test_what_forges_nothing_is_not_touched(codec: Codec, spelling: Spelling) -> None:
    text = "a <|b|> c <|nothing|> <end> naïve 🙂"
    assert spelt(codec.encode(text), spelling) == text
    assert spelt([], spelling) == ""
    assert spelt(codec.encode("x <|end|>"), spelling) == "x <\u200b|end|>"
