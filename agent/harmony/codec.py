"""Renders a conversation as token ids, in the format the model was trained on; decodes ids to text.

The prompt is an append-only token log: sampled tokens are repeated verbatim, everything else is rendered the same way each
time. So the prompt of turn n+1 begins with the prompt and the completion of turn n, id for id, and a server's
prefix cache stays valid. Only two things change what was sent before: a new final answer, after which the reasoning before it is
dropped, and a compaction.

Text is only ever encoded as text ids. Control ids come from this module's own layout or from what the model itself sampled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.harmony.header import BUILT_IN
from agent.harmony.tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    ENDS,
    MESSAGE,
    OPENING,
    RETURN,
    START,
    is_text,
)
from agent.harmony.vocabulary import load_encoding

if TYPE_CHECKING:
    import openai_harmony
    from openai_harmony import HarmonyEncoding

Ids = tuple[int, ...]

# The three calls of the built-in browser. We declare them one by one, because other wires need each with its arguments, but
# here they are rendered as the built-in tool that the model was trained on.
BROWSER: Final = frozenset({"browser.search", "browser.open", "browser.find"})
EFFORTS: Final = ("low", "medium", "high")
# Byte pair encoding takes time quadratic in the length of a word: a letter repeated 100,000 times takes 4 s. Runs longer
# than this without a space, or without a letter or digit, are encoded in pieces.
RUN_CHARS: Final = 1024
_LONG_RUN = re.compile(rf"\S{{{RUN_CHARS}}}|\W{{{RUN_CHARS}}}")
_SPELT = re.compile(r"<\|\w+\|>")  # what may be a control token
_WORD = re.compile(r"[\w/+.\-]+")


def open_codec(cache_dir: Path) -> Codec:
    """Load the vocabulary (0.3 s) and return a codec. Raises AgentError if the vocabulary is not available."""
    return Codec(load_encoding(cache_dir))


class Codec:
    """Renders conversations and decodes ids. Safe to use from several threads.

    The last rendering is cached message by message. This affects only speed: a new codec gives the same ids.
    """

    def __init__(self, encoding: HarmonyEncoding) -> None:
        self._encoding = encoding
        self._controls = frozenset(encoding.special_tokens_set)
        self._bytes: dict[int, bytes] = {}
        self._head: tuple[tuple[str, tuple[ToolSpec, ...], str], Ids] | None = None
        self._rendered: dict[int, tuple[Message, Message | None, Ids]] = {}

    def prompt(self, conversation: Conversation, opening: Sequence[int] = OPENING) -> list[int]:
        """Return the ids to be continued: the conversation, then ``opening`` (``<|start|>assistant``, or a longer prefill)."""
        ids = list(self._render_head(conversation))
        kept: dict[int, tuple[Message, Message | None, Ids]] = {}
        for message, call in _with_calls(prune(conversation.messages)):
            known = self._rendered.get(id(message))
            if known is None or known[0] is not message or known[1] is not call:
                known = (message, call, self.render(_answering(message, call)))
            kept[id(message)] = known
            ids += known[2]
        self._rendered = kept
        ids += opening
        return ids

    def render(self, message: Message) -> Ids:
        """Return one message's ids: as it was sampled, or as openai-harmony renders it."""
        if message.tokens:
            return _closed(message)
        ids = [START, *self._header_start(message)]
        if message.channel is not None:
            ids += [CHANNEL, *self.encode(message.channel.value)]
        if message.content_type == "json":
            ids += [*self.encode(" "), CONSTRAIN, *self.encode("json")]
        elif message.content_type and _WORD.fullmatch(message.content_type):
            ids += self.encode(f" {message.content_type}")
        ids += [MESSAGE, *self.encode(message.text), CALL if message.is_call else END]
        return tuple(ids)

    def encode(self, text: str) -> list[int]:
        """Encode text as text ids, even if it spells control tokens."""
        ids: list[int] = []
        for piece in _pieces(text):
            ids += self._encoding.encode(piece, disallowed_special=())
        return ids

    def encode_sampled(self, text: str) -> list[int]:
        """Encode what a *model* sampled and a server returned as text, with control tokens spelt out: those become control ids.

        Never use it for other text: a file, a tool or a user could then forge structure.
        """
        ids: list[int] = []
        at = 0
        for spelt in _SPELT.finditer(text):
            if spelt.group() in self._controls:
                ids += self.encode(text[at : spelt.start()])
                ids += self._encoding.encode(spelt.group(), allowed_special="all")
                at = spelt.end()
        return ids + self.encode(text[at:])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids for display and logs: control tokens are spelt out, invalid UTF-8 is replaced. Never for a prompt."""
        return b"".join(map(self._spell, ids)).decode("utf-8", "replace")

    def call_opening(self, function: str | None = None) -> Ids:
        """Return a prefill, after ``<|start|>assistant``, that forces the answer to be a call: of any function, or of a given one.

        It ends at a token boundary, so that the model continues with the tokens it would sample without it.
        """
        if function is None:
            return (CHANNEL, *self.encode("commentary to=functions"))
        return (CHANNEL, *self.encode(f"commentary to=functions.{function} "), CONSTRAIN, *self.encode("json"), MESSAGE)

    def built_in_opening(self, name: str) -> Ids:
        """Return a prefill that forces a call of a built-in tool: ``python``, ``browser``, or "" for any of them."""
        return (CHANNEL, *self.encode(f"analysis to={name}"))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one text id; empty for every other id, even an unknown one."""
        return self._spell(token) if is_text(token) else b""

    def _spell(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            from openai_harmony import HarmonyError

            try:
                known = self._encoding.decode([token], errors="surrogateescape").encode("utf-8", "surrogateescape")
            except (HarmonyError, OverflowError):  # an id that is not in the vocabulary
                known = "\ufffd".encode()
            self._bytes[token] = known
        return known

    def _header_start(self, message: Message) -> list[int]:
        match message.role:
            case Role.TOOL:
                return [*self.encode(message.name or "tool"), *self.encode(" to=assistant")]
            case _ if message.recipient is not None:
                return [*self.encode(message.role.value), *self.encode(f" to={message.recipient}")]
            case _:
                return self.encode(message.role.value)

    def _render_head(self, conversation: Conversation) -> Ids:
        key = (conversation.instructions, conversation.tools, conversation.effort)
        if self._head is None or self._head[0] != key:
            self._head = (key, self._new_head(conversation))
        return self._head[1]

    def _new_head(self, conversation: Conversation) -> Ids:
        import openai_harmony as harmony

        named, plain = _by_place(conversation.tools)
        system = harmony.SystemContent.new().with_reasoning_effort(_effort(conversation.effort))
        for namespace in _namespaces(named):
            system = system.with_tools(namespace)
        messages = [harmony.Message.from_role_and_content(harmony.Role.SYSTEM, system)]
        if conversation.instructions or plain:
            developer = harmony.DeveloperContent.new()
            if conversation.instructions:
                developer = developer.with_instructions(_clean(conversation.instructions))
            if plain:
                developer = developer.with_function_tools([_described(tool.name, tool) for tool in plain])
            messages.append(harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, developer))
        config = harmony.RenderConversationConfig(auto_drop_analysis=False)
        return tuple(self._encoding.render_conversation(harmony.Conversation.from_messages(messages), config))


