"""Hugging Face's transformers as an engine: one request at a time, each in a thread of its own.

It is for comparisons, and for devices that the engine's kernels do not support. The cache of a request is kept and reused if
the prompt of the next one continues it, as the next turn of a conversation does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from runtime.errors import CheckpointError, EngineStopped, RequestRefused, RuntimeFault
from runtime.request import Request, Sampling, TokenOut


@dataclass(slots=True)
class _Run:
    """A running request. ``unwanted`` is checked before each token."""

    outs: SimpleQueue[TokenOut | RuntimeFault] = field(default_factory=SimpleQueue)
    unwanted: threading.Event = field(default_factory=threading.Event)


class TransformersWorker:
    """A transformers model behind the interface ``Streams``. Requests run one after another."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers is untyped
        self._model = model
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held by the running request; guards the attributes below
        self._runs: dict[str, _Run] = {}
        self._stopped: str | None = None
        self._cache: Any = None
        self._cached: tuple[int, ...] = ()  # the ids whose keys and values the cache holds

    @property
    def stopped(self) -> str | None:
        """Why no request is answered any more; None while it runs."""
        return self._stopped

    def stream(self, request: Request, unwanted: Callable[[], bool] = lambda: False) -> Generator[TokenOut]:
        """Yield the request's tokens as they are sampled; see ``runtime.worker.Worker.stream``."""
        if request.mask is not None or request.sampling.logprobs:
            raise RequestRefused(
                "masks and logprobs are not supported with transformers: use the bundled engine for them"
            )
        run = _Run()
        with self._lock:
            if self._stopped is not None:
                raise EngineStopped(self._stopped)
            if request.id in self._runs:
                raise RequestRefused(f"a request with the id {request.id!r} is already running")
            self._runs[request.id] = run
        if unwanted():
            self.cancel(request.id)
        threading.Thread(target=self._work, args=(request, run), name="transformers", daemon=True).start()
        finish: str | None = None
        try:
            while finish is None:
                out = run.outs.get()
                if isinstance(out, RuntimeFault):
                    raise out
                finish = out.finish
                yield out
        finally:
            run.unwanted.set()
            with self._lock:
                del self._runs[request.id]

    def cancel(self, request_id: str) -> None:
        """End a stream from another thread, at once; the model stops after the current token."""
        with self._lock:
            run = self._runs.get(request_id)
        if run is not None:
            run.outs.put(TokenOut(request_id, None, "cancelled"))  # first: the model's end must not be heard before it
            run.unwanted.set()

    def close(self) -> None:
        """Stop the running request and free the memory. May be called twice."""
        with self._lock:
            self._stopped = self._stopped or "the model was closed"
            running = list(self._runs)
        for request_id in running:
            self.cancel(request_id)
        with self._turn:
            self._model = self._cache = None

    def _work(self, request: Request, run: _Run) -> None:
        with self._turn:
            if run.unwanted.is_set():
                return
            failed = "see the traceback on standard error"
            try:
                self._generate(request, run)
                failed = ""
            except RuntimeError as error:  # torch's errors, including out of memory
                failed = str(error) or type(error).__name__
                if isinstance(error, torch.AcceleratorError):  # the device accepts no more work from this process
                    self._stopped = f"transformers failed: {failed}"
            finally:
                if failed:
                    self._cache, self._cached = None, ()  # its state is unknown
                # Read only if no token ended the stream; without it such a stream would wait forever.
                run.outs.put(EngineStopped(f"transformers failed: {failed or 'it gave no reason for its end'}"))

    def _generate(self, request: Request, run: _Run) -> None:
        import transformers

        held = len(self._cached)
        if not 0 < held < len(request.prompt) or request.prompt[:held] != self._cached:
            self._cache, held = transformers.DynamicCache(config=self._model.config), 0
        said: list[int] = []

        def say(token: int) -> None:
            said.append(token)
            finish = "stop" if token in request.stop else "length" if len(said) >= request.max_tokens else None
            run.outs.put(TokenOut(request.id, token, finish, cached_tokens=held))

        ids = torch.tensor([request.prompt], device=self._model.device)
        with _seeded(request.sampling.seed, self._model.device), torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self._cache,
                generation_config=_settings(request),
                stopping_criteria=transformers.StoppingCriteriaList([_Stop(run.unwanted)]),
                streamer=_Streamer(say),
            )
        self._cached = (*request.prompt, *said)[: self._cache.get_seq_length()]


class _Streamer:
    """The streamer that ``generate`` calls: first with the prompt, then with one token at a time."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._begun = False

    def put(self, ids: torch.Tensor) -> None:
        if self._begun:
            self._say(int(ids[0]))
        self._begun = True

    def end(self) -> None:
        """Do nothing: the last token has ended the stream already."""


class _Stop:
    """A stopping criterion: stops as soon as the request is cancelled."""

    def __init__(self, unwanted: threading.Event) -> None:
        self._unwanted = unwanted

    def __call__(self, ids: torch.Tensor, _scores: object, **_more: object) -> torch.Tensor:
        return torch.full((len(ids),), self._unwanted.is_set(), device=ids.device)


def open_transformers(
    folder: Path, device: torch.device, dtype: torch.dtype, context_tokens: int | None
) -> tuple[TransformersWorker, int]:
    """Load a checkpoint in Hugging Face's layout; return the worker and the window in tokens.

    On the CPU the weights are dequantized; on a GPU transformers decides. Raises CheckpointError if it cannot be loaded,
    ModuleNotFoundError without transformers.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # its messages would mix with our output
    transformers.logging.disable_progress_bar()
    unpacked = {"quantization_config": transformers.Mxfp4Config(dequantize=True)} if device.type == "cpu" else {}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **unpacked
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {folder}: {error}") from error
    model.to(device)
    model.generation_config = (
        transformers.GenerationConfig()
    )  # the checkpoint's defaults would apply to what a request leaves out
    longest = int(model.config.max_position_embeddings)
    return TransformersWorker(model), min(longest, context_tokens or longest)


def _settings(request: Request) -> Any:  # noqa: ANN401 - a transformers.GenerationConfig
    import transformers

    sampling: Sampling = request.sampling
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return transformers.GenerationConfig(
        max_new_tokens=request.max_tokens,
        eos_token_id=sorted(request.stop) or None,
        pad_token_id=0,  # nothing is padded, but transformers warns if it is unset
        use_cache=True,
        **chosen,
    )


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed the global generator inside the block and restore it afterwards, because ``generate`` takes no generator of its own."""
    if seed is None:
        yield
        return
    kind, numbers = ("cuda", []) if device.type == "cpu" else (device.type, [device.index or 0])
    with torch.random.fork_rng(numbers, device_type=kind):
        torch.manual_seed(seed)
        yield
