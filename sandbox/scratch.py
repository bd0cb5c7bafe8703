"""Temporary folders that are locked while they are in use, so that those of dead processes can be recognized and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sandbox.guest.removal import remove_tree

PREFIX = "gpt-oss-agent-"
YOUNG_S = 60.0  # a folder younger than this may not be locked yet


@contextlib.contextmanager
def folder(what: str) -> Iterator[Path]:
    """Yield a new temporary folder, locked during the block and removed after it."""
    path, held = make(what)
    try:
        yield path
    finally:
        remove_tree(str(path))
        os.close(held)


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent``, for content that is then renamed into it; leftovers of killed processes are removed."""
    sweep(parent.glob(".new-*"))
    path = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
    held = hold(path)
    try:
        yield path
    finally:
        remove_tree(str(path))
        os.close(held)


def make(what: str) -> tuple[Path, int]:
    """Return a new temporary folder and the descriptor that holds it; those that killed processes left for the same are removed."""
    sweep(temporary(what))
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{what}-")).resolve()
    return path, hold(path)


def hold(path: Path) -> int:
    """Lock a folder and return the descriptor. The lock ends when the last process with the descriptor closes it."""
    held = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # NFS cannot lock folders; there, no folder counts as abandoned
        fcntl.flock(held, fcntl.LOCK_EX)
    return held


def sweep(paths: Iterable[Path]) -> list[Path]:
    """Remove the abandoned ones of these folders; return them."""
    gone = abandoned(paths)
    for path in gone:
        remove_tree(str(path))
    return gone


def temporary(what: str = "*") -> Iterator[Path]:
    """Yield the temporary folders whose names are like ours: of one kind, or of all."""
    yield from Path(tempfile.gettempdir()).glob(f"{PREFIX}{what}-*")


def abandoned(paths: Iterable[Path]) -> list[Path]:
    """Return those of these folders that belong to this user and are not locked any more: their processes were killed."""
    found = []
    for path in sorted(paths):
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
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
