"""What the runtime raises.

::

    RuntimeFault          the runtime could not do what was asked
    ├── CheckpointError   a checkpoint is incomplete, of mixed layouts, or has wrong shapes (names the tensor)
    ├── DoesNotFit        the model or the cache does not fit the device (says how much is missing and what would fit)
    ├── RequestRefused    a request cannot be served as asked (names the option)
    └── EngineStopped     the engine is closed or its worker died
"""

from __future__ import annotations


class RuntimeFault(Exception):
    """The runtime could not do what was asked. The message says what happened, why, and what to do."""


class CheckpointError(RuntimeFault):
    """A checkpoint is incomplete, of mixed layouts, or has wrong shapes."""


class DoesNotFit(RuntimeFault):
    """The model or the cache does not fit the device."""


class RequestRefused(RuntimeFault):
    """A request cannot be served as asked."""


class EngineStopped(RuntimeFault):
    """The engine is closed or its worker died."""
