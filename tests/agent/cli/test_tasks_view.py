"""A batch on the screen."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from agent.batch.attempt import Job, Progress
from agent.batch.governor import Governor
from agent.cli.tasks_view import Table, Watcher, open_watch

RECORD = {"task": "a", "class": "done", "duration_s": 2.0, "reason": "it passes\n\x1b[31mred", "sampled_tokens": 1200}
JOB = Job("b", 2, "Fix.", "/r", "/f", {})


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_say_what_a_task_came_to_and_how_long_the_rest_takes() -> None:
    stream, clock, shown = io.StringIO(), Clock(), []
    with Watcher(stream, 5, 2, Governor(), shown.append, clock) as watch:
        assert watch.left_s() is None
        clock.now_s = 10.0
        watch.finished(RECORD)
        assert watch.left_s() == 20.0
    watch.summary({"a": RECORD}, Path("out"))
    line, summary = stream.getvalue().splitlines()
    assert line == "done     a  2.0 s  it passes red  [3/5, 20 s left]"
    assert summary == "1 of 5 tasks: 1 done; 1,200 tokens sampled; out"
    assert shown == [RECORD]


def test_the_table_shows_what_runs() -> None:
    stream, clock, governor = io.StringIO(), Clock(), Governor()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with Table(console, 5, 2, governor, lambda _: None, clock) as table:
        table.began(JOB)
        clock.now_s = 61.0
        table.progress(JOB, Progress(3, 4500, "shell"))
        governor.spend(("b", 2), 4500)
        table.finished(RECORD)
        seen = Console(file=io.StringIO(), width=100)
        seen.print(table.render())
        text = seen.file.getvalue()  # type: ignore[attr-defined]
        assert "3/5 tasks, 2 min 2 s left · 4,500 tokens · 1 done" in text
        assert "b #2" in text
        assert "1 min 1 s" in text
        assert "4,500" in text
        assert "shell" in text
        table.ended(JOB, None)
        table.progress(JOB, Progress(4, 1, "late"))
        assert table.rows == {}
    assert "it passes red" in stream.getvalue()


def test_without_a_terminal_there_are_lines() -> None:
    assert type(open_watch(io.StringIO(), 1, 0, Governor(), lambda _: None)) is Watcher
