"""Stop sequences in streamed text: text that may be the beginning of one is held back. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop sequence, exclusive."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met = False

    def feed(self, text: str) -> str:
        """Return the text that can be sent now. After the first stop sequence it is empty."""
        if not self._stops:
            return text
        if self.met:
            return ""
        self._held += text
        cut = self.cut(self._held)
        if len(cut) < len(self._held):
            self.met = True
            self._held = ""
            return cut
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        said = self._held[: len(self._held) - keep]
        self._held = self._held[len(said) :]
        return said

    def rest(self) -> str:
        """Return the text that was held back at the end: it did not become a stop sequence."""
        held, self._held = self._held, ""
        return held

    def cut(self, text: str) -> str:
        """Return ``text`` up to the stop sequence that ends first (of several, the longest), as if it had been streamed."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return text[: min(found)[1]] if found else text

    def restart(self) -> None:
        """Drop the held text: the answer starts over."""
        self._held = ""


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` are a proper prefix of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
