"""Writes answers for ``/v1/responses``: the response object, and its stream of events in the documented order. Pure.

::

    created · in_progress
    reasoning   output_item.added · content_part.added · reasoning_text.delta… · reasoning_text.done · content_part.done · output_item.done
    message     output_item.added · content_part.added · output_text.delta… · output_text.done · content_part.done · output_item.done
    call        output_item.added · function_call_arguments.delta · function_call_arguments.done · output_item.done
    web         output_item.added · web_search_call.in_progress · .searching · .completed · output_item.done
    code        output_item.added · code_interpreter_call.in_progress · _code.delta · _code.done · .interpreting · .completed ·
                output_item.done
    completed | incomplete | failed

A citation follows the delta that contains it, as output_text.annotation.added.

All events of an item share its ``output_index``, counted from 0; ``sequence_number`` counts every event from 0.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.server import sse
from agent.server.answer import Called, Cited, Ended, Part, Said, Void, Worked, Working
from agent.server.faults import Refusal
from agent.server.sse import event

_SEAL = "gpt-oss-agent.1."
MOST_SEALED_BYTES = 8 << 20  # limit for all reasoning in one request


def new_id(kind: str) -> str:
    """Return an unguessable id."""
    return f"{kind}_{secrets.token_hex(16)}"


def sealed(text: str) -> str:
    """Encode reasoning as ``encrypted_content``, which stateless clients send back. It is opaque but not secret: they may read it."""
    return _SEAL + base64.urlsafe_b64encode(zlib.compress(text.encode("utf-8", "replace"))).decode()


def unsealed(content: str, most_bytes: int = MOST_SEALED_BYTES) -> str:
    """Return the reasoning in our own ``encrypted_content``, at most ``most_bytes`` of it; empty for anything else."""
    if not content.startswith(_SEAL):
        return ""
    try:
        packed = base64.urlsafe_b64decode(content[len(_SEAL) :])
        return zlib.decompressobj().decompress(packed, most_bytes).decode("utf-8", "replace")
    except (binascii.Error, zlib.error, ValueError):
        return ""


@dataclass(slots=True)
class _Item:
    """The current output item, its index, and its text so far."""

    index: int
    item: dict[str, Any]
    frame: tuple[bytes, bytes, bytes] = (
        b"",
        b"",
        b"",
    )  # the constant parts of a delta event, around its number and its text
    texts: list[str] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class ResponseWriter:
    """Writes the parts of an answer as one response. ``echo`` are the request's settings, which the response repeats.

    ``include`` are the optional fields that were requested: reasoning.encrypted_content, code_interpreter_call.outputs,
    web_search_call.action.sources.
    """

    model: str
    echo: Mapping[str, Any]
    created_s: int
    include: frozenset[str] = frozenset()
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
        """Return the events for a part of the answer."""
        match part:
            case Said(kind, text):
                return self._said(kind, text)
            case Void():
                return self._close("incomplete")
            case Cited():
                return self._cite(part)
            case Called(name, arguments):
                return self._close() + self._call(name, arguments)
            case Working():
                return self._close() + self._working(part)
            case Worked():
                return self._worked(part)
            case Ended():
                return self._end(part)

    def fail(self, error: Refusal) -> bytes:
        """Return the last events of a response that failed; empty if it had already ended."""
        if self.ended is not None:
            return b""
        code = error.code if error.code in _ERROR_CODES else "server_error"
        closed = self._close("incomplete")
        self.status = "failed"
        self._error = {"code": code, "message": error.message}
        return closed + self._event("response.failed", response=self.document())

    def cancel(self) -> bytes:
        """Return the last events of a cancelled response; empty if it had already ended.

        The stream has no event for cancellation, so it ends with incomplete.
        """
        if self.ended is not None:
            return b""
        closed = self._close("incomplete")
        self.status = "cancelled"
        return closed + self._event("response.incomplete", response=self.document())

    def document(self) -> dict[str, Any]:
        """Return the response object in its current state."""
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
        number = self._sequence
        self._sequence += 1
        before, between, behind = opened.frame
        return b"".join((out, before, b"%d" % number, between, sse.text(text), behind))

    def _begin(self, kind: str) -> bytes:
        index = len(self._output)
        if kind == "reasoning":
            item: dict[str, Any] = {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": []}
        else:
            item = {"id": new_id("msg"), "type": "message", "role": "assistant", "content": []}
        item["status"] = "in_progress"
        self._open = _Item(index, item)
        self._open.frame = _frame(kind, self._open)
        part = _content(kind, "")
        return self._event("response.output_item.added", output_index=index, item=item) + self._event(
            "response.content_part.added", **_place(self._open), content_index=0, part=part
        )

    def _close(self, status: str = "completed") -> bytes:
        """Finish the open item, if there is one. A built-in call that is still open was ended with its request."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        if "content" not in opened.item:
            item = {**opened.item, "status": "incomplete"}
            self._output.append(item)
            return self._event("response.output_item.done", output_index=opened.index, item=item)
        reasoning = opened.item["type"] == "reasoning"
        text = "".join(opened.texts)
        part = _content("reasoning" if reasoning else "text", text, opened.annotations)
        item = {**opened.item, "status": status, "content": [part]}
        if reasoning and "reasoning.encrypted_content" in self.include:
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

    def _cite(self, cited: Cited) -> bytes:
        opened = self._open
        assert opened is not None
        annotation = {
            "type": "url_citation",
            "start_index": cited.start,
            "end_index": cited.end,
            "url": cited.url,
            "title": cited.title,
        }
        index = len(opened.annotations)
        opened.annotations.append(annotation)
        return self._event(
            "response.output_text.annotation.added",
            **_place(opened),
            content_index=0,
            annotation_index=index,
            annotation=annotation,
        )

    def _working(self, work: Working) -> bytes:
        """Begin the item of a built-in call. It is the open item until the call ends, and may stay incomplete."""
        web = work.kind == "web"
        kind = "web_search_call" if web else "code_interpreter_call"
        item: dict[str, Any] = {"id": work.id, "type": kind, "status": "in_progress", **work.detail}
        if not web:
            item["outputs"] = None
        opened = self._open = _Item(len(self._output), item)
        place = _place(opened)
        out = self._event("response.output_item.added", output_index=opened.index, item=item)
        if web:
            out += self._event("response.web_search_call.in_progress", **place)
            return out + self._event("response.web_search_call.searching", **place)
        code = work.detail["code"]
        return (
            out
            + self._event("response.code_interpreter_call.in_progress", **place)
            + self._event("response.code_interpreter_call_code.delta", **place, delta=code)
            + self._event("response.code_interpreter_call_code.done", **place, code=code)
            + self._event("response.code_interpreter_call.interpreting", **place)
        )

    def _worked(self, done: Worked) -> bytes:
        opened, self._open = self._open, None
        assert opened is not None
        item = {**opened.item, **done.detail}
        if done.kind == "web":
            item["status"] = "completed" if done.ok else "failed"
            if done.sources and "web_search_call.action.sources" in self.include:
                sources = [{"type": "url", "url": url} for url in done.sources]
                item["action"] = {**item["action"], "sources": sources}
        else:
            item["status"] = "completed"  # even if the code raised: its traceback is its output
            if "code_interpreter_call.outputs" in self.include:
                item["outputs"] = [{"type": "logs", "logs": done.output}]
        self._output.append(item)
        out = b""
        if item["status"] == "completed":
            out = self._event(f"response.{item['type']}.completed", **_place(opened))
        return out + self._event("response.output_item.done", output_index=opened.index, item=item)

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
# The error codes of OpenAI's schema for responses that apply here.
_ERROR_CODES = frozenset({"server_error", "rate_limit_exceeded"})


def _place(opened: _Item) -> dict[str, Any]:
    return {"item_id": opened.item["id"], "output_index": opened.index}


def _frame(kind: str, opened: _Item) -> tuple[bytes, bytes, bytes]:
    """Return a delta's event in three pieces. There is one event per token, so what an item's deltas have in common is encoded once."""
    name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
    logprobs: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
    whole = event(
        {"type": name, "sequence_number": 0, **_place(opened), "content_index": 0, "delta": 0, **logprobs}, name
    )
    before, _, rest = whole.partition(b'"sequence_number":0')
    between, _, behind = rest.partition(b'"delta":0')
    return before + b'"sequence_number":', between + b'"delta":', behind


def _content(kind: str, text: str, annotations: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}
