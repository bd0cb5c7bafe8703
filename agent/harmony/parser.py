"""The harmony parser: a state machine over token ids that accepts whatever a model may emit and never raises.

::

                 START                    MESSAGE
    BETWEEN ───────────────► HEADER ───────────────────► BODY
       ▲    anything else ──►   │ ▲    CHANNEL, START ◄──  │
       │    (start was missing) │ └────────────────────────│
       └────────────────────────┴──────────────────────────┘
                      END, RETURN, CALL, ENDOFTEXT

Complete messages are kept whatever follows them. Every id belongs to exactly one message: garbage ids belong to
the message after them, so the ``tokens`` of the messages concatenate to the input, up to the end of the last message.
Ids that did not become a message (a header that was cut off, a message with a foreign role) are in no ``tokens``.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from agent.conversation import Channel, Message, Role
from agent.events import Delta, Repaired
from agent.harmony.header import (
    BUILT_IN,
    Header,
    Segment,
    begins_header,
    is_foreign,
    is_header,
    is_header_piece,
    read_header,
    read_unmarked,
)
from agent.harmony.repair import Kind, repaired
from agent.harmony.tokens import CALL, CHANNEL, CONSTRAIN, END, ENDS, MESSAGE, RETURN, START, STOPS, is_text


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of a stream. ``open`` are the ids after the last complete message: a continuation would extend them.

    ``partial`` is the incomplete message in ``open``, if there is one.
    """

    messages: tuple[Message, ...]
    repairs: tuple[Repaired, ...]
    open: tuple[int, ...] = ()
    partial: Message | None = None


class _State(Enum):
    BETWEEN = auto()
    HEADER = auto()
    BODY = auto()


@dataclass(slots=True)
class _Draft:
    """The message being read."""

    ids: list[int] = field(default_factory=list)
    header_ids: list[int] = field(default_factory=list)
    header: Header = field(default_factory=Header)
    text: list[str] = field(default_factory=list)
    follows_end: bool = True  # whether the text before it was properly ended


