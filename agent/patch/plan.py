"""Computes the new content of each file from a patch and the old content. Bytes in, bytes out; pure.

Where the published Codex ``apply_patch`` succeeds, the result is identical (docs/decisions/0010-apply-patch.md lists the
exceptions, all for safety). If it refuses but only one meaning is possible, that is planned, with a note.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.patch.model import AddFile, DeleteFile, Fault, FileChange, Patch, PatchError, Plan, UpdateFile
from agent.patch.place import cut, rewrite


def plan(patch: Patch, files: Mapping[str, bytes], elsewhere: Collection[str] = ()) -> Plan:
    """Return what the patch does to ``files`` (path → content, for those of ``patch.paths`` that exist).

    ``elsewhere`` are other files of the repository, to suggest one if a path is wrong. Operations are applied in the order
    written. Raises PatchError (FILE or CONTEXT); then nothing may be changed.
    """
    now: dict[str, bytes | None] = {path: files.get(path) for path in patch.paths}
    known = (*files, *elsewhere)
    moved: dict[str, str] = {}
    notes = list(patch.notes)
    summary = []
    for operation in patch.operations:
        path = operation.path
        content = now[path]
        match operation:
            case AddFile(_, lines, number):
                _need_room(path, now, number)
                if content is not None:
                    notes.append(f"{path} was there already and was replaced whole ({len(content)} bytes before)")
                now[path] = _encode("".join(f"{line}\n" for line in lines), path, number)
                summary.append(f"A {path}")
            case DeleteFile(_, number):
                _need(path, content, number, known)
                now[path] = None
                moved.pop(path, None)
                summary.append(f"D {path}")
            case UpdateFile(_, hunks, number, move_to):
                updated = _need(path, content, number, known)
                if hunks:
                    text, said = rewrite(cut(path, updated), hunks)
                    updated = _encode(text, path, number)
                    notes.extend(said)
                if move_to is None or move_to == path:
                    now[path] = updated
                    if move_to is not None:
                        notes.append(f"{path} was moved onto itself: it stays where it is")
                else:
                    _need_room(move_to, now, number)
                    if now[move_to] is not None:
                        notes.append(f"{move_to} was there already and was replaced by {path}")
                    now[path], now[move_to] = None, updated
                    moved[move_to] = moved.pop(path, path)
                summary.append(f"M {move_to or path}")
    changes = tuple(
        FileChange(path, files.get(path), after, moved.get(path) if after is not None else None)
        for path, after in now.items()
        if after != files.get(path) or path in moved
    )
    if not changes:
        notes.append("no file is different from before")
    return Plan(changes, tuple(summary), tuple(dict.fromkeys(notes)))


def _need(path: str, content: bytes | None, number: int, known: Collection[str]) -> bytes:
    if content is not None:
        return content
    near = [other for other in known if other != path and other.rsplit("/", 1)[-1] == path.rsplit("/", 1)[-1]]
    hint = f"Did you mean {' or '.join(near[:3])}?" if near else f"To create it, use '*** Add File: {path}'."
    raise PatchError(Fault.FILE, f"there is no file {path}.", number, hint)


def _need_room(path: str, now: Mapping[str, bytes | None], number: int) -> None:
    """Raise PatchError for a file below a path that is, or will be, a file itself."""
    parents = [path[:i] for i, letter in enumerate(path) if letter == "/"]
    blocking = next((parent for parent in parents if now.get(parent) is not None), None)
    if blocking is not None:
        raise PatchError(Fault.FILE, f"{path} cannot be made: {blocking} is a file, not a folder.", number)


def _encode(text: str, path: str, number: int) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        letter = f"U+{ord(text[error.start]):04X}"
        raise PatchError(Fault.FILE, f"the text for {path} holds half a character ({letter}).", number) from None
