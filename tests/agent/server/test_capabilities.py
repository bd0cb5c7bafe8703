"""Every backend behind the server: what it claims works, and what it does not claim is refused by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agent.conversation import Channel, Message, Role
from agent.harmony.codec import Codec
from agent.harmony.tokens import CHANNEL
from agent.model.capabilities import Capabilities
from agent.model.client import Client, Endpoint
from agent.model.local import LocalOptions, open_local
from agent.model.open import Vocabulary
from agent.model.raw import RawModel
from agent.server.app import Service
from agent.server.backend import Backend, as_backend
from agent.server.capable import check_capable
from agent.server.faults import BadRequest
from agent.server.fields import Fields
from tests.agent.model.players import Player, players
from tests.agent.server.served import Talker, scripted, serving, until
from tests.agent.server.test_access import open_stream
from tests.servers import serving as endpoint

WIRES = (
    "completions: ids", "completions: llama.cpp", "completions: sglang", "completions: text", "completions: ollama",
    "responses", "chat",
)  # fmt: skip
ENGINES = ("torch", "transformers")
BACKENDS = (*WIRES, "scripted", *ENGINES)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
SAID = '{"a": 1}'
ANSWER = (Message(Role.ASSISTANT, "Hm.", Channel.ANALYSIS), Message(Role.ASSISTANT, SAID, Channel.FINAL))
CALLS = (Message(Role.ASSISTANT, SAID, Channel.COMMENTARY, "functions.look", "json"),)
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 24}
PROMPT = {"model": "m", "prompt": "x", "max_tokens": 12}
PIXEL = {"url": "data:image/png;base64,AA=="}
# For each capability: the requests that want it, and the field that is named where it is not there.
WANT: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "raw": [("completions", {}, "prompt")],
    "ids_in": [("completions", {"prompt": [1, 2, CHANNEL]}, "prompt")],
    "ids_out": [("completions", {"return_token_ids": True}, "return_token_ids")],
    "temperature": [("chat/completions", {"temperature": 0.25}, "temperature")],
    "top_p": [("chat/completions", {"top_p": 0.5}, "top_p")],
    "seed": [("chat/completions", {"seed": 5}, "seed"), ("responses", {"seed": 5}, "seed"), ("completions", {"seed": 5}, "seed")],
    "logprobs": [
        ("chat/completions", {"logprobs": True}, "logprobs"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("completions", {"logprobs": 2}, "logprobs"),
        ("responses", {"top_logprobs": 2}, "top_logprobs"),
        ("responses", {"include": ["message.output_text.logprobs"]}, "include"),
    ],
    "stop_strings": [("chat/completions", {"stop": ['"a"']}, "stop")],
    "structured_output": [
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}}, "text.format"),
    ],
    "tool_choice": [("chat/completions", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice")],
    "images": [
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": PIXEL}]}]},
            "messages[0].content[0].type",
        ),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL["url"]}]}]},
            "input[0].content[0].type",
        ),
    ],
}  # fmt: skip
ELSEWHERE = frozenset({"cached_tokens", "parallel_requests"})  # of no field


@dataclass
class Case:
    """One backend, served. ``wire`` and ``bodies`` are there where a server is behind it, whose answer is ``said``."""

    name: str
    url: str
    service: Service
    wire: Player | None = None
    said: Sequence[Message] = ANSWER
    bodies: Callable[[], list[Any]] = list

    @property
    def can(self) -> Capabilities:
        return self.service.backend.model.capabilities

    def post(self, path: str, more: dict[str, Any]) -> httpx2.Response:
        body = {"completions": PROMPT, "responses": {"model": "m", "input": "x", "max_output_tokens": 24}}.get(
            path, QUESTION
        )
        return httpx2.post(f"{self.url}/{path}", json={**body, **more}, timeout=60)

    def said_under(self, more: dict[str, Any]) -> str:
        """What a backend without a server behind it says: an engine's noise is best looked at raw."""
        answer = self.post("completions" if self.can.raw else "chat/completions", more)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        text = choice["text"] if self.can.raw else choice["message"]["content"]
        assert text
        return str(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runtime.model.tiny import HARMONY_VOCABULARY, tiny_config, write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, config=tiny_config(HARMONY_VOCABULARY, layers=2))
    return folder


