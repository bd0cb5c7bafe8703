"""Reads one message header, well formed or damaged. Pure: text segments in, their meaning out.

A header is ``<|start|>`` role [`` to=``recipient] [``<|channel|>``channel] [`` to=``recipient] [type] ``<|message|>``,
where type is `` <|constrain|>json`` or `` code``. The tests show what models at temperature 1 really write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from agent.conversation import Channel
from agent.harmony.repair import Kind
from agent.harmony.tokens import CHANNEL, CONSTRAIN, START

NAME: Final = r"[\w.\-/]+"
NOBODY: Final = frozenset({"", "assistant", "all", "user", "system", "developer"})  # a recipient that is not a tool
BUILT_IN: Final = ("python", "browser")
TYPES: Final = ("json", "code")

_CHANNEL = re.compile(r"analysis|commentary|final")
# How a channel's segment can begin; the name may be doubled or follow the role: "assistantcommentary", "analysisfinal".
_CHANNELS = re.compile(rf"\s*(?:assistant)*(?:({_CHANNEL.pattern}))+")
_PIECES = frozenset({"", "comment", "ary"})  # `commentary` is two tokens
# " to=functions.x"; and everything after "to=", because the name may be in pieces: "to= functions. x code".
_RECIPIENT = re.compile(rf"\s?to\s*=\s*({NAME})")
_ADDRESSED = re.compile(r"to\s*=(.*)", re.DOTALL)
_OTHERS = "user|system|developer|tool"
# A role that is not the model's: "user", "user:name", "functions.x to=assistant" (a tool result).
_FOREIGN = re.compile(rf"(?:{_OTHERS})(?::\S*)?(?:\s+to\s*=.*)?|\S+\s+to\s*=\s*assistant", re.DOTALL)
_TYPE = re.compile(rf"(?<!\w)(?:{'|'.join(TYPES)})(?!\w)")


@dataclass(frozen=True, slots=True)
class Segment:
    """Header text and the control id that opened it (None for text at the very beginning)."""

    control: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Header:
    """The meaning of a header. ``hint`` is a declared tool whose name is in the header, but not after ``to=``.

    ``body`` is message text that was found in the header, because the ``<|message|>`` marker came too late or was missing.
    """

    channel: Channel | None = None
    recipient: str | None = None
    content_type: str | None = None
    body: str = ""
    hint: str | None = None
    kinds: tuple[Kind, ...] = ()


def is_foreign(segments: Sequence[Segment], recipients: Collection[str]) -> bool:
    """Whether the message has a role that is not the model's, or is a tool result."""
    role = _role(segments).strip()
    if "assistant" in re.sub(r"to\s*=\s*assistant", "", role):
        return False
    started = segments[0].control == START and re.match(rf"(?:{_OTHERS})\b", role) is not None
    return started or _FOREIGN.fullmatch(role) is not None or role in recipients


def begins_header(text: str) -> bool:
    """Whether the text after a ``<|start|>`` begins a header of its own."""
    return text.lstrip().startswith("assistant") or re.match(rf"\s*(?:{_OTHERS})\b", text) is not None


def is_header(segments: Sequence[Segment]) -> bool:
    """Whether text without a following ``<|message|>`` is a header nevertheless, and not a piece of the text before it."""
    after_channel = [s.text for s in segments if s.control == CHANNEL]
    return _role(segments).lstrip().startswith("assistant") or any(_CHANNELS.match(text) for text in after_channel)


def is_header_piece(text: str, recipients: Collection[str]) -> bool:
    """Whether text after a ``<|message|>`` is the rest of a header, because that marker came too early."""
    piece = text.strip()
    ending = next((kind for kind in TYPES if piece.endswith(kind)), "")
    piece = piece.removesuffix(ending).rstrip()
    return (
        piece in _PIECES
        or re.fullmatch(rf"to\s*=\s*{NAME}", piece) is not None
        or any(len(piece) > 2 and name.endswith(piece) for name in recipients)
    )


