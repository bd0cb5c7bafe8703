"""What a turn costs in the codec and the parser, at 1k, 32k and 120k tokens of history.

Run ``python -m benchmarks.harmony``; nothing else is needed. Each time is the best of several, in milliseconds:

- turn: the prompt after one more call and its answer, the way a run asks for it
- resume: the same prompt from a codec that has rendered nothing yet
- library: openai-harmony renders the whole conversation, which is what a harness without a token log does every turn
- parse: a sampled answer of about 400 tokens, id by id
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import openai_harmony

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec
from agent.events import MessageAdded
from agent.harmony.codec import Codec, open_codec, recipients
from agent.harmony.parser import Parser
from agent.harmony.tokens import OPENING
from agent.harmony.vocabulary import load_encoding
from agent.model.base import SamplingParams
from agent.model.raw import RawModel
from agent.model.scripted_tokens import ScriptedTokens

TOOL = ToolSpec("container.exec", "Run a command.", {"type": "object", "properties": {"command": {"type": "array"}}})
THOUGHT = (
    "The test fails because the last word is dropped when the limit falls on a space; look at the loop again. " * 8
)
ANSWER = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary to=container.exec "
    '<|constrain|>json<|message|>{"command":["bash","-lc","sed -n 1,200p src/slug.py && pytest -q tests"]}<|call|>'
)
OUTPUT = "".join(f"{n}:    assert slugify('word {n} of a title', {n}) == 'word-{n}'\n" for n in range(60))


def best_ms(action: Callable[[], object], times: int = 7) -> float:
    """The best of several runs, in milliseconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return 1000 * min(took)


def history(codec: Codec, tokens: int) -> Conversation:
    """A run of sampled turns and tool answers whose prompt has at least ``tokens`` ids."""
    completion = codec.encode_sampled(ANSWER)
    model = RawModel(codec, ScriptedTokens(lambda _: completion, chunk_tokens=len(completion)))
    turn = [e.message for e in model.sample(Conversation(), SamplingParams()) if isinstance(e, MessageAdded)]
    conversation = Conversation("Fix the issue.", (TOOL,), (Message(Role.USER, "The last word is lost."),))
    while len(codec.prompt(conversation)) < tokens:
        conversation = conversation.add(*turn, Message(Role.TOOL, OUTPUT))
    return conversation


def to_library(conversation: Conversation) -> openai_harmony.Conversation:
    """The conversation's messages as the library's own; its head is left out."""
    built = []
    for message in conversation.messages:
        name = "container.exec" if message.role is Role.TOOL else None
        author = openai_harmony.Author(role=openai_harmony.Role(message.role.value), name=name)
        one = openai_harmony.Message.from_author_and_content(author, message.text)
        built.append(one.with_channel((message.channel or Channel.COMMENTARY).value))
    return openai_harmony.Conversation.from_messages(built)


def parse(codec: Codec, completion: list[int]) -> None:
    """Read an answer id by id."""
    parser = Parser(codec.token_bytes, recipients((TOOL,)))
    parser.feed(OPENING)
    for token in completion:
        parser.feed([token])
    parser.finish(stopped=True)


def row(codec: Codec, encoding: openai_harmony.HarmonyEncoding, tokens: int) -> str:
    """Measure at one size of history."""
    before = history(codec, tokens)
    size = len(codec.prompt(before))
    turns = [before.add(Message(Role.TOOL, f"{n}\n{OUTPUT}")) for n in range(8)]
    new = len(codec.prompt(turns.pop())) - size
    turn = best_ms(lambda: codec.prompt(turns.pop()), 7)
    resume = best_ms(lambda: Codec(encoding).prompt(before), 3)
    plain = to_library(before)
    library = best_ms(lambda: encoding.render_conversation_for_completion(plain, openai_harmony.Role.ASSISTANT), 3)
    return f"| {size:,} | {new:,} | {turn:.2f} ms | {resume:.0f} ms | {library:.0f} ms |"


def main() -> None:
    """Measure and print a table for benchmarks/RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        first = best_ms(lambda: load_encoding(Path(folder)), 1)
        every_other = best_ms(lambda: load_encoding(Path(folder)), 3)
        codec = open_codec(Path(folder))
        encoding = load_encoding(Path(folder))
    completion = codec.encode_sampled(ANSWER)
    print(f"vocabulary: unpacked and loaded {first:.0f} ms, loaded {every_other:.0f} ms")
    print(f"parse: {best_ms(lambda: parse(codec, completion)):.2f} ms for {len(completion)} tokens\n")
    print("| history, tokens | new tokens | turn | resume | library |")
    print("|---|---|---|---|---|")
    for tokens in (1_000, 32_000, 120_000):
        print(row(codec, encoding, tokens))


if __name__ == "__main__":
    main()
