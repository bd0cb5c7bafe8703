from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from hypothesis import given

from agent.lines import clean
from agent.report.html import Markup, document, element, escape, join
from tests.agent.report.hostile import texts


class Reader(HTMLParser):
    """What a browser makes of it: tags with attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


@given(texts)
def test_text_stays_text(text: str) -> None:
    found = read(element("p", text, element("b", text), title=text))
    assert found.tags == [("p", {"title": clean(text)}), ("b", {})]
    assert found.text == clean(text) * 2


@given(texts)
def test_what_is_escaped_can_be_written_down(text: str) -> None:
    assert escape(text).encode().decode() == escape(text)


def test_attributes_are_spelled_for_html() -> None:
    made = element("td", class_="a b", aria_sort="ascending", data_v=1.5, open=True, hidden=False, id=None)
    assert made == '<td class="a b" aria-sort="ascending" data-v="1.5" open></td>'
    assert element("input", id="x") == '<input id="x">'
    assert element("meta", name="viewport") == '<meta name="viewport">'


def test_only_markup_is_taken_as_it_is() -> None:
    assert join(["<", Markup("<br>"), None, ""]) == "&lt;<br>"


def test_a_document_lets_in_its_own_style_and_script_alone() -> None:
    page = document("<t>", "p{color:red}", "let x = 1 < 2;", element("p", "x"))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for text in ("p{color:red}", "let x = 1 < 2;"):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"&#x27;sha256-{digest}&#x27;" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src &#x27;none&#x27;;")
    assert "<title>&lt;t&gt;</title>" in page
