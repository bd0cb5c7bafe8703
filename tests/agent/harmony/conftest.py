from __future__ import annotations

from pathlib import Path

import pytest

from agent.harmony.codec import Codec
from agent.harmony.constrain import Guides, open_guides
from agent.harmony.vocabulary import load_encoding


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def encoding(cache_dir: Path):
    """The library's own encoding: the oracle."""
    return load_encoding(cache_dir)


@pytest.fixture
def codec(encoding) -> Codec:
    """A codec that has rendered nothing yet."""
    return Codec(encoding)


@pytest.fixture(scope="session")
def guides(cache_dir: Path, encoding) -> Guides:
    return open_guides(cache_dir, Codec(encoding).encode)
