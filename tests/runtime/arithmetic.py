"""A 'model' that is all arithmetic on what the cache says, and devices that do what a GPU may do, so every slip shows."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar

import torch

from runtime.engine import Engine, EngineOptions
from runtime.graphs import Graph
from runtime.kernels.base import LayerCache, StepInputs
from runtime.lookup import Costs, Speculation
from runtime.request import Request, TokenOut
from runtime.runner import Launched, Runner
from runtime.sampler import SamplingInputs, pick, uniform
from runtime.scheduler import Limits, Work

VOCABULARY = 97
PAGE = 4


def always(draft_tokens: int, ngram: int = 1) -> Speculation:
    """Guess that many tokens whenever there is anything to guess from, whatever it earns."""
    return Speculation(draft_tokens, ngram, ((draft_tokens + 1, 0.01),))


class Foretold:
    """A Drafter that drafts ``tokens``, whatever was sampled, at the place where the answer is."""

    priors: ClassVar[Mapping[str, float]] = {"foretold": 0.9}

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.taken: list[int] = []

    def take(self, token: int) -> None:
        self.taken.append(token)

    def draft(self) -> list[tuple[int, str]]:
        return [(token, "foretold") for token in self.tokens[len(self.taken) :]]


@cache
def logits_of(context: tuple[int, ...]) -> torch.Tensor:
    """Return the 'model': fp32 [V], a hash of the context; it often repeats the token three back, so that guesses hit."""
    digest = hash(context)
    row = torch.arange(VOCABULARY).mul(digest % 89 + 1).remainder(VOCABULARY) / 30
    if len(context) > 3 and digest % 4:
        row[context[-3]] += 6
    return row


def forward(inputs: StepInputs, caches: Sequence[LayerCache]) -> torch.Tensor:
    """Write (token, position) to the cache, read each sequence's context back, and answer with a hash of it."""
    stored = caches[0].keys.view(-1, 2)
    stored[inputs.slots] = torch.stack([inputs.token_ids, inputs.positions], -1).to(stored.dtype)
    rows = []
    for row in inputs.sample_rows.tolist():
        sequence = int(torch.searchsorted(inputs.query_start, row, right=True)) - 1
        if row >= int(inputs.query_start[-1]):  # padding, which nobody looks at
            rows.append(torch.full((VOCABULARY,), torch.nan))
            continue
        length = int(inputs.positions[row]) + 1
        assert length <= inputs.max_context_len
        if int(inputs.page_table[sequence, 0]) == len(caches[0].keys) - 1:  # padding, which nobody looks at
            rows.append(torch.zeros(VOCABULARY))
            continue
        slots = inputs.page_table[sequence, torch.arange(length) // PAGE] * PAGE + torch.arange(length) % PAGE
        context = stored[slots.long()].long()
        assert context[:, 1].tolist() == list(range(length)), "positions in the cache are not 0, 1, 2, …"
        rows.append(logits_of(tuple(context[:, 0].tolist())))
    return torch.stack(rows) if rows else torch.zeros(0, VOCABULARY)


def bits(allowed: Collection[int]) -> bytes:
    """Return a mask that allows some tokens."""
    row = bytearray(-(-VOCABULARY // 8))
    for token in allowed:
        row[token // 8] |= 1 << token % 8
    return bytes(row)


class ByRule:
    """A mask that follows a pure rule: (the tokens sampled so far) -> the mask, or None.

    ``free(n)`` says whether the rule gives None behind n tokens, whatever they are: what such a mask can know ahead.
    """

    def __init__(self, rule: Rule, free: Callable[[int], bool]) -> None:
        self.rule = rule
        self.free = free
        self.sampled: list[int] = []
        self.asked: list[int] = []

    def take(self, token: int) -> None:
        self.sampled.append(token)

    def is_free(self, coming: Sequence[int | None]) -> bool:
        return all(self.free(len(self.sampled) + more) for more in range(len(coming) + 1))

    def allowed(self, draft: Sequence[int]) -> list[bytes | None]:
        self.asked.append(len(self.sampled))
        return [self.rule([*self.sampled, *draft[:more]]) for more in range(len(draft) + 1)]


Rule = Callable[[list[int]], bytes | None]


def truth(request: Request, room: int) -> list[int]:
    """Return the tokens that a request must get where a sequence may have ``room`` tokens: no cache, no batch, no page."""
    tokens = list(request.prompt)
    sampling = request.sampling
    while len(tokens) < room and len(tokens) - len(request.prompt) < request.max_tokens:
        index = len(tokens) - len(request.prompt)
        mask = None if request.mask is None else request.mask()
        for token in tokens[len(request.prompt) :] if mask is not None else ():
            mask.take(token)
        allowed = None if mask is None else mask.allowed(())[0]
        given = SamplingInputs(
            torch.tensor([sampling.temperature]),
            torch.tensor([sampling.top_p]),
            torch.tensor([uniform(sampling.seed or 0, index)], dtype=torch.float64),
            nucleus=sampling.top_p < 1,
            mask=None if allowed is None else torch.tensor([list(allowed)], dtype=torch.uint8),
        )
        tokens.append(int(pick(logits_of(tuple(tokens))[None], given)))
        if tokens[-1] in request.stop:
            break
    return tokens[len(request.prompt) :]


class Recorder:
    """Graphs on the CPU: work that is run again on the same tensors. As they share memory, each replay ruins what the others
    gave: what was not copied in time is seen to be wrong.
    """

    def __init__(self) -> None:
        self.graphs: list[Played] = []
        self.replays = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> Graph:
        self.ruin()
        graph = Played(self, work, work().clone())
        self.graphs.append(graph)
        return graph

    def has_room(self) -> bool:
        return True

    def ruin(self) -> None:
        for graph in self.graphs:
            graph.output.fill_(-1 if graph.output.dtype == torch.int64 else float("nan"))


class Played:
    def __init__(self, owner: Recorder, work: Callable[[], torch.Tensor], output: torch.Tensor) -> None:
        self._owner = owner
        self._work = work
        self.output = output

    def replay(self) -> None:
        self._owner.ruin()
        self._owner.replays += 1
        self.output.copy_(self._work())


def seen(works: Sequence[Work]) -> list[Work]:
    """Return what is uploaded: the host may change its mind, the device does not hear of it."""
    return [
        replace(
            work,
            sequence=replace(
                work.sequence,
                tokens=list(work.sequence.tokens),
                pages=array("i", work.sequence.pages),
                mask=copy.deepcopy(work.sequence.mask),
            ),
        )
        for work in works
    ]


class Later:
    """A step that a slow device has not begun: it is done, after all before it, when somebody asks for its tokens."""

    def __init__(self, stream: SlowRunner, works: Sequence[Work], after: Later | None) -> None:
        self.works = works
        self._stream = stream
        self._after = after
        self._seen = seen(works)
        self._asked: list[Work] | None = None
        self.done: Launched | None = None

    def sample(self) -> None:
        self._asked = seen(self.works)

    def run(self) -> None:
        self.done = self._stream.runner.launch(self._seen, None if self._after is None else self._after.done)
        if self._asked is not None:  # otherwise all who were in it had ended before it could be sampled
            self.done.works = self._asked
            self._stream.runner.sample(self.done)

    def tokens(self) -> tuple[list[int], list[float] | None]:
        self._stream.run_up_to(self)
        assert self._asked is not None, "a step was never sampled"
        assert self.done is not None
        return self.done.tokens()


class SlowRunner:
    """A runner on a device that does everything as late as it can, in order."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._queue: list[Later] = []

    def launch(self, works: Sequence[Work], after: Later | None = None) -> Later:
        later = Later(self, works, after)
        self._queue.append(later)
        return later

    def sample(self, step: Later) -> None:
        step.sample()

    def prepare(self) -> bool:
        while self._queue:
            self._queue.pop(0).run()
        return self.runner.prepare()

    def guess_costs(self) -> Costs | None:
        return self.runner.guess_costs()

    def run_up_to(self, step: Later) -> None:
        while step.done is None:
            self._queue.pop(0).run()


def engine(cache_pages: int = 64, *, slow: bool = False, recorder: Recorder | None = None, **limits: object) -> Engine:
    """Return an engine over this model; one page of the cache is for padding."""
    made = Engine(
        forward,
        lambda pages: [LayerCache(torch.zeros(pages, PAGE, 1, 2), torch.zeros(0))],
        page_bytes=1000,
        vocabulary=VOCABULARY,
        device=torch.device("cpu"),
        options=EngineOptions(
            page_tokens=PAGE,
            cache_bytes=cache_pages * 1000,
            limits=replace(Limits(context_tokens=200), **limits),  # type: ignore[arg-type]
        ),
        record=recorder,
    )
    if slow:
        made.runner = SlowRunner(made.runner)  # type: ignore[assignment]  # it has no more than the engine uses
    return made


def room(engine_: Engine) -> int:
    """Return the tokens that one sequence can have."""
    return min(engine_.limits.context_tokens, engine_.scheduler.pool.total * PAGE)


def drain(engine_: Engine, requests: Sequence[Request]) -> dict[str, list[TokenOut]]:
    outs: dict[str, list[TokenOut]] = {request.id: [] for request in requests}
    for request in requests:
        engine_.add(request)
    while not engine_.idle:
        for out in engine_.step():
            outs[out.id].append(out)
    return outs


def tokens(outs: Sequence[TokenOut]) -> list[int | None]:
    return [out.token for out in outs]
