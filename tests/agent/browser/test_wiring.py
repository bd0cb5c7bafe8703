"""The browser among the other tools: off unless switched on, declared as it was trained, reached by every spelling."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import RunConfig, load, public
from agent.conversation import Conversation, Message, Role
from agent.errors import ConfigError, UsageError
from agent.harmony.codec import Codec, open_codec, recipients
from agent.model.functions import Functions
from agent.tools.browser.open import open_browser
from agent.tools.browser.page import WINDOW_TOKENS, make_page, window_end
from agent.tools.browser.services import EXA_URL, Exa, You
from agent.tools.names import Resolved, Unknown, resolve
from agent.tools.open import declare, open_tools

EXA, YOU = RunConfig(browser="exa", exa_api_key="k1"), RunConfig(browser="youcom", youcom_api_key="k2")
NAMES = ("browser_search", "browser_open", "browser_find")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return open_codec(tmp_path_factory.mktemp("cache"))


def test_it_is_off_unless_switched_on() -> None:
    assert not any(name.startswith("browser") for name in open_tools(RunConfig(exa_api_key="k")))
    tools = open_tools(EXA)
    assert tuple(tools)[-3:] == NAMES
    assert not any(tools[name].writes for name in NAMES)


def test_the_service_follows_the_keys() -> None:
    assert isinstance(open_browser(EXA).service, Exa)
    assert isinstance(open_browser(YOU).service, You)
    assert isinstance(open_browser(replace(YOU, browser="auto")).service, You)
    both = open_browser(replace(EXA, browser="auto", youcom_api_key="k2")).service
    assert isinstance(both, Exa)
    assert (both.api.url, both.api.key) == (EXA_URL, "k1")
    proxied = open_browser(replace(YOU, browser_url="http://127.0.0.1:9")).service
    assert isinstance(proxied, You)
    assert proxied.api.url == "http://127.0.0.1:9"
    for config in (replace(EXA, browser="youcom"), replace(YOU, browser="exa"), RunConfig(browser="auto")):
        with pytest.raises(UsageError, match=r"EXA_API_KEY.*YDC_API_KEY"):
            open_tools(config)


def test_each_run_has_a_browser_of_its_own() -> None:
    assert open_browser(EXA).pages is not open_browser(EXA).pages


def test_keys_come_from_the_environment_and_are_never_shown(tmp_path: Path) -> None:
    config = load(environ={"HOME": str(tmp_path), "EXA_API_KEY": "k-exa", "YDC_API_KEY": "k-you"}).config
    assert (config.exa_api_key, config.youcom_api_key) == ("k-exa", "k-you")
    assert "k-exa" not in repr(config) + json.dumps(public(config))
    (tmp_path / "agent.toml").write_text('browser = "exa"\n')
    with pytest.raises(ConfigError, match="cannot be set by a repository"):
        load(repository=tmp_path, environ={"HOME": str(tmp_path)})


def test_the_model_is_shown_the_browser_it_was_trained_with(codec: Codec) -> None:
    specs = declare(open_tools(EXA), "trained")
    assert {"browser.search", "browser.open", "browser.find"} <= recipients(specs)
    prompt = codec.decode(codec.prompt(Conversation("", specs, (Message(Role.USER, "hi"),))))
    assert "## browser\n\n// Tool for browsing.\n// The `cursor` appears in brackets" in prompt
    assert prompt.count("namespace browser {") == 1
    assert "type search = (_: {\nquery: string,\ntopn?: number, // default: 10" in prompt


def test_other_wires_get_three_functions() -> None:
    functions = Functions(declare(open_tools(EXA), "trained"))
    declared = {each["name"]: each for each in functions.declarations()}
    assert {"browser_search", "browser_open", "browser_find"} <= declared.keys()
    assert functions.recipient("browser_open") == "browser.open"
    assert declared["browser_search"]["parameters"]["required"] == ["query"]
    assert "Cite" in declared["browser_search"]["description"]


@pytest.mark.parametrize(
    ("recipient", "text", "tool", "expected"),
    [
        ("browser.search", '{"query": "x", "topn": 5}', "browser_search", {"query": "x", "topn": 5}),
        ("functions.browser.search", '{"query": "x"}', "browser_search", {"query": "x"}),
        ("browser_search", '{"q": "x", "num_results": "5"}', "browser_search", {"query": "x", "topn": 5}),
        ("web_search", "how to", "browser_search", {"query": "how to"}),
        ("web.search", '{"query": "x", "source": "web"}', "browser_search", {"query": "x", "source": "web"}),
        ("browser.open", '{"id": 3}', "browser_open", {"id": 3}),
        ("browser.open", '{"url": "https://e.org/"}', "browser_open", {"id": "https://e.org/"}),
        ("browser.open", "https://e.org/", "browser_open", {"id": "https://e.org/"}),
        ("browser.open", '{"cursor": 1, "line_start": 20.0}', "browser_open", {"cursor": 1, "loc": 20}),
        ("browser.open", '{"id": 1, "view_source": "true"}', "browser_open", {"id": 1, "view_source": True}),
        ("browser.find", '{"query": "x", "cursor": "2"}', "browser_find", {"pattern": "x", "cursor": 2}),
        ("browser.find<|channel|>analysis", "x", "browser_find", {"pattern": "x"}),
    ],
)
def test_every_spelling_reaches_it(recipient: str, text: str, tool: str, expected: object) -> None:
    found = resolve(recipient, text, open_tools(EXA))
    assert isinstance(found, Resolved)
    assert (found.tool, json.loads(found.text)) == (tool, expected)
    unknown = resolve(recipient, text, open_tools(RunConfig()))
    assert isinstance(unknown, Unknown)
    assert "There is no web here" in unknown.answer


def test_with_a_browser_nobody_is_told_that_there_is_no_web() -> None:
    found = resolve("browser.click", "{}", open_tools(EXA))
    assert isinstance(found, Unknown)
    assert "no web" not in found.answer
    assert "browser.open" in found.answer


def test_windows_are_counted_with_our_own_vocabulary(codec: Codec, tmp_path: Path) -> None:
    encode = open_browser(replace(EXA, cache_dir=tmp_path)).encode
    page = make_page("https://e.org", "P", "\n".join(f"The {n}th line has some words." for n in range(400)), {})
    end = window_end(page.lines, 0, encode)
    shown = "".join(f"L{n}: {line}\n" for n, line in enumerate(page.lines[:end]))
    assert (
        len(codec.encode(shown)) + end >= WINDOW_TOKENS
    )  # counted line by line, a token may be split at each line's end
    assert len(codec.encode(shown)) < WINDOW_TOKENS + 40


def test_what_reads_pages_is_asked_for_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(UsageError, match=r'lxml.*pip install "gpt-oss-agent\[browser\]"'):
        open_tools(EXA)
    assert "plan" in open_tools(RunConfig())
