"""How a server of each wire says one and the same answer: fakes for the contract suite, shaped as the real ones were seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.conversation import Channel, Message, Role
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL, CHANNEL, END, MESSAGE, OPENING, RETURN
from agent.model.base import Model
from agent.model.chat import chat_model
from agent.model.client import Client
from agent.model.completions import CompletionsSource, Dialect
from agent.model.open import Vocabulary
from agent.model.raw import RawModel
from agent.model.responses import responses_model
from tests.servers import Reply, Step, document, event, head, line

PROMPT_TOKENS = 100_000  # more than any prompt of the tests has
CACHED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Player:
    """One wire: the model over a client, and the events in which its server says an answer."""

    name: str
    build: Callable[[Client], Model]
    say: Callable[[Sequence[Message]], list[bytes]]  # the last two or three events carry the end
    heard: Callable[[Any], str]  # what the request shows the model, as text
    sampling: Callable[[Any], tuple[float, float, int]]  # temperature, top_p and the answer's limit in a request
    length: Callable[[], list[bytes]]  # an answer cut off by its limit
    frame: Callable[[Any], bytes] = event  # a JSON value or a text as one event of the stream
    kind: str = "text/event-stream"
    cached_tokens: int = CACHED_TOKENS

    def reply(self, messages: Sequence[Message]) -> Reply:
        return [self.head(), *self.say(messages)]

    def head(self) -> bytes:
        return head(kind=self.kind)

    def half(self, messages: Sequence[Message], last: Sequence[Step]) -> Reply:
        """The first half of an answer, and then ``last``."""
        events = self.say(messages)
        return [self.head(), *events[: len(events) // 2], *last]


def call_of(messages: Sequence[Message]) -> Message | None:
    return next((m for m in messages if m.is_call), None)


def completion(codec: Codec, messages: Sequence[Message]) -> list[int]:
    """What gpt-oss samples behind ``<|start|>assistant`` for these messages."""
    ids: list[int] = []
    for number, message in enumerate(messages):
        assert message.channel is not None
        ids += OPENING if number else ()
        ids += [CHANNEL, *codec.encode(message.channel)]
        ids += codec.encode(f" to={message.recipient}") if message.is_call else ()
        ids += [MESSAGE, *codec.encode(message.text)]
        ids += [CALL if message.is_call else RETURN if message.channel is Channel.FINAL else END]
    return ids


def usage(ids: Sequence[int]) -> dict[str, Any]:
    details = {"cached_tokens": CACHED_TOKENS}
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(ids), "prompt_tokens_details": details}


def players(codec: Codec, vocabulary: Vocabulary) -> dict[str, Player]:
    def raw(name: str, dialect: Dialect, say: Callable[[list[int], str], list[bytes]]) -> Player:
        prompt_key = "input_ids" if dialect is Dialect.SGLANG else "prompt"
        most_key = {Dialect.SGLANG: "max_new_tokens", Dialect.LLAMA: "n_predict"}.get(dialect, "max_tokens")

        def sampling(body: Any) -> tuple[float, float, int]:
            place = body.get("sampling_params", body)
            return place["temperature"], place["top_p"], place[most_key]

        return Player(
            name,
            lambda client: RawModel(codec, CompletionsSource(client, dialect, vocabulary.spelling(), 131_072)),
            lambda messages: say(completion(codec, messages), "stop"),
            lambda body: codec.decode(body[prompt_key]),
            sampling,
            lambda: say([CHANNEL, *codec.encode("final"), MESSAGE, *codec.encode("It is cut")], "length"),
        )

    def vllm(ids: list[int], finish: str) -> list[bytes]:
        def choice(token: int | None, **more: Any) -> dict[str, Any]:
            ids = [] if token is None else [token]
            return {"choices": [{"index": 0, "text": "…" if ids else "", "token_ids": ids, **more}]}

        last = {"finish_reason": finish, "stop_reason": ids[-1] if finish == "stop" else None}
        # vLLM names the stop id in stop_reason and among the ids; its text leaves it out.
        events = [*(choice(token) for token in ids[:-1]), choice(ids[-1], **last), {"choices": [], "usage": usage(ids)}]
        return [*map(event, events), event("[DONE]")]

    def shown(ids: list[int]) -> list[list[int]]:
        """Ids as servers show them while they stream: those of a character that takes several come at once."""
        groups: list[list[int]] = [[]]
        for token in ids:
            groups[-1].append(token)
            if "\ufffd" not in codec.decode(groups[-1]):
                groups.append([])
        return groups[:-1]

    def text(ids: list[int], finish: str) -> list[bytes]:
        pieces = [{"choices": [{"text": codec.decode(group), "logprobs": None}]} for group in shown(ids)]
        last: list[Any] = [{"choices": [{"text": "", "finish_reason": finish}]}, {"choices": [], "usage": usage(ids)}]
        return [*map(event, [*pieces, *last]), event("[DONE]")]

    def llama(ids: list[int], finish: str) -> list[bytes]:
        events: list[dict[str, Any]] = []
        predicted = 0
        for group in shown(ids):
            predicted += len(group)
            spelt = "" if group[-1] in {CALL, RETURN} else codec.decode(group)
            # Seen in the real one: of a character's ids only the last is sent.
            events.append({"content": spelt, "tokens": group[-1:], "stop": False, "tokens_predicted": predicted})
        kind = {"stop": "eos", "length": "limit"}[finish]
        counted = {
            "tokens_predicted": len(ids),
            "tokens_evaluated": PROMPT_TOKENS,
            "timings": {"cache_n": CACHED_TOKENS},
        }
        return list(map(event, [*events, {"content": "", "tokens": [], "stop": True, "stop_type": kind, **counted}]))

    def sglang(ids: list[int], finish: str) -> list[bytes]:
        def about(count: int) -> dict[str, Any]:
            return {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": count,
                "cached_tokens": CACHED_TOKENS,
                "finish_reason": None,
            }

        events = [{"text": "…", "output_ids": ids[: n + 1], "meta_info": about(n + 1)} for n in range(len(ids))]
        matched = {"matched": ids[-1]} if finish == "stop" else {}
        events[-1]["meta_info"]["finish_reason"] = {"type": finish, **matched}
        return [*map(event, events), event("[DONE]")]

    def ollama(ids: list[int], finish: str) -> list[bytes]:
        """As up to 0.29: a line for each token, control tokens as their text, and never the one that ends an answer."""

        def said(text: str, **more: Any) -> dict[str, Any]:
            return {
                "model": "gpt-oss-20b",
                "created_at": "2026-01-15T12:00:00Z",
                "response": text,
                "done": False,
                **more,
            }

        shown_ids = ids[:-1] if finish == "stop" else ids
        counts = {"prompt_eval_count": PROMPT_TOKENS, "eval_count": len(ids), "total_duration": 7, "load_duration": 1}
        pieces = [said(codec.decode(group)) for group in shown(shown_ids)]
        return list(map(line, [*pieces, said("", done=True, done_reason=finish, **counts)]))

    return {
        player.name: player
        for player in (
            raw("completions: ids", Dialect.IDS, vllm),
            raw("completions: llama.cpp", Dialect.LLAMA, llama),
            raw("completions: sglang", Dialect.SGLANG, sglang),
            raw("completions: text", Dialect.TEXT, text),
            replace(
                raw("completions: ollama", Dialect.OLLAMA, ollama),
                heard=lambda body: body["prompt"],
                sampling=lambda body: (*(body["options"][k] for k in ("temperature", "top_p", "num_predict")),),
                frame=lambda value: value.encode() + b"\n" if isinstance(value, str) else line(value),
                kind="application/x-ndjson",
                cached_tokens=0,
            ),
            RESPONSES,
            CHAT,
        )
    }


def _pieces(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


def _chat(messages: Sequence[Message], finish: str | None = None) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for message in messages:
        if message.is_call:
            name = (message.recipient or "").removeprefix("functions.")
            deltas.append({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": name, "arguments": ""}}]})
            deltas += [
                {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in _pieces(message.text)
            ]
        else:
            key = "reasoning" if message.channel is Channel.ANALYSIS else "content"
            deltas += [{key: piece} for piece in _pieces(message.text)]
    finish = finish or ("tool_calls" if call_of(messages) else "stop")
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events += [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": usage([1] * 9)},
    ]
    return [*map(event, events), event("[DONE]")]


def _said_in_chat(body: Any) -> str:
    return json.dumps(body["messages"], ensure_ascii=False)


CHAT = Player(
    "chat",
    lambda client: chat_model(client, 131_072),
    _chat,
    _said_in_chat,
    lambda body: (body["temperature"], body["top_p"], body["max_tokens"]),
    lambda: _chat([Message(Role.ASSISTANT, "It is cut", Channel.FINAL)], "length"),
)


def _responses(messages: Sequence[Message], status: str = "completed") -> list[bytes]:
    events: list[dict[str, Any]] = [{"type": "response.created", "response": {"status": "in_progress"}}]
    for index, message in enumerate(messages):
        if message.is_call:
            name = (message.recipient or "").removeprefix("functions.")
            item = {"type": "function_call", "call_id": "c1", "name": name, "arguments": message.text}
            kind = "response.function_call_arguments"
        elif message.channel is Channel.ANALYSIS:
            item = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": message.text}]}
            kind = "response.reasoning_text"
        else:
            item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": message.text}]}
            kind = "response.output_text"
        events.append({"type": "response.output_item.added", "output_index": index, "item": {"type": item["type"]}})
        events += [{"type": f"{kind}.delta", "output_index": index, "delta": piece} for piece in _pieces(message.text)]
        events += [
            {"type": f"{kind}.done", "output_index": index},
            {"type": "response.output_item.done", "output_index": index, "item": item},
        ]
    counted = {
        "input_tokens": PROMPT_TOKENS,
        "output_tokens": 9,
        "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
    }
    details = {"incomplete_details": {"reason": "max_output_tokens"}} if status == "incomplete" else {}
    events.append({"type": f"response.{status}", "response": {"status": status, "usage": counted, **details}})
    return [event(found, found["type"]) for found in events]


RESPONSES = Player(
    "responses",
    lambda client: responses_model(client, 131_072),
    _responses,
    lambda body: json.dumps([body.get("instructions"), body["input"]], ensure_ascii=False),
    lambda body: (body["temperature"], body["top_p"], body["max_output_tokens"]),
    lambda: _responses([Message(Role.ASSISTANT, "It is cut", Channel.FINAL)], "incomplete"),
)

OVERFLOW = document({"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}, 400)
