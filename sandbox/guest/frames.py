"""The frames that the host and its helper in the sandbox exchange.

Runs on both sides; in the sandbox, on the Python of the image (3.6 and later), so it uses no newer syntax.

::

    frame    magic (4) kind (1) id (8) length (4) crc32 (4) payload (length <= 64 KiB)      big endian
    request  HEAD…  the JSON of the verb and its arguments     DATA…  its body     END
    reply    DATA…  its data                                   END    the JSON of its status

A side that joins in the middle of a stream (a new host after the old one was killed while it wrote) must resynchronize:
it writes ``PADDING`` first, which is longer than the missing part of any incomplete frame, so the other side sees a wrong
checksum and searches for the next magic.
"""

import struct
import zlib
from typing import Iterator, List, Tuple

MAGIC = b"\xf5agt"
HEAD, DATA, END = 1, 2, 3
MAX_PAYLOAD_BYTES = 1 << 16
HEADER = struct.Struct(">4sBQII")
PADDING = bytes(HEADER.size + MAX_PAYLOAD_BYTES)
_CHECKED = struct.Struct(">BQI")

Frame = Tuple[int, int, bytes]


def encode(kind: int, request: int, payload: bytes) -> bytes:
    """Return one frame. The payload must not be longer than MAX_PAYLOAD_BYTES."""
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, request, len(payload))))
    return HEADER.pack(MAGIC, kind, request, len(payload), crc) + payload


def encode_all(kind: int, request: int, payload: bytes) -> Iterator[bytes]:
    """Yield a payload of any length as frames; nothing for an empty one."""
    view = memoryview(payload)
    for start in range(0, len(view), MAX_PAYLOAD_BYTES):
        yield encode(kind, request, bytes(view[start : start + MAX_PAYLOAD_BYTES]))


class Decoder:
    """Decodes bytes to complete frames; anything that is not a frame is skipped."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Frame]:
        """Add bytes and return the frames that are now complete."""
        buffer = self._buffer
        buffer += data
        frames: List[Frame] = []
        at = 0
        while True:
            at = buffer.find(MAGIC, at)
            if at < 0:  # keep what may be the beginning of a magic
                at = max(len(buffer) - len(MAGIC) + 1, 0)
                break
            if len(buffer) - at < HEADER.size:
                break
            _, kind, request, length, crc = HEADER.unpack_from(buffer, at)
            if length > MAX_PAYLOAD_BYTES:
                at += 1
                continue
            end = at + HEADER.size + length
            if len(buffer) < end:
                break
            payload = bytes(memoryview(buffer)[at + HEADER.size : end])
            if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, request, length))) != crc:
                at += 1
                continue
            frames.append((kind, request, payload))
            at = end
        del buffer[:at]
        return frames
