"""The capabilities that a backend declares. Data only."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend supports. The server refuses everything else by name; nothing is ignored silently.

    ``raw``: it continues plain text. ``ids_in``: a prompt of token ids is used as it is. ``ids_out``: it returns the ids that it
    sampled. ``cached_tokens``: shared prefixes of prompts are not computed again, and are counted.
    ``parallel_requests``: several at a time. ``stop_strings``, ``structured_output`` and ``tool_choice`` are implemented by our
    server for any model that follows instructions.
    """

    raw: bool = False
    ids_in: bool = False
    ids_out: bool = False
    cached_tokens: bool = True
    temperature: bool = True
    top_p: bool = True
    seed: bool = True
    logprobs: bool = False
    stop_strings: bool = True
    structured_output: bool = True
    tool_choice: bool = True
    parallel_requests: bool = True
    images: bool = False

    def public(self) -> dict[str, bool]:
        """Return them as JSON, for the list of models."""
        return asdict(self)


OF_MESSAGES = Capabilities()  # of a server with an API of messages