def meant(recipient: str, recipients: Collection[str]) -> str | None:
    """Return the only declared name that a damaged name can stand for, or None.

    A name is damaged if a piece of it is missing, doubled or out of place. An intact name that was not declared is a different
    name, and is never changed into a declared one.
    """
    if recipient in recipients:
        return recipient
    # `browser.search` is a complete name and not a damaged `repo_browser.search`; `functions` alone could be any function.
    if recipient.partition(".")[0] in BUILT_IN or recipient == "functions":
        return None
    found = [name for name in recipients if _is_damaged(recipient, name)]
    return found[0] if len(found) == 1 else None


def _is_damaged(written: str, name: str) -> bool:
    if sorted(written) == sorted(name):  # pieces were swapped
        return True
    if len(written) < len(name):  # a piece is missing
        return 2 * len(written) >= len(name) and _lacks_one_piece(written, name)
    if written.startswith(
        name
    ):  # a whole name may be followed by its own last piece, or by something that never ends a name
        tail = written[len(name) :]
        return name.endswith(tail) or tail in TYPES or not tail[-1].isalnum()
    return len(written) > len(name) and _lacks_one_piece(name, written)


def _lacks_one_piece(short: str, long: str) -> bool:
    """Whether ``short`` is ``long`` without one contiguous piece."""
    extra = len(long) - len(short)
    return any(long[:at] + long[at + extra :] == short for at in range(len(short) + 1))


def read_header(segments: Sequence[Segment], recipients: Collection[str]) -> Header:
    """Read a header that ends with ``<|message|>``. ``recipients`` are the names that were declared to the model."""
    kinds: list[Kind] = []
    channel, glued = _read_channel(segments)
    if channel is None:
        kinds.append(Kind.CHANNEL)
    rest = " ".join(s.text for s in segments if s.control != CONSTRAIN)
    recipient, rest = _read_recipient(rest, recipients)
    constrained = " ".join(s.text for s in segments if s.control == CONSTRAIN)
    content_type, type_rest, early = _read_type(constrained)
    if recipient is None and "=" in constrained:  # the words of the header were swapped
        recipient, type_rest = _read_recipient(constrained, recipients)
    if content_type is None and (found := _TYPE.search(rest)):
        content_type = found.group()
        rest = rest[: found.start()] + rest[found.end() :]
    if recipient is not None and (known := _repaired(recipient, segments, recipients)) != recipient:
        kinds.append(Kind.RECIPIENT)
        recipient = known
    body = early
    if glued and not early and not any(s.control == CONSTRAIN for s in segments):
        rest, body = rest.replace(glued, "", 1), glued
    words = _words(rest) + type_rest.split()
    if words:
        kinds.append(Kind.HEADER_WORDS)
    if body:
        kinds.append(Kind.MISSING_MESSAGE)
    if any(s.control == CONSTRAIN for s in segments) and content_type is None:
        kinds.append(Kind.CONTENT_TYPE)
    hint = None if recipient is not None else _hint(segments, content_type, recipients)
    return Header(channel, recipient, content_type, body, hint, tuple(kinds))


def read_unmarked(segments: Sequence[Segment], recipients: Collection[str]) -> Header:
    """Read a header without ``<|message|>``: the message's text is in its last segment."""
    *before, last = segments
    match last.control:
        case control if control == CONSTRAIN:
            pattern = rf"\s*(?:{'|'.join(TYPES)}|[A-Za-z]*)\s*"
        case control if control == CHANNEL:
            pattern = rf"\s*(?:{_CHANNEL.pattern})?(?:\s*to\s*=\s*{NAME})?(?:\s+(?:{'|'.join(TYPES)})(?![a-z]))?"
        case _:
            pattern = rf"\s*(?:assistant)?(?:\s*to\s*=\s*{NAME})?"
    found = re.match(pattern, last.text)
    cut = found.end() if found else 0
    head, body = last.text[:cut], last.text[cut:]
    if addressed := _RECIPIENT.search(head):
        name = addressed.group(1)
        known = max((r for r in recipients if name.startswith(r)), key=len, default=name)
        body = name[len(known) :] + head[addressed.end() :] + body if known != name else body
        head = head[: addressed.start()] + f" to={known}" if known != name else head
    header = read_header([*before, Segment(last.control, head)], recipients)
    kinds = (*(kind for kind in header.kinds if kind is not Kind.MISSING_MESSAGE), Kind.MISSING_MESSAGE)
    if body.strip() in _PIECES:
        body = ""
    text = header.body + (body.lstrip() if last.control == CONSTRAIN or header.recipient else body)
    return Header(header.channel, header.recipient, header.content_type, text, header.hint, kinds)


