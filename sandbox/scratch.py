"""Temporary folders that can be told apart from those of processes that died: each is locked while somebody needs it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "gpt-oss-agent-"
YOUNG_S = 60.0  # a folder this new may not have its lock yet


@contextlib.contextmanager
def folder(what: str) -> Iterator[Path]:
    """Give a new folder, held while the block runs and removed after it."""
    path, held = make(what)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def make(what: str) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds it: closed by the last process that has it, the folder is free."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what}-")).resolve()
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    return path, held


def abandoned() -> list[Path]:
    """Return this person's folders that nobody holds any more: their processes were killed."""
    found = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*")):
        with contextlib.suppress(OSError):  # gone meanwhile
            status = path.lstat()
            ours = path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid()
            if ours and time.time() - status.st_mtime > YOUNG_S and not _held(path):
                found.append(path)
    return found


def _held(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
