"""The patch format as one regular expression, for constrained sampling (agent/harmony/grammar.py).

It is narrower than what ``parse`` accepts, never wider: a text that matches is a patch, unless a path in it leads out of the repository.
It uses only syntax that Rust's regex crate supports too: no look-around, no back references.
"""

from __future__ import annotations

from typing import Final

_LINE: Final = r"[^\n]*\n"
_SOME: Final = r"[^\n]+\n"  # a path, or the line after which a hunk is searched
_LINES: Final = rf"([ +\-]{_LINE}|\n)+(\*\*\* End of File\n)?"
_PLACE: Final = rf"(@@( {_SOME}|\n))"
_HUNKS: Final = rf"{_PLACE}*{_LINES}({_PLACE}+{_LINES})*"
_ADD: Final = rf"\*\*\* Add File: {_SOME}(\+{_LINE})*"
_DELETE: Final = rf"\*\*\* Delete File: {_SOME}"
_UPDATE: Final = rf"\*\*\* Update File: {_SOME}(\*\*\* Move to: {_SOME}({_HUNKS})?|{_HUNKS})"

PATCH: Final = rf"\*\*\* Begin Patch\n({_ADD}|{_DELETE}|{_UPDATE})+\*\*\* End Patch\n?"
