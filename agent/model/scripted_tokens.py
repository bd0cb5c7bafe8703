"""A source of tokens that replays a script like a real server: for tests, demos and bug reports of the raw wires."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from agent.events import Retried
from agent.model.base import Chunk, SamplingParams
from agent.model.capabilities import Capabilities

Script = Callable[[Sequence[int]], Sequence[int]]


class ScriptedTokens:
    """A TokenSource whose ``script`` returns the continuation of any prompt.

    Like a server, it ends after the first stop id (which is part of the answer) or at ``max_tokens``, and it finds its position
    from the prompt, so that a resumed run continues where it was. ``chunk_tokens`` is the size of a chunk.
    """

    def __init__(
        self, script: Script, *, name: str = "scripted tokens", context_tokens: int | None = None, chunk_tokens: int = 1
    ) -> None:
        self._script = script
        self._name = name
        self._context_tokens = context_tokens
        self._chunk_tokens = chunk_tokens

    @property
    def name(self) -> str:
        """The script's name."""
        return self._name

    @property
    def context_tokens(self) -> int | None:
        """The simulated window, if there is one."""
        return self._context_tokens

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities. A script is deterministic, so any temperature, top_p and seed are honoured."""
        return Capabilities(raw=True, ids_in=True, ids_out=True, cached_tokens=False)

    def generate(self, prompt: Sequence[int], params: SamplingParams, stop: Sequence[int]) -> Iterator[Chunk | Retried]:
        """Play the script's continuation of ``prompt``."""
        answer = tuple(self._script(prompt))
        ends = next((place + 1 for place, token in enumerate(answer) if token in stop), len(answer))
        most = ends if params.max_tokens is None else params.max_tokens
        ids = answer[: min(ends, most)]
        for start in range(0, len(ids), self._chunk_tokens):
            yield Chunk(ids[start : start + self._chunk_tokens])
        yield Chunk((), "length" if most < ends else "stop", prompt_tokens=len(prompt))

    def close(self) -> None:
        """Do nothing: it holds no resources."""
