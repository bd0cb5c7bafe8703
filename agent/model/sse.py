"""Parses server-sent events, as far as model servers use them, and JSON lines, which Ollama streams instead. Pure.

The grammar is that of the WHATWG HTML standard, section 9.2.6: lines end in CR LF, LF or CR; a blank line ends an event; a line
that starts with a colon is a comment (servers send them to keep the connection alive).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.errors import ModelUnfit

_MOST_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its name (empty if it has none) and its data lines joined by newlines."""

    name: str
    data: str


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split a byte stream into lines. Only CR and LF end a line: U+2028 and the like are text. Chunks may split characters.

    Raises ModelUnfit for an absurdly long line, so that no server can fill the memory.
    """
    rest = b""
    after_cr = False
    for chunk in chunks:
        data = chunk[1:] if after_cr and chunk.startswith(b"\n") else chunk
        after_cr = chunk.endswith(b"\r") if chunk else after_cr
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            rest += data
            if len(rest) > _MOST_LINE_BYTES:
                raise ModelUnfit(
                    f"the endpoint sent a line of more than {_MOST_LINE_BYTES} bytes: this is not a model server"
                )
            continue
        first, *middle, last = data.split(b"\n")
        yield (rest + first).decode("utf-8", "replace")
        for line in middle:
            yield line.decode("utf-8", "replace")
        rest = last
    if rest:
        yield rest.decode("utf-8", "replace")


def events(source: Iterable[str]) -> Iterator[ServerEvent]:
    """Group lines into events. An event that the end of the stream cuts off is yielded too; its reader checks its completeness."""
    name, data = "", list[str]()
    for line in source:
        if not line:
            if data:
                yield ServerEvent(name, "\n".join(data))
            name, data = "", []
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
        elif key == "error":  # old llama.cpp reports a failure in a field of its own
            data.append('{"error": ' + value + "}")
    if data:
        yield ServerEvent(name, "\n".join(data))


def documents(source: Iterable[str]) -> Iterator[ServerEvent]:
    """Make an event of each line of JSON (NDJSON)."""
    for line in source:
        if line.strip():
            yield ServerEvent("", line)
