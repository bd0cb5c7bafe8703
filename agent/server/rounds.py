"""An answer with built-in tools: sample, run the model's calls, continue sampling. Sync.

A call of a client's function ends the answer. After each sample its messages are added to the conversation with their ids, so the
backend's prefix cache stays valid over the whole answer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from agent.conversation import Message, Role
from agent.model.cancel import Cancel
from agent.model.client import closing_iterator
from agent.server.answer import Called, Cited, Ended, Part, Said, Worked, Working, answer
from agent.server.ask import Ask, Choice
from agent.server.backend import Backend
from agent.server.bench import Bench, Work
from agent.server.faults import InvalidAnswer
from agent.tools.browser.citations import Citations

MOST_REFUSED = 3  # refused calls in a row before the answer fails


@dataclass(slots=True)
class _Sum:
    """The sum over all rounds."""

    messages: list[Message] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    refused: int = 0

    def add(self, ended: Ended) -> None:
        self.prompt_tokens += ended.prompt_tokens
        self.completion_tokens += ended.completion_tokens
        self.cached_tokens += ended.cached_tokens
        self.reasoning_tokens += ended.reasoning_tokens

    def ended(self, finish: str) -> Ended:
        counts = self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens
        return Ended(tuple(self.messages), finish, *counts)


def rounds(backend: Backend, ask: Ask, bench: Bench) -> Iterator[Part]:
    """Yield the parts of the whole answer. The counts at its end cover all samples.

    Raises ModelError; Cancelled if the request was ended during a call. Closing the iterator stops the work and releases what
    the bench holds.
    """
    try:
        yield from _rounds(backend, ask, bench)
    finally:
        bench.close()


def _rounds(backend: Backend, ask: Ask, bench: Bench) -> Iterator[Part]:
    functions, most = ask.conversation.tools, ask.params.max_tokens
    cancel = ask.params.cancel or Cancel()
    ask = _equipped(ask, bench)
    total = _Sum()
    while True:
        called: list[Called] = []
        ended = yield from _sampled(backend, ask, bench, called)
        total.add(ended)
        calls = [(message, bench.work(message, functions)) for message in ended.messages if message.is_call]
        theirs = [part for part, (_, work) in zip(called, calls, strict=True) if work is None]
        before = len(total.messages)
        total.messages += [message for message in ended.messages if not message.is_call]
        for message, work in calls:
            if work is not None:
                yield from _worked(bench, message, work, total, cancel)
        total.messages += [message for message, work in calls if work is None]
        left = None if most is None else most - total.completion_tokens
        if theirs or not calls or (left is not None and left < 1):
            yield from theirs
            yield total.ended(ended.finish if theirs or not calls else "length")
            return
        conversation = ask.conversation.add(*total.messages[before:])
        choice = Choice() if ask.choice.mode == "required" else ask.choice
        ask = replace(ask, conversation=conversation, params=replace(ask.params, max_tokens=left), choice=choice)


def _equipped(ask: Ask, bench: Bench) -> Ask:
    conversation = ask.conversation
    tools = (*bench.specs, *conversation.tools)
    instructions = "\n\n".join(filter(None, (conversation.instructions, bench.note)))
    return replace(ask, conversation=replace(conversation, tools=tools, instructions=instructions))


def _sampled(backend: Backend, ask: Ask, bench: Bench, called: list[Called]) -> Generator[Part, None, Ended]:
    """Sample once: yield text with its citations, append calls to ``called``, and return the end."""
    marks = Citations(bench.cited)
    ended: Ended | None = None
    with closing_iterator(answer(backend, ask)) as parts:
        for part in parts:
            match part:
                case Said("text", text) if ask.format is None:
                    clear, citations = marks.feed(text)
                    yield from [Said("text", clear)] if clear else ()
                    for found in citations:
                        yield Cited(found.start, found.end, found.source.url, found.source.title)
                    continue
                case Called():
                    called.append(part)
                case Ended():
                    ended = part
            if rest := marks.finish():
                yield Said("text", rest)
            marks = Citations(bench.cited)  # positions count from the beginning of each text
            if not isinstance(part, Called | Ended):
                yield part
    assert ended is not None
    return ended


def _worked(bench: Bench, call: Message, work: Work, total: _Sum, cancel: Cancel) -> Iterator[Part]:
    """Run a call and add it and its result to the messages."""
    total.refused = 0 if work.tool else total.refused + 1
    if total.refused > MOST_REFUSED:
        raise InvalidAnswer("The model kept calling tools that it may not call, and gave no answer.")
    if work.tool:
        yield Working(work.id, work.kind, work.detail)
    done = bench.run(work, cancel)
    turn = newest_turn(total.messages)
    answered = Message(Role.TOOL, done.result.text, name=call.recipient)
    total.messages += [call, answered]
    if work.tool:
        result, detail = done.result, done.work.detail
        yield Worked(work.id, work.kind, detail, result.ok, result.text, done.sources, (*turn, call, answered))


def newest_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages that were sampled since the last tool result."""
    begins = next((i + 1 for i in range(len(messages) - 1, -1, -1) if messages[i].role is Role.TOOL), 0)
    return tuple(messages[begins:])
