"""Rendering: the library's own, id for id; an append-only log; text that stays text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.harmony.codec import prune
from tests.agent.harmony import oracle
from tests.agent.harmony.cases import CONVERSATIONS


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rendering_is_the_librarys(codec, encoding, name: str) -> None:
    conversation = CONVERSATIONS[name]
    pruned = replace(conversation, messages=prune(conversation.messages))
    assert codec.prompt(conversation) == oracle.render(encoding, pruned)
