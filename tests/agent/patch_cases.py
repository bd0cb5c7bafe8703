"""Patches to try, made from a seed: what models write, from tidy to broken, over small files of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

WORDS = (
    "def f(x):",
    "    return x",
    "    if x:",
    "        pass",
    "",
    "    ",
    "x = 1",
    "y = \u201ctwo\u201d \u2013 three",
    "s = 'it\u2019s'",
    "a\u00a0b",
    "class A:",
    "\tTabbed()",
    "end  ",
    "* star",
    "@@ at",
    "+ plus",
    "- minus",
    " *** End Patch?",
    "*** End Patch",
    "*** Delete File: b.txt",
    "\x0cform feed",
    "line\u2028separator",
    "ünï",
    "last \x1c",
)
PLAIN = str.maketrans("\u201c\u201d\u2013\u2019\u00a0", '""-\' ')
PATHS = ("a.py", "b.txt", "sub/c.py", "sub/deep/d.md", "with blank.txt")


@dataclass(frozen=True)
class Case:
    """Files and the patch text for them."""

    files: dict[str, bytes]
    patch: str


def case(seed: int) -> Case:
    """The case of a seed: the same on every machine."""
    rng = Random(seed)
    files = {path: _content(rng) for path in rng.sample(PATHS, rng.randint(1, 3))}
    sections = []
    names = list(files)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        sections += _section(rng, files, names)
    lines = [_pad(rng, "*** Begin Patch"), *sections, _pad(rng, "*** End Patch")]
    return Case(files, _envelope(rng, lines))


def _content(rng: Random) -> bytes:
    lines = [rng.choice(WORDS) for _ in range(rng.choice((0, 1, 2, 4, 6, 9, 14, 20)))]
    style = rng.random()
    if style < 0.75:
        ends = ["\n"] * len(lines)
    elif style < 0.87:
        ends = ["\r\n"] * len(lines)
    else:
        ends = [rng.choice(("\n", "\r\n")) for _ in lines]
    if ends and rng.random() < 0.2:
        ends[-1] = ""
    data = "".join(line + end for line, end in zip(lines, ends, strict=True)).encode()
    if rng.random() < 0.04:
        data = data.replace("ü".encode(), b"\xfc") + b"\xff\n"
    if rng.random() < 0.03:
        data = b"\xef\xbb\xbf" + data
    return data


def _pad(rng: Random, marker: str) -> str:
    roll = rng.random()
    if roll < 0.9:
        return marker
    if roll < 0.97:
        return rng.choice((" ", "\t", "   ")) + marker + rng.choice(("", " ", "  "))
    if roll < 0.985:
        return marker.lower()
    return marker.replace("*** ", "***", 1)


def _path(rng: Random, names: list[str]) -> str:
    roll = rng.random()
    if roll < 0.88:
        return rng.choice(names)
    if roll < 0.92:
        return "./" + rng.choice(names)
    if roll < 0.94:
        return "sub/../" + rng.choice(names)
    return rng.choice(PATHS)


def _section(rng: Random, files: dict[str, bytes], names: list[str]) -> list[str]:
    roll = rng.random()
    gap = [""] if rng.random() < 0.06 else []
    if roll < 0.14:
        path = rng.choice((*PATHS, "new.py", "new/folder/x.txt"))
        body = ["+" + rng.choice(WORDS) for _ in range(rng.randint(0, 5))]
        if body and rng.random() < 0.1:
            body[rng.randrange(len(body))] = rng.choice(("", "bare", " blank first", "   "))
        return [_pad(rng, f"*** Add File: {path}"), *body, *gap]
    if roll < 0.22:
        return [_pad(rng, f"*** Delete File: {_path(rng, names)}"), *gap]
    path = rng.choice(names)
    lines = [_pad(rng, f"*** Update File: {path if rng.random() < 0.7 else _path(rng, names)}")]
    if rng.random() < 0.1:
        target = path if rng.random() < 0.15 else rng.choice((*PATHS, "moved/to.py"))
        lines.append(_pad(rng, f"*** Move to: {target}"))
    source = [line.removesuffix("\r") for line in files[path].decode("utf-8", "replace").split("\n")]
    if source and source[-1] == "":
        source.pop()
    return [*lines, *_hunks(rng, source), *gap]


def _hunks(rng: Random, source: list[str]) -> list[str]:
    spans = []
    position = 0
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if position > len(source):
            break
        start = rng.randint(position, len(source))
        stop = min(len(source), start + rng.randint(0, 4))
        spans.append((start, stop))
        position = stop + rng.choice((0, 0, 1, 2))
    if len(spans) > 1 and rng.random() < 0.07:
        spans.reverse()
    lines: list[str] = []
    for index, (start, stop) in enumerate(spans):
        lines += _header(rng, source, start, first=index == 0)
        lines += _body(rng, source[start:stop])
        if rng.random() < (0.35 if stop == len(source) else 0.04):
            lines.append(_pad(rng, "*** End of File"))
        if rng.random() < 0.05:
            lines.append("")
    return lines


def _header(rng: Random, source: list[str], start: int, *, first: bool) -> list[str]:
    roll = rng.random()
    if first and roll < 0.1:
        return []
    if roll < 0.6 or not source:
        return ["@@" if rng.random() < 0.95 else "@@ "]
    anchor = source[rng.randrange(max(start, 1))] if rng.random() < 0.85 else rng.choice(WORDS)
    roll = rng.random()
    if roll < 0.6:
        return [f"@@ {anchor}"]
    if roll < 0.7:
        return [f"@@ {anchor.strip()}"]
    if roll < 0.78:
        return [f"@@ {anchor[: max(3, len(anchor) // 2)]}"]
    if roll < 0.86:
        return [f"@@ -{start + 1},3 +{start + 1},4 @@"]
    if roll < 0.9:
        return [f"@@ -{start + 1},3 +{start + 1},4 @@ {anchor}"]
    if roll < 0.95:
        return [f"@@ {rng.choice(source)}", f"@@ {anchor}"]
    return [f"  @@ {anchor}  "]


def _body(rng: Random, old: list[str]) -> list[str]:
    fuzz = rng.random()
    lines: list[str] = []
    for text in old:
        shown = text
        if fuzz < 0.06:
            shown = shown.rstrip() + rng.choice(("", " "))
        elif fuzz < 0.12:
            shown = rng.choice(("", " ", "  ")) + shown.strip()
        elif fuzz < 0.2:
            shown = shown.translate(PLAIN)
        elif fuzz < 0.23 and rng.random() < 0.4:
            shown += "?"
        roll = rng.random()
        if roll < 0.4:
            lines.append("" if not shown and rng.random() < 0.3 else " " + shown)
        elif roll < 0.75:
            lines.append("-" + shown)
        elif roll < 0.97:
            lines += ["-" + shown, "+" + rng.choice(WORDS)]
        elif rng.random() < 0.3:
            lines.append(shown)
        else:
            lines.append(" " + shown)
        if rng.random() < 0.15:
            lines.append("+" + rng.choice(WORDS))
    if not lines or rng.random() < 0.1:
        lines.append("+" + rng.choice(WORDS))
    if rng.random() < 0.02:
        lines = []
    return lines


def _envelope(rng: Random, lines: list[str]) -> str:
    roll = rng.random()
    if rng.random() < 0.02:
        lines.insert(1, "*** Environment ID: abc")
    if roll < 0.02:
        lines = lines[:-1]
    elif roll < 0.03:
        lines = lines[1:]
    elif roll < 0.05:
        lines = ["Here is the patch:", *lines]
    elif roll < 0.06:
        lines = [*lines, "Done."]
    elif roll < 0.1:
        word = rng.choice(("EOF", "EOF", "PATCH"))
        quote = rng.choice(("", "'", '"'))
        lines = [f"<<{quote}{word}{quote}", *lines, word]
    elif roll < 0.11:
        lines = ["apply_patch <<'EOF'", *lines, "EOF"]
    elif roll < 0.12:
        lines = ["```", *lines, "```"]
    elif roll < 0.13:
        lines = ["", "", *lines, "", ""]
    end = "\r\n" if rng.random() < 0.05 else "\n"
    return end.join(lines) + rng.choice(("", end))
