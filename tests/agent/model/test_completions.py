"""The standard dialects of raw completions, event by event, and the care with which text becomes ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ContextOverflow, EndpointUnreachable, ModelUnfit
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, CHANNEL, RETURN
from agent.model.base import Chunk, SamplingParams
from agent.model.client import Client, Clock, Endpoint
from agent.model.completions import STANDARD, CompletionsSource, Dialect, choice_ids, reader, request
from agent.model.spelling import Spelling
from tests.servers import Pause, Reply, Request, document, event, head, serving, stream

CONTROLS = {"<|channel|>": CHANNEL, "<|call|>": CALL, "<|return|>": RETURN}
NAMES = {token: name for name, token in CONTROLS.items()}
# A vocabulary of characters.
LETTERS = Spelling(
    lambda text: [ord(c) for c in text], CONTROLS.get, lambda ids: "".join(NAMES.get(t) or chr(t) for t in ids)
)
STOP = (RETURN, CALL)
PROMPT = (1, 2, 3)


def run(dialect: Dialect, reply: Reply, params: SamplingParams | None = None) -> tuple[list[Chunk], Any]:
    with serving([reply]) as server:
        client = Client(Endpoint(server.url, "m", patience_s=0.0), Clock(sleep=lambda _: None))
        source = CompletionsSource(client, dialect, LETTERS, 1000)
        chunks = list(source.generate(PROMPT, params or SamplingParams(), STOP))
        source.close()
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    return [chunk for chunk in chunks if isinstance(chunk, Chunk)], server.requests[0]


def ids(chunks: Sequence[Chunk]) -> tuple[int, ...]:
    return tuple(token for chunk in chunks for token in chunk.ids)


def vllm(token_ids: list[int], finish: str | None = None, stop_reason: Any = None) -> dict[str, Any]:
    return {
        "choices": [
            {"index": 0, "text": "x", "token_ids": token_ids, "finish_reason": finish, "stop_reason": stop_reason}
        ]
    }


@pytest.mark.parametrize("dialect", STANDARD)
def test_requests_leave_no_setting_to_the_server(dialect: Dialect) -> None:
    path, body = request(dialect, "m", PROMPT, SamplingParams(0.5, 0.9, 77, 5), STOP, LETTERS)
    flat = {**body, **body.get("sampling_params", {})}
    assert flat.get("prompt", flat.get("input_ids")) == [1, 2, 3]
    assert (flat["temperature"], flat["top_p"], flat["min_p"]) == (0.5, 0.9, 0.0)
    assert flat["top_k"] in {0, -1}
    assert flat["stream"] is True
    assert 77 in flat.values()
    assert flat.get("seed", flat.get("sampling_seed")) == 5
    if dialect is not Dialect.LLAMA:  # its stop ids are in the model file
        assert flat["stop_token_ids"] == [RETURN, CALL]
        assert flat["skip_special_tokens"] is False
    assert path == {"llama.cpp": "//completion", "sglang": "//generate"}.get(dialect, "/completions")


@pytest.mark.parametrize("dialect", STANDARD)
def test_no_limit_is_said_aloud_and_no_seed_not_at_all(dialect: Dialect) -> None:
    _, body = request(dialect, "m", PROMPT, SamplingParams(), STOP, LETTERS)
    flat = {**body, **body.get("sampling_params", {})}
    limit = next(flat[key] for key in ("max_tokens", "n_predict", "max_new_tokens") if key in flat)
    assert limit == (-1 if dialect is Dialect.LLAMA else None)
    assert not {"seed", "sampling_seed"} & flat.keys()


def test_vllm_and_new_sglang() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}}
    chunks, sent = run(Dialect.IDS, stream([vllm([7, 8]), vllm([9]), vllm([CALL], "stop", CALL), usage]))
    assert chunks == [Chunk((7, 8)), Chunk((9,)), Chunk((CALL,)), Chunk((), "stop", 3, 2)]
    assert sent.path == "/v1/completions"
    assert sent.body["return_token_ids"] is True


@pytest.mark.parametrize("key", ["stop_reason", "matched_stop"])
def test_a_stop_id_that_is_only_named_is_added(key: str) -> None:
    last = vllm([9], "stop")
    last["choices"][0].pop("stop_reason")
    last["choices"][0][key] = CALL
    chunks, _ = run(Dialect.IDS, stream([vllm([7]), last]))
    assert ids(chunks) == (7, 9, CALL)
    assert chunks[-1].finish == "stop"


@pytest.mark.parametrize("named", [None, "</s>", 199999])
def test_a_stop_that_is_not_ours_is_not_invented(named: Any) -> None:
    chunks, _ = run(Dialect.IDS, stream([vllm([7], "stop", named)]))
    assert ids(chunks) == (7,)


def test_a_server_that_does_not_know_our_stop_ids_is_stopped_by_hanging_up() -> None:
    more = [vllm([n]) for n in range(50)]
    with serving([[head(), *map(event, [vllm([7, RETURN, 8]), *more]), Pause(20)]]) as server:
        client = Client(Endpoint(server.url, "m"))
        chunks = list(CompletionsSource(client, Dialect.IDS, LETTERS).generate(PROMPT, SamplingParams(), STOP))
        assert chunks == [Chunk((7, RETURN)), Chunk((), "stop", 3)]
        assert server.hung_up.wait(5)
        client.close()


def test_the_limit_ends_an_answer() -> None:
    chunks, _ = run(Dialect.IDS, stream([vllm([7]), vllm([8], "length")]))
    assert chunks[-1] == Chunk((), "length", 3)


def test_text_without_the_ids_asked_for_is_unfit() -> None:
    with pytest.raises(ModelUnfit, match="without the token ids"):
        run(Dialect.IDS, stream([{"choices": [{"text": "hello"}]}]))


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_aborted_answer_is_not_whole(finish: str) -> None:
    with pytest.raises(EndpointUnreachable, match=finish):
        run(Dialect.IDS, stream([vllm([7], finish)]))


def test_an_overflow_by_the_answers_limit_is_cured_by_leaving_it_out() -> None:
    """A gateway tells no window, and vLLM behind it adds the limit to the prompt. What is asked for is kept all the same."""
    said = "This model's maximum context length is 4096 tokens. However, you requested 4999 tokens (999 in the prompt)."

    def answer(request: Request) -> Reply:
        if request.body["max_tokens"] is not None:
            return document({"error": {"message": said}}, 400)
        return stream([*(vllm([n, n]) for n in range(50)), vllm([], "stop")])

    with serving(answer) as server:
        source = CompletionsSource(
            Client(Endpoint(server.url, "m"), Clock(sleep=lambda _: None)), Dialect.IDS, LETTERS, None
        )
        for _ in range(2):
            chunks = [c for c in source.generate(PROMPT, SamplingParams(max_tokens=10), STOP) if isinstance(c, Chunk)]
            assert (len(ids(chunks)), chunks[-1].finish) == (10, "length")
        source.close()
    assert [body["max_tokens"] for body in server.posts()] == [10, None, None]


def test_a_real_overflow_stays_one() -> None:
    with serving([document({"error": {"message": "prompt is too long"}}, 400)]) as server:
        client = Client(Endpoint(server.url, "m"), Clock(sleep=lambda _: None))
        with pytest.raises(ContextOverflow):
            list(
                CompletionsSource(client, Dialect.IDS, LETTERS, None).generate(
                    PROMPT, SamplingParams(max_tokens=9), STOP
                )
            )
        client.close()
    assert len(server.requests) == 2


def test_a_silent_cut_of_the_prompt_is_an_overflow() -> None:
    with pytest.raises(ContextOverflow, match="only 2 of the prompt's 3 tokens"):
        run(Dialect.IDS, stream([vllm([7], "stop"), {"choices": [], "usage": {"prompt_tokens": 2}}]))


def llama(content: str, tokens: list[int], predicted: int, **more: Any) -> dict[str, Any]:
    return {"content": content, "tokens": tokens, "tokens_predicted": predicted, "stop": False, **more}


def test_llama_cpp() -> None:
    end = llama("", [], 3, stop=True, stop_type="eos", tokens_evaluated=3, timings={"cache_n": 1})
    chunks, sent = run(
        Dialect.LLAMA, stream([llama("a", [97], 1), llama("b", [98], 2), llama("", [CALL], 3), end], done=False)
    )
    assert chunks == [Chunk((97,)), Chunk((98,)), Chunk((CALL,)), Chunk((), "stop", 3, 1)]
    assert sent.path == "/completion"


@pytest.mark.parametrize(
    "limit", [{"stop_type": "limit"}, {"stopped_limit": True}, {"stop_type": "eos", "truncated": True}]
)
def test_llama_cpp_at_its_limit(limit: dict[str, Any]) -> None:
    chunks, _ = run(Dialect.LLAMA, stream([llama("a", [97], 1), llama("", [], 1, stop=True, **limit)], done=False))
    assert chunks[-1].finish == "length"


def test_ids_that_llama_cpp_keeps_back_are_filled_in() -> None:
    """Seen in the real one: a character of three tokens comes as one event with the last of its ids."""
    end = llama("", [], 5, stop=True, stop_type="eos")
    chunks, _ = run(
        Dialect.LLAMA, stream([llama("a", [97], 1), llama("xyz", [122], 4), llama("b", [98], 5), end], done=False)
    )
    assert ids(chunks) == (97, 120, 121, 122, 98)


@pytest.mark.parametrize("incremental", [False, True])
def test_sglang_streams_all_ids_or_the_new_ones(incremental: bool) -> None:
    answer = [5, 6, 7, CALL]

    def at(n: int, **finish: Any) -> dict[str, Any]:
        about = {"prompt_tokens": 3, "completion_tokens": n, "cached_tokens": 1, "finish_reason": finish or None}
        return {"output_ids": answer[n - 2 : n] if incremental else answer[:n], "meta_info": about}

    chunks, sent = run(Dialect.SGLANG, stream([at(2), at(4, type="stop", matched=CALL)]))
    assert chunks == [Chunk((5, 6)), Chunk((7, CALL)), Chunk((), "stop", 3, 1)]
    assert sent.path == "/generate"


def choice(text: str, **logprobs: Any) -> dict[str, Any]:
    return {"text": text, "logprobs": logprobs or None}


TEXTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "alone in its event": (choice("<|channel|>"), (CHANNEL,)),
    "alone in the list of tokens": (choice("<|channel|>a", tokens=["<|channel|>", "a"]), (CHANNEL, 97)),
    "written as ids": (choice("<|channel|>a", tokens=["token_id:200005", "token_id:97"]), (CHANNEL, 97)),
    "plain": (choice("ab"), (97, 98)),
    "empty": (choice(""), ()),
    "an odd id": (choice("x", tokens=["token_id:x"]), tuple(map(ord, "token_id:x"))),
}
FORGED = {
    "inside text": choice("a<|channel|>"),
    "inside a token": choice("x", tokens=["a<|channel|>b"]),
    "run together": choice("<|channel|><|call|>"),
    "in pieces of the list": choice("<|channel|>", tokens=["<|", "channel", "|>"]),
    "almost": choice("<|channel|"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_becomes_ids(case: str) -> None:
    given_choice, wanted = TEXTS[case]
    assert choice_ids(given_choice, LETTERS) == wanted


@pytest.mark.parametrize("case", FORGED)
def test_a_control_token_that_the_server_does_not_prove_is_text(case: str) -> None:
    assert not set(choice_ids(FORGED[case], LETTERS)) & set(CONTROLS.values())


@given(st.lists(st.sampled_from([*CONTROLS, "a", "<|", "|>", "channel", " "]), min_size=2, max_size=6))
def test_no_longer_piece_forges_a_control_token(pieces: list[str]) -> None:
    assert not set(choice_ids(choice("".join(pieces)), LETTERS)) & set(CONTROLS.values()) or "".join(pieces) in CONTROLS


def test_the_real_vocabulary_proves_control_tokens_the_same_way(codec: Codec, cache_dir: Any) -> None:
    from agent.model.open import Vocabulary

    spelling = Vocabulary(cache_dir).spelling()
    assert spelling.control("<|channel|>") == CHANNEL
    assert spelling.control("<|chan|>") is None
    assert spelling.control("a") is None
    assert list(spelling.encode("<|channel|>")) == codec.encode("<|channel|>")
    assert CHANNEL not in spelling.encode("<|channel|>")


def test_a_reader_is_for_one_answer() -> None:
    event_of = {"output_ids": [1, 2], "meta_info": {"completion_tokens": 2}}
    for _ in range(2):
        assert reader(Dialect.SGLANG, LETTERS)(event_of).ids == (1, 2)
