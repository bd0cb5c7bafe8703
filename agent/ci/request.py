"""The request in an event: who asked, where the answer goes, and the task, in the words of strangers. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from agent.errors import UsageError

BRANCH_PREFIX = "agent/"
TITLE_CHARS = 200
TEXT_CHARS = 20_000
FAILURES = ("failure", "failed", "timed_out")
# The model must not read what a human reader does not see: comments, XML processing instructions and the like, link targets,
# attributes of tags, images. They are kept only inside code, where they are visible.
_FENCED = (
    r"^(?P<indent> {0,3})(?P<fence>(?P<mark>[`~])(?P=mark){2,}+)(?:(?<=~)|(?=[^`\n]*$))[^\n]*\n"
    r".*?(?:^ {0,3}(?P=fence)(?P=mark)*[ \t]*$|\Z)"
)
_SPAN = r"(?<![`\\])(?P<tick>`++)(?P<span>[^`\n]+)(?P=tick)(?!`)"
_COMMENT = r"<!--.*?(?:-->|\Z)"
_RAW = r"<(?:\?.*?\?>|![a-z].*?>|!\[CDATA\[.*?\]\]>)|^ {0,3}<(?:\?|![a-z]|!\[CDATA\[).*\Z"
_TITLE = r"""(?:"[^"]*"|'[^']*'|\([^()]*\))"""
_DEFINITION = rf"^ {{0,3}}\[[^\[\]]+\]:[ \t]*\n?[ \t]*(?:<[^<>\n]*>|[^\s<]\S*)(?:[ \t]*\n?[ \t]*{_TITLE})?[ \t]*$"
_VALUES = r"""(?:\s+[a-z_:][\w.:-]*+(?:\s*=\s*(?:[^\s"'=<>`]+|'[^']*'|"[^"]*"))?+)++"""
_IMAGE = (
    rf"""!\[(?:[^\[\]]|\[[^\[\]]*\])*+\](?:\((?:[^()"']|{_TITLE})*+\)|\([^)]*\)|\[[^\]]*\])"""
    rf"|<img(?:{_VALUES})\s*/?>|<img\b[^>]*>"
)
_HIDDEN = re.compile(
    rf"(?P<code>{_FENCED}|{_SPAN})|(?P<comment>{_COMMENT})|{_RAW}|{_DEFINITION}|(?P<image>{_IMAGE})"
    rf"|<(?P<tag>[a-z][a-z0-9-]*){_VALUES}\s*/?>",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
# What, outside of code, may turn apparent code into a comment: HTML around it, a mark that is escaped or has no
# counterpart on its line, a definition, a comment before it on its line.
_DOUBT = re.compile(r"<[a-z/?!]|`|~~~|\]:|\x00[^\n]*\x01", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rules:
    """What starts a run: a label, or a word that begins a comment; ``allow`` names users whose role the service does not report."""

    label: str = "agent"
    word: str = "/agent"
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The request in an event. ``task`` is in the words of strangers; everything else comes from the service itself.

    ``project`` is owner/name on GitHub, the project's number on GitLab. ``number`` is that of the issue or pull request
    where the answer is written, None if there is none. ``actor`` is the requester (the login on GitHub, the user's
    number on GitLab), "" if it was not a user. ``target`` is the branch that the change is for, None if only the
    service knows it (a pull request's own). ``commit`` is the one that the event is about, None for the checkout's.
    """

    service: str
    project: str
    kind: str  # issue, pull or check
    number: int | None
    title: str
    task: str
    actor: str
    target: str | None
    commit: str | None = None

    @property
    def key(self) -> str:
        """The key of the issue, pull request or check: the same for later events about it."""
        return f"{self.kind}/{self.target if self.kind == 'check' else self.number}"

    @property
    def branch(self) -> str:
        """Our branch for it."""
        return BRANCH_PREFIX + self.key

    @property
    def marker(self) -> str:
        """The first line of our comment about it."""
        return marker(self.key)


@dataclass(frozen=True, slots=True)
class Ignored:
    """The event contains no request; ``reason`` says why."""

    reason: str


def marker(key: str) -> str:
    """Return the first line of our comments, by which a later one finds and replaces them."""
    return f"<!-- gpt-oss-agent:{quote(key, safe='/')} -->"


def visible(text: str, most_chars: int = TEXT_CHARS) -> str:
    """Return the visible part of a Markdown text, at most ``most_chars`` of it.

    If it is uncertain what is code, comments are removed from that too.
    """
    beyond = max(len(text) - 2 * most_chars, 0)  # matching may take quadratic time
    plain = text[: 2 * most_chars].replace("\r\n", "\n").replace("\r", "\n")
    plain = "".join(character for character in plain if _is_seen(character))
    if _DOUBT.search(_HIDDEN.sub(_outside, plain)):
        plain = re.sub(_COMMENT, "", plain, flags=re.DOTALL)
    plain = _HIDDEN.sub(_seen, plain).strip()
    left_out = max(len(plain) - most_chars, 0) + beyond
    return f"{plain[:most_chars]}\n[{left_out} more characters were left out]" if left_out else plain


def _seen(found: re.Match[str]) -> str:
    if found["code"] or found["tag"]:
        return found["code"] or f"<{found['tag']}>"
    return "[image]" if found["image"] else ""


def _outside(found: re.Match[str]) -> str:
    r"""Return the text that is checked for doubt: \0 for a comment and \1 for code, unless a list or a table may interfere with it."""
    if found["code"]:
        return "`" if found["indent"] or "|" in (found["span"] or "") else "\1"
    return "\0" if found["comment"] else found[0]


def title_of(text: str) -> str:
    """Return a title on one line."""
    return " ".join(visible(text, TITLE_CHARS).split())


def _issue_task(title: str, body: str, wish: str = "") -> str:
    """Return the task for an issue, with the request in a comment on it."""
    asked = f"\n\nWhat was asked about it:\n\n{visible(wish)}" if wish.strip() else ""
    return f"{title_of(title)}\n\n{visible(body)}{asked}".strip()


def _pull_task(title: str, body: str, wish: str) -> str:
    """Return the task for a comment on a pull request, whose head is checked out."""
    about = f"Do what was asked about a pull request. Its changes are in your workspace already.\n\nIts title: {title_of(title)}"
    said = f"\n\nWhat it says of itself:\n\n{visible(body, TEXT_CHARS // 2)}" if body.strip() else ""
    return f"{about}{said}\n\nWhat was asked:\n\n{visible(wish) or 'Fix what is wrong with it.'}"


def _check_task(name: str, details: str) -> str:
    """Return the task for a failed check."""
    said = f"\n\nWhat it reports:\n\n{visible(details, TEXT_CHARS // 2)}" if details.strip() else ""
    return f"The check {title_of(name)!r} fails. Find out why and fix the cause.{said}"


def asked(
    service: str,
    project: str,
    kind: str,
    number: int | None,
    title: str,
    body: str,
    wish: str = "",
    actor: str = "",
    target: str | None = None,
    commit: str | None = None,
) -> Request:
    """Return the request about an issue, a pull request or a check: see Request. ``wish`` is the request in a comment."""
    match kind:
        case "issue":
            task = _issue_task(title, body, wish)
        case "pull":
            task = _pull_task(title, body, wish)
        case _:
            task = _check_task(title, body)
    return Request(service, project, kind, number, title_of(title), task, actor, target, commit)


def at(data: object, *path: str | int) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return the value at a path in JSON data, None if there is none."""
    for step in path:
        match data, step:
            case Mapping(), str():
                data = data.get(step)
            case list(), int() if step < len(data):
                data = data[step]
            case _:
                return None
    return data


def text_at(data: object, *path: str | int) -> str:
    """Return the text at a path in JSON data, "" if there is none."""
    found = at(data, *path)
    return found if isinstance(found, str) else ""


def commit_at(data: object, *path: str | int) -> str | None:
    """Return a full commit id, None if there is none. Validated, because git would treat a leading dash as an option."""
    found = text_at(data, *path)
    return found if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", found) else None


def number_at(data: object, *path: str | int) -> int:
    """Return a required number of an event. Raises UsageError."""
    found = at(data, *path)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UsageError(f"the event has no {'.'.join(map(str, path))}: it is not one of the service's own")
    return found


def wish_in(comment: str, word: str) -> str | None:
    """Return the text after the command word of a comment, None if the comment does not begin with it."""
    first, _, rest = comment.strip().partition("\n")
    head, _, tail = first.strip().partition(" ")
    return f"{tail}\n{rest}".strip() if head == word else None


def _is_seen(character: str) -> bool:
    if character in "\n\t" or 0x20 <= ord(character) < 0x7F:
        return True
    # U+E0100 … are variation selectors: they are invisible, and can encode a hidden text.
    return (
        unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        and not 0xE0100 <= ord(character) <= 0xE01EF
    )
