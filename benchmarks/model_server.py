"""A loopback model server that plays a script: for measuring what an agent costs around the model.

    python benchmarks/model_server.py SCRIPT.json --port 0 --log REQUESTS.jsonl

SCRIPT.json is a list of turns: {"shell": COMMAND}, {"patch": TEXT, "unified": DIFF}, {"tool": NAME, "arguments": OBJECT} or
{"final": TEXT}. The server finds its turn from the request's own history (how many tool results it holds), speaks chat completions (streaming or not) and the
Responses API (streaming), and puts each action into whichever tool the client declared, so that one script drives different
agents. One line per request goes to the log: when it arrived, when its answer was out (seconds of the monotonic clock), and
its size. The first line on standard output is the base URL.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]

MINI_SUBMITS = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"  # how mini-swe-agent is told that the work is done
USAGE = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}


def declared(body: Json) -> set[str]:
    """Return the names of the tools that a request declares, in either API's shape."""
    return {tool["name"] for each in body.get("tools") or [] if "name" in (tool := each.get("function", each))}


def turn_of(body: Json) -> int:
    """Return the turn to play: how many tool results the request holds."""
    if "messages" in body:
        return sum(message.get("role") == "tool" for message in body["messages"])
    return sum(item.get("type", "").endswith("_call_output") for item in body.get("input", []))


def call_for(action: Json, tools: set[str]) -> tuple[str, Json] | None:
    """Return the declared tool that carries an action, with its arguments; None for a final answer."""
    if "bash" in tools:  # mini-swe-agent
        if "final" in action:
            return "bash", {"command": MINI_SUBMITS}
        if "patch" in action:
            return "bash", {"command": "git apply - <<'PATCH'\n" + action["unified"] + "PATCH"}
        return "bash", {"command": action["shell"]}
    if "final" in action:
        return None
    if "exec_command" in tools:  # Codex
        command = f"apply_patch <<'EOF'\n{action['patch']}\nEOF" if "patch" in action else action["shell"]
        return "exec_command", {"cmd": command}
    if "tool" in action:
        return action["tool"], action["arguments"]
    if "patch" in action:
        return "apply_patch", {"patch": action["patch"]}
    return "shell", {"command": action["shell"]}


def chat_chunks(action: Json, body: Json) -> Iterator[Json]:
    """Stream the chat completion of one turn."""
    call = call_for(action, declared(body))
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": body.get("model", "scripted")}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "reasoning": "The next step is clear."})
    if call is None:
        yield chunk({"content": action["final"]})
        yield chunk({}, "stop")
    else:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        tool_call = {"index": 0, "id": f"call_{turn_of(body)}", "type": "function", "function": function}
        yield chunk({"tool_calls": [tool_call]})
        yield chunk({}, "tool_calls")
    yield {**base, "choices": [], "usage": USAGE}


def chat_whole(action: Json, body: Json) -> Json:
    """Return the same as one object."""
    message: Json = {"role": "assistant", "content": None}
    finish = "stop"
    for part in chat_chunks(action, body):
        for choice in part["choices"]:
            message.update({k: v for k, v in choice["delta"].items() if k != "role"})
            finish = choice["finish_reason"] or finish
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body.get("model", "scripted")}
    return {**head, "choices": [choice], "usage": USAGE}


def response_events(action: Json, body: Json) -> Iterator[Json]:
    """Stream one turn as the Responses API does."""
    call = call_for(action, declared(body))
    turn = turn_of(body)
    response: Json = {"id": f"resp_{turn}", "object": "response", "status": "in_progress", "output": []}
    yield {"type": "response.created", "response": response}
    item: Json
    if call is None:
        part = {"type": "output_text", "text": action["final"], "annotations": []}
        item = {"id": f"msg_{turn}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    else:
        head = {"id": f"fc_{turn}", "type": "function_call", "call_id": f"call_{turn}", "status": "completed"}
        item = {**head, "name": call[0], "arguments": json.dumps(call[1])}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    usage = {
        "input_tokens": 1000,
        "output_tokens": 50,
        "total_tokens": 1050,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    yield {"type": "response.completed", "response": done}


class Handler(BaseHTTPRequestHandler):
    """Answers from the server's script."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        models = [{"id": "gpt-oss-20b", "object": "model", "created": 0, "owned_by": "script"}]
        self._send("application/json", json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        arrived = time.monotonic()
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw)
        turn = turn_of(body)
        script = self.server.script
        action = script[min(turn, len(script) - 1)]
        if self.path.endswith("/responses"):
            events = (
                f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in response_events(action, body)
            )
            self._send("text/event-stream", "".join(events).encode())
        elif not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        elif body.get("stream"):
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chat_chunks(action, body)]
            self._send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())
        else:
            self._send("application/json", json.dumps(chat_whole(action, body)).encode())
        self.server.record({"turn": turn, "arrived": arrived, "answered": time.monotonic(), "bytes": len(raw)})

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet: standard output carries the URL only."""


class Server(ThreadingHTTPServer):
    """Holds the script and the log."""

    daemon_threads = True

    def __init__(self, script: list[Json], log: Path | None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self._log = log
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base URL to give to a client."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def record(self, line: Json) -> None:
        """Append a request to the log."""
        if self._log is not None:
            with self._lock, self._log.open("a") as file:
                file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    server = Server(json.loads(given.script.read_text()), given.log, given.port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
