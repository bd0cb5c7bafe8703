"""Parsing: the library's own reading of what is well formed, and every id accounted for."""

from __future__ import annotations

import pytest

from agent.harmony.parser import Parsed, Parser
from agent.harmony.tokens import OPENING
from tests.agent.harmony import oracle
from tests.agent.harmony.streams import RECIPIENTS, STREAMS


def parse(codec, completion: list[int], *, stopped: bool = True) -> Parsed:
    parser = Parser(codec.token_bytes, RECIPIENTS)
    parser.feed([*OPENING, *completion])
    return parser.finish(stopped=stopped)


@pytest.mark.parametrize("name", STREAMS)
def test_well_formed_streams_are_read_as_the_library_reads_them(codec, encoding, name: str) -> None:
    completion = codec.encode_sampled(STREAMS[name])
    parsed = parse(codec, completion)
    read = [(m.text, m.channel and m.channel.value, m.recipient, m.content_type) for m in parsed.messages]
    assert read == oracle.parse(encoding, completion)
    assert parsed.repairs == ()
    assert [token for message in parsed.messages for token in message.tokens] == [*OPENING, *completion]
