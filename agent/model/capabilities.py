"""What a backend can do, as it says itself. Data only."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What can be asked of a backend. The server refuses, by name, what cannot; nothing is left out silently.

    ``raw``: it continues text that is no conversation. ``ids_in``: a prompt of token ids arrives as these ids. ``ids_out``: it
    gives the very ids that it sampled. ``cached_tokens``: what prompts share is not computed again, and counted.
    ``parallel_requests``: several at a time. ``stop_strings``, ``structured_output`` and ``tool_choice`` are the server's own
    work over any model that follows instructions.
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
        """Return them as JSON, as the list of models shows them."""
        return asdict(self)


OF_MESSAGES = Capabilities()  # of a server that takes messages, and all that can be asked of one
