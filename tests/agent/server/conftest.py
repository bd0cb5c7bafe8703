from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from agent.harmony.codec import Codec, open_codec
from tests.agent.server.served import by_turn, raw, scripted, serving


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    cache_dir: Path = tmp_path_factory.mktemp("cache")
    return open_codec(cache_dir)


def client_of(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=url, api_key=key, max_retries=0)


@pytest.fixture(params=["scripted", "raw"])
def client(request: pytest.FixtureRequest, codec: Codec) -> Iterator[OpenAI]:
    """openai-python on a server, once over a model of messages and once over tokens."""
    backend = scripted() if request.param == "scripted" else raw(codec, by_turn(codec))
    with serving(backend) as (url, _), client_of(url) as opened:
        yield opened