class Parser:
    """One answer's parser. Feed it the prompt's opening first (``<|start|>assistant``), then what is sampled.

    ``decode`` gives the bytes of one text id. ``recipients`` are the names declared to the model; they help to read a
    damaged header and are no filter: a recipient stays as the model wrote it, unless it is a damaged form of one of them.
    """

    def __init__(self, decode: Callable[[int], bytes], recipients: Collection[str] = ()) -> None:
        self._decode = decode
        self._recipients = recipients
        self._state = _State.BETWEEN
        self._draft = _Draft()
        self._messages: list[Message] = []
        self._repairs: list[Repaired] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._deltas: list[Delta] = []
        self._done = False

    @property
    def done(self) -> bool:
        """Whether further ids do not matter: the turn is over, or the model writes in a foreign role."""
        return self._done

    @property
    def calling(self) -> bool:
        """Whether the body of a call is being read."""
        return self._state is _State.BODY and self._draft.header.recipient is not None

    @property
    def answering(self) -> bool:
        """Whether the text of a final answer is being read."""
        header = self._draft.header
        return self._state is _State.BODY and header.recipient is None and header.channel is Channel.FINAL

    def feed(self, ids: Iterable[int]) -> list[Delta]:
        """Read more ids; return the text to display. Ids after ``done`` are ignored."""
        for token in ids:
            if self._done:
                break
            self._step(token)
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self, *, stopped: bool) -> Parsed:
        """End the stream. ``stopped``: the model ended it itself, so text without an end marker is complete."""
        if stopped and not self._done:
            match self._state:
                case _State.BODY:
                    self._repair(Kind.MISSING_END)
                    self._end_body(None)
                case _State.HEADER:
                    self._end_header(None)
                case _State.BETWEEN:
                    pass
        messages, repairs = self._last_word()
        begun = () if self._state is _State.BETWEEN else tuple(self._draft.ids)
        partial = self._partial() if self._state is _State.BODY else None
        return Parsed(messages, repairs, begun, partial)

    def _step(self, token: int) -> None:
        self._draft.ids.append(token)
        match self._state:
            case _State.BETWEEN:
                self._between(token)
            case _State.HEADER:
                self._in_header(token)
            case _State.BODY:
                self._in_body(token)

    def _between(self, token: int) -> None:
        if token in ENDS:
            self._repair(Kind.STRAY_END)
            if token in STOPS:
                self._stop()
            return
        if token != START:
            self._repair(Kind.MISSING_START)
        self._state = _State.HEADER
        if token == MESSAGE:
            self._begin_body()
        else:
            self._draft.header_ids = [token]

    def _in_header(self, token: int) -> None:
        if token == START:
            self._restart()
        elif token == MESSAGE:
            self._begin_body()
        elif token in ENDS:
            self._end_header(token)
        elif token in (CHANNEL, CONSTRAIN) or is_text(token):
            self._draft.header_ids.append(token)
        else:
            self._repair(Kind.STRAY_CONTROL)

    def _in_body(self, token: int) -> None:
        if is_text(token):
            self._say(self._utf8.decode(self._decode(token)))
        elif token in ENDS:
            self._end_body(token)
        elif token in (MESSAGE, CHANNEL) and is_header_piece("".join(self._draft.text), self._recipients):
            self._back_to_header(token)
        elif token in (START, CHANNEL):
            # Usually the end token is missing; if no header follows, the text continues (see _end_header).
            self._draft.ids.pop()
            self._end_body(END)
            self._draft = _Draft(ids=[token], header_ids=[token], follows_end=False)
            self._state = _State.HEADER
        else:
            self._repair(Kind.STRAY_CONTROL)

    def _restart(self) -> None:
        """Handle a second start inside a header. Plain text before it continues the previous message."""
        segments = self._segments()
        if self._messages and self._segments_hold_text() and not is_header(segments):
            started = self._draft.ids.pop()
            self._join(segments, END)
            self._draft = _Draft(ids=[started], header_ids=[started])
            self._state = _State.HEADER
        else:
            self._draft.header_ids.append(START)

    def _begin_body(self) -> None:
        segments = self._segments()
        if is_foreign(segments, self._recipients):
            self._repair(Kind.FOREIGN_ROLE, self._spelling())
            self._stop()
        elif self._messages and self._messages[-1].is_call:
            self._repair(Kind.AFTER_CALL, self._spelling())
            self._stop()
        else:
            if not self._draft.follows_end:
                self._repair(Kind.MISSING_END)
            self._draft.header = read_header(segments, self._recipients)
            self._state = _State.BODY
            self._utf8.reset()
            self._say(self._draft.header.body)

    def _back_to_header(self, token: int) -> None:
        """Treat the text so far as the rest of the header: the ``<|message|>`` marker came too early, or twice."""
        self._repair(Kind.STRAY_CONTROL)
        ids = self._draft.ids
        header_ids = [t for t in ids if t != MESSAGE]
        self._draft = _Draft(ids=ids, header_ids=header_ids, follows_end=self._draft.follows_end)
        self._state = _State.HEADER
        if token == MESSAGE:
            self._begin_body()

    def _end_header(self, token: int | None) -> None:
        """End a header without ``<|message|>``: it contains the text, or it is a piece of the text before it, or it is dropped."""
        segments = self._segments()
        if is_foreign(segments, self._recipients):
            self._repair(Kind.FOREIGN_ROLE, self._spelling())
            self._stop()
        elif is_header(segments):
            header = read_unmarked(segments, self._recipients)
            if header.body.strip() and not (self._messages and self._messages[-1].is_call):
                self._whole(header, token)
            else:
                self._end_nothing(token)
        elif not self._segments_hold_text() or not self._messages:
            self._end_nothing(token)
        elif token == RETURN and _is_thought(self._messages[-1]):
            text = "".join(segment.text for segment in segments)
            self._whole(Header(channel=Channel.FINAL, body=text, kinds=(Kind.MISSING_MESSAGE,)), token)
        else:
            self._join(segments, token)

    def _whole(self, header: Header, token: int | None) -> None:
        self._draft.header = header
        self._say(header.body)
        self._end_body(token)

    def _end_nothing(self, token: int | None) -> None:
        """Handle an end token with nothing to end: ignore it; if it stopped the stream, the header can be continued."""
        self._repair(Kind.STRAY_END)
        if token in STOPS:
            self._draft.ids.pop()
            self._done = True

    def _join(self, segments: Sequence[Segment], token: int | None) -> None:
        """Append text to the latest message, which continued after a stray marker."""
        last = self._messages.pop()
        self._repair(Kind.SPLIT_BODY)
        more = "".join(segment.text for segment in segments)
        self._deltas.append(Delta(last.channel, more, last.recipient))
        self._messages.append(replace(last, text=last.text + more, tokens=(*last.tokens, *self._draft.ids)))
        self._begin_next(token)

    def _end_body(self, token: int | None) -> None:
        """Complete the current message."""
        self._say(self._utf8.decode(b"", final=True))
        header, kinds, text = _settle(self._draft.header, "".join(self._draft.text), token)
        for kind in kinds:
            self._repair(kind, self._spelling())
        message = Message(
            role=Role.ASSISTANT,
            text=text,
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
            tokens=tuple(self._draft.ids),
        )
        self._messages.append(message)
        self._begin_next(token)

    def _begin_next(self, token: int | None) -> None:
        self._draft = _Draft()
        self._state = _State.BETWEEN
        self._done = token in STOPS

    def _stop(self) -> None:
        """Stop: ignore everything that follows, and drop what was begun."""
        self._draft = _Draft()
        self._state = _State.BETWEEN
        self._done = True

    def _partial(self) -> Message:
        header = self._draft.header
        return Message(
            role=Role.ASSISTANT,
            text="".join(self._draft.text),
            channel=header.channel or Channel.COMMENTARY,
            recipient=header.recipient,
            content_type=header.content_type,
            tokens=tuple(self._draft.ids),
        )

    def _last_word(self) -> tuple[tuple[Message, ...], tuple[Repaired, ...]]:
        """Return messages and repairs. A final that is not the last message becomes a preamble: only the last can be the answer."""
        repairs = list(self._repairs)
        messages = list(self._messages)
        for index, message in enumerate(messages[:-1]):
            if message.is_final:
                messages[index] = replace(message, channel=Channel.COMMENTARY)
                repairs.append(repaired(Kind.FINAL_BEFORE_CALL, message.text))
        return tuple(messages), tuple(repairs)

    def _segments(self) -> list[Segment]:
        """Return the header's text, split at its markers. Text before a second start counts only if that start was stray."""
        segments: list[tuple[int | None, bytearray]] = [(None, bytearray())]
        for token in self._draft.header_ids:
            if not is_text(token):
                segments.append((token, bytearray()))
            else:
                segments[-1][1].extend(self._decode(token))
        read = [Segment(control, text.decode("utf-8", "replace")) for control, text in segments]
        restart = max((at for at, s in enumerate(read) if s.control == START and begins_header(s.text)), default=0)
        return read[restart:]

    def _segments_hold_text(self) -> bool:
        return any(is_text(token) for token in self._draft.header_ids)

    def _spelling(self) -> str:
        return " | ".join(segment.text for segment in self._segments())

    def _say(self, text: str) -> None:
        if text:
            self._draft.text.append(text)
            self._deltas.append(Delta(self._draft.header.channel, text, self._draft.header.recipient))

    def _repair(self, kind: Kind, detail: str = "") -> None:
        self._repairs.append(repaired(kind, detail))


