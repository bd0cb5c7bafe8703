"""A model that replays a script: for demos, tests and bug reports. Everything around it is real.

A script is a JSON file ``{"turns": [[message, …], …]}`` or the ``events.jsonl`` of a recorded run. A message is ``{"text":
…}`` plus ``channel`` (analysis, commentary or final; commentary where there is a recipient, else final), ``recipient`` and
``content_type``; a call's ``text`` may be written as ``arguments``, any JSON value. Examples: docs/scripts.md.

It finds its position from the conversation, never from a counter, so that a resumed run, or one whose history was compacted,
continues where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.compact import estimate, message_tokens
from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ScriptEnded, UsageError
from agent.events import Delta, MessageAdded, Sampled
from agent.log import LOG_NAME, read
from agent.model.base import ModelEvent, SamplingParams
from agent.model.capabilities import Capabilities

Turns = Sequence[Sequence[Message]]
MESSAGE_KEYS = frozenset({"text", "arguments", "channel", "recipient", "content_type"})


class ScriptedModel:
    """Plays ``turns``, one answer each. Raises ScriptEnded at the end of the script.

    An answer without a message would leave no trace from which to find the position; write it as an empty analysis.
    """

    def __init__(self, turns: Turns, name: str = "scripted", context_tokens: int | None = None) -> None:
        self._turns = tuple(tuple(turn) for turn in turns)
        self._name = name
        self._context_tokens = context_tokens

    @property
    def name(self) -> str:
        """What to call it on the screen and in the log."""
        return self._name

    @property
    def context_tokens(self) -> int | None:
        """The simulated window, in tokens."""
        return self._context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities. A script is deterministic, so any temperature, top_p and seed are honoured."""
        return Capabilities(cached_tokens=False)

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Play what follows the answers in the conversation. An incomplete turn in the conversation is completed."""
        del params  # a script has no temperature
        spoken = [_key(message) for message in conversation.messages if message.role is Role.ASSISTANT]
        answer = self._next(spoken)
        for message in answer:
            yield Delta(message.channel, message.text, message.recipient)
        for message in answer:
            yield MessageAdded(message)
        finish = "call" if any(message.is_call for message in answer) else "stop"
        yield Sampled(estimate(conversation), sum(map(message_tokens, answer)), finish)

    def _next(self, spoken: list[tuple[str | None, ...]]) -> tuple[Message, ...]:
        """Return the rest of the turn that continues the longest matching end of the conversation."""
        flat = [(_key(message), turn) for turn, messages in enumerate(self._turns) for message in messages]
        said = _position([key for key, _ in flat], spoken)
        if said == len(flat):
            raise ScriptEnded(
                f"the script is at its end (answers: {len(self._turns)}): "
                "write more, or end the last one with a final message"
            )
        turn = flat[said][1]
        before = sum(len(messages) for messages in self._turns[:turn])
        return self._turns[turn][said - before :]

    def close(self) -> None:
        """Do nothing: it holds no resources."""


def _key(message: Message) -> tuple[str | None, ...]:
    return (message.channel, message.recipient, message.text)


def _position(script: list[tuple[str | None, ...]], spoken: list[tuple[str | None, ...]]) -> int:
    """Return how many messages of the script were played: the first position at which the longest tail of ``spoken`` matches."""
    best, best_length = 0, 0
    for end in range(1, len(script) + 1):
        length = 0
        while length < min(end, len(spoken)) and script[end - 1 - length] == spoken[-1 - length]:
            length += 1
        if length > best_length:
            best, best_length = end, length
    return best


def load_script(path: Path) -> Turns:
    """Read a script file or a recorded run (its folder or its log). Raises UsageError or LogError, which name the place."""
    if path.is_dir():
        path = path / LOG_NAME
    if path.suffix == ".jsonl":
        return recorded(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"the script {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the script {path} is not JSON: {error}") from error
    turns = data.get("turns") if isinstance(data, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, list) for turn in turns):
        raise UsageError(f'the script {path} must be {{"turns": [[message, …], …]}}')
    return [
        [_message(message, f"{path}, turn {i + 1}, message {j + 1}") for j, message in enumerate(turn)]
        for i, turn in enumerate(turns)
    ]


def recorded(path: Path) -> Turns:
    """Return the answers of a recorded run; each ends with a Sampled. Token ids are left out: they belong to another prompt."""
    turns: list[list[Message]] = [[]]
    for entry in read(path):
        match entry.event:
            case MessageAdded(message) if message.role is Role.ASSISTANT:
                turns[-1].append(
                    Message(message.role, message.text, message.channel, message.recipient, message.content_type)
                )
            case Sampled():
                turns.append([])
            case _:
                pass
    return [turn for turn in turns if turn]


def _message(data: object, place: str) -> Message:
    if not isinstance(data, Mapping) or not MESSAGE_KEYS.issuperset(data):
        raise UsageError(f"{place}: a message is an object with {', '.join(sorted(MESSAGE_KEYS))}")
    recipient = data.get("recipient")
    text = data.get("text", "")
    content_type = data.get("content_type")
    if "arguments" in data:
        text, content_type = json.dumps(data["arguments"]), content_type or "json"
    if not isinstance(text, str) or not isinstance(recipient, str | None):
        raise UsageError(f"{place}: text and recipient are strings")
    name = data.get("channel") or (Channel.FINAL if recipient is None else Channel.COMMENTARY)
    if name not in list(Channel):
        raise UsageError(f"{place}: channel is one of {', '.join(Channel)}, not {name!r}")
    return Message(Role.ASSISTANT, text, Channel(name), recipient, content_type)
