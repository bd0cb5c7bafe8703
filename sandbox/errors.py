"""What the sandbox raises.

::

    SandboxError             the sandbox itself is broken
    ├── EngineUnavailable    no Docker engine answers (says what to install or start)
    ├── ImageUnavailable     the image is not there and cannot be pulled or built
    └── SandboxLost          the container is gone or stopped answering
    DiffRefused              the diff from the sandbox may not be applied (names the path and the rule)
    WorktreeError            git on the host could not do what was asked
    └── RemoteUnavailable    the git server did not answer, or is busy: a retry may help
"""

from __future__ import annotations


class SandboxError(Exception):
    """The sandbox itself is broken. The message says what happened, why, and what to do."""


class EngineUnavailable(SandboxError):
    """No Docker engine answers."""


class ImageUnavailable(SandboxError):
    """The image is not there and cannot be pulled or built."""


class SandboxLost(SandboxError):
    """The container is gone or stopped answering."""


class DiffRefused(Exception):
    """The diff may not be applied: it names a path or a change that the policy forbids."""


class WorktreeError(Exception):
    """Git on the host could not do what was asked."""


class RemoteUnavailable(WorktreeError):
    """The git server did not answer, or is busy: a retry may help."""
