"""gitignore(5), for the walk that finds what changed. Runs inside the sandbox on Python 3.6 and later.

Written here and not asked of git, because an image need not have git and because the sandbox's own repository may have been
tampered with. Compared with ``git check-ignore`` by property in tests/sandbox/test_ignore.py.
"""

import re
from typing import List, NamedTuple, Optional, Pattern, Tuple

_CLASSES = {
    b"alnum": b"a-zA-Z0-9",
    b"alpha": b"a-zA-Z",
    b"blank": b" \\t",
    b"digit": b"0-9",
    b"lower": b"a-z",
    b"space": b"\\s",
    b"upper": b"A-Z",
    b"xdigit": b"0-9a-fA-F",
    b"punct": b"!-/:-@\\[-`{-~",
}


class Rule(NamedTuple):
    """One line of an ignore file."""

    pattern: Pattern[bytes]
    negated: bool
    folders_only: bool
    base: bytes


def parse(text: bytes, base: bytes) -> List[Rule]:
    """Return the rules of one ignore file; ``base`` is its folder (b"" or ending in a slash)."""
    rules: List[Rule] = []
    for raw in text.split(b"\n"):
        line = raw[:-1] if raw.endswith(b"\r") else raw
        if line.startswith(b"#"):
            continue
        line = _strip_trailing_spaces(line)
        negated = line.startswith(b"!")
        if negated:
            line = line[1:]
        folders_only = line.endswith(b"/")
        if folders_only:
            line = line[:-1]
        if not line or line == b"/":
            continue
        anchored = b"/" in line
        if line.startswith(b"/"):
            line = line[1:]
        expression = _translate(line)
        if expression is None:
            continue
        prefix = b"" if anchored else b"(?:.*/)?"
        try:
            rules.append(Rule(re.compile(prefix + expression, re.DOTALL), negated, folders_only, base))
        except re.error:
            continue  # as git does with a pattern that can match nothing
    return rules


def ignored(rules: List[Rule], path: bytes, folder: bool) -> bool:
    """Whether the last rule that speaks of the path ignores it. Its folders must have been asked before."""
    for rule in reversed(rules):
        if rule.folders_only and not folder:
            continue
        if path.startswith(rule.base) and rule.pattern.fullmatch(path, len(rule.base)):
            return not rule.negated
    return False


def _strip_trailing_spaces(line: bytes) -> bytes:
    """Trailing spaces go, unless a backslash quotes them."""
    end = len(line)
    while end and line[end - 1 : end] == b" ":
        backslashes = 0
        while end - 2 - backslashes >= 0 and line[end - 2 - backslashes : end - 1 - backslashes] == b"\\":
            backslashes += 1
        if backslashes % 2:
            break
        end -= 1
    return line[:end]


def _translate(glob: bytes) -> Optional[bytes]:
    """Return the glob as a regular expression, or None if it can match nothing."""
    out: List[bytes] = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        if char == b"*":
            end = at
            while glob[end : end + 1] == b"*":
                end += 1
            opens = at == 0 or glob[at - 1 : at] == b"/"
            if end - at >= 2 and opens and glob[end : end + 1] == b"/":
                out.append(b"(?:.*/)?")
                end += 1
            elif end - at >= 2 and opens and end == len(glob):
                out.append(b".+" if at else b".*")
            else:
                out.append(b"[^/]*")
            at = end
            continue
        if char == b"?":
            out.append(b"[^/]")
        elif char == b"[":
            found = _bracket(glob, at)
            if found is None:
                return None
            expression, at = found
            out.append(expression)
            continue
        elif char == b"\\":
            at += 1
            if at == len(glob):
                return None
            out.append(re.escape(glob[at : at + 1]))
        else:
            out.append(re.escape(char))
        at += 1
    return b"".join(out)


def _bracket(glob: bytes, at: int) -> Optional[Tuple[bytes, int]]:
    """Return the set that opens at ``at`` as an expression, and where it ends."""
    at += 1
    negated = glob[at : at + 1] in (b"!", b"^")
    if negated:
        at += 1
    members = b""
    first = True
    while first or glob[at : at + 1] != b"]":
        first = False
        if at >= len(glob):
            return None
        if glob[at : at + 2] == b"[:":
            end = glob.find(b":]", at)
            name = glob[at + 2 : end] if end > 0 else b""
            if name not in _CLASSES:
                return None
            members += _CLASSES[name]
            at = end + 2
            continue
        low, at = _member(glob, at)
        if glob[at : at + 1] == b"-" and glob[at + 1 : at + 2] not in (b"]", b""):
            high, at = _member(glob, at + 1)
            if low <= high:
                members += re.escape(low) + b"-" + re.escape(high)
        else:
            members += re.escape(low)
    if not members:
        return (b"[^/]" if negated else b"(?!)"), at + 1
    return (b"[^/" if negated else b"(?!/)[") + members + b"]", at + 1


def _member(glob: bytes, at: int) -> Tuple[bytes, int]:
    """Return one literal of a set and where the next begins."""
    if glob[at : at + 1] == b"\\":
        at += 1
    return glob[at : at + 1], at + 1
