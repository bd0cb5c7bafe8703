"""The table of agent/model/faults.py, every row and every gap between them."""

from __future__ import annotations

import json
import ssl

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import ContextOverflow, EndpointRefused, ModelError
from agent.model.faults import BREAKS, Garbled, Transient, broken, error_event, message_in, refusal, retry_after_s

URL = "http://127.0.0.1:1/v1"
WALL_S = 1_800_000_000.0

# What real servers answer when the prompt does not fit.
OVERFLOWS = {
    "openai": (
        400,
        {
            "error": {
                "message": "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
    ),
    "vllm": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens in the messages",
            "type": "BadRequestError",
            "code": 400,
        },
    ),
    "vllm, newer": (
        400,
        {
            "error": {
                "message": "You passed 5000 input tokens and requested 100 output tokens. However, the model's context length is only 4096 tokens, resulting in a maximum input length of 3996 tokens. Please reduce the length of the input prompt.",
                "type": "BadRequestError",
                "code": 400,
            }
        },
    ),
    "vllm, raw ids": (
        400,
        {"error": {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}},
    ),
    "llama.cpp": (
        400,
        {
            "error": {
                "code": 400,
                "message": "request (1200 tokens) exceeds the available context size (1024 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 1200,
                "n_ctx": 1024,
            }
        },
    ),
    "llama.cpp, old": (
        500,
        {"error": {"code": 500, "message": "the request exceeds the available context size. try increasing it"}},
    ),
    "sglang": (
        400,
        {
            "object": "error",
            "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            "type": "BadRequestError",
            "code": 400,
        },
    ),
    "ollama": (400, {"error": {"message": "input length exceeds the context length"}}),
    "ollama, new": (400, {"error": {"message": "prompt too long; exceeded max context length by 4 tokens"}}),
    "lm studio": (
        400,
        {
            "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough. Try to load the model with a larger context length"
        },
    ),
    "litellm": (400, {"error": {"message": "litellm.ContextWindowExceededError: ...", "code": "400"}}),
    "tgi": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
            "error_type": "validation",
        },
    ),
    "groq": (413, {"error": {"message": "Request too large for model", "code": "rate_limit_exceeded"}}),
}


@pytest.mark.parametrize(
    "said",
    [
        "Cannot truncate prompt with n_keep (5000) >= n_ctx (4096)",
        "Please reduce the length of the messages or completion.",
        "Input length 5000 exceeds maximum allowed token size 4096",
        "number of input tokens (5000) has exceeded max_prompt_len (4096) limit",
        "The total number of tokens exceeds the model limit",
        "max_tokens must be at least 1, got -900.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "Prompt length 5000 exceeds maximum input length 4096",
        "prompt is too long: 205000 tokens > 200000 maximum",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
    ],
)
def test_the_window_in_other_words(said: str) -> None:
    assert isinstance(refusal(400, {}, json.dumps({"error": {"message": said}}), wall_s=0.0), ContextOverflow)


@pytest.mark.parametrize(
    "said",
    [
        "tool name too long",
        "Unknown parameter: 'context_window'",
        "input[3].content: at most 10 items, which it exceeds",
        "max_tokens must be at least 1, got 0.",
        "The prompt parameter is not supported; limit your tokens",
    ],
)
def test_what_is_not_about_the_window(said: str) -> None:
    assert isinstance(refusal(400, {}, json.dumps({"error": {"message": said}}), wall_s=0.0), EndpointRefused)


@pytest.mark.parametrize("server", OVERFLOWS)
def test_every_servers_way_of_saying_that_the_prompt_is_too_long(server: str) -> None:
    status, body = OVERFLOWS[server]
    error = refusal(status, {}, json.dumps(body), wall_s=WALL_S)
    assert isinstance(error, ContextOverflow), error


@pytest.mark.parametrize(
    "said",
    [
        "messages: at least one message is required",
        "'temperature' must be at most 2",
        "Invalid token in the Authorization header",
        "tool call arguments are no JSON; the context of the call is lost",
        "The input must be a string or a list of tokens",
    ],
)
def test_a_plain_400_is_no_overflow(said: str) -> None:
    error = refusal(400, {}, json.dumps({"error": {"message": said}}), wall_s=WALL_S)
    assert isinstance(error, EndpointRefused)
    assert said in str(error)


EXPECTED = {
    **dict.fromkeys(range(300, 600), EndpointRefused),
    **dict.fromkeys(range(500, 600), Transient),
    501: EndpointRefused,
    413: ContextOverflow,
    **dict.fromkeys((408, 409, 425, 429, 499), Transient),
}


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_has_one_meaning(status: int) -> None:
    error = refusal(status, {}, '{"error": {"message": "no"}}', wall_s=WALL_S)
    assert type(error) is EXPECTED[status]
    if isinstance(error, EndpointRefused):
        assert error.status == status
    if status != 413:
        assert str(status) in str(error)
        assert "no" in str(error)


