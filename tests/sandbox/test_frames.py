"""The wire: whole frames out of whatever arrives, however it is cut, and after half a frame too."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import link
from sandbox.errors import SandboxLost
from sandbox.guest import frames
from sandbox.guest.frames import Frame

FRAMES = st.tuples(st.integers(1, 3), st.integers(0, 2**64 - 1), st.binary(max_size=50))
RUBBISH = st.one_of(st.binary(max_size=30), st.just(frames.MAGIC), st.just(frames.MAGIC * 3), st.just(frames.MAGIC[:2]))


def decoded(data: bytes, cuts: list[int]) -> list[Frame]:
    decoder = frames.Decoder()
    edges = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    return [frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(data[start:end])]


@given(st.lists(FRAMES), st.lists(st.integers(0, 10_000)))
def test_frames_survive_any_cut(sent: list[Frame], cuts: list[int]) -> None:
    assert decoded(b"".join(frames.encode(*frame) for frame in sent), cuts) == sent


@given(st.lists(st.tuples(RUBBISH, FRAMES)), st.lists(st.integers(0, 10_000)))
def test_what_comes_between_frames_is_skipped(parts: list[tuple[bytes, Frame]], cuts: list[int]) -> None:
    data = b"".join(rubbish + frames.encode(*frame) for rubbish, frame in parts) + frames.PADDING
    assert [frame for frame in decoded(data, cuts) if frame in [f for _, f in parts]] == [frame for _, frame in parts]


@given(FRAMES, st.data(), FRAMES, st.lists(st.integers(0, 10_000)))
def test_after_half_a_frame_and_the_padding_the_next_one_is_understood(
    half: Frame, data: st.DataObject, whole: Frame, cuts: list[int]
) -> None:
    encoded = frames.encode(half[0], half[1], half[2] + b"\0" * frames.MAX_PAYLOAD_BYTES)[
        : frames.HEADER.size + frames.MAX_PAYLOAD_BYTES
    ]
    cut = data.draw(st.integers(0, len(encoded) - 1))
    assert decoded(encoded[:cut] + frames.PADDING + frames.encode(*whole), cuts)[-1] == whole


def test_a_payload_of_any_length_goes_in_frames() -> None:
    payload = bytes(range(256)) * 1024
    decoder = frames.Decoder()
    found = [frame for piece in frames.encode_all(frames.DATA, 7, payload) for frame in decoder.feed(piece)]
    assert b"".join(data for _, _, data in found) == payload
    assert {(kind, number) for kind, number, _ in found} == {(frames.DATA, 7)}
    assert list(frames.encode_all(frames.DATA, 7, b"")) == []


def test_a_damaged_frame_is_none() -> None:
    frame = frames.encode(frames.END, 5, b"payload")
    for at in range(len(frame)):
        damaged = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
        assert frames.Decoder().feed(damaged + frames.PADDING) == []


class Flood:
    """A helper that is not ours: it answers every request without end."""

    def __init__(self) -> None:
        self._asked = frames.Decoder()
        self._answer = b""
        self._closed = False

    def read(self, timeout_s: float) -> bytes | None:
        return b"" if self._closed else self._answer or None

    def write(self, data: bytes) -> None:
        for _, number, _ in self._asked.feed(data):
            self._answer = frames.encode(frames.DATA, number, bytes(1000)) * 10

    def close(self) -> None:
        self._closed = True

    def last_words(self) -> str:
        return ""


def test_an_answer_without_end_does_not_fill_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_REPLY_BYTES", 1 << 16)
    opened = link.Link(Flood())
    with pytest.raises(SandboxLost, match="is endless"):
        opened.request({"verb": "changes"})
    opened.close()
