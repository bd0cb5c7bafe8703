"""The content of a run's page: the outcome first, then the evidence, then every turn."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from agent.events import EXIT_CODES, NO_VERDICT, TEST_STATES, CheckResult, Outcome, PlanStep, StepState
from agent.lines import (
    VERDICTS,
    call_title,
    code_text,
    command_text,
    model_line,
    one_line,
    output_text,
    patch_text,
    result_line,
    seconds,
)
from agent.report.cut import cost_bytes, cut
from agent.report.diffs import FileDiff, read_diff
from agent.report.highlight import colour_hunk, language_of
from agent.report.html import Child, Markup, element, join
from agent.report.plots import Stack, columns
from agent.report.story import Call, Item, Note, Said, Seen, Story, Thought, Turn

# A page of 200 turns stays below 2 MB: all texts share one budget, the diff has another.
TEXT_BYTES, DIFF_BYTES = 1_000_000, 500_000
LEAST_BYTES, MOST_BYTES = 400, 60_000
OPEN_LINES = 300  # files with a longer diff are folded at first
TESTS = 200
PATHS = 20
TITLE_CHARS = 200
STEP_MARKS = {
    StepState.PENDING: ("○", "to do"),
    StepState.IN_PROGRESS: ("▸", "begun"),
    StepState.COMPLETED: ("✔", "done"),
}
GOOD, BAD, OPEN = ("✔", "good"), ("✘", "bad"), ("○", "open")


def run_body(story: Story) -> Markup:
    """Return the content of a run's page."""
    room = room_bytes([cost_bytes(text) for text in _texts(story)], TEXT_BYTES)
    sections = [
        ("said", "The answer" if story.mode == "ask" else "What the model says", _claim(story)),
        ("checks", "Checks", _checks(story, room)),
        ("change", "Change", _change(story)),
        ("plan", "Plan", _plan(story)),
        ("turns", "Turns", _turns(story, room)),
        ("settings", "Settings", _settings(story.config)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = [element("a", title, href=f"#{name}") for name, title, _ in shown]
    return join(
        [
            _head(story),
            element("nav", *links, aria_label="Sections"),
            element("main", *(element("section", element("h2", title), body, id=name) for name, title, body in shown)),
        ]
    )


def room_bytes(costs: Sequence[int], budget: int) -> int:
    """Return the limit for each text so that all together stay within a budget; short texts leave their share to long ones."""
    left = budget
    for number, cost in enumerate(sorted(costs)):
        share = left // (len(costs) - number)
        if cost > share:
            return min(max(share, LEAST_BYTES), MOST_BYTES)
        left -= cost
    return MOST_BYTES


def _texts(story: Story) -> Iterable[str]:
    """Yield every text that may be cut."""
    for turn in story.turns:
        for item in turn.items:
            match item:
                case Thought(text) | Said(text) | Note(text):
                    yield text
                case Call():
                    yield item.asked
                    yield item.result.text if item.result else ""
                case Seen():
                    yield from (check.output for check in item.results)


def _head(story: Story) -> Markup:
    task = story.task.strip()
    title = one_line(task.partition("\n")[0], TITLE_CHARS)
    whole = element("details", element("summary", "Full task"), _text(task, MOST_BYTES, "prose"))
    facts = {
        "Model": model_line(dict(story.config)),
        "Repository": story.repository,
        "From commit": story.base_commit[:12],
        "Branch": story.ended.branch if story.ended else None,
        "Begun": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(story.started_at)),
        "Working time": seconds(story.duration_s),
        "Turns": f"{len(story.answers):,}",
        "Calls": f"{len(story.calls):,}",
        "Tokens": _tokens(story),
        "Cost": None if story.cost is None else f"{story.cost:,.4f}",
    }
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value]
    return element(
        "header",
        element("p", f"agent {story.mode} · run {story.run}", class_="kicker"),
        element("h1", title),
        _outcome(story),
        whole if title != task else None,
        element("dl", *rows, class_="facts"),
    )


