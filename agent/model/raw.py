"""A model over raw tokens: render, sample, parse as it streams, repair what can be repaired.

One class serves every source of tokens (a completions server, the runtime in this process), because all work with the
harmony format is done here, above the TokenSource interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

from agent.conversation import Conversation, Message
from agent.errors import ContextOverflow
from agent.events import Delta, MessageAdded, Repaired, Retried, Sampled
from agent.harmony.codec import Codec, recipients
from agent.harmony.constrain import Guides
from agent.harmony.ladder import Resample, Take, Tries, decide, is_looping, take_all, without_loop
from agent.harmony.parser import Parsed, Parser
from agent.harmony.repair import Kind, repaired
from agent.harmony.tokens import OPENING, STOPS
from agent.model.base import ModelEvent, SamplingParams, TokenSource, later_seed
from agent.model.capabilities import Capabilities
from agent.model.patch_drafts import PatchDrafts

MIN_ANSWER_TOKENS = 256  # with less room than this the window counts as full …
MIN_ANSWER_SHARE = 8  # … and with less than 1/8 of the window, if the answer may be that long
THINKING_SHARE = 0.75  # of an answer's tokens; the rest is reserved for a call or an answer
CHECK_TOKENS = 256  # the stream is checked for a loop every so many tokens


@dataclass(slots=True)
class _Tally:
    """Counters of one answer, over all its samples."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Request:
    """The request for one sample; ``prompt`` ends in ``opening``."""

    prompt: list[int]
    opening: tuple[int, ...]
    params: SamplingParams
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Heard:
    """One sample, parsed. ``cut`` says why we ended it ourselves, if we did."""

    parsed: Parsed
    finish: str
    new_ids: int
    cut: Kind | None = None


@dataclass(slots=True)
class _Ear:
    """Parses one sample as it streams: a parser, the ids so far, and the opening before them."""

    codec: Codec
    names: frozenset[str]
    opening: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    checked: int = 0
    parser: Parser = field(init=False)

    def __post_init__(self) -> None:
        self.parser = self._opened()

    def hear(self, ids: tuple[int, ...]) -> list[Delta]:
        self.ids += ids
        return self.parser.feed(ids)

    def trouble(self, thinking_tokens: int | None) -> Kind | None:
        """Return why the stream should be cut here (it loops, or reasons for too long), or None."""
        if len(self.ids) - self.checked < CHECK_TOKENS:
            return None
        self.checked = len(self.ids)
        if is_looping(self.ids, calling=self.parser.calling):
            return Kind.CUT_LOOP
        acting = self.parser.calling or self.parser.answering
        if thinking_tokens is not None and len(self.ids) > thinking_tokens and not acting:
            return Kind.CUT_THINKING
        return None

    def parsed(self, finish: str, cut: Kind | None) -> Parsed:
        if cut is Kind.CUT_LOOP:
            before = without_loop(self.ids, calling=self.parser.calling)
            self.parser = self._opened()
            self.parser.feed(before)
        return self.parser.finish(stopped=finish == "stop" and cut is None)

    def _opened(self) -> Parser:
        parser = Parser(self.codec.token_bytes, self.names)
        parser.feed(self.opening)
        return parser


