"""The limit on this process's open files. Shells set 1,024, and every connection and every worker needs one or more."""

from __future__ import annotations

import sys
from contextlib import suppress


def allow_files(wanted: int) -> int:
    """Raise the limit as far as allowed, up to ``wanted``; return how many files may be open now."""
    if sys.platform == "win32":  # Windows has no such limit
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if resource.RLIM_INFINITY != soft < most:
        with suppress(ValueError, OSError):  # macOS reports no hard limit, but refuses more than its kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return wanted if soft == resource.RLIM_INFINITY else soft
