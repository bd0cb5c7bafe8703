"""The runtime in this process as a token source, over a tiny checkpoint on the CPU."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import Cancelled, ContextOverflow, ModelError, ModelUnfit
from agent.events import Retried
from agent.model.base import Chunk, SamplingParams
from agent.model.cancel import Cancel
from agent.model.local import LocalOptions, LocalSource, open_local

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
SEEDED = SamplingParams(seed=11, max_tokens=12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runtime.model.tiny import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


@pytest.fixture
def source(checkpoint: Path) -> Iterator[LocalSource]:
    opened = open_local(checkpoint, LocalOptions(device="cpu", cache_bytes=4 << 20, context_tokens=256))
    yield opened
    opened.close()


def chunks(stream: Iterator[Chunk | Retried]) -> list[Chunk]:
    return [chunk for chunk in stream if isinstance(chunk, Chunk)]


def ids(stream: Iterator[Chunk | Retried]) -> list[int]:
    return [token for chunk in chunks(stream) for token in chunk.ids]


def test_a_continuation_streams_and_says_how_it_ended(source: LocalSource) -> None:
    got = chunks(source.generate(PROMPT, SEEDED, ()))
    assert [len(chunk.ids) for chunk in got] == [1] * 12
    assert [chunk.finish for chunk in got] == [None] * 11 + ["length"]
    assert (got[-1].prompt_tokens, got[-1].cached_tokens) == (len(PROMPT), 0)


def test_the_stop_token_ends_the_answer_and_is_part_of_it(source: LocalSource) -> None:
    whole = ids(source.generate(PROMPT, SEEDED, ()))
    stop = whole[5]
    got = chunks(source.generate(PROMPT, SEEDED, (stop,)))
    assert got[-1].finish == "stop"
    assert [token for chunk in got for token in chunk.ids] == whole[: whole.index(stop) + 1]


def test_the_next_turn_finds_its_prefix(source: LocalSource) -> None:
    prompt = tuple(range(100))
    answer = ids(source.generate(prompt, SEEDED, ()))
    again = chunks(source.generate((*prompt, *answer, 7, 8), SEEDED, ()))
    assert again[-1].cached_tokens == 64


def test_closing_the_iterator_stops_the_work(source: LocalSource) -> None:
    stream = source.generate(PROMPT, SamplingParams(seed=1), ())
    next(stream)
    stream.close()
    assert len(ids(source.generate(PROMPT, SEEDED, ()))) == 12


def test_an_answer_ends_when_its_time_is_over(source: LocalSource) -> None:
    now = iter(range(1000))
    timed = LocalSource("timed", source._worker, 256, clock=lambda: float(next(now)))
    stream = timed.generate(PROMPT, SamplingParams(seed=1, timeout_s=3.0), ())
    assert len([next(stream) for _ in range(4)]) == 4
    with pytest.raises(ModelError, match="longer than the 3 s"):
        next(stream)
    assert len(ids(source.generate(PROMPT, SEEDED, ()))) == 12  # and the engine goes on


def test_conversations_at_a_time_do_not_mix(source: LocalSource) -> None:
    prompts = [tuple(range(i, i + 10)) for i in range(6)]
    alone = [ids(source.generate(prompt, SEEDED, ())) for prompt in prompts]
    got: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        got[index] = ids(source.generate(prompts[index], SEEDED, ()))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(6)] == alone


def test_the_answer_is_bounded_by_the_window(source: LocalSource) -> None:
    prompt = (1,) * 250
    assert len(ids(source.generate(prompt, SamplingParams(seed=1), ()))) == 6


def test_a_prompt_over_the_window_is_an_overflow(source: LocalSource) -> None:
    with pytest.raises(ContextOverflow, match="300 tokens and the local engine holds 256"):
        next(source.generate((1,) * 300, SEEDED, ()))


def test_a_cache_smaller_than_the_window_bounds_it(checkpoint: Path) -> None:
    small = open_local(checkpoint, LocalOptions(device="cpu", cache_bytes=300_000))
    assert 64 <= small.context_tokens < 1000
    assert len(ids(small.generate((1,), SamplingParams(seed=1), ()))) == small.context_tokens - 1
    small.close()


def test_loading_shows_its_progress(checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = LocalOptions(device="cpu", cache_bytes=1 << 20)
    open_local(checkpoint, options, lambda done, total: seen.append((done, total))).close()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_an_unusable_checkpoint_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelUnfit, match="safetensors"):
        open_local(tmp_path, LocalOptions(device="cpu"))


def test_a_device_without_room_says_so(checkpoint: Path) -> None:
    with pytest.raises(ModelUnfit, match="give the cache more"):
        open_local(checkpoint, LocalOptions(device="cpu", cache_bytes=1000))


def test_without_the_runtime_the_message_says_what_to_install(checkpoint: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from agent.errors import ModelUnfit\n"
        "from agent.model.local import LocalOptions, open_local\n"
        "try: open_local(Path(sys.argv[1]), LocalOptions())\n"
        "except ModelUnfit as e: print(e)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, cwd=root, check=True
    )
    assert 'pip install "gpt-oss-agent[runtime]"' in done.stdout


def test_a_folder_as_the_model_is_run_here_and_speaks_harmony(tmp_path: Path) -> None:
    """A tiny random checkpoint over the whole vocabulary: noise, but through every joint from message to message."""
    from agent.config import RunConfig
    from agent.conversation import Conversation, Message, Role
    from agent.events import Sampled
    from agent.model.open import open_model
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, write_tiny

    write_tiny(tmp_path / "model", config=tiny_config(HARMONY_VOCABULARY, layers=2))
    said: list[str] = []
    config = RunConfig(model=str(tmp_path / "model"), context_tokens=2048, cache_dir=tmp_path / "cache")
    model = open_model(config, said.append)
    assert model.context_tokens == 2048
    assert any("100 %" in line for line in said)
    conversation = Conversation("Be brief.", messages=(Message(Role.USER, "Hello"),))
    events = list(model.sample(conversation, SamplingParams(seed=4, max_tokens=40)))
    model.close()
    sampled = events[-1]
    assert isinstance(sampled, Sampled)
    assert sampled.completion_tokens >= 40
    assert sampled.prompt_tokens > 50


def test_an_answer_is_ended_from_another_thread_at_once_also_in_the_middle_of_a_step(source: LocalSource) -> None:
    cancel = Cancel()
    stream = source.generate(PROMPT, SamplingParams(seed=1, cancel=cancel), ())
    next(stream)
    worker = source._worker
    # The step under way takes as long as it takes: nothing may wait for it.
    step, held = worker._engine.step, threading.Event()

    def slow() -> object:
        held.wait(10)
        return step()

    worker._engine.step = slow  # type: ignore[method-assign, assignment]
    timer = threading.Timer(0.2, cancel.call)
    timer.start()
    with pytest.raises(Cancelled):
        list(stream)
    assert not held.is_set()
    held.set()
    timer.join()
    assert len(ids(source.generate(PROMPT, SEEDED, ()))) == 12
    assert worker._engine.scheduler.idle


def test_what_was_cancelled_before_it_began_gives_nothing(source: LocalSource) -> None:
    cancel = Cancel()
    cancel.call()
    with pytest.raises(Cancelled):
        list(source.generate(PROMPT, SamplingParams(seed=1, cancel=cancel), ()))
    source._worker.cancel("nobody")
    assert len(ids(source.generate(PROMPT, SEEDED, ()))) == 12


@pytest.mark.parametrize("backend", ["local", "torch", "transformers"])
def test_every_engine_in_this_process_says_the_same(checkpoint: Path, source: LocalSource, backend: str) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=12)
    opened = open_local(checkpoint, LocalOptions(backend, "cpu", 4 << 20, context_tokens=256))
    assert ids(opened.generate(PROMPT, greedy, ())) == ids(source.generate(PROMPT, greedy, ()))
    assert opened.context_tokens == 256
    opened.close()


def test_kernels_that_do_not_run_here_say_so(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", False)  # as other tests of this process want it
    with pytest.raises(ModelUnfit, match="do not run on cpu, only on CUDA GPUs"):
        open_local(checkpoint, LocalOptions("triton", "cpu"))


def test_without_transformers_the_message_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnfit, match=r'pip install "gpt-oss-agent\[transformers\]"'):
        open_local(checkpoint, LocalOptions("transformers", "cpu"))


def test_auto_says_which_engine_it_took_and_why(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from agent.config import RunConfig
    from agent.model.open import settled

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[str] = []
    assert settled(RunConfig(model=str(checkpoint)), said.append) == "torch"
    here = f"{checkpoint.name} is a checkpoint of this machine"
    assert said == [f"taking the torch backend, because no endpoint was given, {here}, and cpu is not a CUDA GPU"]
    assert settled(RunConfig(model=str(checkpoint), endpoint="http://127.0.0.1:1/v1"), said.append) == "auto"
    assert settled(RunConfig(wire="transformers", model=str(checkpoint)), said.append) == "transformers"
    assert len(said) == 1


def test_a_model_that_was_pulled_is_run_here_where_no_server_is(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.config import RunConfig
    from agent.errors import EndpointUnreachable
    from agent.harmony.codec import Codec
    from agent.model.local import is_pulled
    from agent.model.open import open_model
    from runtime import local

    assert not is_pulled("nobody/nothing")
    with pytest.raises(EndpointUnreachable, match="usual local ports"):
        open_model(RunConfig(model="nobody/nothing"), ports={})
    monkeypatch.setattr(local, "find_checkpoint", lambda _: checkpoint)
    assert is_pulled("somebody/tiny")
    said: list[str] = []
    model = open_model(RunConfig(model="somebody/tiny", context_tokens=2048), said.append, ports={})
    assert isinstance(model.codec, Codec)  # type: ignore[attr-defined]
    model.close()
    assert said[0].startswith("taking the ")
    assert "no local server answers, somebody/tiny was downloaded, and " in said[0]
