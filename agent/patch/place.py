"""Places the hunks of a patch in one file, and computes the file's new content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.patch.match import Closeness, Found, Haystack, nearest
from agent.patch.model import EXAMPLE, Fault, Hunk, HunkLine, PatchError, Tag
from agent.patch.parse import BLANKS

_UNIFIED = re.compile(r"-(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@ ?(.*)")
_RULE = "The lines after '@@' must be the file's own, in order, with one blank (stays) or '-' (goes) in front of each."
_NAMED = 5  # how many candidates an error or note names


@dataclass(frozen=True, slots=True)
class Source:
    """A file split into lines. ``ends`` are the lines' own endings ("" if the last line has none); new lines get ``end``."""

    path: str
    hay: Haystack
    ends: tuple[str, ...]
    end: str
    is_utf8: bool

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines without their endings; bytes that are not UTF-8 are surrogate escapes."""
        return self.hay.lines


@dataclass(frozen=True, slots=True)
class Edit:
    """``count`` lines of the file from ``start`` on become ``lines``."""

    start: int
    count: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A placed hunk: ``count`` lines from ``start`` on, and the edits inside."""

    start: int
    count: int
    edits: tuple[Edit, ...]


def cut(path: str, data: bytes) -> Source:
    """Split a file's bytes into lines, at LF and CRLF only. New lines get the first line's ending, as in Codex."""
    text = data.decode("utf-8", "surrogateescape")
    pieces = text.split("\n")
    rest = pieces.pop()
    lines = [piece.removesuffix("\r") for piece in pieces]
    ends = ["\r\n" if piece.endswith("\r") else "\n" for piece in pieces]
    if rest:
        lines.append(rest)
        ends.append("")
    is_utf8 = text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)
    return Source(path, Haystack(tuple(lines)), tuple(ends), ends[0] if pieces else "\n", is_utf8)


def rewrite(source: Source, hunks: Sequence[Hunk]) -> tuple[str, list[str]]:
    """Return the file's new text (surrogate escapes for bytes that are not UTF-8) and notes. Raises PatchError (CONTEXT, FILE).

    As in Codex, the result always ends with a newline.
    """
    placed: list[Placed] = []
    notes = [] if source.is_utf8 else [f"{source.path} is not UTF-8: the bytes of its untouched lines were kept"]
    position = 0
    for hunk in hunks:
        found, position, said = _place(source, hunk, position, placed)
        placed.append(found)
        notes.extend(f"{source.path}, hunk at line {hunk.number}: {text}" for text in said)
    pieces: list[str] = []
    index = 0
    # The sort is stable: lines for the same place stay in the order of the patch.
    for edit in sorted((edit for found in placed for edit in found.edits), key=lambda edit: edit.start):
        pieces += _own(source, index, edit.start)
        pieces += [line + source.end for line in edit.lines]
        index = edit.start + edit.count
    pieces += _own(source, index, len(source.lines))
    return "".join(pieces), notes


def _own(source: Source, start: int, stop: int) -> Iterable[str]:
    return [source.lines[index] + (source.ends[index] or source.end) for index in range(start, stop)]


def _place(source: Source, hunk: Hunk, position: int, taken: list[Placed]) -> tuple[Placed, int, list[str]]:
    """Find a hunk's place at or after ``position``; return the placed hunk, the next position, and notes."""
    if not source.is_utf8:
        _refuse_guessed_bytes(source.path, hunk)
    start: int | None = position
    for anchor in hunk.anchors:
        found = source.hay.find((anchor,), start) if start is not None else None
        start = found.index + 1 if found is not None else None
    if not hunk.old:
        return _append(source, hunk, position if start is None else start, found=start is not None)
    if start is None:
        return _only_place(source, hunk, position, None, taken)
    needle, lines = hunk.old, hunk.lines
    found = source.hay.find(needle, start, hunk.at_end)
    if found is None and needle[-1] == "":
        # A blank line at the end of a hunk often only separates it from what follows.
        needle, lines = needle[:-1], _without_last_blank(hunk)
        found = source.hay.find(needle, start, hunk.at_end)
    if found is None:
        return _only_place(source, hunk, position, start, taken)
    return (
        _edit(lines, found.index),
        found.index + len(needle),
        _notes(source, hunk, found, needle, start),
    )


