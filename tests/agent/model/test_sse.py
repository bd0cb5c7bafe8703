"""The event stream decoder against any way of cutting the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ModelUnfit
from agent.model.sse import ServerEvent, events, lines

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


def decode(*chunks: bytes) -> list[ServerEvent]:
    return list(events(lines(chunks)))


def test_one_event() -> None:
    assert decode(b"data: hello\n\n") == [ServerEvent("", "hello")]


def test_names_comments_unknown_fields_and_several_data_lines() -> None:
    found = decode(b": ping\n\nevent: delta\nid: 3\nretry: 10\ndata: a\ndata:b\ndata\n\n: ping\n\ndata: c\n\n")
    assert found == [ServerEvent("delta", "a\nb\n"), ServerEvent("", "c")]


def test_a_name_without_data_is_no_event() -> None:
    assert decode(b"event: ping\n\ndata: a\n\n") == [ServerEvent("", "a")]


def test_old_llama_cpp_names_the_field_error() -> None:
    assert decode(b'error: {"code": 500}\n\n') == [ServerEvent("", '{"error": {"code": 500}}')]


def test_the_end_may_cut_the_last_blank_line() -> None:
    assert decode(b"data: a\n\ndata: b") == [ServerEvent("", "a"), ServerEvent("", "b")]


@given(st.lists(TEXT, min_size=1), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_any_cutting_gives_the_same_events(texts: list[str], end: str, data: st.DataObject) -> None:
    """Unicode line ends (U+2028, U+0085, form feed) are text; a chunk may end inside a character or between CR and LF."""
    whole = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert decode(*chunks) == [ServerEvent("", text) for text in texts]


@given(st.lists(st.binary()))
def test_no_bytes_break_it(chunks: list[bytes]) -> None:
    decode(*chunks)


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    with pytest.raises(ModelUnfit, match="not a model server"):
        decode(*[b"x" * 1024 * 1024] * 20)
