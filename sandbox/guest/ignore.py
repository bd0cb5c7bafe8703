"""gitignore(5), for the walk that finds changed files. Runs inside the sandbox on Python 3.6 and later.

Git itself is not used, because an image need not have git, and because the sandbox's own repository may have been
tampered with. A property test compares this with ``git check-ignore`` (tests/sandbox/test_ignore.py).
"""

import re
from typing import List, NamedTuple, Optional, Pattern, Tuple

_CLASSES = {
    b"alnum": b"a-zA-Z0-9",
    b"alpha": b"a-zA-Z",
    b"blank": b" \\t",
    b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9",
    b"graph": b"!-~",
    b"lower": b"a-z",
    b"print": b" -~",
    b"space": b" \\t\\n\\r",
    b"upper": b"A-Z",
    b"xdigit": b"0-9a-fA-F",
    b"punct": b"!-/:-@\\[-`{-~",
}


_DEEP, _FLAT = b"(?:[^/]*/)*?", b"[^/]*?"
PLAIN_STARS = 4


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
        if b"/" not in line:
            line = b"**/" + line
        if line.startswith(b"/"):
            line = line[1:]
        expression = translate(line, careful=line.count(b"*") > PLAIN_STARS)
        if expression is None:
            continue
        try:
            rules.append(Rule(re.compile(expression, re.DOTALL), negated, folders_only, base))
        except re.error:
            continue  # like git, skip a pattern that cannot match anything
    return rules


def ignored(rules: List[Rule], path: bytes, folder: bool) -> bool:
    """Whether the last rule that matches the path ignores it. Its parent folders must have been checked before."""
    for rule in reversed(rules):
        if rule.folders_only and not folder:
            continue
        if path.startswith(rule.base) and rule.pattern.fullmatch(path, len(rule.base)):
            return not rule.negated
    return False


def _strip_trailing_spaces(line: bytes) -> bytes:
    """Remove trailing spaces, unless a backslash quotes them."""
    end = len(line)
    while end and line[end - 1 : end] == b" ":
        backslashes = 0
        while end - 2 - backslashes >= 0 and line[end - 2 - backslashes : end - 1 - backslashes] == b"\\":
            backslashes += 1
        if backslashes % 2:
            break
        end -= 1
    return line[:end]


def translate(glob: bytes, careful: bool) -> Optional[bytes]:
    """Return the glob as a regular expression, or None if it cannot match anything.

    With many stars, the plain expression tries every way to divide a name among them, in exponential time. With ``careful``, the
    text between two stars matches at the first possible position only, without backtracking: whatever follows, the next star can
    reach it from there too. (``(?=(?P<n>…))(?P=n)`` is an atomic group for old Pythons.)
    """
    out: List[bytes] = []
    groups: List[Tuple[bytes, int]] = []  # those that are open: of ``**/``, and in it of ``*``, which a slash ends

    def end(star: bytes) -> None:
        while star in (kind for kind, _ in groups):
            out.append(b"))(?P=n%d)" % groups.pop()[1])

    def begin(star: bytes, plain: bytes) -> None:
        if careful:
            end(star)
            groups.append((star, len(out)))
            out.append(b"(?=(?P<n%d>" % len(out) + star)
        else:
            out.append(plain)

    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        if char == b"*":
            after = at
            while glob[after : after + 1] == b"*":
                after += 1
            opens = at == 0 or glob[at - 1 : at] == b"/"
            if after - at >= 2 and opens and glob[after : after + 1] == b"/":
                begin(_DEEP, b"(?:.*/)?")
                after += 1
            elif after - at >= 2 and opens and glob[after : after + 2] == b"\\/":
                out.append(b"[^/]*/")  # git lets the stars stand for no folder only before a slash that is not quoted
                begin(_DEEP, b"(?:.*/)?")
                after += 2
            elif after - at >= 2 and opens and after == len(glob):
                out.append(b".+" if at else b".*")
            else:
                begin(_FLAT, b"[^/]*")
            at = after
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
            char = glob[at : at + 1]
            out.append(re.escape(char))
        else:
            out.append(re.escape(char))
        if char == b"/":
            end(_FLAT)
        at += 1
    out.append(b"\\Z")
    end(_FLAT)
    end(_DEEP)
    return b"".join(out)


def _bracket(glob: bytes, at: int) -> Optional[Tuple[bytes, int]]:
    """Return the bracket expression that begins at ``at`` as a regular expression, and where it ends."""
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
        end = glob.find(b"]", at + 2) if glob[at : at + 2] == b"[:" else 0
        if end < 0:
            return None
        if end > at + 2 and glob[end - 1 : end] == b":":
            name = glob[at + 2 : end - 1]
            if name not in _CLASSES:
                return None
            members += _CLASSES[name]
            at = end + 1
            continue
        low, at = _member(glob, at)
        if glob[at : at + 1] == b"-" and glob[at + 1 : at + 2] not in (b"]", b""):
            high, at = _member(glob, at + 1)
            if low <= high:
                members += re.escape(low) + b"-" + re.escape(high)
        members += re.escape(low)  # git's set has the start of a range even if that ends before it
    if not members:
        return (b"[^/]" if negated else b"(?!)"), at + 1
    return (b"[^/" if negated else b"(?!/)[") + members + b"]", at + 1


def _member(glob: bytes, at: int) -> Tuple[bytes, int]:
    """Return one character of a bracket expression and where the next begins."""
    if glob[at : at + 1] == b"\\":
        at += 1
    return glob[at : at + 1], at + 1