@contextmanager
def backend_of(name: str, codec: Codec, cache_dir: Path, folder: Path) -> Iterator[Case]:
    with ExitStack() as opened:
        case = Case(name, "", None)  # type: ignore[arg-type]
        if name in WIRES:
            player = players(codec, Vocabulary(cache_dir))[name]
            server = opened.enter_context(endpoint(lambda _: player.reply(case.said)))
            backend = as_backend("m", player.build(Client(Endpoint(server.url, "m", patience_s=2.0, shared=True))))
            case = Case(name, "", None, player, bodies=server.posts)  # type: ignore[arg-type]
        elif name == "scripted":
            backend = scripted([ANSWER])
        else:
            source = open_local(folder, LocalOptions(name, "cpu", 64 << 20, context_tokens=2048))
            backend = as_backend("m", RawModel(codec, source))
        case.url, case.service = opened.enter_context(serving(backend))
        yield case


@pytest.fixture(scope="module", params=BACKENDS)
def served(
    request: pytest.FixtureRequest, codec: Codec, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Case]:
    with backend_of(request.param, codec, tmp_path_factory.mktemp("cache"), checkpoint) as found:
        yield found


@pytest.fixture
def case(served: Case) -> Case:
    served.said = ANSWER
    return served


def test_what_it_can_do_is_listed(case: Case) -> None:
    (entry,) = httpx2.get(f"{case.url}/models").json()["data"]
    assert entry["capabilities"] == case.can.public()
    assert httpx2.get(f"{case.url}/models/{entry['id']}").json()["capabilities"] == case.can.public()


def test_every_capability_is_looked_at_here() -> None:
    assert {each.name for each in fields(Capabilities)} == WANT.keys() | ELSEWHERE


@pytest.mark.parametrize("capability", WANT)
def test_what_it_does_not_claim_is_refused_by_name(case: Case, capability: str) -> None:
    if getattr(case.can, capability):
        return  # see test_what_it_claims_works
    before = len(case.bodies())
    for path, more, param in WANT[capability]:
        if path == "completions" and not case.can.raw:
            param = param if capability in {"ids_in", "ids_out", "seed", "logprobs"} else "prompt"
        answer = case.post(path, more)
        told = answer.json()["error"]
        assert (answer.status_code, told["code"], told["param"]) == (400, "unsupported_parameter", param), answer.text
    assert len(case.bodies()) == before  # nothing was asked


def test_a_temperature_is_heeded(case: Case) -> None:
    if case.wire is not None:
        case.post("chat/completions", {"temperature": 0.25})
        assert case.wire.sampling(case.bodies()[-1])[0] == 0.25
    else:
        cold, warm = {"temperature": 0.0}, {"temperature": 2.0, "seed": 1}
        assert case.said_under(cold) == case.said_under(cold)
        assert (case.said_under(cold) == case.said_under(warm)) == (case.name == "scripted")


def test_top_p_is_heeded(case: Case) -> None:
    if case.wire is not None:
        case.post("chat/completions", {"top_p": 0.5})
        assert case.wire.sampling(case.bodies()[-1])[1] == 0.5
    else:
        assert case.said_under({"top_p": 0.0, "seed": 1}) == case.said_under({"temperature": 0.0})


@pytest.mark.parametrize("seed", [5, -5, 2**63 - 1])
def test_a_seed_is_heeded(case: Case, seed: int) -> None:
    if not case.can.seed:
        return  # refused, see above
    if case.wire is not None:
        assert case.post("chat/completions", {"seed": seed}).status_code == 200
        body = case.bodies()[-1]
        assert body.get("options", body)["seed"] == (seed % 2**31 if "options" in body else seed)
    else:
        assert case.said_under({"seed": seed}) == case.said_under({"seed": seed})
        assert case.name == "scripted" or case.said_under({"seed": seed}) != case.said_under({"seed": seed - 1})


def test_raw_text_goes_on(case: Case) -> None:
    if case.can.raw:
        answer = case.post("completions", {})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] > 0


def test_ids_go_in_and_come_out(case: Case, codec: Codec) -> None:
    if case.can.ids_in:
        assert case.post("completions", {"prompt": [1, 2, CHANNEL]}).status_code == 200
        if case.wire is not None:
            body = case.bodies()[-1]
            assert body.get("prompt", body.get("input_ids")) == [1, 2, CHANNEL]
    if case.can.ids_out:
        more = {"return_token_ids": True, "skip_special_tokens": False, "temperature": 0.0}
        choice = case.post("completions", more).json()["choices"][0]
        assert choice["text"]
        assert codec.decode(choice["token_ids"]).startswith(choice["text"])


