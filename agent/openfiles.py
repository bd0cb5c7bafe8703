"""The bound on this process's open files. Shells set 1,024, and every connection and every worker is one or more."""

from __future__ import annotations

import sys
from contextlib import suppress


def allow_files(wanted: int) -> int:
    """Raise the bound as far as it may be, up to ``wanted``; return how many files may be open now."""
    if sys.platform == "win32":  # which knows no such bound
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if resource.RLIM_INFINITY != soft < most:
        with suppress(ValueError, OSError):  # macOS names no hard limit, and refuses more than its kernel's own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return wanted if soft == resource.RLIM_INFINITY else soft