def _role(segments: Sequence[Segment]) -> str:
    texts = []
    for segment in segments:
        if segment.control in (CHANNEL, CONSTRAIN):
            break
        texts.append(segment.text)
    return " ".join(texts)


def _read_channel(segments: Sequence[Segment]) -> tuple[Channel | None, str]:
    """Return the channel, and the text that follows its name without a space (message text whose marker came too late)."""
    for segment in reversed(segments):
        if segment.control == CHANNEL and (found := _CHANNELS.match(segment.text)):
            rest = segment.text[found.end() :]
            sticks = re.match(r"[\w{\"'*#`]", rest) is not None and not _RECIPIENT.search(rest)
            return Channel(found.group(1)), rest if sticks else ""
    everything = "".join(segment.text for segment in segments)
    if names := _CHANNEL.findall(everything):
        return Channel(names[-1]), ""
    if re.search(r"comment|ary\b", everything):  # a piece of it
        return Channel.COMMENTARY, ""
    return None, ""


def _read_recipient(text: str, recipients: Collection[str]) -> tuple[str | None, str]:
    """Return the recipient, and the text without it."""
    found = [match for match in _RECIPIENT.finditer(text) if match.group(1).strip(".-/") not in NOBODY]
    if not found:
        return None, _RECIPIENT.sub("", text)
    best = next((match for match in found if match.group(1) in recipients), found[-1])
    return best.group(1), _RECIPIENT.sub("", text)


def _repaired(recipient: str, segments: Sequence[Segment], recipients: Collection[str]) -> str:
    """Return the recipient, or the declared name of which it (alone, or with the text after it) is a damaged form."""
    if (known := meant(recipient, recipients)) is not None:
        return known
    text = "".join(segment.text for segment in segments if segment.control != CONSTRAIN)
    behind = _ADDRESSED.search(text)
    rest = re.sub(rf"[^\w.\-/]|{_CHANNEL.pattern}", "", behind.group(1)) if behind else ""
    return meant(rest, recipients) or recipient


def _read_type(text: str) -> tuple[str | None, str, str]:
    """Return the content type after ``<|constrain|>``, stray words, and message text that comes before its marker."""
    found = re.match(r"\s*([A-Za-z][\w/+\-]*)", text)
    if found is None:
        start = text.lstrip()
        return None, "", start if start[:1] in ("{", "[", '"') else ""
    word, rest = found.group(1), text[found.end() :]
    known = next((name for name in TYPES if word.startswith(name)), word)
    begin = re.search(r"[{\[]", rest)
    early = rest[begin.start() :] if begin else ""
    stray = word[len(known) :] + (rest[: begin.start()] if begin else rest)
    return known, stray, early


def _words(text: str) -> list[str]:
    """Return the words of a header's text other than role and channel."""
    return re.sub(rf"assistant|{_CHANNEL.pattern}", " ", text).split()


def _hint(segments: Sequence[Segment], content_type: str | None, recipients: Collection[str]) -> str | None:
    everything = " ".join(segment.text for segment in segments)
    for name in sorted(recipients, key=len, reverse=True):
        border = "" if "." in name else r"(?:(?<![\w.])|(?<=\bto))"
        if re.search(rf"{border}{re.escape(name)}(?!\w)", everything):
            return name
    return "python" if content_type == "code" and "python" in recipients else None