def prune(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Drop the reasoning before the last final answer; everything since then is kept.

    Calls and tool results are kept on every channel: they record what was done.
    """
    last = max((index for index, message in enumerate(messages) if message.is_final), default=0)
    return tuple(m for index, m in enumerate(messages) if index >= last or not _is_reasoning(m))


def recipients(tools: Sequence[ToolSpec]) -> frozenset[str]:
    """Return the recipients of the declared tools, as they are shown to the model."""
    return frozenset(tool.name if _is_named(tool) else f"functions.{tool.name}" for tool in tools)


def _is_reasoning(message: Message) -> bool:
    return message.role is Role.ASSISTANT and message.channel is Channel.ANALYSIS and message.recipient is None


def _closed(message: Message) -> Ids:
    """Return a sampled message's ids, ended as in history: a call with ``<|call|>``, everything else with ``<|end|>``."""
    last = message.tokens[-1]
    if last in (RETURN, ENDOFTEXT):
        return (*message.tokens[:-1], CALL if message.is_call else END)
    return message.tokens if last in ENDS else (*message.tokens, CALL if message.is_call else END)


def _with_calls(messages: Sequence[Message]) -> Iterator[tuple[Message, Message | None]]:
    """Yield each message, and for a tool result the call that it answers: the latest one before it."""
    call: Message | None = None
    for message in messages:
        if message.is_call:
            call = message
        yield message, call if message.role is Role.TOOL else None


def _answering(message: Message, call: Message | None) -> Message:
    """Give a tool result the channel of its call, and the name by which the tool was called."""
    if call is None:
        return message
    return replace(message, channel=message.channel or call.channel, name=message.name or call.recipient)


def _by_place(tools: Sequence[ToolSpec]) -> tuple[list[ToolSpec], list[ToolSpec]]:
    """Split tools by message: namespaced and built-in ones belong to the system message, plain functions to the developer message."""
    return [tool for tool in tools if _is_named(tool)], [tool for tool in tools if not _is_named(tool)]


def _is_named(tool: ToolSpec) -> bool:
    """Whether a tool is called by its own name and not as ``functions.NAME``: it has a namespace, or is built in."""
    return "." in tool.name or (tool.name in BUILT_IN and tool.parameters is None)


def _namespaces(tools: Sequence[ToolSpec]) -> Iterator[openai_harmony.ToolNamespaceConfig]:
    from openai_harmony import ToolNamespaceConfig

    grouped: dict[str, list[ToolSpec]] = {}
    for tool in tools:
        grouped.setdefault(tool.name.partition(".")[0], []).append(tool)
    for name, members in grouped.items():
        if (name in BUILT_IN and members[0].name == name) or {tool.name for tool in members} == BROWSER:
            trained = ToolNamespaceConfig.python() if name == "python" else ToolNamespaceConfig.browser()
            described = (members[0].description if members[0].name == name else None) or trained.description
            yield ToolNamespaceConfig(name=name, description=described, tools=trained.tools)
        else:
            described_members = [_described(tool.name.partition(".")[2], tool) for tool in members]
            yield ToolNamespaceConfig(name=name, description=None, tools=described_members)


def _described(name: str, tool: ToolSpec) -> openai_harmony.ToolDescription:
    from openai_harmony import ToolDescription

    parameters: Mapping[str, Any] = {"type": "string"} if tool.parameters is None else tool.parameters
    cleaned = json.loads(_clean(json.dumps(parameters, ensure_ascii=False)))
    return ToolDescription.new(_clean(name), _clean(tool.description), cleaned)


def _effort(effort: str) -> openai_harmony.ReasoningEffort:
    from openai_harmony import ReasoningEffort

    if effort not in EFFORTS:
        raise ValueError(f"The reasoning effort is {effort!r}; harmony knows {', '.join(EFFORTS)}.")
    return ReasoningEffort(effort.capitalize())


def _clean(text: str) -> str:
    """Return text that can be passed to Rust as JSON: lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _pieces(text: str) -> Iterator[str]:
    """Split long runs; the pieces concatenate to ``text``."""
    at = 0
    for run in _LONG_RUN.finditer(text):
        if run.start() > at:
            yield text[at : run.start()]
        yield run.group()
        at = run.end()
    if at < len(text):
        yield text[at:]