def _is_thought(message: Message) -> bool:
    return message.channel is Channel.ANALYSIS and message.recipient is None


def _settle(header: Header, text: str, token: int | None) -> tuple[Header, tuple[Kind, ...], str]:
    """Decide what the header alone left open, now that the message is complete."""
    kinds = list(header.kinds)
    channel, recipient, content_type = header.channel, header.recipient, header.content_type
    if recipient is None and token == CALL and header.hint is not None:
        recipient = header.hint
        kinds.append(Kind.RECIPIENT)
    if channel is None:  # the marker may have come before the channel's name
        for name in Channel:
            if text.startswith(name.value):
                channel, text = name, text[len(name.value) :]
                break
    if Kind.CONTENT_TYPE in kinds and text.startswith("json") and text[4:].lstrip().startswith(("{", "[")):
        content_type, text = "json", text[4:]
    if channel is None:
        match token:
            case _ if recipient is not None:  # built-in tools are called on the analysis channel
                channel = Channel.ANALYSIS if recipient.partition(".")[0] in BUILT_IN else Channel.COMMENTARY
            case t if t == RETURN or t is None:
                channel = Channel.FINAL
            case _:
                channel = Channel.ANALYSIS
    if recipient is not None and channel is Channel.FINAL:  # it has a recipient, so it is a call and no final answer
        channel = Channel.COMMENTARY
        kinds.append(Kind.CHANNEL)
    return Header(channel, recipient, content_type, "", None), tuple(kinds), text
