"""The backends by name: the only table behind ``--wire`` and ``--backend``. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Needs(StrEnum):
    """What a backend requires."""

    NOTHING = "nothing"
    ENDPOINT = "an endpoint"
    CHECKPOINT = "a checkpoint"
    SCRIPT = "a script"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of backend. ``kernels`` is the runtime's name of the kernels, if it is the engine in this process."""

    help: str
    needs: Needs
    kernels: str | None = None


BACKENDS: Mapping[str, Kind] = {
    "auto": Kind("the best that is there", Needs.NOTHING),
    "completions": Kind("a server of raw completions: vLLM, llama.cpp, SGLang", Needs.ENDPOINT),
    "ollama": Kind("Ollama's own interface, with raw text (up to 0.29)", Needs.ENDPOINT),
    "responses": Kind("a server of the Responses API", Needs.ENDPOINT),
    "chat": Kind("a server of chat completions", Needs.ENDPOINT),
    "local": Kind("the engine in this process, with the kernels that fit the device", Needs.CHECKPOINT, "auto"),
    "triton": Kind("the engine in this process, with Triton's kernels", Needs.CHECKPOINT, "triton"),
    "torch": Kind("the engine in this process, in plain PyTorch", Needs.CHECKPOINT, "reference"),
    "transformers": Kind("Hugging Face's transformers in this process, one request at a time", Needs.CHECKPOINT),
    "scripted": Kind("a script, or a recorded run", Needs.SCRIPT),
}
IN_PROCESS = frozenset(name for name, kind in BACKENDS.items() if kind.needs is Needs.CHECKPOINT)
