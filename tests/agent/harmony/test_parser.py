"""Parsing: the library's own reading of what is well formed, every id accounted for, and nothing that raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conversation import Channel
from agent.harmony.codec import Codec
from agent.harmony.parser import Parsed, Parser
from agent.harmony.tokens import CHANNEL, END, MESSAGE, OPENING, RETURN, START
from tests.agent.harmony import oracle
from tests.agent.harmony.garbage import as_ids, garbage
from tests.agent.harmony.streams import RECIPIENTS, STREAMS

ANALYSIS, COMMENTARY, FINAL = Channel.ANALYSIS, Channel.COMMENTARY, Channel.FINAL
BODY = '{"command":["ls"]}'


def parse(codec: Codec, completion: list[int], *, stopped: bool = True) -> Parsed:
    parser = Parser(codec.token_bytes, RECIPIENTS)
    parser.feed([*OPENING, *completion])
    return parser.finish(stopped=stopped)


def read(parsed: Parsed) -> list[tuple[str, str | None, str | None, str | None]]:
    return [(m.text, m.channel and m.channel.value, m.recipient, m.content_type) for m in parsed.messages]


@pytest.mark.parametrize("name", STREAMS)
def test_well_formed_streams_are_read_as_the_library_reads_them(codec, encoding, name: str) -> None:
    completion = codec.encode_sampled(STREAMS[name])
    parsed = parse(codec, completion)
    assert read(parsed) == oracle.parse(encoding, completion)
    assert parsed.repairs == ()
    assert [token for message in parsed.messages for token in message.tokens] == [*OPENING, *completion]
    assert (parsed.open, parsed.partial) == ((), None)


# What users' logs hold (the cases that openai-harmony refuses, loses or misreads): the completion, what it should come to,
# and the repairs that say so.
OBSERVED = {
    "a stray word in the header": (
        f"<|channel|>commentary to=container.exec code_block <|constrain|>json<|message|>{BODY}<|call|>",
        [(BODY, "commentary", "container.exec", "json")],
        {"header_words"},
    ),
    "a structured answer": (
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
        [("{}", "final", None, "json")],
        set(),
    ),
    "a lone type in the reasoning": (
        "<|channel|>analysis code<|message|>x = 1<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [("x = 1", "analysis", None, "code"), ("Hi", "final", None, None)],
        set(),
    ),
    "code called without a name": (
        "<|channel|>analysis code<|message|>print(1)<|call|>",
        [("print(1)", "analysis", "python", "code")],
        {"recipient"},
    ),
    "two channels": (
        f"<|channel|>analysis<|channel|>commentary to=container.exec<|message|>{BODY}<|call|>",
        [(BODY, "commentary", "container.exec", None)],
        set(),
    ),
    "text after an end": (
        "<|channel|>analysis<|message|>Hm<|end|>.<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [("Hm.", "analysis", None, None), ("Hi", "final", None, None)],
        {"missing_start", "split_body"},
    ),
    "no start": (
        "<|channel|>analysis<|message|>Hm<|end|>assistant<|channel|>final<|message|>Hi<|return|>",
        [("Hm", "analysis", None, None), ("Hi", "final", None, None)],
        {"missing_start"},
    ),
    "two starts": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [("Hm", "analysis", None, None), ("Hi", "final", None, None)],
        set(),
    ),
    "the opening once more": (
        "<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [("Hi", "final", None, None)],
        set(),
    ),
    "a role nobody knows": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>bash<|channel|>final<|message|>Hi<|return|>",
        [("Hm", "analysis", None, None), ("Hi", "final", None, None)],
        {"header_words"},
    ),
    "a channel nobody knows": (
        "<|channel|>??<|message|>Hi<|return|>",
        [("Hi", "final", None, None)],
        {"channel", "header_words"},
    ),
    "no channel at all": ("<|message|>Hi<|return|>", [("Hi", "final", None, None)], {"channel"}),
    "an empty channel before a call": (
        f"<|channel|> to=container.exec<|message|>{BODY}<|call|>",
        [(BODY, "commentary", "container.exec", None)],
        {"channel"},
    ),
    "no message marker in the first message": (
        "<|channel|>final Hi there<|return|>",
        [(" Hi there", "final", None, None)],
        {"missing_message"},
    ),
    "no message marker in a later one": (
        (
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=container.exec "
            f"<|constrain|>json{BODY}<|call|>"
        ),
        [("Hm", "analysis", None, None), (BODY, "commentary", "container.exec", "json")],
        {"missing_message"},
    ),
    "no end before the next message": (
        f"<|channel|>analysis<|message|>Hm<|start|>assistant<|channel|>commentary to=container.exec<|message|>{BODY}<|call|>",
        [("Hm", "analysis", None, None), (BODY, "commentary", "container.exec", None)],
        {"missing_end"},
    ),
    "a channel in the middle of the text": (
        f"<|channel|>analysis<|message|>Hm<|channel|>commentary to=container.exec<|message|>{BODY}<|call|>",
        [("Hm", "analysis", None, None), (BODY, "commentary", "container.exec", None)],
        {"missing_end"},
    ),
    "an end in the middle of the text": (
        '<|channel|>commentary to=container.exec<|message|>{"command":<|end|>["ls"]}<|call|>',
        [(BODY, "commentary", "container.exec", None)],
        {"missing_start", "split_body"},
    ),
    "a system message of the model's own": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>system<|message|>Reasoning: high<|end|>",
        [("Hm", "analysis", None, None)],
        {"foreign_role"},
    ),
    "an invented answer of a tool": (
        (
            f"<|channel|>commentary to=container.exec<|message|>{BODY}<|end|>"
            "<|start|>container.exec to=assistant<|channel|>commentary<|message|>ok<|end|>"
        ),
        [(BODY, "commentary", "container.exec", None)],
        {"foreign_role"},
    ),
    "a second call": (
        (
            f"<|channel|>commentary to=container.exec<|message|>{BODY}<|end|>"
            "<|start|>assistant<|channel|>commentary to=python<|message|>1<|call|>"
        ),
        [(BODY, "commentary", "container.exec", None)],
        {"after_call"},
    ),
    "a torn name": (
        f"<|channel|>commentary to=containercontainer.exec<|message|>{BODY}<|call|>",
        [(BODY, "commentary", "container.exec", None)],
        {"recipient"},
    ),
    "a namespace without a name, which may be any of its tools": (
        "<|channel|>commentary to=functions<|message|>{}<|call|>",
        [("{}", "commentary", "functions", None)],
        set(),
    ),
    "a call on the final channel": (
        f"<|channel|>final to=container.exec<|message|>{BODY}<|call|>",
        [(BODY, "commentary", "container.exec", None)],
        {"channel"},
    ),
    "the built-in tool of another name": (
        "<|channel|>analysis to=browser.open_file<|message|>{}<|call|>",
        [("{}", "analysis", "browser.open_file", None)],
        set(),
    ),
    "a name nobody declared": (
        "<|channel|>commentary to=repo_browser.write_file<|message|>{}<|call|>",
        [("{}", "commentary", "repo_browser.write_file", None)],
        set(),
    ),
    "a recipient that is nobody": (
        "<|channel|>final to=user<|message|>Hi<|return|>",
        [("Hi", "final", None, None)],
        set(),
    ),
    "the end of text as an end": (
        "<|channel|>final<|message|>Hi<|endoftext|>",
        [("Hi", "final", None, None)],
        set(),
    ),
    "an answer without any header": (
        "<|channel|>analysis<|message|>Hm<|end|>It is fixed.<|return|>",
        [("Hm", "analysis", None, None), ("It is fixed.", "final", None, None)],
        {"missing_start", "missing_message"},
    ),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_what_models_were_seen_to_emit(codec, name: str) -> None:
    spelling, meant, kinds = OBSERVED[name]
    parsed = parse(codec, codec.encode_sampled(spelling))
    assert read(parsed) == meant
    assert {repair.kind for repair in parsed.repairs} == kinds


def test_most_of_it_the_library_refuses_or_misreads(codec, encoding) -> None:
    """Why this parser exists. Should this fail after an upgrade, the library has learnt something: read its change log."""
    worse = 0
    for spelling, meant, _ in OBSERVED.values():
        try:
            worse += oracle.parse(encoding, codec.encode_sampled(spelling)) != meant
        except RuntimeError:
            worse += 1
    assert worse >= 20


def test_text_streams_by_whole_characters(codec) -> None:
    parser = Parser(codec.token_bytes)
    parser.feed([*OPENING, *codec.encode_sampled("<|channel|>final<|message|>")])
    pieces = [delta.text for token in codec.encode("🤖🏽漢字é\u0301") for delta in parser.feed([token])]
    assert "".join(pieces) == "🤖🏽漢字é\u0301"
    assert all("\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_replaced(codec) -> None:
    half = codec.encode("漢🤖")[:-1]
    parsed = parse(codec, [*codec.encode_sampled("<|channel|>final<|message|>"), *half, RETURN])
    assert parsed.messages[0].text.endswith("\ufffd")


def test_a_cut_stream_keeps_what_was_whole_and_says_what_was_begun(codec) -> None:
    ids = codec.encode_sampled(STREAMS["a preamble, then a call"])[:-3]
    parsed = parse(codec, ids, stopped=False)
    assert [message.channel for message in parsed.messages] == [ANALYSIS, COMMENTARY]
    assert parsed.partial is not None
    assert parsed.partial.recipient == "container.exec"
    assert parsed.partial.tokens == parsed.open
    kept = [token for message in parsed.messages for token in message.tokens]
    assert [*kept, *parsed.open] == [*OPENING, *ids]


@given(mixed=garbage(), stopped=st.booleans(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_whatever_comes_is_read(encoding, mixed, stopped: bool, sizes: list[int]) -> None:
    codec = Codec(encoding)
    ids = [*OPENING, *as_ids(codec, mixed)]
    parser = Parser(codec.token_bytes, RECIPIENTS)
    at = 0
    while at < len(ids):
        size = sizes[at % len(sizes)]
        parser.feed(ids[at : at + size])
        at += size
    parsed = parser.finish(stopped=stopped)
    whole = Parser(codec.token_bytes, RECIPIENTS)
    whole.feed(ids)
    assert whole.finish(stopped=stopped) == parsed, "the result depends on how the ids were cut into chunks"
    kept = [token for message in parsed.messages for token in message.tokens]
    assert kept == ids[: len(kept)]
    assert list(parsed.open) == ids[len(kept) : len(kept) + len(parsed.open)]
    assert all(message.channel is not None for message in parsed.messages)
    assert all(not message.is_call for message in parsed.messages[:-1]), "something was kept after a call"
    assert all(not message.is_final for message in parsed.messages[:-1])
    if parsed.partial is not None:
        assert parsed.partial.tokens == parsed.open


@given(texts=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_comes_back(encoding, texts: list[str]) -> None:
    codec = Codec(encoding)
    ids: list[int] = list(OPENING)
    for text in texts:
        ids += [
            CHANNEL,
            *codec.encode("analysis"),
            MESSAGE,
            *codec.encode(text),
            END,
            START,
            *codec.encode("assistant"),
        ]
    parser = Parser(codec.token_bytes)
    parser.feed(ids)
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    assert [message.text for message in parser.finish(stopped=False).messages] == clean
