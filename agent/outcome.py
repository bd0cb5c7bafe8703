"""The outcomes of a run and their exit codes. A module of its own, so that `agent --help` need not load more."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Outcome(StrEnum):
    """How a run ended, by what was observed. ``EXIT_CODES`` maps each to the process's exit code."""

    PASSED = "passed"  # a change was made and nothing that passed before fails
    ANSWERED = "answered"  # `agent ask`: there is an answer, and nothing was to be changed
    UNVERIFIED = "unverified"  # a change was made and there is no check to run
    INTERNAL = "internal"
    ENDPOINT = "endpoint"
    LIMIT = "limit"
    CHECKS_FAILED = "checks_failed"
    NO_CHANGE = "no_change"
    REFUSED = "refused"
    SANDBOX = "sandbox"
    INTERRUPTED = "interrupted"


EXIT_CODES: Mapping[Outcome, int] = {
    Outcome.PASSED: 0,
    Outcome.ANSWERED: 0,
    Outcome.UNVERIFIED: 0,
    Outcome.INTERNAL: 1,
    Outcome.ENDPOINT: 3,
    Outcome.LIMIT: 4,
    Outcome.CHECKS_FAILED: 5,
    Outcome.NO_CHANGE: 6,
    Outcome.REFUSED: 7,
    Outcome.SANDBOX: 8,
    Outcome.INTERRUPTED: 130,
}
