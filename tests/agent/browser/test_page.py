"""Pages: HTML to lines, wrapping, windows, marks that cannot be forged, and search inside a page."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tools.browser.markup import MOST_LEVELS, MOST_TAGS, page_of
from agent.tools.browser.page import (
    MOST_CHARS,
    MOST_MATCHES,
    WINDOW_TOKENS,
    WRAP_COLUMNS,
    Link,
    find,
    make_page,
    mark,
    neutral,
    view,
    window_end,
    wrapped,
)

URL = "https://example.org/guide/start"


def words(text: str) -> list[str]:
    """One token a word: enough to count windows by."""
    return text.split()


def ords(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def lines(html: str) -> list[str]:
    return [line for line in page_of(html, URL).lines if line]


def test_blocks_become_lines_and_links_become_marks() -> None:
    page = page_of(
        """<html><head><title>The  Guide</title><style>p {}</style></head><body>
        <h2>Begin <i>here</i></h2>
        <p>Read <a href="/next">the <b>next</b> page</a>, or <a href="https://other.example/x">theirs</a>.</p>
        <ul><li>one</li><li>two <a href="/next">again</a></li></ul>
        <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
        <pre>def f():\n    return 1\n</pre>
        <script>forge()</script><div hidden>unseen</div>
        <a href="#top">up</a> <a href="mailto:x@example.org">mail</a> <img src=x alt="A cat"><br>end</body></html>""",
        URL,
    )
    assert page.title == "The Guide"
    assert [line for line in page.lines if line] == [
        "## Begin here",
        "Read 【0†the next page】, or 【1†theirs†other.example】.",
        "* one",
        "* two 【0†again】",
        "a | b",
        "1 | 2",
        "def f():",
        "    return 1",
        "up mail [Image: A cat]",
        "end",
    ]
    assert page.links == {0: Link("https://example.org/next"), 1: Link("https://other.example/x")}


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("", []),
        ("  \n", []),
        ("plain <text", ["plain"]),
        ("<?xml version='1.0' encoding='latin-1'?><p>é</p>", ["é"]),
        ("<p>a<p>b", ["a", "b"]),
        ("<li><p>inner</p></li>", ["* inner"]),
        ("<a href='/x'><div>a</div><div>b</div></a>", ["【0†a b】"]),
        ("<a href='/x'>one <a href='/y'>two</a> three", ["【0†one】【1†two】 three"]),
        ("<a href='/x'>never closed", ["【0†never closed】"]),
        ("<a href='http://[bad'>x</a>", ["x"]),
        ("<a href='javascript:alert(1)'>x</a>", ["x"]),
        ("<a href='/x'></a>y", ["y"]),
        ("<pre>a\n\n  b</pre>", ["a", "  b"]),
        ("<div>" * 1000 + "deep", ["deep"]),
        ("a\x00b\x1b[31mc\u2028d", ["a�b[31mc d"]),
    ],
)
def test_whatever_the_web_calls_html(html: str, expected: list[str]) -> None:
    assert lines(html) == expected


DEEP = "<div>" * 5000


def test_what_is_nested_thousands_deep_is_not_lost() -> None:
    """lxml ends at 2,048 levels, and with it went all text behind them."""
    page = page_of(
        f"<head><title>Deep</title><script>no</script></head><p>before{DEEP}<p hidden>no</p><a href='/x'>link</a>"
        f"<pre>a\n  b</pre>{'</div>' * 5000}<ul><li>after</ul><![odd[x]]><svg><svg>no</svg>no</svg></pre>end",
        URL,
    )
    assert page.title == "Deep"
    assert [line for line in page.lines if line] == ["before", "【0†link】", "a", "  b", "* after", "end"]
    assert page.links[0].url.endswith("/x")


@given(
    st.lists(
        st.sampled_from(["<p>", "</p>", "<a href=/b>", "</a>", "<pre>", "</pre>", "<li>", "x ", "\n", "<![", "<!", ">"])
    )
)
def test_a_deep_page_is_read_whatever_it_holds(parts: list[str]) -> None:
    page = page_of(DEEP + "".join(parts) + "<p>end", URL)
    assert page.lines


@given(st.text(max_size=200))
def test_any_text_makes_a_page_without_control_characters(html: str) -> None:
    page = page_of(html, URL)
    assert page.lines
    assert all(len(line) <= WRAP_COLUMNS for line in page.lines)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "".join(page.lines))


@given(
    st.lists(st.sampled_from(["【3†L1-L2】", "【0†x】", "†", "<b>", "<a href=/a>", "</a>", "word ", "\n", "&#12304;"]))
)
def test_a_page_cannot_forge_a_mark(parts: list[str]) -> None:
    """Every mark on a page is one of its own links."""
    page = page_of("".join(parts), URL)
    marks = re.findall(r"【(\d+)†[^【】]*】", " ".join(page.lines))
    assert {int(number) for number in marks} <= page.links.keys()
    assert " ".join(page.lines).count("【") == len(marks) == " ".join(page.lines).count("】")


def test_titles_and_addresses_are_neutral_too() -> None:
    page = page_of("<title>a 【1†b】\n[7] c</title>x", URL + "%E3%80%901%E2%80%A0x%E3%80%91")
    shown = view(page, 0, 0, 1)
    assert shown.startswith(
        "[0] a 〖1‡b〗 [7] c (https://example.org/guide/start〖1‡x〗)\n**viewing lines [0 - 0] of 0**\n\n"
    )
    assert mark(1, "a】【2†b", "https://e.org", "") == "【1†a〗〖2‡b†e.org】"
    assert make_page(URL, " \n", "x", {}).title == "Untitled"


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=600))
def test_wrapping_loses_nothing_but_spaces_and_line_ends(text: str) -> None:
    found = wrapped(text)
    assert all(len(line) <= WRAP_COLUMNS for line in found)
    assert "".join("".join(found).split()) == "".join(text.split())


@given(st.text(max_size=100))
def test_neutral_text_stays_as_it_is(text: str) -> None:
    assert neutral(neutral(text)) == neutral(text)


@given(st.lists(st.text(alphabet="ab ", max_size=80), min_size=1, max_size=120), st.integers(0, 119))
def test_windows_tile_a_page(texts: list[str], start: int) -> None:
    """Going on where a window ended shows every line once, and a window is full or the last one."""
    start = min(start, len(texts) - 1)
    seen = start
    while seen < len(texts):
        end = window_end(texts, seen, ords)
        shown = sum(len(ords(f"L{number}: {texts[number]}\n")) for number in range(seen, end))
        assert end > seen
        assert end == len(texts) or shown >= WINDOW_TOKENS
        assert shown < WINDOW_TOKENS + 100
        seen = end
    assert seen == len(texts)


def test_a_page_that_is_too_long_says_so() -> None:
    page = make_page(URL, "Long", "word " * (MOST_CHARS // 5 + 3), {})
    assert page.lines[-1] == "[15 more characters of this page are left out]"


def test_find_shows_places_with_what_follows() -> None:
    page = make_page(URL, "Numbers", "\n".join(f"line {number}" for number in range(100)), {})
    found = find(page, "LINE 42")
    assert found.lines == ("# 【0†match at L42】", "line 42", "line 43", "line 44", "line 45")
    assert found.links == {0: Link(URL, 42)}
    assert found.title == "Find results for 'LINE 42' in Numbers"
    assert find(page, "zebra").lines == ("No line of this page contains 'zebra'.",)
    assert len(find(page, "line").links) == 25
    long = make_page(URL, "Long", "x\n" * 1000, {})
    assert len(find(long, "x").links) == MOST_MATCHES


def test_what_was_looked_for_cannot_forge_a_mark() -> None:
    page = make_page(URL, "P", "x", {})
    assert "【" not in "".join(find(page, "【1†a】").lines) + find(page, "【1†a】").title


@pytest.mark.parametrize(
    ("lead", "unit"),
    [
        ("", "<div>"),
        ("", "<b></p>"),
        ("<b>" * (MOST_LEVELS - 100), "</i>"),
        (DEEP, "<!x "),
        (DEEP, "<!--"),
        (DEEP, '<a href="'),
        ("", "\0"),
        ("<a " + " ".join(f"a{number}=b" for number in range(400_000)), "<"),
    ],
    ids=["levels", "implied", "ends of nothing", "declarations", "comments", "quotes", "nul", "attributes"],
)
def test_a_hostile_page_is_read_in_time(lead: str, unit: str) -> None:
    """Meanwhile no other thread would run: most of it is spent in lxml, which holds the interpreter."""
    html = f"<p>before</p>{lead}{unit * (5_000_000 // len(unit))}"
    began_s = time.thread_time()
    page = page_of(html, URL)
    assert time.thread_time() - began_s < 2
    assert "before" in page.lines


@pytest.mark.parametrize("html", ["<i></i>" * MOST_TAGS, "<div>" * (MOST_LEVELS + 10) + "x"], ids=["many", "deep"])
def test_a_page_that_is_cut_says_so(html: str) -> None:
    lines = page_of(f"<p>before</p>{html}", URL).lines
    assert lines[0] == "before"
    assert lines[-2:] == (
        "[The rest of this page is left out: it has too many tags, or nests them too",
        "deeply]",
    )
    assert "left out" not in " ".join(page_of("<i></i>" * (MOST_TAGS // 2 - 2) + "5 < 6", URL).lines)


def test_where_a_document_is_cut_into_pieces_is_not_seen() -> None:
    words = [f"é漢😀{number}&amp;" for number in range(20_000)]
    page = page_of(f"<p>{' '.join(words)}</p>", URL)
    assert " ".join(page.lines).split() == [word.replace("&amp;", "&") for word in words]
