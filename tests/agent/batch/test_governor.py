"""A shared budget and a shared rate."""

from __future__ import annotations

import threading
import time

from agent.batch.governor import Governor


def test_without_limits_everything_is_granted() -> None:
    governor = Governor()
    governor.spend(("a", 1), 10**9)
    assert all(governor.permit() for _ in range(100))


def test_the_budget_counts_each_attempt_once_and_earlier_starts_too() -> None:
    governor = Governor(100, spent={("earlier", 1): 50})
    governor.spend(("a", 1), 20)
    governor.spend(("a", 1), 30)
    governor.spend(("a", 1), 10)
    assert governor.spent_tokens == 80
    assert governor.permit()
    governor.spend(("b", 1), 20)
    assert not governor.permit()
    assert governor.stopped == "the budget of 100 tokens is used up (100 sampled)"
    governor.stop("something else")
    assert governor.stopped.startswith("the budget")


def test_requests_keep_the_rate_over_all_threads() -> None:
    governor = Governor(requests_per_minute=60 / 0.02)
    started = time.monotonic()
    threads = [threading.Thread(target=lambda: [governor.permit() for _ in range(5)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 14 * 0.02


def test_a_stop_wakes_who_waits() -> None:
    governor = Governor(requests_per_minute=0.1)
    assert governor.permit()
    granted: list[bool] = []
    thread = threading.Thread(target=lambda: granted.append(governor.permit()))
    thread.start()
    governor.stop("enough")
    thread.join(60)
    assert granted == [False]
    assert not governor.wait(60)