def test_prompts_that_share_a_beginning_share_its_cost(case: Case) -> None:
    if not case.can.cached_tokens:
        return
    long = {"messages": [{"role": "user", "content": "word " * 200}], "temperature": 0.0}
    usage = [case.post("chat/completions", long).json()["usage"] for _ in range(2)][-1]
    found = usage["prompt_tokens_details"]["cached_tokens"]
    if case.name != "transformers":
        assert 0 < found < usage["prompt_tokens"]
        return
    ids = list(range(100, 160))  # its cache is for what goes on from what was
    more = {"return_token_ids": True, "temperature": 0.0}
    choice = case.post("completions", {**more, "prompt": ids}).json()["choices"][0]
    again = case.post("completions", {**more, "prompt": [*ids, *choice["token_ids"], 7]}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(ids)


def test_a_stop_sequence_ends_the_text_and_is_no_part_of_it(case: Case) -> None:
    if case.name in ENGINES:
        whole = case.said_under({"seed": 3})
        stop = next(character for character in whole[len(whole) // 2 :] if whole.index(character) > 0)
        assert case.said_under({"seed": 3, "stop": stop}) == whole[: whole.index(stop)]
        return
    choice = case.post("chat/completions", {"stop": ['"a"']}).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("{", "stop")


def test_structured_output_is_valid_or_an_error(case: Case) -> None:
    answer = case.post("chat/completions", {"response_format": {"type": "json_object"}})
    if case.name in ENGINES:  # noise is no JSON: it says so, or that the limit cut it off
        assert answer.status_code == 502 or answer.json()["choices"][0]["finish_reason"] == "length", answer.text
        return
    assert answer.json()["choices"][0]["message"]["content"] == SAID
    case.said = (Message(Role.ASSISTANT, "No JSON.", Channel.FINAL),)
    if case.wire is not None:
        broken = case.post("chat/completions", {"response_format": {"type": "json_object"}})
        assert (broken.status_code, broken.json()["error"]["code"]) == (502, "invalid_answer")


def test_a_demanded_call_is_made_or_an_error(case: Case) -> None:
    case.said = CALLS
    answer = case.post("chat/completions", {"tools": [TOOL], "tool_choice": "required"})
    if case.wire is None:
        assert answer.status_code == 502 or answer.json()["choices"][0]["finish_reason"] in {"length", "tool_calls"}
        return
    (made,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert made["function"] == {"name": "look", "arguments": SAID}


def test_requests_run_beside_each_other_or_are_told_to_wait(case: Case) -> None:
    with ExitStack() as held:
        for _ in range(3 if case.can.parallel_requests else 1):
            case.service.slots.take()
            held.callback(case.service.slots.give)
        answer = case.post("chat/completions", {"max_tokens": 4})
        if case.can.parallel_requests:
            assert answer.status_code == 200
            found: list[int] = []
            ask = lambda: found.append(case.post("chat/completions", {"max_tokens": 4}).status_code)  # noqa: E731
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [200] * 4
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(answer.headers["retry-after"]) >= 1


# -- whatever a backend may lack ------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [name for name in WANT if name != "raw"])
def test_whatever_a_backend_lacks_is_refused_and_nothing_else_is(capability: str) -> None:
    whole = Capabilities(**{each.name: True for each in fields(Capabilities)})
    for path, more, param in WANT[capability]:
        body = Fields({**(PROMPT if path == "completions" else QUESTION), **more})
        check_capable(body, whole)
        with pytest.raises(BadRequest) as caught:
            check_capable(body, replace(whole, **{capability: False}))
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "unsupported_parameter")


def test_what_asks_for_nothing_is_never_refused() -> None:
    nothing = Capabilities(**{each.name: False for each in fields(Capabilities)})
    harmless = {
        "temperature": 1, "top_p": 1.0, "seed": None, "stop": [], "logprobs": False, "top_logprobs": 0, "tool_choice": "auto",
        "response_format": {"type": "text"}, "return_token_ids": False, "text": {"format": {"type": "text"}}, "prompt": "x",
    }  # fmt: skip
    check_capable(Fields(harmless), nothing)
    check_capable(Fields({**harmless, "prompt": ["x"], "tool_choice": "none", "logprobs": 0}), nothing)


def test_one_at_a_time_means_one() -> None:
    talker = Talker(capabilities=Capabilities(parallel_requests=False))
    with serving(Backend("m", talker)) as (url, service):
        with open_stream(url):
            until(lambda: service.slots.taken == 1)
            assert httpx2.post(f"{url}/chat/completions", json=QUESTION).status_code == 429
        until(lambda: service.slots.taken == 0)