def _edit(lines: Iterable[HunkLine], start: int) -> Placed:
    """Place a hunk's lines at ``start``. Context lines are in no edit, so they keep the file's own bytes."""
    edits: list[Edit] = []
    added: list[str] = []
    begin = index = start
    for line in lines:
        if line.tag is Tag.ADD:
            added.append(line.text)
            continue
        if line.tag is Tag.KEEP:
            edits.append(Edit(begin, index - begin, tuple(added)))
            added, begin = [], index + 1
        index += 1
    edits.append(Edit(begin, index - begin, tuple(added)))
    return Placed(start, index - start, tuple(edit for edit in edits if edit.count or edit.lines))


def _without_last_blank(hunk: Hunk) -> tuple[HunkLine, ...]:
    """Return the hunk's lines without the blank line at the end of the old lines, and without one at the end of the new lines."""
    lines = list(hunk.lines)
    last_old = max(index for index, line in enumerate(lines) if line.tag is not Tag.ADD)
    stays = lines.pop(last_old).tag is Tag.KEEP
    if stays and hunk.new[-1] != "":
        lines.insert(last_old, HunkLine(Tag.ADD, "", hunk.number))
    elif not stays and hunk.new and hunk.new[-1] == "":
        del lines[max(index for index, line in enumerate(lines) if line.tag is not Tag.REMOVE)]
    return tuple(lines)


def _notes(source: Source, hunk: Hunk, found: Found, needle: tuple[str, ...], start: int) -> list[str]:
    notes = []
    if found.closeness is not Closeness.EXACT:
        notes.append(f"its lines match line {found.index + 1} only {found.closeness}")
    if found.closeness is Closeness.OUTER and any(line.tag is Tag.ADD for line in hunk.lines):
        notes.append("the added lines have the patch's own indentation: look whether it is right")
    others = [index for index in source.hay.every(needle, found.closeness, start) if index != found.index]
    if others:
        notes.append(f"line {found.index + 1} was changed; the same lines are also at line {_places(others)}")
    return notes


def _places(indices: Sequence[int]) -> str:
    more = ", …" if len(indices) > _NAMED else ""
    return ", ".join(str(index + 1) for index in indices[:_NAMED]) + more


def _append(source: Source, hunk: Hunk, start: int, *, found: bool) -> tuple[Placed, int, list[str]]:
    """Place a hunk with only added lines at the end of the file, as in Codex, even if it has an anchor."""
    anchors, _ = _read_anchors(hunk.anchors)
    if not found and (anchors or source.lines):
        above, _ = source.hay.everywhere(anchors[-1:])
        near = (
            f"It is line {_places(above)}.\n"
            if above
            else _nearest(source, [(text, hunk.number) for text in anchors[-1:]])
        )
        message = f"'@@ {hunk.anchors[-1]}' is not a line of {source.path} after line {start}."
        hint = "To insert lines, give the line of the file before them, with one blank in front."
        raise PatchError(Fault.CONTEXT, message, hunk.number, near + hint)
    notes = []
    if hunk.anchors and found:
        notes.append(
            f"it has only added lines, so they went to the end of the file, not to {hunk.anchors[-1]!r}; "
            "to insert lines elsewhere, give the line before them, with one blank in front"
        )
    if hunk.anchors and not found:
        notes.append("line numbers after '@@' are not needed")
    return _edit(hunk.lines, len(source.lines)), start, notes


def _read_anchors(anchors: Iterable[str]) -> tuple[list[str], int | None]:
    """Read anchors as a unified diff may have them (``-12,3 +12,4 @@ def f():``): the texts, and the old line number."""
    texts = []
    number = None
    for anchor in anchors:
        match = _UNIFIED.fullmatch(anchor)
        if match is not None:
            number = int(match[1])
        text = (match[2] if match is not None else anchor).removesuffix("@@").strip(BLANKS)
        if text:
            texts.append(text)
    return texts, number


