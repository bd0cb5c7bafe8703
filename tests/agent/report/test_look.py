"""Reports as a person meets them: in a real browser, wide and on a phone, light and dark, with the mouse away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from agent.report.page import batch_page, run_page
from tests.agent.report.stories import PATCH, many_records, run_events, write_batch, write_run
from tests.chromium import Page, chromium

pytestmark = pytest.mark.chromium
PHONE = {"width": 390, "height": 844}
# Every element with words of its own: its contrast against the nearest ground that is not transparent (WCAG 2.2, 1.4.3).
CONTRASTS = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const found = rgb(getComputedStyle(each).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const element of document.querySelectorAll("body *")) {
    if (["SCRIPT", "TITLE", "title"].includes(element.tagName)) continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    const ink = rgb(element instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(ink), light(ground(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.add(`${element.tagName}.${element.getAttribute("class")} ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()
"""
HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4')].map(each => Number(each.tagName[1]))"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.page()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 turns, with as much output as a run may have."""
    folder = tmp_path_factory.mktemp("run")
    output = "".join(
        f"{number:4} a line of output that a command prints, as long as such lines are\n" for number in range(140)
    )
    run = write_run(folder / "r", run_events(200, output=output), PATCH)
    (folder / "report.html").write_text(run_page(run), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def batch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_batch(tmp_path_factory.mktemp("batch") / "out", many_records(40), runs=False)
    (out / "report.html").write_text(batch_page(out), encoding="utf-8")
    return out / "report.html"


def test_a_run_of_200_turns_opens_within_a_second(page: Page, run_file: Path) -> None:
    assert run_file.stat().st_size < 2_000_000
    times_s = [page.open(run_file.as_uri()) for _ in range(3)]
    assert min(times_s) < 1.0, times_s  # the least: a shared machine only ever adds
    assert page.complaints == []
    assert page.ask("document.querySelectorAll('article').length") == 201


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("name", ["run_file", "batch_file"])
def test_pages_are_fit_to_look_at(request: pytest.FixtureRequest, tmp_path: Path, page: Page, name: str, size: dict[str, int], dark: bool) -> None:  # fmt: skip
    page.open(request.getfixturevalue(name).as_uri(), dark=dark, **size)
    page.ask("document.querySelectorAll('details').forEach((each, at) => { if (at < 30) each.open = true })")
    assert page.complaints == []
    assert page.ask(TOO_WIDE) <= 0, "the page scrolls sideways"
    assert page.ask(CONTRASTS) == []
    ground = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) == dark
    picture = page.photograph(tmp_path / "page.png", whole=False)
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == ((780, 1688) if size else (1280, 900))
    assert len(picture) > 20_000  # one colour would be a tenth of that


@pytest.mark.parametrize("name", ["run_file", "batch_file"])
def test_pages_can_be_read_without_eyes(request: pytest.FixtureRequest, page: Page, name: str) -> None:
    page.open(request.getfixturevalue(name).as_uri())
    levels = page.ask(HEADINGS)
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "a level is left out"
    assert page.ask("document.documentElement.lang") == "en"
    assert page.ask("[...document.querySelectorAll('th')].every(each => each.scope)")
    assert page.ask("[...document.querySelectorAll('svg')].every(each => each.getAttribute('aria-label').length > 20)")
    assert page.ask("[...document.querySelectorAll('.mark.good, .mark.bad')].every(each => each.ariaLabel)")
    assert (
        page.ask(
            "[...document.querySelectorAll('[id]')].map(each => each.id).filter((id, at, all) => all.indexOf(id) !== at)"
        )
        == []
    )
    assert page.ask("[...document.querySelectorAll('a[href^=\"#\"]')].every(each => document.querySelector(each.hash))")


