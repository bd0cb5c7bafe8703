"""Writing for ``/v1/responses``: the response object, and its stream of events in the documented order. Pure.

::

    created · in_progress
    reasoning   output_item.added · content_part.added · reasoning_text.delta… · reasoning_text.done · content_part.done · output_item.done
    message     output_item.added · content_part.added · output_text.delta… · output_text.done · content_part.done · output_item.done
    call        output_item.added · function_call_arguments.delta · function_call_arguments.done · output_item.done
    completed | incomplete | failed

All events of an item share its ``output_index``, counted from 0; ``sequence_number`` counts every event from 0.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.server.answer import Called, Ended, Part, Said, Void
from agent.server.faults import Refusal
from agent.server.sse import event

_SEAL = "gpt-oss-agent.1."
_MOST_SEALED_BYTES = 8 << 20


def new_id(kind: str) -> str:
    """Return an id that cannot be guessed."""
    return f"{kind}_{secrets.token_hex(16)}"


def sealed(text: str) -> str:
    """Put reasoning into ``encrypted_content``: opaque, for stateless clients to hand back. Not secret: they may read it."""
    return _SEAL + base64.urlsafe_b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


def unsealed(content: str) -> str:
    """Return the reasoning in an ``encrypted_content`` of ours; empty for anything else."""
    if not content.startswith(_SEAL):
        return ""
    try:
        packed = base64.urlsafe_b64decode(content[len(_SEAL) :])
        return zlib.decompressobj().decompress(packed, _MOST_SEALED_BYTES).decode("utf-8", "replace")
    except (binascii.Error, zlib.error, ValueError):
        return ""


@dataclass(slots=True)
class _Item:
    """The item that is being said, its place, and its text so far."""

    index: int
    item: dict[str, Any]
    texts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ResponseWriter:
    """Makes one response of the parts of an answer. ``echo`` are the request's settings, as the response repeats them."""

    model: str
    echo: Mapping[str, Any]
    created_s: int
    seal: bool = False  # reasoning.encrypted_content was asked for
    id: str = field(default_factory=lambda: new_id("resp"))
    status: str = "in_progress"
    ended: Ended | None = None
    call_ids: list[str] = field(default_factory=list)
    _output: list[dict[str, Any]] = field(default_factory=list)
    _open: _Item | None = None
    _sequence: int = 0
    _usage: dict[str, Any] | None = None
    _error: dict[str, Any] | None = None
    _reason: str | None = None

    def start(self) -> bytes:
        """Return the opening events."""
        return self._event("response.created", response=self.document()) + self._event(
            "response.in_progress", response=self.document()
        )

    def part(self, part: Part) -> bytes:
        """Return the events that a part of the answer is."""
        match part:
            case Said(kind, text):
                return self._said(kind, text)
            case Void():
                return self._close("incomplete")
            case Called(name, arguments):
                return self._close() + self._call(name, arguments)
            case Ended():
                return self._end(part)

    def fail(self, error: Refusal) -> bytes:
        """Return the last events of a response that broke off."""
        code = error.code if error.code in _ERROR_CODES else "server_error"
        closed = self._close("incomplete")
        self.status = "failed"
        self._error = {"code": code, "message": error.message}
        return closed + self._event("response.failed", response=self.document())

    def cancel(self) -> bytes:
        """Return the last events of a response that somebody cancelled. The stream has no event for it but incomplete."""
        closed = self._close("incomplete")
        self.status = "cancelled"
        return closed + self._event("response.incomplete", response=self.document())

    def document(self) -> dict[str, Any]:
        """Return the response object as it stands."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": self._reason} if self._reason else None,
            "model": self.model,
            "output": list(self._output),
            "usage": self._usage,
            **self.echo,
        }

    def _said(self, kind: str, text: str) -> bytes:
        out = b""
        if self._open is None or self._open.item["type"] != _ITEM_TYPES[kind]:
            out = self._close() + self._begin(kind)
        opened = self._open
        assert opened is not None
        opened.texts.append(text)
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        return out + self._event(name, **_place(opened), content_index=0, delta=text, **logprobs)

    def _begin(self, kind: str) -> bytes:
        index = len(self._output)
        if kind == "reasoning":
            item: dict[str, Any] = {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": []}
        else:
            item = {"id": new_id("msg"), "type": "message", "role": "assistant", "content": []}
        item["status"] = "in_progress"
        self._open = _Item(index, item)
        part = _content(kind, "")
        return self._event("response.output_item.added", output_index=index, item=item) + self._event(
            "response.content_part.added", **_place(self._open), content_index=0, part=part
        )

    def _close(self, status: str = "completed") -> bytes:
        """Finish the open item, if there is one."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        reasoning = opened.item["type"] == "reasoning"
        text = "".join(opened.texts)
        part = _content("reasoning" if reasoning else "text", text)
        item = {**opened.item, "status": status, "content": [part]}
        if reasoning and self.seal:
            item["encrypted_content"] = sealed(text)
        self._output.append(item)
        name = "response.reasoning_text.done" if reasoning else "response.output_text.done"
        logprobs: dict[str, Any] = {} if reasoning else {"logprobs": []}
        return (
            self._event(name, **_place(opened), content_index=0, text=text, **logprobs)
            + self._event("response.content_part.done", **_place(opened), content_index=0, part=part)
            + self._event("response.output_item.done", output_index=opened.index, item=item)
        )

    def _call(self, name: str, arguments: str) -> bytes:
        index = len(self._output)
        call_id = new_id("call")
        item = {
            "id": new_id("fc"),
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        done = {**item, "arguments": arguments, "status": "completed"}
        self._output.append(done)
        self.call_ids.append(call_id)
        place = {"item_id": item["id"], "output_index": index}
        return (
            self._event("response.output_item.added", output_index=index, item=item)
            + self._event("response.function_call_arguments.delta", **place, delta=arguments)
            + self._event("response.function_call_arguments.done", **place, name=name, arguments=arguments)
            + self._event("response.output_item.done", output_index=index, item=done)
        )

    def _end(self, ended: Ended) -> bytes:
        cut = ended.finish == "length"
        closed = self._close("incomplete" if cut else "completed")
        self.ended = ended
        self.status = "incomplete" if cut else "completed"
        self._reason = "max_output_tokens" if cut else None
        self._usage = {
            "input_tokens": ended.prompt_tokens,
            "input_tokens_details": {"cached_tokens": ended.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": ended.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": ended.reasoning_tokens},
            "total_tokens": ended.prompt_tokens + ended.completion_tokens,
        }
        return closed + self._event(f"response.{self.status}", response=self.document())

    def _event(self, kind: str, **values: object) -> bytes:
        number = self._sequence
        self._sequence += 1
        return event({"type": kind, "sequence_number": number, **values}, kind)


_ITEM_TYPES: Mapping[str, str] = {"reasoning": "reasoning", "text": "message"}
# The codes that a response's error may have in OpenAI's schema and that say something true here.
_ERROR_CODES = frozenset({"server_error", "rate_limit_exceeded"})


def _place(opened: _Item) -> dict[str, Any]:
    return {"item_id": opened.item["id"], "output_index": opened.index}


def _content(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
