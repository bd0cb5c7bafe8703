"""What a report weighs, how long it takes to make, and how long a browser takes to open it.

    python -m benchmarks.report

A run of 200 turns whose commands print 10,000 bytes each, and a batch of 10,000 tasks; opened in a headless Chromium.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.log import LOG_NAME
from agent.report.page import batch_page, run_page
from tests.agent.report.stories import many_records, run_events, write_batch, write_run
from tests.chromium import Page, chromium

LINES = "".join(
    f"{number:4} a line of output that a command prints, as long as such lines are\n" for number in range(140)
)


def made(make: Callable[[], str], place: Path) -> tuple[float, int]:
    """Make a page three times; return the median in seconds, and its size in bytes."""
    times_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        text = make()
        times_s.append(time.perf_counter() - start_s)
    place.write_text(text, encoding="utf-8")
    return statistics.median(times_s), place.stat().st_size


def row(page: Page, name: str, make: Callable[[], str], place: Path) -> str:
    make_s, size_bytes = made(make, place)
    opened_s = sorted(page.open(place.as_uri()) for _ in range(7))
    return f"| {name} | {size_bytes / 1e6:.2f} MB | {make_s:.2f} s | {opened_s[0]:.2f} to {opened_s[-1]:.2f} s |"


def main() -> None:
    """Measure and print a table for benchmarks/RESULTS.md."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile)) as browser,
    ):
        run = write_run(Path(folder, "run"), run_events(200, output=LINES))
        records = [one | {"task": f"{one['task']}-{number}"} for number in range(100) for one in many_records(100)]
        batch = write_batch(Path(folder, "batch"), records, runs=False)
        page = browser.page()
        print(f"load {os.getloadavg()[0]:.1f}; the run's log has {(run / LOG_NAME).stat().st_size / 1e6:.1f} MB\n")
        print("| page of | size | time to write | time to open (7 times) |")
        print("|---|---|---|---|")
        print(row(page, "a run of 200 turns", lambda: run_page(run), run / "report.html"))
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(row(page, "a batch of 10,000 tasks", lambda: batch_page(batch), batch / "report.html"))
        print(f"\nmemory: {peak_mib} MiB at most for the run")


if __name__ == "__main__":
    main()
