"""Whole model servers in miniature: one for every kind of endpoint that a person may point the agent at, quirks included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.conversation import Channel, Message, Role
from agent.harmony.tokens import CHANNEL
from tests.agent.model.players import CHAT, RESPONSES
from tests.servers import Reply, Request, document, head, line, stream

ANALYSIS = 35644  # the word
DONE = (Message(Role.ASSISTANT, "Hm.", Channel.ANALYSIS), Message(Role.ASSISTANT, "Done.", Channel.FINAL))
Handler = Callable[[Any], Reply]
NOT_FOUND = document({"error": {"message": "not found"}}, 404)


@dataclass
class Endpoint:
    """Answers by path; whatever is not there is 404."""

    paths: Mapping[str, Handler]
    asked: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Reply:
        self.asked.append(request.path)
        handler = self.paths.get(request.path)
        return NOT_FOUND if handler is None else handler(request.body)


def models(**entry: Any) -> Handler:
    return lambda _: document({"data": [{"id": "gpt-oss-20b", **entry}]})


def refuses(said: str, status: int = 400) -> Handler:
    return lambda _: document({"error": {"message": said}}, status)


def gives_ids(*answer: int) -> Handler:
    def handler(body: Any) -> Reply:
        assert all(isinstance(token, int) for token in body["prompt"])
        events: list[dict[str, Any]] = [{"choices": [{"text": "…", "token_ids": [token]}]} for token in answer]
        return stream([*events, {"choices": [{"text": "", "token_ids": [], "finish_reason": "length"}]}])

    return handler


def gives_text(*pieces: str) -> Handler:
    events: list[dict[str, Any]] = [{"choices": [{"text": piece}]} for piece in pieces]
    return lambda _: stream([*events, {"choices": [{"text": "", "finish_reason": "length"}]}])


def gives_llama(*answer: int) -> Handler:
    events = [{"content": "…", "tokens": [t], "tokens_predicted": n + 1, "stop": False} for n, t in enumerate(answer)]
    end = {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": len(answer)}
    return lambda _: stream([*events, end], done=False)


def gives_sglang(*answer: int) -> Handler:
    about = {"completion_tokens": len(answer), "finish_reason": {"type": "length"}}
    return lambda _: stream([{"text": "…", "output_ids": list(answer), "meta_info": about}])


def gives_lines(*pieces: str) -> Handler:
    """Ollama's own interface."""
    lines = [{"model": "gpt-oss-20b", "response": piece, "done": False} for piece in pieces]
    end = {"response": "", "done": True, "done_reason": "length", "prompt_eval_count": 100, "eval_count": len(pieces)}
    return lambda body: [head(kind="application/x-ndjson"), *map(line, [*lines, {"model": body["model"], **end}])]


CHATS: Handler = lambda _: CHAT.reply(DONE)  # noqa: E731
RESPONDS: Handler = lambda body: RESPONSES.reply(DONE) if body else document({"detail": "input is missing"}, 422)  # noqa: E731

PLAIN = "<|channel|>analysis"
ENDPOINTS: dict[str, Callable[[], Endpoint]] = {
    "vLLM": lambda: Endpoint(
        {
            "/v1/models": models(max_model_len=131_072),
            "/v1/completions": gives_ids(CHANNEL, ANALYSIS),
            "/v1/responses": RESPONDS,
            "/v1/chat/completions": CHATS,
        }
    ),
    "vLLM without ids": lambda: Endpoint(
        {
            "/v1/models": models(max_model_len=131_072),
            "/v1/completions": gives_text("<|channel|>", "analysis"),
            "/v1/chat/completions": CHATS,
        }
    ),
    "llama.cpp": lambda: Endpoint(
        {
            "/v1/models": models(meta={"n_ctx": 8192}),
            "/v1/completions": gives_text("analysis"),
            "/completion": gives_llama(CHANNEL, ANALYSIS),
            "/v1/responses": RESPONDS,
            "/v1/chat/completions": CHATS,
        }
    ),
    "old SGLang": lambda: Endpoint(
        {
            "/v1/models": models(max_model_len=32_768),
            "/v1/completions": gives_text("analysis"),
            "/generate": gives_sglang(CHANNEL, ANALYSIS),
            "/v1/chat/completions": CHATS,
        }
    ),
    "Ollama": lambda: Endpoint(
        {
            "/v1/models": models(owned_by="library"),
            "/v1/completions": refuses("invalid type for 'prompt' field"),
            "/v1/chat/completions": CHATS,
            "/api/ps": lambda _: document({"models": [{"name": "gpt-oss-20b", "context_length": 4096}]}),
            "/api/tags": lambda _: document({"models": [{"name": "gpt-oss-20b", "model": "gpt-oss-20b"}]}),
            "/api/generate": gives_lines("analysis", "Hm"),
        }
    ),
    "old Ollama": lambda: Endpoint(
        {
            "/v1/models": models(owned_by="library"),
            "/v1/completions": refuses("invalid type for 'prompt' field"),
            "/v1/chat/completions": CHATS,
            "/api/ps": lambda _: document({"models": [{"name": "gpt-oss-20b", "context_length": 4096}]}),
            "/api/tags": lambda _: document({"models": [{"name": "gpt-oss-20b", "model": "gpt-oss-20b"}]}),
            "/api/generate": gives_lines("<|channel|>", "analysis"),
        }
    ),
    "a gateway that strips control tokens": lambda: Endpoint(
        {
            "/v1/models": models(),
            "/v1/completions": gives_text("analysis"),
            "/v1/responses": RESPONDS,
            "/v1/chat/completions": CHATS,
        }
    ),
    "a server that runs tokens together": lambda: Endpoint(
        {"/v1/models": models(), "/v1/completions": gives_text(PLAIN), "/v1/chat/completions": CHATS}
    ),
    "another model": lambda: Endpoint(
        {"/v1/models": models(), "/v1/completions": gives_ids(1, 2), "/v1/chat/completions": CHATS}
    ),
}
