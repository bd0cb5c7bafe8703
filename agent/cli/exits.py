"""Maps errors to exit codes: one table."""

from __future__ import annotations

from agent.errors import AgentError, ModelError, PolicyRefused, ServiceError, UsageError
from agent.outcome import EXIT_CODES, Outcome
from runtime.errors import RuntimeFault
from sandbox.errors import DiffRefused, SandboxError, WorktreeError

EXPECTED = (AgentError, SandboxError, DiffRefused, WorktreeError, RuntimeFault)
INTERRUPTED = EXIT_CODES[Outcome.INTERRUPTED]
PIPE_CLOSED = 128 + 13  # what a shell reports for a program that SIGPIPE ended


def exit_code(error: Exception) -> int:
    """Return the exit code of an error; an unexpected error is internal."""
    match error:
        case AgentError():
            return error.exit_code
        case SandboxError():
            return EXIT_CODES[Outcome.SANDBOX]
        case DiffRefused():
            return EXIT_CODES[Outcome.REFUSED]
        case RuntimeFault():
            return EXIT_CODES[Outcome.ENDPOINT]
        case _:
            return EXIT_CODES[Outcome.INTERNAL]


def outcome_name(error: Exception) -> str:
    """Return the outcome of a run that could not begin, for the `result` line: an Outcome's name, or usage."""
    match error:
        case UsageError():
            return "usage"
        case ModelError() | ServiceError() | RuntimeFault():
            return Outcome.ENDPOINT.value
        case PolicyRefused() | DiffRefused():
            return Outcome.REFUSED.value
        case SandboxError():
            return Outcome.SANDBOX.value
        case _:
            return Outcome.INTERNAL.value
