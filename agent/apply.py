"""Applies a patch in a folder of this machine: only inside of it, and all or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from agent.patch.model import Fault, FileChange, Patch, PatchError, Plan
from agent.patch.parse import parse
from agent.patch.plan import plan


def apply_patch(text: bytes, root: Path) -> Plan:
    """Apply a patch below ``root`` and return what was done. Raises PatchError; then no file was changed.

    Symbolic links are followed as long as they stay below the root and out of ``.git``.
    """
    root = Path(os.path.realpath(root))
    patch = parse(text.decode("utf-8", "surrogateescape"), str(root))
    places = _places(patch, root)
    try:
        planned = plan(patch, {path: place.read_bytes() for path, place in places.items() if place.is_file()})
        _make(planned, places, root)
    except OSError as error:
        message = f"{error.filename or root}: {error.strerror}. No file was changed."
        raise PatchError(Fault.FILE, message) from error
    return planned


def _places(patch: Patch, root: Path) -> dict[str, Path]:
    """Return the real location of each path of the patch. Raises PatchError for paths that may not be changed."""
    places: dict[str, Path] = {}
    for path in patch.paths:
        place = Path(os.path.realpath(root / path))
        if not place.is_relative_to(root) or place == root:
            raise PatchError(Fault.PATH, f"the path {path!r} leaves {root} through a link.")
        if any(part.casefold() == ".git" for part in place.relative_to(root).parts):
            raise PatchError(Fault.PATH, f"the path {path!r} leads into git's own folder through a link.")
        if place.exists() and not place.is_file():
            raise PatchError(Fault.FILE, f"{path} is {'a folder' if place.is_dir() else 'not a regular file'}.")
        if place in places.values():
            raise PatchError(Fault.PATH, f"{path} is the same file as another path of the patch, through a link.")
        places[path] = place
    return places


def _make(planned: Plan, places: Mapping[str, Path], root: Path) -> None:
    """First write all new content to temporary files beside the targets, then swap; undo everything if a step fails."""
    made_folders: list[Path] = []
    staged: dict[str, Path] = {}
    done: list[FileChange] = []
    modes = {path: place.stat().st_mode & 0o7777 for path, place in places.items() if place.is_file()}
    try:
        for change in planned.changes:
            if change.after is not None:
                mode = modes.get(change.moved_from or change.path)
                staged[change.path] = _stage(places[change.path], change.after, mode, made_folders)
        for change in planned.changes:
            if change.after is not None:
                staged[change.path].replace(places[change.path])
                del staged[change.path]
            else:
                (root / change.path).unlink()
            done.append(change)
    except OSError:
        for change in reversed(done):
            if change.before is None:
                places[change.path].unlink()
            else:
                _stage(places[change.path], change.before, modes[change.path], made_folders).replace(
                    places[change.path]
                )
        for path in staged.values():
            path.unlink()
        for folder in reversed(made_folders):
            folder.rmdir()
        raise


def _stage(place: Path, content: bytes, mode: int | None, made_folders: list[Path]) -> Path:
    """Write content to a new file in the folder of ``place``; create missing folders."""
    missing = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        made_folders.append(folder)
    handle, name = tempfile.mkstemp(prefix=f".{place.name[:100]}.", dir=place.parent)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink()
        raise
    if mode is None:
        # Like any new file: rw-rw-rw- minus the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    path.chmod(mode)
    return path
