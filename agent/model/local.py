"""The runtime in this process as a source of tokens. No other module of the agent's models imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from agent.backends import BACKENDS
from agent.errors import ContextOverflow, ModelError, ModelUnfit
from agent.events import Retried
from agent.model.base import Chunk, SamplingParams
from agent.model.cancel import Cancel
from agent.model.capabilities import Capabilities

if TYPE_CHECKING:
    from runtime.request import Streams

Progress = Callable[[int, int], None]
"""(bytes loaded, total bytes)"""


ENGINE = Capabilities(raw=True, ids_in=True, ids_out=True)
TRANSFORMERS = Capabilities(raw=True, ids_in=True, ids_out=True, parallel_requests=False)
_SEEDS = 1 << 63
_LEAST_TOP_P = 1e-9  # replaces 0: only the most likely token is kept


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Options of the runtime. None leaves the choice to it: the first CUDA device, or the CPU.

    ``backend`` is one of those that need a checkpoint, see ``agent.backends``. ``cache_dir`` contains the kernel sizes that
    were measured on this GPU.
    """

    backend: str = "local"
    device: str | None = None
    cache_bytes: int | None = None
    context_tokens: int | None = None
    cache_dir: Path | None = None


class LocalSource:
    """A TokenSource over an engine in this process. Any number of conversations may stream from it at once."""

    def __init__(
        self,
        name: str,
        worker: Streams,
        context_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        capabilities: Capabilities = ENGINE,
    ) -> None:
        self._capabilities = capabilities
        self._clock = clock
        self._name = name
        self._worker = worker
        self._context_tokens = context_tokens
        self._ids = count()

    @property
    def name(self) -> str:
        """The checkpoint's folder."""
        return self._name

    @property
    def context_tokens(self) -> int:
        """The window in tokens: the model's, or what its cache holds if that is less."""
        return self._context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the engine, or of transformers."""
        return self._capabilities

    @property
    def stopped(self) -> str | None:
        """Why it will never answer again, or None."""
        return self._worker.stopped

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]
    ) -> Generator[Chunk | Retried]:
        """Continue ``prompt`` token by token, for ``timeout_s`` at most.

        Raises ContextOverflow for a prompt that does not fit, else ModelError.
        """
        from runtime.errors import RuntimeFault
        from runtime.request import Request, Sampling

        left = self._context_tokens - len(prompt)
        if left < 1:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens and the local engine holds {self._context_tokens}"
            )
        began = self._clock()
        guide = params.guide
        seed = None if params.seed is None else params.seed % _SEEDS
        try:
            request = Request(
                id=f"local-{next(self._ids)}",
                prompt=tuple(prompt),
                max_tokens=left if params.max_tokens is None else min(left, params.max_tokens),
                stop=frozenset(stop),
                sampling=Sampling(params.temperature, max(params.top_p, _LEAST_TOP_P), seed),
                mask=None if guide is None else lambda: guide,
                drafter=params.drafter,
            )
            cancel = params.cancel or Cancel()
            with (
                cancel.by(lambda: self._worker.cancel(request.id)),
                closing(self._worker.stream(request, lambda: cancel.called)) as outs,
            ):
                for out in outs:
                    if cancel.called:
                        raise cancel.error()
                    yield Chunk(
                        ids=() if out.token is None else (out.token,),
                        finish=out.finish,
                        prompt_tokens=len(prompt) if out.finish else None,
                        cached_tokens=out.cached_tokens if out.finish else None,
                    )
                    # The deadline is also checked here, because a stream may go on for long without an event that others check at.
                    if params.timeout_s is not None and self._clock() - began > params.timeout_s:
                        raise ModelError(
                            f"the answer took longer than the {params.timeout_s:.0f} s that the run had left"
                        )
        except RuntimeFault as fault:
            raise ModelError(str(fault)) from fault

    def close(self) -> None:
        """Stop the engine's thread; its memory is freed."""
        self._worker.close()


def open_local(
    directory: Path,
    options: LocalOptions,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> LocalSource:
    """Load a checkpoint (a folder, or the name of a downloaded one) and start an engine for it.

    ``say`` is told if this will be too slow to be useful, and if saved kernel sizes cannot be used any more.
    Raises ModelUnfit if the checkpoint is unusable, the device has no room for it, or the runtime is not installed;
    the message says what to do.
    """
    _load_runtime(str(directory))
    from runtime.errors import RuntimeFault
    from runtime.local import open_transformers_worker, open_worker

    name, device, window = str(directory), options.device, options.context_tokens
    worker: Streams
    try:
        if options.backend == "transformers":
            worker, context_tokens = open_transformers_worker(name, device=device, context_tokens=window)
        else:
            worker, context_tokens = open_worker(
                name,
                kernels=BACKENDS[options.backend].kernels or "auto",
                device=device,
                cache_bytes=options.cache_bytes,
                context_tokens=window,
                cache=options.cache_dir,
                progress=progress,
                warn=say,
            )
    except RuntimeFault as fault:
        raise ModelUnfit(str(fault)) from fault
    except ModuleNotFoundError as missing:
        raise _not_installed(name, missing, options.backend) from missing
    can = TRANSFORMERS if options.backend == "transformers" else ENGINE
    return LocalSource(name, worker, context_tokens, capabilities=can)


def is_pulled(name: str) -> bool:
    """Whether a model's name is that of a downloaded checkpoint and the runtime is installed."""
    try:
        _load_runtime(name)
    except ModelUnfit:
        return False
    from runtime.errors import CheckpointError
    from runtime.local import find_checkpoint

    try:
        find_checkpoint(name)
    except CheckpointError:
        return False
    return True


def best_here(name: str) -> tuple[str, str]:
    """Return the best backend of this machine for a checkpoint, and the reason. Raises ModelUnfit."""
    _load_runtime(name)
    from runtime.local import kernels_here

    kernels, why = kernels_here()
    return next(found for found, kind in BACKENDS.items() if kind.kernels == kernels), why


def sizes_here(name: str, cache_dir: Path) -> str | None:
    """Say where the kernel sizes for this GPU come from; None if no sizes are used here. Raises ModelUnfit."""
    _load_runtime(name)
    from runtime.local import sizes_here as sizes

    return sizes(cache_dir)


def _load_runtime(name: str) -> None:
    """Import torch, after setting the environment that it reads at import."""
    try:
        from runtime.allocator import prepare_allocator

        prepare_allocator()
        import runtime.local  # noqa: F401 - torch comes with it
    except ModuleNotFoundError as missing:
        raise _not_installed(name, missing, "runtime") from missing


def _not_installed(name: str, missing: ModuleNotFoundError, backend: str) -> ModelUnfit:
    extra = "transformers" if backend == "transformers" else "runtime"
    return ModelUnfit(
        f"running {name} on this machine needs the runtime, and {missing.name} is not installed: "
        f'pip install "gpt-oss-agent[{extra}]"'
    )