def _outcome(story: Story) -> Markup:
    ended = story.ended
    if ended is None:
        said = (
            "It is still running; this is how far it was." if story.state == "running" else "agent resume continues it."
        )
        return element("p", element("strong", story.state), " ", said, class_="outcome open")
    kind = "open" if ended.outcome is Outcome.UNVERIFIED else "good" if EXIT_CODES[ended.outcome] == 0 else "bad"
    tests = ", ".join(one_line(path) for path in ended.test_paths[:PATHS])
    more = f" and {len(ended.test_paths) - PATHS} more" if len(ended.test_paths) > PATHS else ""
    return join(
        [
            element(
                "p",
                element("strong", ended.outcome.value.replace("_", " ")),
                f" {VERDICTS[ended.outcome]}",
                class_=f"outcome {kind}",
            ),
            element("p", one_line(ended.reason, 1000)) if ended.reason else None,
            element("p", f"Tests were changed: {tests}{more}", class_="warning") if tests else None,
        ]
    )


def _tokens(story: Story) -> str:
    cached = f" ({story.cached_tokens:,} of them cached)" if story.cached_tokens else ""
    return f"{story.prompt_tokens:,} read{cached}, {story.completion_tokens:,} written"


def _claim(story: Story) -> Markup | None:
    if story.ended is None or not story.ended.claimed.strip():
        return None
    claims = element("p", "A claim. What was observed is above and below.", class_="note")
    return join([None if story.mode == "ask" else claims, _text(story.ended.claimed.strip(), MOST_BYTES, "prose")])


def _checks(story: Story, room: int) -> Markup | None:
    before = {check.command: check for check in story.before or ()}
    after = {check.command: check for check in story.after or ()}
    commands = list(dict.fromkeys([*before, *after]))
    if not commands:
        return None if story.before is None and story.after is None else element("p", "There is no check.")
    rows = [
        element(
            "tr",
            element("th", element("code", one_line(command)), scope="row"),
            _check_cell(before.get(command)),
            _check_cell(after.get(command)),
        )
        for command in commands
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("Check", "Before", "After")))
    table = element("table", element("thead", head), element("tbody", *rows))
    parts: list[Child] = [element("div", table, class_="wide")]
    for command in commands:
        tests = _tests(before.get(command), after.get(command))
        latest = after.get(command) or before[command]
        parts.append(tests)
        if latest.output.strip():
            summary = element("summary", "Output of ", element("code", one_line(command)))
            parts.append(element("details", summary, _text(latest.output, room)))
    return join(parts)


def _check_cell(check: CheckResult | None) -> Markup:
    if check is None:
        return element("td", "not run", class_="dim")
    told = "out of time" if check.exit_code is None else "passes" if check.exit_code == 0 else f"exit {check.exit_code}"
    counts = [(state, sum(found == state for found in check.tests.values())) for state in TEST_STATES]
    tests = ", ".join(f"{count:,} {state}" for state, count in counts if count)
    meta = element("small", " · ".join(filter(None, (tests, seconds(check.duration_s)))))
    return element("td", _mark(GOOD if check.exit_code == 0 else BAD), f" {told} ", meta)


def _tests(before: CheckResult | None, after: CheckResult | None) -> Markup | None:
    """Return the tests that fail, and those whose state has changed."""
    old, new = before.tests if before else {}, after.tests if after else {}
    names = [
        name
        for name in sorted({*old, *new})
        if (after and before and old.get(name) != new.get(name)) or (new or old).get(name) in ("failed", "error")
    ]
    if not names:
        return None
    rows = [
        element(
            "tr",
            element("th", element("code", one_line(name, 300)), scope="row"),
            _state(old.get(name)),
            _state(new.get(name)),
        )
        for name in names[:TESTS]
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("Test", "Before", "After")))
    more = element("p", f"{len(names) - TESTS:,} more are not shown.", class_="note") if len(names) > TESTS else None
    summary = element("summary", f"{len(names):,} tests that fail or changed")
    table = element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")
    return element("details", summary, table, more, open=len(names) <= 12)


def _state(state: str | None) -> Markup:
    if state is None:
        return element("td", "not there", class_="dim")
    return element("td", _mark(GOOD if state == "passed" else OPEN if state in NO_VERDICT else BAD), f"\u00a0{state}")


