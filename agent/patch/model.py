"""Data types of patches: the result of parse, the result of plan, and the error that both raise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.errors import AgentError

EXAMPLE = """\
*** Begin Patch
*** Update File: src/app.py
@@ def greet():
     name = read()
-    print("Hi", name)
+    print("Hello", name)
*** End Patch"""


class Fault(StrEnum):
    """The kind of error in a patch."""

    SYNTAX = "syntax"  # it is not a patch
    PATH = "path"  # it names a path that may not be changed
    FILE = "file"  # a file is missing, in the way, or not text
    CONTEXT = "context"  # the lines to change are not in the file, or in several places


class PatchError(AgentError):
    """The text is not a patch, or does not apply to the files. Nothing was changed.

    The message is complete: the offending line of the patch with its number, the nearest match, the candidates, the rule.
    ``exit_code`` is 2 when the text is not a patch and 5 when the patch is not applicable.
    """

    def __init__(self, fault: Fault, message: str, line: int | None = None, hint: str = "") -> None:
        where = f"line {line} of the patch: " if line is not None else ""
        super().__init__(where + message + (f"\n{hint}" if hint else ""))
        self.fault = fault
        self.line = line
        self.exit_code = 2 if fault is Fault.SYNTAX else 5


class Tag(StrEnum):
    """What a line of a hunk is: context, removed or added."""

    KEEP = " "
    REMOVE = "-"
    ADD = "+"


@dataclass(frozen=True, slots=True)
class HunkLine:
    """One line of a hunk, without its tag and line end. ``number`` is its line in the patch text, from 1."""

    tag: Tag
    text: str
    number: int


@dataclass(frozen=True, slots=True)
class Hunk:
    """One change at one place of a file.

    ``anchors`` are the texts after ``@@``, outermost first. ``at_end``: the old lines are the file's last ones.
    """

    number: int
    anchors: tuple[str, ...] = ()
    lines: tuple[HunkLine, ...] = ()
    at_end: bool = False

    @property
    def old(self) -> tuple[str, ...]:
        """The lines that the file must have."""
        return tuple(line.text for line in self.lines if line.tag is not Tag.ADD)

    @property
    def new(self) -> tuple[str, ...]:
        """The lines that replace them."""
        return tuple(line.text for line in self.lines if line.tag is not Tag.REMOVE)


@dataclass(frozen=True, slots=True)
class AddFile:
    """A new file; it replaces an existing one. ``number`` is the section's line in the patch text."""

    path: str
    lines: tuple[str, ...]
    number: int


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """A deleted file."""

    path: str
    number: int


@dataclass(frozen=True, slots=True)
class UpdateFile:
    """A changed file, which is also moved if ``move_to`` is set."""

    path: str
    hunks: tuple[Hunk, ...]
    number: int
    move_to: str | None = None


Operation = AddFile | DeleteFile | UpdateFile


@dataclass(frozen=True, slots=True)
class Patch:
    """Operations in the order they were written. ``notes`` say where the text deviates from the format."""

    operations: tuple[Operation, ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path in the patch, once, in order: the files that ``plan`` needs."""
        named: dict[str, None] = {}
        for operation in self.operations:
            named[operation.path] = None
            if isinstance(operation, UpdateFile) and operation.move_to is not None:
                named[operation.move_to] = None
        return tuple(named)


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file before and after; None means that there is no such file.

    ``moved_from`` names the file whose executable bit this one inherits.
    """

    path: str
    before: bytes | None
    after: bytes | None
    moved_from: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that a patch makes: at most one per path, to be applied all or nothing.

    ``summary`` has a line per operation (``M src/app.py``); ``notes`` are for the author of the patch.
    """

    changes: tuple[FileChange, ...]
    summary: tuple[str, ...]
    notes: tuple[str, ...] = ()
