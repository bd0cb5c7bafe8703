"""Syntax highlighting by Pygments, reduced to the few kinds of token for which the page's style has a colour.

File names and contents come from an untrusted repository, so only languages of our own list are highlighted, and long texts are
left plain: a lexer's regular expressions can be slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from agent.lines import LINE_END
from agent.report.diffs import Hunk
from agent.report.html import Markup, element, escape, join

MOST_CHARS = 60_000
MOST_LINE_CHARS = 1000
LANGUAGES: Mapping[str, str] = {
    ".bash": "bash", ".c": "c", ".cc": "cpp", ".cfg": "ini", ".cpp": "cpp", ".cs": "csharp", ".css": "css", ".cu": "cuda",
    ".go": "go", ".h": "c", ".hpp": "cpp", ".html": "html", ".ini": "ini", ".java": "java", ".js": "javascript",
    ".json": "json", ".jsx": "jsx", ".kt": "kotlin", ".lua": "lua", ".md": "markdown", ".mjs": "javascript", ".php": "php",
    ".pl": "perl", ".py": "python", ".pyi": "python", ".rb": "ruby", ".rs": "rust", ".sh": "bash", ".sql": "sql",
    ".swift": "swift", ".toml": "toml", ".ts": "typescript", ".tsx": "tsx", ".xml": "xml", ".yaml": "yaml", ".yml": "yaml",
}  # fmt: skip
NAMES: Mapping[str, str] = {"makefile": "make", "dockerfile": "docker"}
SLASHED = frozenset(
    {
        "c",
        "cpp",
        "csharp",
        "css",
        "cuda",
        "go",
        "java",
        "javascript",
        "jsx",
        "kotlin",
        "php",
        "rust",
        "swift",
        "tsx",
        "typescript",
    }
)
COMMENT_MARK = re.compile(r"/\*|\*/")
# The first matching kind of a token counts; other tokens have the text's own colour.
CLASSES = (
    ("Comment", "c"), ("Keyword", "k"), ("Literal.String", "s"), ("Literal.Number", "n"), ("Name.Function", "f"),
    ("Name.Class", "f"), ("Name.Decorator", "f"), ("Name.Tag", "k"), ("Name.Attribute", "f"), ("Operator.Word", "k"),
)  # fmt: skip


def language_of(path: str) -> str | None:
    """Return Pygments' name for the language of a file, None if it is not in our list."""
    name = PurePosixPath(path)
    return LANGUAGES.get(name.suffix.lower()) or NAMES.get(name.name.lower())


def colour_lines(lines: Sequence[str], language: str | None) -> list[Markup]:
    """Return the lines as HTML with syntax colours; plain if the language is unknown or the text is long."""
    lines = [LINE_END.sub("\u240d", line) for line in lines]
    too_long = sum(map(len, lines)) > MOST_CHARS or any(len(line) > MOST_LINE_CHARS for line in lines)
    if language is None or too_long or not lines:
        return [escape(line) for line in lines]
    opening = _opening(lines, language)
    coloured = list(_lines([*opening, *lines], language))[len(opening) :]
    # A lexer that merges lines would shift all following lines: then do without colours.
    return coloured if len(coloured) == len(lines) else [escape(line) for line in lines]


def colour_hunk(hunk: Hunk, language: str | None) -> list[Markup]:
    """Return the lines of a hunk, highlighted as part of the old file and of the new one."""
    old = iter(colour_lines([line.text for line in hunk.lines if line.kind == "-" or line.kind == " "], language))
    new = iter(colour_lines([line.text for line in hunk.lines if line.kind == "+" or line.kind == " "], language))
    shown = []
    for line in hunk.lines:
        match line.kind:
            case "-":
                shown.append(next(old))
            case "+":
                shown.append(next(new))
            case " ":
                next(old)
                shown.append(next(new))
            case _:
                shown.append(escape(line.text))
    return shown


def _opening(lines: Sequence[str], language: str) -> list[str]:
    """Return the line to put before a part of a file that begins inside a multi-line string or comment."""
    if language == "python":
        first = next((line.strip() for line in lines if '"""' in line), "")
        return ['"""'] if first == '"""' or (first.endswith('"""') and first.count('"""') == 1) else []
    first = next((mark for line in lines for mark in COMMENT_MARK.findall(line)), "")
    return ["/*"] if language in SLASHED and first == "*/" else []


def _lines(lines: Sequence[str], language: str) -> Iterator[Markup]:
    from pygments import lex
    from pygments.lexers import get_lexer_by_name

    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    line: list[Markup] = []
    for token, text in lex("\n".join(lines), lexer):
        kind = _class(token)
        first, *others = text.split("\n")
        line += _span(first, kind)
        for other in others:
            yield join(line)
            line = [*_span(other, kind)]
    yield join(line)


def _span(text: str, kind: str | None) -> list[Markup]:
    if not text:
        return []
    return [element("i", text, class_=kind) if kind and text.strip() else escape(text)]


def _class(token: object) -> str | None:
    name = str(token).removeprefix("Token.")
    return next((found for prefix, found in CLASSES if name == prefix or name.startswith(prefix + ".")), None)
