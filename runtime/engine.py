"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from runtime.errors import DoesNotFit, RequestRefused
from runtime.graphs import CudaRecorder, Record
from runtime.kernels import reference
from runtime.kernels.base import LayerCache, Sample, Shapes
from runtime.model.memory import workspace_bytes
from runtime.model.transformer import Transformer, forward
from runtime.pages import PagePool
from runtime.request import Request, TokenOut
from runtime.runner import Forward, Launched, Runner
from runtime.scheduler import Limits, Scheduler


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the engine may use. ``cache_bytes`` None: 90 % of the device memory that is free once the weights are loaded."""

    page_tokens: int = 64
    cache_bytes: int | None = None
    limits: Limits = field(default_factory=Limits)
    graphs: bool = True


def make_caches(
    layers: int, pages: int, shapes: Shapes, page_tokens: int, dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Return an empty cache per layer: keys and values [pages, page, Nk, D]."""
    shape = (pages, page_tokens, shapes.kv_heads, shapes.head_dim)
    return [
        LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
        for _ in range(layers)
    ]


def _pages_that_fit(options: EngineOptions, each_bytes: int, device: torch.device, workspace_bytes: int) -> int:
    if options.cache_bytes is not None:
        budget = options.cache_bytes
    elif device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        budget = min(int(free * 0.9), free - workspace_bytes)
    else:
        budget = 2 << 30
    # Beyond every sequence at its full window, pages would only keep prefixes that may never be used again.
    most = options.limits.sequences * -(-options.limits.context_tokens // options.page_tokens) + 1
    pages = min(budget // each_bytes, most)
    if pages < 2:
        raise DoesNotFit(
            f"the cache may use {max(budget, 0) / 2**20:.0f} MiB and needs at least {2 * each_bytes / 2**20:.0f} MiB: "
            "free memory on the device, give the cache more, or use a smaller model"
        )
    return int(pages)


class Engine:
    """Continuous batching over one model on one device. Not thread-safe: one thread owns it (runtime/worker.py).

    ``new_cache(pages)`` returns one cache per layer; ``page_bytes`` is the size of one page over all layers. ``workspace_bytes``
    stay free if the engine chooses the size of the cache. ``sample`` picks tokens; ``record`` records CUDA graphs (None: no
    graphs).
    """

    def __init__(
        self,
        forward: Forward,
        new_cache: Callable[[int], Sequence[LayerCache]],
        *,
        page_bytes: int,
        vocabulary: int,
        device: torch.device,
        options: EngineOptions,
        workspace_bytes: int = 0,
        sample: Sample = reference.sample,
        record: Record | None = None,
    ) -> None:
        pages = _pages_that_fit(options, page_bytes, device, workspace_bytes)
        self.limits = options.limits
        self.vocabulary = vocabulary
        self.scheduler = Scheduler(PagePool(pages - 1, options.page_tokens), options.limits, vocabulary)
        self.runner = Runner(
            forward,
            new_cache(pages),
            page_tokens=options.page_tokens,
            context_tokens=options.limits.context_tokens,
            vocabulary=vocabulary,
            device=device,
            sample=sample,
            record=record,
        )
        self._launched: Launched | None = None
        self._measured = False  # whether the costs of speculation were measured

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.scheduler.idle

    def add(self, request: Request) -> None:
        """Queue a request; without a seed, it gets a random one. Raises RequestRefused for a request that could never run."""
        # On the CPU an id beyond the embedding table raises an error; on a GPU it destroys the CUDA context of the process.
        wrong = next((token for token in request.prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise RequestRefused(
                f"the prompt has the token id {wrong} and the model's vocabulary ends at {self.vocabulary - 1}: "
                "it was made for another model"
            )
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        self.scheduler.add(request)

    def abort(self, request_id: str) -> TokenOut | None:
        """Drop a request; return its last output, or None if there is no such request (any more)."""
        out = self.scheduler.abort(request_id)
        self._forget_void()
        return out

    def prepare(self) -> bool:
        """Record one more graph that later steps are likely to use (about 0.1 s); return False when none is left.

        To be called while the engine is idle. Optional: without it, the kernels of a prompt are launched one by one, and the
        costs of speculation are not measured on this device and model.
        """
        if self.runner.prepare():
            return True
        if self.limits.speculation.costs is None and not self._measured:
            costs = self.runner.guess_costs()
            self._measured = costs is not None
            self.scheduler.guess_costs = costs or self.scheduler.guess_costs
        return False

    def step(self) -> Sequence[TokenOut]:
        """Plan, run, record. Return the tokens of a step: one for each request that samples, more if a guess was right.

        If the next step can be planned before the tokens of this one are known, it is launched first, so that the device
        does not wait for the host. If a sequence turns out to have ended, its part of that step is discarded. A mask that
        depends on the previous token is computed while the device runs the forward pass; the step is sampled after that.
        """
        launched, self._launched = self._launched, None  # if this step raises, everything is planned again
        if launched is None:
            works = self.scheduler.plan()
            if not works:
                return []
            launched = self.runner.launch(works)
        self.runner.sample(launched)
        ahead = self.scheduler.ahead(launched.works)
        following = self.runner.launch(ahead, launched) if ahead else None
        outs = self.scheduler.record(launched.works, *launched.tokens())
        self._launched = following
        self._forget_void()
        return outs

    def _forget_void(self) -> None:
        """Drop the launched step if all its sequences have ended: nobody needs its tokens."""
        if self.scheduler.idle:
            self._launched = None


def _may_record(model: Transformer, options: EngineOptions) -> bool:
    return options.graphs and model.device.type == "cuda" and model.kernels.recordable


def open_engine(model: Transformer, options: EngineOptions) -> Engine:
    """Return an engine over a model. Raises DoesNotFit when the device has no room for a cache."""
    config = model.config
    return Engine(
        partial(forward, model),
        lambda pages: make_caches(config.layers, pages, model.shapes, options.page_tokens, model.dtype, model.device),
        page_bytes=2 * config.layers * options.page_tokens * config.kv_heads * config.head_dim * model.dtype.itemsize,
        vocabulary=config.vocabulary,
        device=model.device,
        workspace_bytes=workspace_bytes(config),
        sample=model.kernels.sample,
        record=CudaRecorder(model.device) if _may_record(model, options) else None,
        options=replace(
            options,
            # The context must not exceed the RoPE table: a GPU kernel would read past its end.
            limits=replace(
                options.limits,
                context_tokens=min(options.limits.context_tokens, config.context_tokens, len(model.rope)),
            ),
        ),
    )