class RawModel:
    """A model over a TokenSource. agent/harmony/ladder.py says what happens to a malformed answer.

    ``guides`` restrict its calls to their grammar, if the source supports masks; ``drafts`` guess its patches, if it uses them.
    """

    def __init__(
        self,
        codec: Codec,
        source: TokenSource,
        tries: Tries | None = None,
        clock: Callable[[], float] = time.monotonic,
        guides: Guides | None = None,
        drafts: PatchDrafts | None = None,
    ) -> None:
        self._codec = codec
        self._source = source
        self._tries = tries or Tries()
        self._clock = clock
        self._guides = guides
        self._drafts = drafts

    @property
    def codec(self) -> Codec:
        """The codec of this model, for callers that sample without a conversation."""
        return self._codec

    @property
    def source(self) -> TokenSource:
        """Where the tokens come from."""
        return self._source

    @property
    def name(self) -> str:
        """The source's name."""
        return self._source.name

    @property
    def context_tokens(self) -> int | None:
        """The source's window in tokens, if it is known."""
        return self._source.context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """The source's capabilities."""
        return self._source.capabilities

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:
        """Answer; see Model. Repaired is yielded for each repair of the answer that is kept, and for each answer that is dropped.

        Raises ContextOverflow when the window leaves no room for an answer, and what the source raises.
        """
        began = self._clock()
        tally = _Tally()
        kept: tuple[Message, ...] = ()
        repairs: tuple[Repaired, ...] = ()
        opening: tuple[int, ...] = (*OPENING, *params.opening)
        tries, finish = self._tries, "stop"
        while True:
            prompt = self._codec.prompt(conversation.add(*kept), opening)
            budget = self._budget(len(prompt), params.max_tokens, kept)
            if budget is not None and budget < 1:
                finish = "length"
                break
            attempt = self._tries.resample - tries.resample
            mine = _nth(params, budget, attempt, self._clock() - began)
            guide = None if self._guides is None else self._guides.guide(conversation.tools, opening)
            drafter = None if self._drafts is None else self._drafts.drafter(conversation.messages)
            mine = replace(mine, guide=guide, drafter=drafter)
            request = _Request(prompt, opening, mine, recipients(conversation.tools))
            heard = yield from self._listen(request, tally, began)
            finish = heard.finish
            spent = budget is not None and heard.new_ids >= budget and heard.cut is None
            verdict = take_all(heard.parsed) if spent else decide(heard.parsed, finish, heard.cut, tries)
            if isinstance(verdict, Resample):
                tries = verdict.left
                yield verdict.repair
                yield Retried(verdict.repair.detail, attempt + 1, 0.0)
                continue
            kept += verdict.messages
            repairs += heard.parsed.repairs + ((repaired(heard.cut),) if heard.cut else ())
            repairs += verdict.repairs + tuple(repaired(Kind.LET_GO, why) for why in (guide.let_go if guide else ()))
            if isinstance(verdict, Take):
                break
            opening, tries = verdict.opening, verdict.left
        yield from repairs
        yield from map(MessageAdded, kept)
        yield Sampled(
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            finish="call" if kept and kept[-1].is_call else finish,
            cached_tokens=tally.cached_tokens,
            duration_s=self._clock() - began,
            first_token_s=tally.first_token_s,
        )

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _listen(self, request: _Request, tally: _Tally, began: float) -> Generator[ModelEvent, None, _Heard]:
        """Take one sample from the source, to its end or to where it is cut."""
        ear = _Ear(self._codec, request.names, request.opening)
        finish, cut = "stop", None
        most = request.params.max_tokens
        thinking_tokens = None if most is None else int(most * THINKING_SHARE)
        tally.prompt_tokens = tally.prompt_tokens or len(request.prompt)
        stream = self._source.generate(request.prompt, request.params, STOPS)
        try:
            for chunk in stream:
                if isinstance(chunk, Retried):
                    ear = _Ear(self._codec, request.names, request.opening)
                    yield chunk
                    continue
                if chunk.ids and ear.parser.done:
                    break  # the server ignores our stop ids
                if chunk.ids and not tally.completion_tokens:
                    tally.first_token_s = self._clock() - began
                tally.completion_tokens += len(chunk.ids)
                tally.cached_tokens = max(tally.cached_tokens, chunk.cached_tokens or 0)
                finish = chunk.finish or finish
                yield from ear.hear(chunk.ids)
                cut = ear.trouble(thinking_tokens)
                if cut is not None or (ear.parser.done and ear.ids[-1] not in STOPS):
                    break
        finally:
            if isinstance(stream, Generator):
                stream.close()
        return _Heard(ear.parsed(finish, cut), finish, len(ear.ids), cut)

    def _budget(self, prompt_tokens: int, max_tokens: int | None, kept: tuple[Message, ...]) -> int | None:
        """Return how many tokens may be sampled now: what remains of the answer's limit and of the window."""
        left = []
        if self.context_tokens is not None:
            left.append(self.context_tokens - prompt_tokens)
            share = self.context_tokens // MIN_ANSWER_SHARE
            least = max(MIN_ANSWER_TOKENS, min(share, max_tokens or share))
            if not kept and left[0] < least:
                raise ContextOverflow(
                    f"The conversation has {prompt_tokens} tokens and the window of {self.name} {self.context_tokens}: "
                    f"that leaves less than {least} for an answer. Compact the conversation, "
                    "or serve the model with a larger window."
                )
        if max_tokens is not None:
            left.append(max_tokens - sum(len(message.tokens) for message in kept))
        return min(left, default=None)


def _nth(params: SamplingParams, budget: int | None, attempt: int, spent_s: float) -> SamplingParams:
    """Return the params of one attempt. Each has a seed of its own; all share one timeout."""
    left_s = None if params.timeout_s is None else max(params.timeout_s - spent_s, 0.0)
    return replace(params, max_tokens=budget, seed=later_seed(params.seed, attempt), timeout_s=left_s)
