"""The benchmarks of the engine that need no GPU, and what they would measure on one, over a device that takes no time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent.patch.parse import parse
from agent.patch.plan import plan
from benchmarks.engine import gaps
from benchmarks.engine_guess import Gain, read_texts, seconds, show_measured, simulate, write_texts
from benchmarks.engine_host import host_drafts, host_steps, host_turn, idle_engine
from benchmarks.engine_texts import Text, patch_of, task_texts
from runtime.lookup import H100_COSTS
from runtime.scheduler import Limits
from tests.runtime.arithmetic import always

COPY = Text("copy", tuple(range(1000, 1400)), (7, 8, *range(1050, 1250)))
FRESH = Text("fresh", tuple(range(1000, 1400)), tuple(range(5000, 5300)))


def test_copying_gains_and_writing_loses_nothing() -> None:
    copied, fresh = (simulate([text], H100_COSTS) for text in (COPY, FRESH))
    assert copied.tokens / copied.cost > 3
    assert fresh == Gain(300, 300.0, 0, 0, 0)


def test_patches_of_tasks_are_patches_that_apply() -> None:
    root = Path(__file__).resolve().parents[2] / "tasks"
    for folder in sorted(root.iterdir()):
        diff = (folder / "reference.patch").read_text()
        patch = parse(patch_of(diff))
        files = {path: (folder / "repo" / path).read_bytes() for path in patch.paths}
        assert plan(patch, files).changes
    texts = task_texts(calls=False)
    assert len(texts) == len(list(root.iterdir()))
    assert all(len(text.prompt) > len(text.answer) / 4 for text in texts)


def test_an_engine_that_is_told_its_answers_says_them_with_guesses_and_without() -> None:
    for speculation in (always(0), always(7, 3), always(31, 3)):
        engine = idle_engine(Limits(speculation=speculation))
        drafts = []
        launch = engine.runner.launch
        engine.runner.launch = lambda works, *rest: drafts.extend(w.draft for w in works) or launch(works, *rest)  # type: ignore[method-assign]  # noqa: B023
        assert seconds(engine, [COPY, FRESH]) > 0
        assert any(drafts) == (speculation.draft_tokens > 0)
        assert len(drafts) < 400 or not speculation.draft_tokens


def test_what_is_printed_names_both_speeds_and_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.json.gz"
    text = Text("x", (1, 2, 3, 4, 5, 6, 7), (9, 3, 4, 5, 6, 7, 1, 2), (((9, "line"),), ()))
    write_texts(file, {"copies": [text, COPY]})
    assert read_texts(file) == {"copies": [text, COPY]}
    show_measured(idle_engine(Limits(speculation=always(7))), file)
    printed = capsys.readouterr().out
    speeds = r"\d+ -> \d+ -> \d+ tokens/s"
    assert re.search(
        rf"guesses, copies +\d+\.\d+ x, from its own tokens +\d+\.\d+ x: {speeds}; expected +\d+\.\d+ x", printed
    )


def test_recorded_drafts_are_used_where_they_are_wanted() -> None:
    drafts = tuple(tuple((token, "line") for token in FRESH.answer[at : at + 20]) for at in range(len(FRESH.answer)))
    known = replace(FRESH, drafts=drafts)
    assert simulate([known], H100_COSTS).cost < 150
    assert simulate([known], H100_COSTS, drafts=False) == simulate([FRESH], H100_COSTS)


def test_the_patches_of_the_tasks_are_drafted_as_the_agent_would() -> None:
    texts = task_texts()
    with_drafts, without = (simulate(texts, H100_COSTS, drafts=drafts) for drafts in (True, False))
    assert without.cost / with_drafts.cost > 1.2
    assert all(len(text.drafts) == len(text.answer) for text in texts)


def test_the_hosts_share_is_told_by_parts() -> None:
    step = host_steps(2, 100, guesses=True, steps=40)
    assert {"whole", "ahead", "_pack", "launch", "record"} <= step.keys()
    assert all(0 < micros < 1e6 for micros in step.values())
    drafts = host_drafts()
    assert drafts["whole"] > drafts["draft"] > 0 < drafts["read 10 KB"]
    turn = host_turn(500, 20)
    assert turn["whole"] > turn["launch"] > turn["_pack"] > 0


def test_a_trace_is_summed_by_name_with_what_was_idle_before() -> None:
    events = [(3000, 1000, "b"), (0, 2000, "a"), (3500, 1500, "a"), (9000, 500, "b")]
    assert gaps(events) == [("a", 2, 3.5, 0.0), ("b", 2, 1.5, 5.0)]
