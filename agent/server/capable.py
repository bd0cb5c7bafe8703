"""Refuses requests for what the backend does not support, naming the field, before the backend is used. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agent.model.capabilities import Capabilities
from agent.server.faults import BadRequest
from agent.server.fields import Fields

# Field: the capability that it needs, and the values that have no effect.
_WANTS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "temperature": ("temperature", (1, 1.0)),
    "top_p": ("top_p", (1, 1.0)),
    "seed": ("seed", ()),
    "stop": ("stop_strings", ([],)),
    "logprobs": ("logprobs", (False, 0)),
    "top_logprobs": ("logprobs", (0,)),
    "response_format": ("structured_output", ({"type": "text"},)),
    "tool_choice": ("tool_choice", ("auto", "none")),
    "return_token_ids": ("ids_out", (False,)),
}
_WHO = "the backend of this server"
_LOGPROBS_INCLUDE = "message.output_text.logprobs"


def check_capable(body: Fields, can: Capabilities) -> None:
    """Raise BadRequest for the first field that the backend does not support, for any API."""
    for field, (capability, harmless) in _WANTS.items():
        if not getattr(can, capability):
            body.refuse({field: harmless}, _WHO)
    text = body.object("text")
    if text is not None and not can.structured_output:
        text.refuse({"format": ({"type": "text"},)}, _WHO)
    if _LOGPROBS_INCLUDE in body.list("include") and not can.logprobs:
        raise unable("include")
    prompt = body.raw("prompt")
    if isinstance(prompt, list) and not can.ids_in and any(isinstance(part, int | list) for part in prompt):
        raise unable("prompt")
    for place in _images(body) if not can.images else ():
        raise unable(place)


def unable(path: str) -> BadRequest:
    """Return the error for a field that the backend does not support."""
    return BadRequest(f"{path} is not supported by {_WHO}.", path, "unsupported_parameter")


def _images(body: Fields) -> Iterator[str]:
    """Yield the paths of images in the request."""
    for name in ("messages", "input"):
        value = body.raw(name)
        for at, entry in enumerate(value if isinstance(value, list) else ()):
            content = entry.get("content") if isinstance(entry, Mapping) else None
            for number, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, Mapping) and part.get("type") in ("image_url", "input_image"):
                    yield f"{name}[{at}].content[{number}].type"
