"""The error tree. Every error that this package raises on purpose is one of these; each carries the exit code it leads to.

::

    AgentError                    1  something here is broken
    ├── UsageError                2  flags, configuration or input that cannot be used
    │   └── ConfigError           2  a configuration key or value is wrong (names the key and the file)
    ├── ModelError                3  the model gave no answer
    │   ├── EndpointUnreachable   3  the endpoint does not answer, or breaks off, after all retries
    │   ├── EndpointRefused       3  the endpoint refused the request, and a retry would not help (400, 401, 404 …)
    │   ├── ContextOverflow       3  the prompt does not fit the model's window (the loop compacts and retries)
    │   ├── ModelUnfit            3  the endpoint answers, but lacks something that a run needs
    │   ├── Cancelled             3  the caller cancelled the answer
    │   └── ScriptEnded           4  the script of a scripted model has no more answers, and the run needs one
    ├── PatchError              2|5  the text is not a patch, or does not fit the files (in agent/patch/model.py)
    ├── LogError                  1  a run's log cannot be read or written
    ├── ServiceError              3  GitHub or GitLab (`agent ci publish`) cannot be reached, or refuses
    └── PolicyRefused             7  a policy forbids the run to begin, or its result to leave

``sandbox.errors.SandboxError`` and ``runtime.errors.RuntimeFault`` are not in this tree, because those packages never
import this one; the session translates them.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything this package raises on purpose. The message says what happened, why, and what to do."""

    exit_code = 1


class UsageError(AgentError):
    """Flags, configuration or input that cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is wrong."""


class LogError(AgentError):
    """A run's log cannot be read or written."""


class PolicyRefused(AgentError):
    """A policy forbids the run to begin (with the secrets this process holds, say), or its result to leave."""

    exit_code = 7


class ServiceError(AgentError):
    """The service that hosts the repository cannot be reached, or refuses. ``status`` is its HTTP status, if it gave one."""

    exit_code = 3

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ModelError(AgentError):
    """The model gave no answer. The only error a Model raises."""

    exit_code = 3


class EndpointUnreachable(ModelError):
    """The endpoint does not answer, or breaks off, after all retries."""


class EndpointRefused(ModelError):
    """The endpoint refused the request, and a retry would not help."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ContextOverflow(ModelError):
    """The prompt does not fit the model's context window."""


class ModelUnfit(ModelError):
    """The endpoint answers, but lacks something that a run needs."""


class Cancelled(ModelError):
    """The caller cancelled the answer from another thread."""


class ScriptEnded(ModelError):
    """A scripted model has no more answers. This counts as a limit, not as a fault of an endpoint."""

    exit_code = 4
