"""Stop sequences in streamed text: what may still become one is held back. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop sequence, which is not part of it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met = False

    def feed(self, text: str) -> str:
        """Return what may be said now. After the first stop sequence that is nothing."""
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
        """Return what was held when the text ended: no stop sequence came of it."""
        held, self._held = self._held, ""
        return held

    def cut(self, text: str) -> str:
        """Return ``text`` up to the stop sequence that is complete first (of those, the longest): as if it came bit by bit."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return text[: min(found)[1]] if found else text

    def restart(self) -> None:
        """Forget what is held: the answer starts over."""
        self._held = ""


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``, but not all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