def _only_place(
    source: Source, hunk: Hunk, position: int, start: int | None, taken: list[Placed]
) -> tuple[Placed, int, list[str]]:
    """Return the place of a hunk that Codex refuses, with a note, if only one is possible; otherwise raise PatchError (CONTEXT).

    Only one is possible if the old lines occur once in the file, if a unified header names one of their places, or if
    they follow the only line that contains the anchor's text.
    """
    indices, closeness = source.hay.everywhere(hunk.old)
    places = [i for i in indices if all(i + len(hunk.old) <= t.start or i >= t.start + t.count for t in taken)]
    anchors, number = _read_anchors(hunk.anchors)
    holders = [index for index, line in enumerate(source.lines) if anchors and anchors[-1] in line]
    after = [index for index in places if len(holders) == 1 and index > holders[0]]
    telling = any(sum(map(str.isalnum, line)) > 2 for line in hunk.old)
    if len(places) == 1 and telling:
        place = places[0]
    elif number is not None and number - 1 in places:
        place = number - 1
    elif after:
        place = after[0]
    else:
        raise _missing(source, hunk, position if start is None else start, start is None, indices, places, closeness)
    if start is None and anchors:
        why = (
            f"'@@ {hunk.anchors[-1]}' is not a whole line after line {position}, but its lines are at line {place + 1}"
        )
    elif start is None:
        why = f"line numbers after '@@' are not needed; its lines are at line {place + 1}"
    elif hunk.at_end and place >= start:
        why = f"its lines are not the file's last ones; they are at line {place + 1}"
    elif place < start:
        why = f"its lines are at line {place + 1}, above where it stands in the patch; hunks follow the file's order"
    else:
        why = f"its lines match line {place + 1} only {closeness}"
    return _edit(hunk.lines, place), max(position, place + len(hunk.old)), [why]


def _missing(
    source: Source,
    hunk: Hunk,
    start: int,
    anchor_lost: bool,
    indices: list[int],
    places: list[int],
    closeness: Closeness,
) -> PatchError:
    """Return the error for a hunk without a place: the candidates or the most similar place, and the rule."""
    path = source.path
    old = [(line.text, line.number) for line in hunk.lines if line.tag is not Tag.ADD]
    if places:
        what = (
            f"'@@ {hunk.anchors[-1]}' is not a line"
            if anchor_lost
            else f"the lines to change are not after line {start}"
        )
        how = "" if closeness is Closeness.EXACT else f" {closeness}"
        return PatchError(
            Fault.CONTEXT,
            f"{what} of {path}. They are{how} at line {_places(places)}.",
            hunk.number,
            "Give more lines of context, or after '@@' a whole line of the file above the right place.",
        )
    if indices:
        message = f"the lines to change, line {_places(indices)} of {path}, are changed by an earlier hunk of the patch already."
        return PatchError(Fault.CONTEXT, message, hunk.number, "Write one hunk for them.")
    done = source.hay.find(hunk.new)
    if done is not None and len(hunk.new) > 1:
        message = f"the lines to change are not in {path}, but what they were to become is, at line {done.index + 1}."
        return PatchError(Fault.CONTEXT, message, old[0][1], "The change seems to be made already.")
    binary = " The file has NUL bytes: it is not text." if any("\0" in line for line in source.lines) else ""
    marker = next((text for text, _ in old if text.strip(BLANKS).startswith("*** ")), None)
    padded = (
        ""
        if marker is None
        else f"If {marker.strip(BLANKS)[:200]!r} is meant as a marker, it must not have a blank in front.\n"
    )
    hint = f"{_nearest(source, old)}{padded}{_RULE}\nA correct patch looks like this:\n{EXAMPLE}"
    return PatchError(Fault.CONTEXT, f"the lines to change are not in {path}.{binary}", old[0][1], hint)


def _nearest(source: Source, old: Sequence[tuple[str, int]]) -> str:
    if not old:
        return ""
    near = nearest(source.hay, [text for text, _ in old])
    if near is None:
        return f"Nothing in {source.path} is like {old[0][0].strip(BLANKS)[:200]!r}: look at the file again.\n"
    text, number = old[near.differs]
    at = near.index + near.differs if near.matching else near.index
    theirs = source.lines[at] if at < len(source.lines) else "(the file ends here)"
    return (
        f"Nearest match ({near.matching} of {len(old)} lines alike); the first line that differs:\n"
        f"  patch, line {number}: {text[:200]}\n"
        f"  {source.path}, line {at + 1}: {theirs.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')[:200]}\n"
    )


def _refuse_guessed_bytes(path: str, hunk: Hunk) -> None:
    """Refuse added text that is not ASCII in a file that is not UTF-8, because the file's encoding is unknown."""
    for line in hunk.lines:
        if (
            line.tag is Tag.ADD
            and not line.text.isascii()
            and not any("\udc80" <= letter <= "\udcff" for letter in line.text)
        ):
            raise PatchError(
                Fault.FILE,
                f"{path} is not UTF-8, so the encoding of the added line {line.text[:200]!r} cannot be known.",
                line.number,
                "Write it in ASCII (escapes such as \\xe9), or change the file with a Python script that names the encoding.",
            )