def test_a_rate_limit_on_tokens_is_no_overflow() -> None:
    body = json.dumps({"error": {"message": "the input exceeds the limit of tokens per minute"}})
    assert type(refusal(429, {}, body, wall_s=WALL_S)) is Transient


def test_a_spent_quota_is_not_waited_for() -> None:
    body = json.dumps({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    assert type(refusal(429, {"retry-after": "1"}, body, wall_s=WALL_S)) is EndpointRefused


def test_a_redirect_names_the_place() -> None:
    assert "https://new.example/v1" in str(refusal(308, {"location": "https://new.example/v1"}, "", wall_s=WALL_S))


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_both_forms_of_retry_after(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, wall_s=WALL_S) == wait_s


# What servers say when their own parser fails on an answer in harmony: vLLM, LM Studio, Ollama, llama.cpp.
GARBLED = [
    'unexpected tokens remaining in message header: Some("to=functions.shell")',
    "Unexpected token 12606 while expecting start token 200006",
    "Could not parse header: too many tokens remaining after extracting content-type and recipient",
    "channel marker present but no channel value found in header",
    'Failed to parse tool call: Expected "<|message|>", but got "to=function" at index 89.',
    "error parsing tool call: raw='{\"cmd\":\"echo context_length_exceeded\"}]', err=invalid character ']'",
    "Failed to parse input at pos 0: <|channel|>commentary",
]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("said", GARBLED)
def test_an_answer_that_the_server_cannot_parse_is_asked_for_again(said: str, status: int) -> None:
    """vLLM calls it a bad request, in the middle of a stream that began as a success."""
    body = {"error": {"message": said, "type": "BadRequestError", "code": status}}
    for error in (refusal(status, {}, json.dumps(body), wall_s=WALL_S), error_event(body["error"], wall_s=WALL_S)):
        assert isinstance(error, Garbled)
        assert (error.retry_after_s, error.most) == (0.0, 10)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "CUDA out of memory", "type": "InternalServerError", "code": 500}, Transient),
        ({"message": "overloaded", "code": "503"}, Transient),
        ({"message": "slow down", "code": 429}, Transient),
        ({"message": "bad grammar", "code": 400}, EndpointRefused),
        ({"message": "context_length_exceeded"}, ContextOverflow),
        ({"message": "quota", "code": "insufficient_quota"}, EndpointRefused),
        ({"message": "it fell over"}, Transient),
        ({"message": "odd", "code": True}, Transient),
        ("just text", Transient),
        (["a", "list"], Transient),
    ],
)
def test_an_error_inside_a_stream_follows_its_code(error: object, kind: type[ModelError]) -> None:
    assert type(error_event(error, wall_s=WALL_S)) is kind


def subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


REFUSED_BREAKS = {httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.TooManyRedirects}
ALL_BREAKS = [found for kind in BREAKS for found in subclasses(kind) if found.__module__.startswith("httpx2")]


@pytest.mark.parametrize("kind", ALL_BREAKS)
def test_everything_the_http_client_raises_has_a_meaning(kind: type[Exception]) -> None:
    error = broken(kind("it broke"), URL)
    assert type(error) is (EndpointRefused if kind in REFUSED_BREAKS else Transient)
    assert URL in str(error)


def test_the_http_clients_tree_is_as_this_table_knows_it() -> None:
    """A new branch of the library's tree must be given a row."""
    known = {
        "RequestError", "TransportError", "TimeoutException", "ConnectTimeout", "ReadTimeout", "WriteTimeout",
        "PoolTimeout", "NetworkError", "ConnectError", "ReadError", "WriteError", "CloseError", "ProxyError",
        "UnsupportedProtocol", "ProtocolError", "LocalProtocolError", "RemoteProtocolError", "DecodingError",
        "TooManyRedirects", "InvalidURL", "SSEError",
    }  # fmt: skip
    assert {kind.__name__ for kind in ALL_BREAKS} == known


def test_a_certificate_nobody_vouches_for_is_not_asked_again() -> None:
    error = httpx2.ConnectError("handshake")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    found = broken(error, URL)
    assert type(found) is EndpointRefused
    assert "SSL_CERT_FILE" in str(found)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "a"}}', "a"),
        ('{"error": "b"}', "b"),
        ('{"message": "c"}', "c"),
        ('{"detail": [{"loc": ["body"], "msg": "d"}]}', "d"),
        ("<html><body><h1>502</h1> Bad\n Gateway</body></html>", "502 Bad Gateway"),
        ("plain", "plain"),
        ("[]", ""),
        ("{}", ""),
        ("", ""),
    ],
)
def test_the_message_is_found_in_every_wrapping(body: str, said: str) -> None:
    assert message_in(body) == said


@given(
    st.text()
    | st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        json.dumps
    )
)
@example("[" * 60_000)
def test_no_body_breaks_the_translation(body: str) -> None:
    for status in (400, 429, 503):
        assert isinstance(refusal(status, {}, body, wall_s=WALL_S), ModelError)
    assert len(message_in(body)) <= 400