def test_turns_are_folded_and_opened_together(page: Page, run_file: Path) -> None:
    page.open(run_file.as_uri())
    opened = "[...document.querySelectorAll('.turn details')].filter(each => each.open).length"
    assert page.ask(opened) == 0
    page.ask("document.querySelector('[data-fold=open]').focus()")
    page.press("Enter")
    assert page.ask(opened) == page.ask("document.querySelectorAll('.turn details').length") > 300
    page.press("Tab")
    page.press("Enter")
    assert page.ask(opened) == 0


def test_the_table_is_sorted_from_the_keyboard(page: Page, batch_file: Path) -> None:
    page.open(batch_file.as_uri())
    page.ask("document.querySelector('#find').focus()")
    column = "[...document.querySelectorAll('.tasks tbody tr')].map(row => row.cells[{}].{})"
    names, times = column.format(0, "textContent"), column.format(2, "dataset.v")
    assert page.ask(names) == sorted(page.ask(names))
    for _ in range(2):
        page.press("Tab")  # over the table, which scrolls, to its first head
    page.press("Enter")
    assert page.ask("document.activeElement.parentElement.ariaSort") == "ascending"
    page.press("Enter")
    assert page.ask(names) == sorted(page.ask(names), reverse=True)
    page.press("Tab")
    page.press("Tab")
    page.press("Enter")
    assert page.ask("document.activeElement.textContent") == "Time"
    assert page.ask("document.activeElement.parentElement.ariaSort") == "descending"
    found = [float(value) for value in page.ask(times)]
    assert found == sorted(found, reverse=True)
    assert page.ask("document.querySelectorAll('[aria-sort]').length") == 1


def test_tasks_are_found_by_what_is_said_of_them(page: Page, batch_file: Path) -> None:
    page.open(batch_file.as_uri())
    page.ask("document.querySelector('#find').focus()")
    for letter in "parser":
        page.press(letter, text=letter)
    shown = page.ask("[...document.querySelectorAll('.tasks tbody tr')].filter(row => row.checkVisibility()).length")
    assert shown == 4
    assert page.ask("document.querySelector('#found').textContent") == "4 shown"


def test_the_policy_lets_nothing_in(page: Page, run_file: Path) -> None:
    """Were a text to get out of its element all the same, it could neither run nor load anything."""
    page.open(run_file.as_uri())
    page.ask(
        "document.body.insertAdjacentHTML('beforeend', `<img src='http://127.0.0.1:9/x.png' onerror='window.ran = 1'>"
        "<p style='color: red' onclick='window.ran = 1'>x</p><iframe src='data:text/html,x'></iframe>`);"
        "document.body.lastElementChild.previousElementSibling.click();"
        "const made = document.createElement('script'); made.textContent = 'window.ran = 1'; document.body.append(made); 0"
    )
    page.ask("new Promise(done => setTimeout(done, 200))")
    assert page.ask("window.ran") is None
    assert len([each for each in page.complaints if "Content Security Policy" in each]) >= 4


def test_ten_thousand_tasks_are_a_page_that_opens(page: Page, tmp_path: Path) -> None:
    rows = [row | {"task": f"{row['task']}-{number}"} for number in range(100) for row in many_records(100)]
    out = write_batch(tmp_path / "out", rows, runs=False)
    (out / "report.html").write_text(batch_page(out), encoding="utf-8")
    assert page.open((out / "report.html").as_uri()) < 10.0
    shown = "[...document.querySelectorAll('.tasks tbody tr')].filter(row => !row.hidden).length"
    said = "document.querySelector('#found').textContent"
    assert (page.ask(shown), page.ask(said)) == (500, "500 of 10000 shown")
    page.ask(
        "document.querySelector('#find').value = 'task-007-'; document.querySelector('#find').dispatchEvent(new Event('input'))"
    )
    assert (page.ask(shown), page.ask(said)) == (100, "100 shown")
    page.ask(
        "document.querySelector('#find').value = 'task-00'; document.querySelector('#find').dispatchEvent(new Event('input'))"
    )
    assert page.ask(said) == "500 of 1000 shown"
    page.ask("document.querySelector('#more').click()")
    assert (page.ask(shown), page.ask(said)) == (1000, "1000 shown")
