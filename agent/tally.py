"""The result of a run in one record: the last line of `--json`, for scripts that read nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agent.events import EXIT_CODES, Checked, CheckResult, Event, Repaired, Retried, RunEnded, RunStarted, Sampled


class Tally:
    """Counts a run's events as they pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_s = clock()
        self.run: str | None = None
        self._turns = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._retries = 0
        self._repairs = 0
        self._checks: dict[str, tuple[CheckResult, ...]] = {}

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case RunStarted():
                self.run = event.run
            case Sampled():
                self._turns += 1
                self._prompt_tokens += event.prompt_tokens
                self._completion_tokens += event.completion_tokens
                self._cached_tokens += event.cached_tokens
            case Retried():
                self._retries += 1
            case Repaired():
                self._repairs += 1
            case Checked(when, results):
                self._checks[when] = results
            case _:
                pass

    def result(self, ended: RunEnded) -> dict[str, Any]:
        """Return the `result` record: what was observed, what the model claimed, and what it cost."""
        return {
            "event": "result",
            "run": self.run,
            "outcome": ended.outcome.value,
            "exit_code": EXIT_CODES[ended.outcome],
            "reason": ended.reason,
            "claimed": ended.claimed,
            "branch": ended.branch,
            "changed_paths": list(ended.changed_paths),
            "test_paths": list(ended.test_paths),
            "checks": {when: [_check(result) for result in results] for when, results in self._checks.items()},
            "turns": self._turns,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "cached_tokens": self._cached_tokens,
            "retries": self._retries,
            "repairs": self._repairs,
            "duration_s": round(self._clock() - self._start_s, 3),
        }


def _check(result: CheckResult) -> dict[str, Any]:
    failing = sorted(name for name, state in result.tests.items() if state in ("failed", "error"))
    return {
        "command": result.command,
        "exit_code": result.exit_code,
        "duration_s": result.duration_s,
        "tests": len(result.tests),
        "failing": failing,
    }
