"""What an attempt has spent on a cluster, where a start may be lost. All else is tests/e2e/test_cluster.py, on a real one."""

from __future__ import annotations

from agent.batch.attempt import Progress
from agent.batch.cluster import adding_up


def test_tokens_of_lost_starts_count() -> None:
    told: list[int] = []
    tell = adding_up(lambda progress: told.append(progress.sampled_tokens))
    for tokens in (10, 30, 30, 5, 20, 25, 0, 0, 7):
        tell(Progress(1, tokens, "shell"))
    assert told == [10, 30, 30, 35, 50, 55, 55, 55, 62]