def _change(story: Story) -> Markup | None:
    files = read_diff(story.patch.decode("utf-8", "replace"))
    if not files:
        return None
    added, removed = sum(file.added for file in files), sum(file.removed for file in files)
    parts: list[Child] = [element("p", f"{_count(len(files), 'file')}, ", _sizes(added, removed), class_="note")]
    left = DIFF_BYTES
    for number, file in enumerate(files):
        shown = _file(file)
        left -= len(shown)
        if left < 0:
            rest = [
                element("li", element("code", one_line(each.path, 300)), " ", _sizes(each.added, each.removed))
                for each in files[number:]
            ]
            parts += [
                element("p", f"The rest is too long for this page: agent diff {story.run} prints it."),
                element("ul", *rest[:500]),
            ]
            break
        parts.append(shown)
    return join(parts)


def _file(file: FileDiff) -> Markup:
    language = language_of(file.path)
    lines: list[Markup] = [element("span", note, class_="h") for note in file.notes]
    for hunk in file.hunks:
        lines.append(element("span", hunk.head, class_="h"))
        for line, shown in zip(hunk.lines, colour_hunk(hunk, language), strict=True):
            kind = {"+": "a", "-": "d", " ": None}.get(line.kind, "h")
            sign = Markup("" if kind == "h" else line.kind)
            number = line.old if line.kind == "-" else line.new
            lines.append(element("span", sign, shown, class_=kind, data_n=number))
    summary = element("summary", element("code", file.path or "?"), " ", _sizes(file.added, file.removed))
    body = element("pre", *lines, class_="diff", tabindex=0)
    return element("details", summary, body, class_="file", open=len(lines) <= OPEN_LINES)


def _sizes(added: int, removed: int) -> Markup:
    return join([element("span", f"+{added:,}", class_="plus"), " ", element("span", f"-{removed:,}", class_="minus")])


def _plan(story: Story) -> Markup | None:
    return _steps(story.plan) if story.plan else None


def _steps(plan: Sequence[PlanStep]) -> Markup:
    steps = []
    for step in plan:
        mark, word = STEP_MARKS[step.state]
        sign = element("span", mark, class_="mark", aria_hidden="true")
        steps.append(element("li", sign, " ", one_line(step.text, 300), element("small", f" ({word})")))
    return element("ol", *steps, class_="plan")


def _turns(story: Story, room: int) -> Markup | None:
    if not story.turns:
        return None
    return join([_charts(story.turns), _switch(), *(_turn(turn, room) for turn in story.turns)])


def _switch() -> Markup:
    buttons = [element("button", f"{word} all", type="button", data_fold=word.lower()) for word in ("Open", "Fold")]
    return element("p", *buttons, class_="switch", hidden=True)


def _charts(turns: Sequence[Turn]) -> Markup | None:
    longest_s = max(turn.model_s + turn.tools_s + turn.checks_s for turn in turns)
    unit, unit_s = ("min", 60.0) if longest_s >= 300 else ("s", 1.0)
    spent = [
        Stack(
            f"Turn {turn.number}: model {seconds(turn.model_s)}, tools {seconds(turn.tools_s)}, checks {seconds(turn.checks_s)}",
            (("model", turn.model_s / unit_s), ("tools", turn.tools_s / unit_s), ("checked", turn.checks_s / unit_s)),
        )
        for turn in turns
    ]
    window = [
        Stack(
            f"Turn {turn.number}: {sampled.prompt_tokens:,} tokens read ({sampled.cached_tokens:,} cached), {sampled.completion_tokens:,} written",
            (
                ("cached", sampled.cached_tokens),
                ("fresh", max(sampled.prompt_tokens - sampled.cached_tokens, 0)),
                ("model", sampled.completion_tokens),
            ),
        )
        for turn in turns
        for sampled in [turn.sampled]
        if sampled
    ]
    plots = []
    if len(turns) > 1 and longest_s > 0:
        plots.append(
            columns(
                "Time by turn",
                spent,
                lambda value: f"{value:g} {unit}",
                [("model", "model"), ("tools", "tools"), ("checked", "checks")],
            )
        )
    if len(window) > 1:
        legend = [("cached", "read from the cache"), ("fresh", "not cached"), ("model", "written")]
        plots.append(columns("Tokens by turn", window, lambda value: f"{value:,.0f}", legend))
    return element("div", *plots, class_="plots") if plots else None


