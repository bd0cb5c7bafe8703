"""Citations: marks become links, at the right place, the same whether the text comes whole or in pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.tools.browser.citations import Citation, Citations, Source, normalize

PAGES = {3: Source("https://docs.example.org/a", "A"), 12: Source("https://b.example/?q=1", "B")}
TEXTS = st.lists(
    st.sampled_from(
        ["【3†L1-L2】", "【12†x】", "【9†L1】", "【", "】", "3", "†", "【3", "【3†", "\n", "so ", "é🙂", "【" + "1" * 9]
    )
).map("".join)


def test_a_known_cursor_becomes_a_link() -> None:
    found = normalize("It is so【3†L1-L2】, and【9†L4】 not.", PAGES.get)
    assert found.text == "It is so ([docs.example.org](https://docs.example.org/a)) , and【9†L4】 not."
    assert found.citations == (Citation(8, 58, PAGES[3]),)
    assert found.text[8:58] == " ([docs.example.org](https://docs.example.org/a)) "
    assert not found.partial


def test_the_beginning_of_a_mark_is_reported_and_kept() -> None:
    for end in ("【", "【3", "【3†", "【3†L1-"):
        found = normalize(f"so{end}", PAGES.get)
        assert (found.text, found.partial) == (f"so{end}", True)
    for end in ("【x", "【3】", "【3†a\n", "【1234567", "【3†" + "x" * 121):
        assert not normalize(f"so{end}", PAGES.get).partial


def test_a_stream_holds_back_only_what_may_be_a_mark() -> None:
    stream = Citations(PAGES.get)
    assert stream.feed("so【")[0] == "so"
    assert stream.feed("3†L1")[0] == ""
    text, (citation,) = stream.feed("-L2】 and【")
    assert text == " ([docs.example.org](https://docs.example.org/a))  and"
    assert (citation.start, citation.source) == (2, PAGES[3])
    assert stream.feed("x")[0] == "【x"
    assert stream.feed("【12")[0] == ""
    assert stream.finish() == "【12"
    assert stream.finish() == ""


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_pieces_give_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = Citations(PAGES.get)
    shown, citations = "", ()
    for start, end in pairwise(places):
        piece, found = stream.feed(text[start:end])
        shown, citations = shown + piece, citations + found
    shown += stream.finish()
    whole = normalize(text, PAGES.get)
    assert (shown, citations) == (whole.text, whole.citations)


@given(TEXTS)
def test_each_citation_points_at_its_link(text: str) -> None:
    found = normalize(text, PAGES.get)
    for citation in found.citations:
        assert found.text[citation.start : citation.end].endswith(f"]({citation.source.url})) ")
        assert found.text[citation.start : citation.end].startswith(" ([")
    assert normalize(text, lambda _: None).text == text
