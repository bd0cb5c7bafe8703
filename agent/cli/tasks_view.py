"""The display of a batch: a live table on a terminal, a line per finished task elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from agent.batch.attempt import Attempt, Job, Progress
from agent.batch.governor import Governor
from agent.batch.results import Record
from agent.lines import clean, one_line, seconds
from agent.view import write

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REASON_CHARS = 100


@dataclass(slots=True)
class _Row:
    """A running attempt."""

    job: Job
    began_s: float
    progress: Progress


class Watcher:
    """Counts tasks, and prints a line for each finished one. ``show`` is also called with its record."""

    def __init__(
        self, stream: TextIO, total: int, done: int, governor: Governor, show: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._stream, self._show, self._clock = stream, show, clock
        self._total, self._before, self._governor = total, done, governor
        self._start_s = clock()
        self.rows: dict[str, _Row] = {}
        self.kinds: Counter[str] = Counter()

    def began(self, job: Job) -> None:
        """Add a row."""
        self.rows[job.name] = _Row(job, self._clock(), Progress(0, 0, "starts"))

    def progress(self, job: Job, progress: Progress) -> None:
        """Update a row."""
        if job.name in self.rows:
            self.rows[job.name].progress = progress

    def ended(self, job: Job, attempt: Attempt | None) -> None:
        """Remove the row."""
        del attempt
        self.rows.pop(job.name, None)

    def finished(self, record: Record) -> None:
        """Count a task and print its result."""
        self.kinds[record["class"]] += 1
        self._line(task_line(record) + f"  [{self._before + self.kinds.total()}/{self._total}{self._left()}]")
        self._show(record)

    def left_s(self) -> float | None:
        """Return the estimated remaining time in seconds, from the pace so far; None while it is unknown."""
        finished = self.kinds.total()
        if not finished:
            return None
        return (self._total - self._before - finished) * (self._clock() - self._start_s) / finished

    def summary(self, records: Mapping[str, Record], out: Path) -> None:
        """Print the results of all tasks, including those of earlier runs of the batch."""
        counts = Counter(record["class"] for record in records.values())
        told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        tokens = sum(record["sampled_tokens"] for record in records.values())
        write(
            self._stream, f"{len(records)} of {self._total} tasks: {told or 'none'}; {tokens:,} tokens sampled; {out}\n"
        )

    def _left(self) -> str:
        left_s = self.left_s()
        return f", {seconds(left_s)} left" if left_s else ""

    def _line(self, text: str) -> None:
        write(self._stream, text + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


class Table(Watcher):
    """The same, above a live table of the running attempts."""

    def __init__(self, console: Console, *arguments: object) -> None:
        super().__init__(console.file, *arguments)  # type: ignore[arg-type]  # open_watch passes the same to both
        from rich.live import Live

        self._console = console
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def render(self) -> RenderableType:
        """Draw the table."""
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        finished = self._before + self.kinds.total()
        told = "".join(f" · {count} {kind}" for kind, count in self.kinds.most_common())
        spent = f"{self._governor.spent_tokens:,} tokens"
        title = Text(f"{finished}/{self._total} tasks{self._left()} · {spent}{told}", style="bold")
        grid = Grid(box=None, padding=(0, 1))
        for name in ("task", "time", "turns", "tokens", "now"):
            grid.add_column(name, justify="right" if name in ("time", "turns", "tokens") else "left", no_wrap=True)
        for row in list(self.rows.values()):
            far = row.progress
            lasted = seconds(self._clock() - row.began_s)
            grid.add_row(row.job.name, lasted, str(far.turns), f"{far.sampled_tokens:,}", far.doing)
        return Group(title, grid)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()


def open_watch(stream: TextIO, total: int, done: int, governor: Governor, show: Callable[[Record], None]) -> Watcher:
    """Return the table for a terminal that can move its cursor, otherwise plain lines."""
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        if not console.is_dumb_terminal:
            return Table(console, total, done, governor, show)
    return Watcher(stream, total, done, governor, show)


def task_line(record: Record) -> str:
    """Return one task's result on a line."""
    reason = one_line(clean(record["reason"]))[:REASON_CHARS]
    return f"{record['class']:<8} {record['task']}  {seconds(record['duration_s'])}  {reason}"