def _turn(turn: Turn, room: int) -> Markup:
    told = [f"at {seconds(turn.at_s)}"]
    if turn.sampled:
        sampled = turn.sampled
        told.append(f"{sampled.prompt_tokens:,} + {sampled.completion_tokens:,} tokens")
        if sampled.duration_s:
            told.append(f"model {seconds(sampled.duration_s)}")
        if sampled.finish not in ("stop", "call"):
            told.append(f"ended by {sampled.finish}")
    name = f"turn-{turn.number}"
    title = element("h3", element("a", f"Turn {turn.number}", href=f"#{name}"), " ", element("small", " · ".join(told)))
    return element("article", title, *(_item(item, room) for item in turn.items), id=name, class_="turn")


def _item(item: Item, room: int) -> Markup | None:
    match item:
        case Thought(text):
            words = len(text.split())
            head = element(
                "summary", "Reasoning ", element("small", f"{_count(words, 'word')} · {one_line(text, 120)}")
            )
            return element("details", head, _text(text, room, "prose"), class_="thought") if words else None
        case Said(text, by_model):
            who = None if by_model else element("p", "Message to the model", class_="note")
            return element("div", who, _text(text.strip(), room, "prose"), class_="said" if by_model else "told")
        case Note(text):
            return element("p", one_line(text, 600), class_="note")
        case Call():
            return _call(item, room)
        case Seen(when, results):
            return _seen(when, results)


def _call(call: Call, room: int) -> Markup:
    result = call.result
    good = result is not None and result.ok and not result.exit_code
    mark = OPEN if result is None else GOOD if good else BAD
    title = "plan" if call.tool == "plan" else call_title(call.tool, call.asked)
    meta = "has no result" if result is None else result_line(result)
    head = element("summary", _mark(mark), " ", element("code", title), " ", element("small", meta))
    if result is not None and result.plan is not None:
        return element("details", head, _steps(result.plan), class_="call")
    output = output_text(result.text) if result else ""
    shown: list[Child] = [_asked(call, room)]
    if output.strip():
        shown += [element("h4", "Result"), _text(output, room)]
    return element("details", head, *shown, class_="call")


def _asked(call: Call, room: int) -> Markup:
    match call.tool:
        case "apply_patch":
            return _patch(patch_text(call.asked), room)
        case "python":
            return _text(code_text(call.asked), room)
        case "shell":
            return _text(command_text(call.asked), room)
        case _:
            return _text(call.asked, room)


def _patch(text: str, room: int) -> Markup:
    """Return a patch in the model's format, with coloured lines."""
    if cost_bytes(text) > room:
        return _text(text, room)
    kinds = {"+": "a", "-": "d", "@": "h", "*": "h"}
    lines = [element("span", line, class_=kinds.get(line[:1])) for line in text.strip("\n").split("\n")]
    return element("pre", *lines, class_="diff bare", tabindex=0)


def _seen(when: str, results: Sequence[CheckResult]) -> Markup:
    marks = [_mark(GOOD if check.exit_code == 0 else BAD) for check in results]
    told = [
        join([mark, " ", element("code", one_line(check.command))]) for mark, check in zip(marks, results, strict=True)
    ]
    listed = join([each for pair in told for each in (" ", pair)]) if told else "there is none"
    return element("p", f"Checks {when}: ", listed, class_="seen")


def _settings(config: Mapping[str, object]) -> Markup | None:
    if not config:
        return None
    rows = [
        element("tr", element("th", element("code", key), scope="row"), element("td", element("code", _plain(value))))
        for key, value in config.items()
        if value is not None
    ]
    table = element("div", element("table", element("tbody", *rows)), class_="wide")
    return element("details", element("summary", "Instructions to the model"), table)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _text(text: str, room: int, kind: str = "") -> Markup:
    """Return a text, or its beginning and end with the count of what was left out."""
    found = cut(text.rstrip("\n"), room)
    if not found.left_out_chars:
        return element("pre", found.head, class_=kind or None, tabindex=0)
    gap = element("span", f"… {found.left_out_chars:,} characters left out …", class_="gap")
    return element("pre", found.head.rstrip("\n"), "\n", gap, "\n", found.tail, class_=kind or None, tabindex=0)


def _mark(mark: tuple[str, str]) -> Markup:
    """Return a symbol, and its word for screen readers."""
    sign, word = mark
    return element("span", sign, class_=f"mark {word}", role="img", aria_label=word)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
