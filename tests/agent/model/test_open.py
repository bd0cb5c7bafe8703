"""Finding the endpoint, the model and its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import RunConfig
from agent.conversation import Conversation, Message, Role
from agent.errors import EndpointRefused, EndpointUnreachable, ModelUnfit, UsageError
from agent.events import MessageAdded
from agent.model.base import SamplingParams
from agent.model.client import Clock
from agent.model.listing import Server, offers
from agent.model.open import open_model
from tests.agent.model.endpoints import ENDPOINTS, Endpoint, models, refuses
from tests.servers import Reply, Request, document, nobody, serving

NO_WAIT = Clock(sleep=lambda _: None)


def listing(*models: dict[str, Any]) -> Reply:
    return document({"object": "list", "data": list(models)})


def opened(reply: Reply, **options: Any) -> tuple[str, int | None, list[str]]:
    said: list[str] = []
    with serving([reply]) as server:
        found = open_model(RunConfig(endpoint=server.url, wire="chat", **options), said.append, clock=NO_WAIT)
        found.close()
        return found.name.split(" at ")[0], found.context_tokens, said


def test_the_only_model_is_taken_and_told() -> None:
    assert opened(listing({"id": "m", "max_model_len": 40_960})) == ("m", 40_960, ["no model was given: taking m"])


def test_the_only_gpt_oss_is_taken_among_others() -> None:
    assert opened(listing({"id": "llama"}, {"id": "openai/gpt-oss-20b"}))[0] == "openai/gpt-oss-20b"


def test_who_wants_calls_constrained_is_told_that_a_server_cannot() -> None:
    said = opened(listing({"id": "m"}), model="m", context_tokens=32_768, constrain="calls")[2]
    assert said == ["calls are not constrained: only the bundled engine (--wire local) supports that"]


@pytest.mark.parametrize("models", [["a", "b"], ["gpt-oss-20b", "gpt-oss-120b", "c"], []])
def test_several_models_have_to_be_told_apart(models: list[str]) -> None:
    with pytest.raises(UsageError, match="--model") as caught:
        opened(listing(*({"id": name} for name in models)))
    assert all(name in str(caught.value) for name in models if "gpt-oss" in name)


def test_a_given_name_is_taken_even_if_it_is_not_listed() -> None:
    assert opened(listing({"id": "a"}), model="b") == ("b", None, [])


def test_a_gateway_without_a_list_is_believed() -> None:
    assert opened(document({"error": "x"}, 404), model="b")[0] == "b"
    with pytest.raises(EndpointRefused):
        opened(document({"error": "x"}, 404))


def test_the_configured_window_goes_before_the_servers() -> None:
    assert opened(listing({"id": "m", "max_model_len": 4096}), context_tokens=2048)[1] == 2048


def test_with_model_and_window_given_nothing_is_asked() -> None:
    with serving([]) as server:
        config = RunConfig(endpoint=server.url, wire="chat", model="m", context_tokens=4096)
        open_model(config).close()
        assert server.requests == []


@pytest.mark.parametrize(
    ("entry", "window"),
    [
        ({"max_model_len": 131072}, 131072),
        ({"meta": {"n_ctx": 1024, "n_ctx_train": 8192}}, 1024),
        ({"context_length": 8192}, 8192),
        ({"context_window": 8192}, 8192),
        ({"max_model_len": None, "meta": None}, None),
        ({"max_model_len": "many"}, None),
    ],
)
def test_the_window_in_every_servers_words(entry: dict[str, Any], window: int | None) -> None:
    (offer,) = offers({"data": [{"id": "m", **entry}, "odd", {"no": "id"}]})
    assert offer.context_tokens == window


@pytest.mark.parametrize("odd", [5, True, "m", {"id": "m"}, None])
def test_a_list_that_is_none_has_no_models(odd: object) -> None:
    assert offers({"data": odd}) == offers({"models": odd}) == []


def test_a_server_that_is_still_starting_is_waited_for() -> None:
    with serving([document({"error": "Loading model"}, 503), listing({"id": "m"})]) as server:
        open_model(RunConfig(endpoint=server.url, wire="chat"), clock=NO_WAIT).close()
        assert len(server.requests) == 2


def test_a_local_server_is_found_by_its_port() -> None:
    said: list[str] = []
    with serving([listing({"id": "m"})]) as server, nobody() as dead:
        ports = {"Ollama": int(dead.split(":")[2].split("/")[0]), "vLLM": server.port}
        found = open_model(RunConfig(wire="chat"), said.append, ports=ports)
        found.close()
        assert server.url in found.name
        assert said[0] == f"no endpoint was given: taking the one at {server.url} (vLLM's usual port)"


def test_what_answers_on_a_port_but_is_no_model_server_is_passed_by() -> None:
    with serving([document({"hello": "world"}, 404)]) as other, serving([listing({"id": "m"})]) as server:
        found = open_model(RunConfig(wire="chat"), ports={"vLLM": other.port, "llama.cpp": server.port})
        found.close()
        assert server.url in found.name


def test_nobody_at_home_says_what_to_do() -> None:
    with nobody() as dead:
        ports = {"vLLM": int(dead.split(":")[2].split("/")[0])}
        with pytest.raises(EndpointUnreachable, match=r"vLLM \d+.*--endpoint or OPENAI_BASE_URL"):
            open_model(RunConfig(wire="chat"), ports=ports)


def test_the_key_reaches_the_server() -> None:
    def reply(request: Request) -> Reply:
        assert request.headers["authorization"] == "Bearer sesame"
        return listing({"id": "m"})

    with serving(reply) as server:
        open_model(RunConfig(endpoint=server.url, wire="chat", api_key="sesame")).close()


def test_a_recording_is_opened_by_its_wire_or_by_its_script(tmp_path: Path) -> None:
    script = tmp_path / "play.json"
    script.write_text('{"turns": [[{"text": "Done."}]]}')
    for wire in ("scripted", "auto"):
        assert "play.json" in open_model(RunConfig(wire=wire, script=script)).name
    with pytest.raises(UsageError, match="--script"):
        open_model(RunConfig(wire="scripted"))


def test_the_local_wire_needs_a_folder() -> None:
    with pytest.raises(UsageError, match="--model"):
        open_model(RunConfig(wire="local"))


TAKEN = {
    "vLLM": "completions, ids",
    "vLLM without ids": "completions, text",
    "llama.cpp": "completions, llama.cpp",
    "old SGLang": "completions, sglang",
    "Ollama": "chat",
    "old Ollama": "completions, ollama",
    "a gateway that strips control tokens": "responses",
    "a server that runs tokens together": "chat",
    "another model": "chat",
}


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_auto_takes_the_best_wire_that_is_offered(kind: str, cache_dir: Path) -> None:
    said: list[str] = []
    with serving(ENDPOINTS[kind]()) as server:
        model = open_model(RunConfig(endpoint=server.url, cache_dir=cache_dir), said.append, clock=NO_WAIT)
        model.close()
    assert model.name.endswith(f"({TAKEN[kind]})")
    name = "ollama" if kind == "old Ollama" else TAKEN[kind].split(",")[0]
    assert sum(line.startswith(f"taking the {name} backend, because") for line in said) == 1


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_a_wire_that_is_asked_for_is_taken_or_refused_with_the_reason(kind: str, cache_dir: Path) -> None:
    with serving(ENDPOINTS[kind]()) as server:
        config = RunConfig(endpoint=server.url, cache_dir=cache_dir, wire="completions")
        if "completions" in TAKEN[kind] and kind != "old Ollama":
            open_model(config, clock=NO_WAIT).close()
            return
        with pytest.raises(ModelUnfit, match="offers no raw completions for gpt-oss"):
            open_model(config, clock=NO_WAIT)
        assert not any(path.endswith(("chat/completions", "responses")) for path in (r.path for r in server.requests))


@pytest.mark.parametrize("kind", ["Ollama", "old Ollama", "vLLM"])
@pytest.mark.parametrize("root", ["/v1", ""])
def test_ollama_is_taken_where_it_shows_its_control_tokens(kind: str, root: str, cache_dir: Path) -> None:
    with serving(ENDPOINTS[kind]()) as server:
        url = server.url.removesuffix("/v1") + root
        config = RunConfig(
            endpoint=url, cache_dir=cache_dir, wire="ollama", model="gpt-oss-20b" if kind == "vLLM" else None
        )
        if kind == "old Ollama":
            model = open_model(config, clock=NO_WAIT)
            assert (model.context_tokens, model.name.endswith("(completions, ollama)")) == (4096, True)
            model.close()
            assert server.posts()[0]["options"]["num_predict"] == 2
            return
        why = "since 0.30" if kind == "Ollama" else "404"
        with pytest.raises(ModelUnfit, match=why):
            open_model(config, clock=NO_WAIT)


def test_a_script_says_that_it_was_taken_and_why(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "s.json").write_text('{"turns": []}')
    open_model(RunConfig(script=tmp_path / "s.json"), said.append)
    assert said == ["taking the scripted backend, because a script was given"]


@pytest.mark.parametrize("wire", ["chat", "responses"])
def test_a_named_wire_is_not_probed(wire: str, cache_dir: Path) -> None:
    with serving(ENDPOINTS["vLLM"]()) as server:
        open_model(RunConfig(endpoint=server.url, cache_dir=cache_dir, wire=wire)).close()
        assert [request.path for request in server.requests] == ["/v1/models"]


def test_the_window_is_known_of_a_model_that_the_probe_brought_into_memory(cache_dir: Path) -> None:
    """Otherwise the prompt of a long run loses its beginning, the task, and nobody is told."""
    endpoint = ENDPOINTS["Ollama"]()
    loaded = endpoint.paths["/api/ps"]
    unloaded = {"/api/ps": lambda body: loaded(body) if "/api/generate" in endpoint.asked else document({"models": []})}
    endpoint.paths = {**endpoint.paths, **unloaded}
    said: list[str] = []
    with serving(endpoint) as server:
        model = open_model(RunConfig(endpoint=server.url, cache_dir=cache_dir), said.append, clock=NO_WAIT)
        model.close()
    assert (model.name.endswith("(chat)"), model.context_tokens) == (True, 4096)
    assert any("only 4096 tokens" in line for line in said)


def test_an_answer_over_the_wire_that_was_taken(cache_dir: Path) -> None:
    conversation = Conversation("Be useful.", (), (Message(Role.USER, "Hi."),))
    with serving(ENDPOINTS["Ollama"]()) as server:
        model = open_model(RunConfig(endpoint=server.url, cache_dir=cache_dir), clock=NO_WAIT)
        events = list(model.sample(conversation, SamplingParams()))
        model.close()
    assert [e.message.text for e in events if isinstance(e, MessageAdded)] == ["Hm.", "Done."]


def test_a_server_that_dies_while_it_is_probed_is_unreachable(cache_dir: Path) -> None:
    with serving(Endpoint({"/v1/models": models(), "/v1/completions": refuses("down", 503)})) as server:
        watch_s = [0.0]
        clock = Clock(now=lambda: watch_s[0], sleep=lambda s: watch_s.__setitem__(0, watch_s[0] + s))
        with pytest.raises(EndpointUnreachable, match="down"):
            open_model(RunConfig(endpoint=server.url, cache_dir=cache_dir), clock=clock)
        assert watch_s[0] <= 60


@pytest.mark.parametrize(
    ("owner", "server"),
    [
        ("vllm", Server.VLLM),
        ("llamacpp", Server.LLAMA),
        ("library", Server.OLLAMA),
        ("me", Server.OTHER),
        (None, Server.OTHER),
    ],
)
def test_the_kind_of_server_is_told_by_the_owner(owner: str | None, server: Server) -> None:
    (offer,) = offers({"data": [{"id": "m", "owned_by": owner}]})
    assert offer.server is server


@pytest.mark.parametrize(
    ("owner", "path", "page", "window"),
    [
        ("library", "/api/ps", {"models": [{"name": "other"}, {"name": "m", "context_length": 4096}]}, 4096),
        ("library", "/api/ps", {"models": []}, None),
        (
            "organization_owner",
            "/api/v0/models",
            {"data": [{"id": "m", "max_context_length": 131_072, "loaded_context_length": 8192}]},
            8192,
        ),
        ("organization_owner", "/api/v0/models", {"data": [{"id": "m", "max_context_length": 131_072}]}, 131_072),
        ("library", "/elsewhere", {}, None),
    ],
)
def test_the_window_that_is_loaded_is_asked_where_the_server_tells_it(
    owner: str, path: str, page: dict[str, Any], window: int | None
) -> None:
    said: list[str] = []
    paths = {"/v1/models": models(id="m", owned_by=owner), path: lambda _: document(page)}
    with serving(Endpoint(paths)) as server:
        model = open_model(RunConfig(endpoint=server.url, wire="chat", model="m"), said.append)
        model.close()
    assert model.context_tokens == window
    assert bool(said) == (window is not None and window < 16_384)


@pytest.mark.parametrize(("wire", "told"), [("responses", True), ("chat", False)])
def test_a_seed_that_nobody_heeds_is_said_not_to_be_used(wire: str, told: bool) -> None:
    said: list[str] = []
    with serving([listing({"id": "m", "max_model_len": 40_960})]) as server:
        model = open_model(RunConfig(endpoint=server.url, wire=wire, model="m", seed=3), said.append)
        model.close()
    assert said == ([f"the seed is not used: m at {server.url} (responses) does not support one"] if told else [])
