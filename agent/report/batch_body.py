"""The content of a batch's page: the number of tasks by result, the cost, and a table of all tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from agent.batch.attempt import Kind
from agent.lines import one_line, seconds
from agent.report.html import Child, Markup, element, join
from agent.report.plots import Bar, bars, histogram
from agent.report.tasks import Batch, Row

# The colour of a class: the model's work was good, was not good, or had no fair chance.
COLOURS: Mapping[Kind, str] = {
    Kind.DONE: "done",
    Kind.MODEL: "wrong",
    Kind.PARSER: "wrong",
    Kind.TOOL: "wrong",
    Kind.LIMIT: "outside",
    Kind.POLICY: "outside",
    Kind.ENDPOINT: "outside",
    Kind.SANDBOX: "outside",
    Kind.HARNESS: "outside",
}
REASON_CHARS = 200


def batch_body(batch: Batch) -> Markup:
    """Return the content of a batch's page."""
    return join(
        [
            _head(batch),
            element(
                "main",
                element("section", element("h2", "Outcomes"), _plots(batch), id="outcomes"),
                element("section", element("h2", "Tasks"), _table(batch), id="tasks"),
                _settings(batch),
            ),
        ]
    )


def _head(batch: Batch) -> Markup:
    rows = batch.rows
    done = sum(row.kind is Kind.DONE for row in rows)
    graded = [row for row in rows if row.resolved is not None]
    facts = {
        "Tasks": f"{len(rows):,}",
        "Graded": f"{sum(row.resolved is True for row in graded):,} of {len(graded):,} resolved" if graded else None,
        "Attempts": f"{sum(len(row.attempts) for row in rows):,}",
        "Working time": seconds(sum(row.duration_s for row in rows)),
        "Tokens written": f"{sum(row.sampled_tokens for row in rows):,}",
        "Total tokens": f"{sum(row.total_tokens for row in rows):,}",
        "Model": ", ".join(sorted({each.model for row in rows for each in row.attempts if each.model})),
    }
    told = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value]
    kind = "good" if done == len(rows) else "open"
    share = f" ({done / len(rows):.0%})" if rows else ""
    return element(
        "header",
        element("p", "agent tasks", class_="kicker"),
        element("h1", batch.name),
        element("p", element("strong", f"{done:,} of {len(rows):,} done{share}"), class_=f"outcome {kind}"),
        element("dl", *told, class_="facts"),
    )


def _plots(batch: Batch) -> Markup:
    rows = batch.rows
    if not rows:
        return element("p", "No task has a result yet.")
    kinds = Counter(row.kind for row in rows)
    tries = Counter(len(row.attempts) for row in rows)
    plots = [
        bars(
            "Tasks by class", [Bar(kind.value, kinds[kind], len(rows), COLOURS[kind]) for kind in Kind if kinds[kind]]
        ),
        _times([row.duration_s for row in rows]),
        histogram("Output tokens per task", [float(row.sampled_tokens) for row in rows], _short),
        histogram("Turns of the kept attempt", [float(row.turns) for row in rows], _short),
        bars("Attempts per task", [Bar(_attempts(count), tries[count], len(rows)) for count in sorted(tries)]),
    ]
    for title, value in (("Done by language", "language"), ("Done by difficulty", "difficulty")):
        if split := _split(rows, value):
            plots.append(bars(title, split))
    return element("div", *plots, class_="plots")


def _split(rows: tuple[Row, ...], key: str) -> list[Bar]:
    """Return how many tasks of each kind are done, if there is more than one kind."""
    total = Counter(str(getattr(row, key)) for row in rows)
    done = Counter(str(getattr(row, key)) for row in rows if row.kind is Kind.DONE)
    if len(total) < 2:
        return []
    return [Bar(name or "not said", done[name], count, "done") for name, count in sorted(total.items())]


def _times(times_s: Sequence[float]) -> Markup:
    unit, unit_s = ("min", 60) if max(times_s) >= 300 else ("s", 1)
    return histogram(
        "Working time per task", [time_s / unit_s for time_s in times_s], lambda value: f"{value:g} {unit}"
    )


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def _short(value: float) -> str:
    """Return a count, shortened for an axis."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _table(batch: Batch) -> Markup | None:
    if not batch.rows:
        return None
    graded = any(row.resolved is not None for row in batch.rows)
    names = [
        ("Task", False), ("Class", False), *([("Graded", False)] if graded else []), ("Time", True), ("Tokens", True),
        ("Turns", True), ("Attempts", True), ("Lines", True), ("Reason", False),
    ]  # fmt: skip
    heads = [
        element("th", element("button", name, type="button"), scope="col", class_="number" if number else None)
        for name, number in names
    ]
    find = element(
        "p",
        element("label", "Find ", element("input", id="find", type="search", autocomplete="off")),
        element("output", "", id="found"),
        element("button", "Show all", type="button", id="more", hidden=True),
        class_="switch",
        hidden=True,
    )
    body = element("tbody", *(_row(row, graded, batch.base) for row in batch.rows))
    table = element("table", element("thead", element("tr", *heads)), body, class_="tasks")
    return join([find, element("div", table, class_="wide", tabindex=0, role="region", aria_label="Tasks")])


def _row(row: Row, graded: bool, base: str) -> Markup:
    kept = next((each for each in row.attempts if each.attempt == row.kept), None)
    lines = kept.patch_lines if kept else 0
    cells: list[Child] = [
        element("th", _link(base, row.link, row.task), scope="row"),
        element("td", element("span", row.kind.value, class_=f"class {COLOURS[row.kind]}")),
    ]
    if graded:
        cells.append(element("td", {True: "resolved", False: "unresolved", None: "not graded"}[row.resolved]))
    cells += [
        _number(seconds(row.duration_s), row.duration_s),
        _number(f"{row.sampled_tokens:,}", row.sampled_tokens),
        _number(f"{row.turns:,}", row.turns),
        _number(_tries(row, base), len(row.attempts)),
        _number(f"{lines:,}", lines),
        element("td", one_line(row.reason, REASON_CHARS), class_="long"),
    ]
    return element("tr", *cells)


def _tries(row: Row, base: str) -> Child:
    """Return the attempts' numbers, each a link to its page."""
    if len(row.attempts) == 1:
        return "1"
    links = [_link(base, link, str(each.attempt)) for each, link in zip(row.attempts, row.links, strict=True)]
    return join([part for link in links for part in (" ", link)])


def _number(shown: Child, value: float) -> Markup:
    return element("td", shown, class_="number", data_v=str(value))


def _link(base: str, link: str, text: str) -> Markup:
    return element("a", text, href=quote(base + link, errors="replace")) if link else element("span", text)


def _settings(batch: Batch) -> Markup | None:
    told = {key: value for key, value in batch.settings.items() if value not in (None, [], "")}
    if not told:
        return None
    rows = [
        element("tr", element("th", element("code", key), scope="row"), element("td", element("code", str(value))))
        for key, value in told.items()
    ]
    table = element("div", element("table", element("tbody", *rows)), class_="wide")
    return element("section", element("h2", "Settings"), table, id="settings")
