"""What the sandbox raises.

::

    SandboxError             the sandbox itself is broken
    ├── EngineUnavailable    no Docker engine answers (says what to install or start)
    ├── ImageUnavailable     the image is not there and cannot be had
    └── SandboxLost          the container is gone or stopped answering
    DiffRefused              the diff that came out is not one that may be applied (names the path and the rule)
    WorktreeError            git on the host could not do what was asked
    └── RemoteUnavailable    the server did not answer, or is busy: it may later
"""

from __future__ import annotations


class SandboxError(Exception):
    """The sandbox itself is broken. The message says what happened, why, and what to do."""


class EngineUnavailable(SandboxError):
    """No Docker engine answers."""


class ImageUnavailable(SandboxError):
    """The image is not there and cannot be had."""


class SandboxLost(SandboxError):
    """The container is gone or stopped answering."""


class DiffRefused(Exception):
    """The diff may not be applied: it names a path or a change that the policy forbids."""


class WorktreeError(Exception):
    """Git on the host could not do what was asked."""


class RemoteUnavailable(WorktreeError):
    """A server that git speaks to did not answer, or is busy: asking again may help."""
