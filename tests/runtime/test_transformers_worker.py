"""transformers as an engine: the same tokens as ours, the same manners as our worker's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import CheckpointError, EngineStopped, RequestRefused
from runtime.local import open_transformers_worker, open_worker
from runtime.model.weights import Layout
from runtime.request import Request, Sampling, Streams, TokenOut
from runtime.transformers_worker import TransformersWorker

PROMPT = tuple(torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(7)).tolist())
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def worker(tiny_checkpoints: dict[Layout, Path]) -> Iterator[TransformersWorker]:
    opened, window = open_transformers_worker(
        str(tiny_checkpoints[Layout.HUGGING_FACE]), device="cpu", context_tokens=512
    )
    assert window == 512
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ours(tiny_checkpoints: dict[Layout, Path]) -> Iterator[Streams]:
    folder = str(tiny_checkpoints[Layout.HUGGING_FACE])
    opened, _ = open_worker(folder, kernels="reference", device="cpu", cache_bytes=4 << 20, context_tokens=512)
    yield opened
    opened.close()


def ask(worker: Streams, prompt: tuple[int, ...], sampling: Sampling = GREEDY, **more: object) -> list[TokenOut]:
    request = Request("r", prompt, **{"max_tokens": 24, "sampling": sampling, **more})  # type: ignore[arg-type]
    return list(worker.stream(request))


def tokens(outs: list[TokenOut]) -> list[int | None]:
    return [out.token for out in outs]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 60])
def test_greedy_tokens_are_those_of_our_engine(worker: Streams, ours: Streams, length: int) -> None:
    """Over the edge of the sliding window (16), and over turns that go on from each other."""
    prompt = PROMPT[:length]
    for _ in range(3):
        found, true = ask(worker, prompt), ask(ours, prompt)
        assert tokens(found) == tokens(true)
        assert [out.finish for out in found] == [out.finish for out in true]
        prompt = (*prompt, *(t for t in tokens(found) if t is not None), 3, 1, 4)


def test_a_prompt_that_goes_on_is_not_computed_again_and_any_other_is(worker: Streams) -> None:
    first = ask(worker, PROMPT)
    assert first[-1].cached_tokens < len(PROMPT)
    said = tuple(t for t in tokens(first) if t is not None)
    longer = (*PROMPT, *said, 5)
    again = ask(worker, longer)
    assert again[-1].cached_tokens == len(PROMPT) + len(said) - 1  # the last token was sampled and never read
    other = ask(worker, longer[1:])
    assert other[-1].cached_tokens == 0
    assert tokens(ask(worker, longer)) == tokens(again)


def test_a_stop_token_ends_it_and_is_part_of_it(worker: Streams) -> None:
    whole = tokens(ask(worker, PROMPT))
    stop = whole[5]
    assert stop is not None
    outs = ask(worker, PROMPT, stop=frozenset({stop}))
    assert tokens(outs) == whole[: whole.index(stop) + 1]
    assert [out.finish for out in outs] == [None] * (len(outs) - 1) + ["stop"]


def test_a_seed_repeats_an_answer_and_the_settings_are_heeded(worker: TransformersWorker) -> None:
    before = torch.random.get_rng_state()
    seeded = Sampling(temperature=1.0, seed=11)
    one = tokens(ask(worker, PROMPT, seeded))
    assert one == tokens(ask(worker, PROMPT, seeded))
    assert one != tokens(ask(worker, PROMPT, Sampling(temperature=1.0, seed=12)))
    with worker._turn:  # the stream ends with its last token, the work a little later
        assert torch.equal(before, torch.random.get_rng_state())
    greedy = tokens(ask(worker, PROMPT))
    assert one != greedy
    assert tokens(ask(worker, PROMPT, Sampling(temperature=1.0, top_p=1e-6, seed=11))) == greedy
    assert len({tuple(tokens(ask(worker, PROMPT, Sampling(temperature=1.0)))) for _ in range(3)}) > 1


def test_requests_at_a_time_wait_for_each_other_and_do_not_mix(worker: Streams) -> None:
    prompts = [PROMPT[at : at + 20] for at in range(0, 40, 10)]
    alone = [tokens(ask(worker, prompt)) for prompt in prompts]
    found: dict[int, list[int | None]] = {}

    def one(index: int) -> None:
        request = Request(f"r{index}", prompts[index], 24, sampling=GREEDY)
        found[index] = tokens(list(worker.stream(request)))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == alone


def test_closing_the_iterator_stops_the_work(worker: TransformersWorker) -> None:
    stream = worker.stream(Request("r", PROMPT, 400, sampling=GREEDY))
    next(stream)
    stream.close()
    assert len(ask(worker, PROMPT)) == 24
    assert worker._cache.get_seq_length() < len(PROMPT) + 400


def test_another_thread_ends_a_stream_that_waits_for_its_turn(worker: TransformersWorker) -> None:
    first = worker.stream(Request("first", PROMPT, 400, sampling=GREEDY))
    next(first)
    over = threading.Event()

    def cancel_it() -> None:
        while not over.wait(0.2):  # as soon as it is there
            worker.cancel("second")

    cancelling = threading.Thread(target=cancel_it)
    cancelling.start()
    (only,) = worker.stream(Request("second", PROMPT, 24, sampling=GREEDY))
    over.set()
    cancelling.join()
    assert (only.token, only.finish) == (None, "cancelled")
    (late,) = worker.stream(Request("third", PROMPT, 24, sampling=GREEDY), lambda: True)
    assert late.finish == "cancelled"
    first.close()
    worker.cancel("nobody")
    assert len(ask(worker, PROMPT)) == 24


def test_what_it_cannot_do_is_refused(worker: Streams) -> None:
    for refused in (
        Request("r", (1,), 2, mask=lambda _: None),
        Request("r", (1,), 2, sampling=Sampling(logprobs=True)),
    ):
        with pytest.raises(RequestRefused, match="transformers"):
            next(worker.stream(refused))
    stream = worker.stream(Request("r", PROMPT, 24, sampling=GREEDY))
    next(stream)
    with pytest.raises(RequestRefused, match="already running"):
        next(worker.stream(Request("r", PROMPT, 24)))
    stream.close()


def test_a_fault_in_the_middle_ends_that_stream_and_spoils_no_other(worker: TransformersWorker) -> None:
    before = tokens(ask(worker, PROMPT))
    generate = worker._model.generate

    def fails(*arguments: object, **options: Any) -> object:
        options["generation_config"].max_new_tokens = 5
        generate(*arguments, **options)
        raise torch.OutOfMemoryError("no memory left")

    worker._model.generate = fails
    with pytest.raises(EngineStopped, match="no memory left"):
        ask(worker, PROMPT)
    worker._model.generate = generate
    assert worker.stopped is None
    assert tokens(ask(worker, PROMPT)) == before


def test_a_fault_of_the_device_ends_it_for_good(tiny_checkpoints: dict[Layout, Path]) -> None:
    """CUDA takes nothing more from a process in which a kernel has failed."""
    broken, _ = open_transformers_worker(str(tiny_checkpoints[Layout.HUGGING_FACE]), device="cpu")

    def fails(*_: object, **__: object) -> object:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    broken._model.generate = fails
    for _ in range(2):
        with pytest.raises(EngineStopped, match="device-side assert triggered"):
            ask(broken, PROMPT)
    broken.close()
    assert broken.stopped == "transformers failed: CUDA error: device-side assert triggered"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("raised", [IndexError("out of range in self"), None])
def test_what_nobody_foresaw_leaves_no_stream_waiting(worker: TransformersWorker, raised: Exception | None) -> None:
    before = tokens(ask(worker, PROMPT))
    generate = worker._model.generate

    def ends(*arguments: object, **options: Any) -> object:
        if raised is not None:
            raise raised
        options["generation_config"].max_new_tokens = 5
        return generate(*arguments, **options)

    worker._model.generate = ends
    with pytest.raises(EngineStopped, match="traceback" if raised else "no reason"):
        ask(worker, PROMPT)
    worker._model.generate = generate
    assert tokens(ask(worker, PROMPT)) == before


def test_a_closed_worker_says_so(tiny_checkpoints: dict[Layout, Path]) -> None:
    closing, _ = open_transformers_worker(str(tiny_checkpoints[Layout.HUGGING_FACE]), device="cpu")
    stream = closing.stream(Request("r", PROMPT, 400, sampling=GREEDY))
    next(stream)
    closing.close()
    closing.close()
    assert list(stream)[-1].finish == "cancelled"
    with pytest.raises(EngineStopped, match="closed"):
        next(closing.stream(Request("r", PROMPT, 24)))


def test_a_request_that_is_cancelled_ends_as_cancelled_however_soon_the_model_stops(worker: TransformersWorker) -> None:
    stream = worker.stream(Request("soon", PROMPT, 400, sampling=GREEDY))
    next(stream)
    unwanted = worker._runs["soon"].unwanted
    tell = unwanted.set

    def tell_and_wait() -> None:
        tell()
        with worker._turn:  # which the request has until the model has stopped
            pass

    unwanted.set = tell_and_wait  # type: ignore[method-assign]
    worker.cancel("soon")
    assert list(stream)[-1].finish == "cancelled"


def test_a_folder_that_it_cannot_load_says_why(tmp_path: Path, tiny_checkpoints: dict[Layout, Path]) -> None:
    for folder in (tmp_path, tiny_checkpoints[Layout.ORIGINAL]):
        with pytest.raises(CheckpointError, match="transformers cannot load"):
            open_transformers_worker(str(folder), device="cpu")
