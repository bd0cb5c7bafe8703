"""The error tree. Everything the product raises on purpose is one of these; each carries the exit code it ends a run with.

::

    AgentError                    1  something here is broken
    ├── UsageError                2  flags, configuration or input that cannot be used
    │   └── ConfigError           2  a configuration key or value is wrong (names the key and the file)
    ├── ModelError                3  the model could not be asked
    │   ├── EndpointUnreachable   3  nobody answers, or answers stop, after all retries
    │   ├── EndpointRefused       3  the endpoint answered with a refusal that asking again does not cure (400, 401, 404 …)
    │   ├── ContextOverflow       3  the prompt does not fit the model's window (the loop compacts and asks again)
    │   ├── ModelUnfit            3  the endpoint answers, but not with what a run needs
    │   ├── Cancelled             3  whoever asked does not want the answer any more
    │   └── ScriptEnded           4  the script of a scripted model has no more answers, and the run needs one
    ├── PatchError              2|5  the text is no patch, or does not fit the files (in agent/patch/model.py)
    ├── LogError                  1  a run's log cannot be read or written
    ├── ServiceError              3  GitHub or GitLab (`agent ci publish`) cannot be reached, or refuses
    └── PolicyRefused             7  the run may not begin so, or its result may not leave

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
    """A policy forbids it: to begin with what this process holds, or to let the result leave."""

    exit_code = 7


class ServiceError(AgentError):
    """The service that hosts the repository cannot be reached, or refuses. ``status`` is its HTTP status, if it gave one."""

    exit_code = 3

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ModelError(AgentError):
    """The model could not be asked. The only error a Model raises."""

    exit_code = 3


class EndpointUnreachable(ModelError):
    """Nobody answers, or answers stop, after all retries."""


class EndpointRefused(ModelError):
    """The endpoint refused in a way that asking again does not cure."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ContextOverflow(ModelError):
    """The prompt does not fit the model's context window."""


class ModelUnfit(ModelError):
    """The endpoint answers, but not with what a run needs."""


class Cancelled(ModelError):
    """Whoever asked does not want the answer any more, and said so from another thread."""


class ScriptEnded(ModelError):
    """A scripted model has no more answers. A limit like others, and no fault of an endpoint."""

    exit_code = 4
