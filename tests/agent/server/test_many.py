"""Many at a time, and many after each other: nothing lost, nothing mixed, nothing kept. The full sizes: benchmarks/server.py."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from benchmarks.server import Echo, chat_stream, live_objects, many_requests
from tests.agent.server.served import serving

STREAMS = 200
REQUESTS = 200


def test_two_hundred_streams_at_a_time_are_neither_lost_nor_mixed() -> None:
    with serving(Echo(pieces=20)) as (url, service):
        answers = asyncio.run(many(url, STREAMS))
        assert service.slots.taken == 0
    assert answers == [" ".join([f"client-{n}"] * 20) + " " for n in range(STREAMS)]


async def many(url: str, count: int) -> list[str]:
    import httpx2

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:
        return await asyncio.gather(*(chat_stream(client, url, f"client-{n}") for n in range(count)))


def test_memory_is_flat_once_what_is_kept_is_full() -> None:
    from agent.server.store import Store

    with serving(Echo(pieces=5), store=Store(most=16)) as (url, _):
        asyncio.run(many_requests(url, REQUESTS))
        before = live_objects()
        asyncio.run(many_requests(url, REQUESTS))
        grown = live_objects() - before
    assert grown < REQUESTS, f"{grown} objects more after {REQUESTS} requests"


def test_the_events_of_a_stream_are_each_one_line_of_json() -> None:
    async def lines(url: str) -> list[Any]:
        import httpx2

        async with httpx2.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{url}/responses", json={"input": "a\u2028b\nc", "stream": True})
        pieces = answer.content.split(b"\n\n")
        return [json.loads(piece.split(b"data: ", 1)[1]) for piece in pieces if piece]

    with serving(Echo(pieces=2)) as (url, _):
        events = asyncio.run(lines(url))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "a\u2028b\nc " * 2
