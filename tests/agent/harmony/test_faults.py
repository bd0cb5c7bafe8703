"""Thousands of damaged streams: nothing raises, nothing is misdirected, and 95 in 100 mean what they were meant to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from agent.config import RunConfig
from agent.conversation import Conversation, Message
from agent.events import MessageAdded, Repaired
from agent.harmony.codec import Codec
from agent.harmony.tokens import OPENING
from agent.model.base import Chunk, SamplingParams
from agent.model.capabilities import Capabilities
from agent.model.raw import RawModel
from agent.tools.names import Resolved, resolve
from agent.tools.open import open_tools
from tests.agent.harmony.cases import TRAINED, user
from tests.agent.harmony.faults import Fault, Stream, continuation, faults, stream
from tests.agent.harmony.streams import STREAMS

TOOLS = open_tools(RunConfig())
TASK = Conversation("Fix it.", TRAINED, (user("It breaks."),))


class Damaged:
    """Plays the damaged stream once; whatever it is asked to continue after that, it continues as the model meant to."""

    name, context_tokens, capabilities = "damaged", None, Capabilities(raw=True)

    def __init__(self, origin: Stream, fault: Fault) -> None:
        self.origin, self.fault = origin, fault
        self.prompts: list[list[int]] = []

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk]:
        self.prompts.append(list(prompt))
        first = len(self.prompts) == 1
        ids = self.fault.ids if first else continuation(self.origin, prompt)
        end = next((at + 1 for at, token in enumerate(ids) if token in stop), len(ids))
        yield Chunk(tuple(ids[:end]), "length" if first and self.fault.cut else "stop")

    def close(self) -> None:
        pass


def turn(codec: Codec, origin: Stream, fault: Fault) -> tuple[list[Message], list[str]]:
    """The messages and the kinds of repair that a stream comes to."""
    source = Damaged(origin, fault)
    events = list(RawModel(codec, source).sample(TASK, SamplingParams()))
    messages = [event.message for event in events if isinstance(event, MessageAdded)]
    kept = [token for message in messages for token in message.tokens]
    kinds = [event.kind for event in events if isinstance(event, Repaired)]
    if len(source.prompts) == 1:  # what is kept is what was sampled, from its first id on
        assert kept == [*OPENING, *fault.ids][: len(kept)]
    return messages, kinds


def tool(message: Message) -> str | None:
    """The tool that a message would be dispatched to."""
    found = resolve(message.recipient or "", message.text, TOOLS) if message.is_call else None
    return found.tool if isinstance(found, Resolved) else None


def is_recovered(codec: Codec, meant: Message, got: Message, origin: Stream, fault: Fault) -> bool:
    """The same call or answer; its text whole, save for the token that the fault itself hit."""
    if meant.channel != got.channel or tool(meant) != tool(got):
        return False
    if meant.text == got.text:
        return True
    if not fault.text or fault.cut:
        return False
    near = codec.decode(origin.ids[max(0, fault.position - 1) : fault.position + 2])
    same = _common(meant.text, got.text) + _common(meant.text[::-1], got.text[::-1])
    return same + len(near) + len(" commentary") >= max(len(meant.text), len(got.text))


def _common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_damaged_streams_come_to_what_was_meant(codec, capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[tuple[str, str, bool]] = Counter()
    answered: Counter[str] = Counter()
    misdirected: list[tuple[str, str | None]] = []
    for name, spelling in STREAMS.items():
        origin = stream(codec, name, spelling)
        (*_, meant), _ = turn(codec, origin, Fault("none", origin.ids, False, 0))
        for fault in faults(codec, origin, seed=1):
            messages, kinds = turn(codec, origin, fault)
            good = bool(messages) and is_recovered(codec, meant, messages[-1], origin, fault)
            counts[fault.kind, "text" if fault.text else "frame", good and "resampled" not in kinds] += 1
            for message in filter(lambda m: m.is_call, messages):
                if (found := tool(message)) is None:
                    answered[message.recipient or ""] += 1
                elif found != tool(meant):
                    misdirected.append((codec.decode(fault.ids), found))
    total, recovered = counts.total(), sum(n for (_, _, good), n in counts.items() if good)
    lines = [f"\n\n{total} damaged streams, {100 * recovered / total:.1f} % recovered without resampling"]
    lines.append("fault         where  streams  recovered")
    for kind, where in sorted({(kind, where) for kind, where, _ in counts}):
        good, lost = counts[kind, where, True], counts[kind, where, False]
        lines.append(f"{kind:13} {where:6} {good + lost:7} {100 * good / (good + lost):8.1f} %")
    lines.append(f"recipients that are no tool, answered with the names that exist: {dict(answered)}\n")
    with capsys.disabled():
        sys.stdout.write("\n".join(lines))
    assert total >= 2000
    assert recovered >= 0.95 * total
    for kind in {kind for kind, _, _ in counts}:
        good, lost = counts[kind, "frame", True], counts[kind, "frame", False]
        assert good >= 0.9 * (good + lost), kind
    assert misdirected == []
