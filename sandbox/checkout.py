"""Applies a change to the user's checkout, uncommitted: every file of it, or none.

Each file is checked first (it must still be what the run started from), written to a temporary file, and only then moved
into place; the old files are kept until the last move is done. If a move fails, or the user interrupts, everything is restored.
POSIX has no atomic rename of several files, so two gaps remain: for a moment, a reader may see some files new and others old,
and a process that is killed between two moves leaves them like that. Then ``.gpt-oss-agent-*`` in the checkout
contains the old files, each under its own path in ``old``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from sandbox import diff as diffs
from sandbox import snapshot as snapshots
from sandbox.errors import WorktreeError
from sandbox.snapshot import Item, Snapshot, Step

PREFIX = ".gpt-oss-agent-"


def bring(snapshot: Snapshot, tree: str) -> tuple[str, ...]:
    """Apply the difference between the snapshot and a tree to the checkout; return the paths.

    Raises WorktreeError if a file there is no longer what the run started from, or cannot be written.
    """
    root = snapshot.repository
    steps = snapshots.steps(snapshot, tree)
    removed = {root / os.fsdecode(step.path) for step in steps if not step.new_mode}
    written = [step for step in steps if step.new_mode]
    contents = dict(zip(written, snapshots.blobs(snapshot, (step.new_oid for step in written)), strict=True))
    renderings: dict[Step, bytes] = {}
    moved = []
    for step in steps:
        found = _found(root, step, contents.get(step) or b"", removed)
        if found is None:
            moved.append(os.fsdecode(step.path))
        else:
            renderings[step] = found
    if moved:
        raise WorktreeError(
            f"the checkout has changed since the run started: {', '.join(moved[:10])}; nothing was written. (A file that a "
            "filter writes, as under LFS, counts as changed.) Take the branch or the patch of the run and merge it yourself"
        )
    if renderings:
        _write(root, renderings)
    return tuple(sorted(os.fsdecode(step.path) for step in steps))


def _found(root: Path, step: Step, new: bytes, removed: Set[Path]) -> bytes | None:
    """Return what to write for a path, with the checkout's line endings; None if the file has changed since the run started."""
    full = root / os.fsdecode(step.path)
    for parent in full.relative_to(root).parents:
        above = root / parent
        if above not in removed and (above.is_symlink() or (above.exists() and not above.is_dir())):
            return None
    if not step.old_mode:
        return new if not os.path.lexists(full) or _becomes_free(full, removed) else None
    old = Item(step.old_mode, step.old_oid, step.path)
    if snapshots.from_checkout(root, old) is not None:
        return new
    if step.old_mode != diffs.LINK and snapshots.from_checkout(root, old, crlf=True) is not None:
        return new.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return None


def _becomes_free(folder: Path, removed: Set[Path]) -> bool:
    """Whether a folder contains only files that the change removes, so that a file can take its place."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(path in removed or (path.is_dir() and not path.is_symlink()) for path in folder.rglob("*"))


def _write(root: Path, renderings: Mapping[Step, bytes]) -> None:
    """Write everything to temporary files, so that a full disk changes nothing; then move it, and undo that if it fails."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    moves = _Moves(root, folder / "old")
    try:
        staged = _stage(folder / "new", renderings)
        for step in sorted(renderings, key=lambda step: bool(step.new_mode)):  # removals make room for folders
            moves.make(Path(os.fsdecode(step.path)), staged.get(step))
    except BaseException as error:
        problem = moves.undo()
        if problem is not None:  # the old files stay in the folder that the message names
            raise WorktreeError(
                f"the change could not be applied ({error}) and not completely undone ({problem}); the original files "
                f"are in {folder / 'old'}: copy them over the checkout, then remove {folder}"
            ) from error
        shutil.rmtree(folder)
        if isinstance(error, OSError):
            raise WorktreeError(
                f"the change could not be applied to {root}: {error}; nothing was changed. Free some space or fix the "
                "permissions, then try again"
            ) from error
        raise
    shutil.rmtree(folder)


def _stage(folder: Path, renderings: Mapping[Step, bytes]) -> dict[Step, Path]:
    folder.mkdir()
    staged = {}
    for number, (step, data) in enumerate(renderings.items()):
        if not step.new_mode:
            continue
        staged[step] = beside = folder / str(number)
        if step.new_mode == diffs.LINK:
            beside.symlink_to(os.fsdecode(data))
        else:
            beside.write_bytes(data)
            beside.chmod(0o755 if step.new_mode == diffs.PROGRAM else 0o644)
    return staged


class Was(Enum):
    """What was at a path before. The kept files do not tell: where a folder was replaced by a file, they have a folder."""

    KEPT = auto()
    NOTHING = auto()
    NO_FOLDER = auto()  # the folder did not exist and was made


@dataclass(slots=True)
class _Moves:
    """Files moved into place, and what is needed to undo that."""

    root: Path
    old: Path
    done: list[tuple[Path, Was]] = field(default_factory=list)  # relative paths, and what was there

    def make(self, path: Path, staged: Path | None) -> None:
        """Move a staged file to a path, or (None) remove the file there and the folders that are empty without it."""
        full, kept = self.root / path, self.old / path
        was = Was.KEPT if os.path.lexists(full) else Was.NOTHING
        if was is Was.KEPT:
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(full, kept, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(full, kept, follow_symlinks=False)
        if staged is None:
            self.done.append((path, was))
            full.unlink()
            for parent in full.parents:
                if parent == self.root or any(parent.iterdir()):
                    return
                parent.rmdir()
            return
        for parent in reversed([parent for parent in path.parents if not (self.root / parent).exists()]):
            (self.root / parent).mkdir()
            self.done.append((parent, Was.NO_FOLDER))
        self.done.append((path, was))
        staged.replace(full)

    def undo(self) -> OSError | None:
        """Restore the old files as far as possible; return the first error, if there was one."""
        problem: OSError | None = None
        for path, was in reversed(self.done):
            full, kept = self.root / path, self.old / path
            try:
                match was:
                    case Was.NO_FOLDER:
                        full.rmdir()
                    case Was.KEPT:
                        full.parent.mkdir(parents=True, exist_ok=True)
                        kept.replace(full)
                    case Was.NOTHING if os.path.lexists(full) and not full.is_dir():
                        full.unlink()
                    case Was.NOTHING:
                        pass
            except OSError as error:
                problem = problem or error
        return problem
