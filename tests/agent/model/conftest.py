from __future__ import annotations

from pathlib import Path

import pytest

from agent.harmony.codec import Codec, open_codec


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def codec(cache_dir: Path) -> Codec:
    return open_codec(cache_dir)
