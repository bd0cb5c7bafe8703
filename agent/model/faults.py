"""Translates the faults of an endpoint into the error tree, in this one place. Pure: no sockets, no waiting.

::

    answer or exception                                   becomes                retried
    ───────────────────────────────────────────────────── ────────────────────── ───────────
    400, 422, 500: it cannot parse the model's answer     Garbled, a Transient   yes, with another seed
    a refusal that mentions the context window, or 413    ContextOverflow        by the loop, after compaction
    408, 409, 425, 429, 5xx but 501                       Transient              yes
    429 with a used-up quota                              EndpointRefused        no
    400, 401, 403, 404, 3xx, 501 and every other status   EndpointRefused        no
    an error event inside a stream                        by its code, as above
    connecting, reading or writing fails or times out     Transient              yes
    an untrusted certificate, an unusable URL             EndpointRefused        no
    the stream ends early, or contains what is not JSON   Transient              yes

When the retries are used up, a Transient is raised as EndpointUnreachable, its base class.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable, ModelError

# The messages by which servers say that the prompt does not fit: OpenAI and LiteLLM, vLLM, llama.cpp (new and old), SGLang,
# Ollama, LM Studio, TGI.
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|context_window_exceeded|ContextWindowExceeded"
    r"|maximum context length|maximum model length|max_model_len|longer than the (maximum )?(model|context)"
    r"|exceeds? the (available |model'?s? |maximum )*context|context (size|length|window)[^.]{0,40}(exceed|overflow|too small)"
    r"|(input|prompt)[^.]{0,60}(exceeds|longer than|greater than|too long)[^.]{0,60}(context|tokens|length|limit)"
    r"|(input|prompt|tokens)[^.]{0,60}exceed(s|ed)[^.]{0,20}(maximum allowed|max_prompt_len|model limit)|n_keep[^.]{0,40}n_ctx"
    r"|reduce (the |your )?(length of the |length of your )?(prompt|messages|input)|max_tokens must be at least 1, got -"
    r"|context length (is|of) only \d+|too many tokens|prompt is too long|`inputs` tokens \+ `max_new_tokens` must be",
    re.IGNORECASE,
)
# The messages by which servers say that they could not parse the model's harmony: openai-harmony (vLLM, as a 400), Ollama, LM Studio,
# llama.cpp.
_GARBLED = re.compile(
    r"HarmonyError|in message header|could not parse header|while expecting start token|channel marker present"
    r"|unexpected EOS while waiting|error parsing tool call|failed to parse (tool call|input at pos)",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"insufficient_quota|billing_hard_limit|exceeded your current quota", re.IGNORECASE)
_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 499})
_REMEDIES = {
    400: "the request was understood and refused; retrying would not help",
    401: "give the right key in OPENAI_API_KEY",
    402: "the account of this key has no credit; add credit or use another key",
    403: "the key is known but may not do this; use another key or ask the server's owner",
    404: "check the URL (it usually ends in /v1) and the model's name",
    405: "check the URL (it usually ends in /v1)",
    422: "the server does not accept a field of the request; try another --wire",
    501: "the server lacks this interface; try another --wire",
}
_SHOWN_CHARS = 400
_MOST_SILENCES = 2  # each costs minutes
_MOST_CUTS = 5
_MOST_GARBLED = 10  # with the worst servers, one answer in four is garbled


BREAKS = (httpx2.RequestError, httpx2.InvalidURL)


class Transient(EndpointUnreachable):
    """A failure that may go away on a retry. ``retry_after_s`` is the wait that the server asked for, if it did.

    ``most`` bounds how often one request may meet it; with None only the time limit applies, which suits failures
    that come at once.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, most: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.most = most


class Garbled(Transient):
    """The server could not parse the model's answer. The same seed would give the same answer."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the server could not parse the model's answer: {said}", retry_after_s=0.0, most=_MOST_GARBLED
        )


def refusal(status: int, headers: Mapping[str, str], body: str, *, wall_s: float) -> ModelError:
    """Translate an answer that is not a success. ``wall_s`` is the time of day as seconds since the epoch."""
    said = message_in(body)
    if status in {400, 422, 500} and _GARBLED.search(
        body
    ):  # checked first: the body quotes the model, whose text may match anything
        return Garbled(said)
    if status == 413 or (status != 429 and _OVERFLOW.search(body)):
        return ContextOverflow(f"the prompt does not fit the model's window: {said or f'HTTP {status}'}")
    told = f"the endpoint answered HTTP {status}" + (f": {said}" if said else "")
    if status == 429 and _QUOTA.search(body):
        return EndpointRefused(f"{told}; the quota of this key is used up: raise it, or use another key", status)
    if status in _RETRIED_STATUSES or (500 <= status <= 599 and status != 501):
        return Transient(told, retry_after_s=retry_after_s(headers, wall_s=wall_s))
    if 300 <= status <= 399:
        place = headers.get("location", "another place")
        return EndpointRefused(f"{told}: the endpoint moved to {place}; use that URL", status)
    return EndpointRefused(f"{told}; {_REMEDIES.get(status, 'retrying would not help')}", status)


def error_event(error: object, *, wall_s: float) -> ModelError:
    """Translate the ``error`` member of an event inside a stream that began as a success."""
    body = json.dumps({"error": error})
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    # Without a status the server failed in the middle of the answer: its text is checked only for the window and the quota.
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 500
    return refusal(429 if _QUOTA.search(body) else status, {}, body, wall_s=wall_s)


def broken(error: Exception, url: str) -> ModelError:
    """Translate what the HTTP client raised (one of ``BREAKS``) while it talked to ``url``."""
    said = str(error) or type(error).__name__
    match error:
        case httpx2.LocalProtocolError():  # its text repeats the header, and with it the key
            return EndpointRefused(f"no request can be sent to {url}: a header is malformed; check the key")
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return EndpointRefused(f"no request can be sent to {url}: {said}; check the URL")
        case httpx2.ConnectError() if _is_certificate_error(error):
            return EndpointRefused(f"the certificate of {url} is not trusted: {said}; set SSL_CERT_FILE to your CA")
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return Transient(f"no connection to {url}: {said}")
        case httpx2.ReadTimeout():
            return Transient(f"{url} sent no byte for longer than silence_timeout_s", most=_MOST_SILENCES)
        case httpx2.TooManyRedirects():
            return EndpointRefused(f"{url} redirects in circles; check the URL")
        case _:
            return Transient(f"the connection to {url} broke: {said}", most=_MOST_CUTS)


def cut(what: str) -> Transient:
    """Return the error for an incomplete answer."""
    return Transient(f"the answer arrived incomplete: {what}", most=_MOST_CUTS)


def refused_field(error: EndpointRefused, fields: Iterable[str]) -> str | None:
    """Return which of ``fields`` a refusal names (the longest match), so that the request can be sent without it."""
    if error.status not in {400, 422}:
        return None
    said = str(error)
    return next((name for name in sorted(fields, key=lambda name: (-len(name), name)) if name in said), None)


def message_in(body: str) -> str:
    """Return the message in an error body, shortened; servers wrap it in at least five ways."""
    text = body.strip()
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = re.sub(r"<[^<>]*>", " ", text) if text.startswith("<") else text
    while isinstance(found, (dict, list)):
        if isinstance(found, list):
            found = found[0] if found else ""
        else:
            found = next((found[k] for k in ("error", "message", "detail", "msg") if found.get(k)), "")
    return " ".join(str(found).split())[:_SHOWN_CHARS]


def retry_after_s(headers: Mapping[str, str], *, wall_s: float) -> float | None:
    """Return the wait that a server asked for: ``Retry-After-Ms``, or ``Retry-After`` as seconds or a date (RFC 9110, 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value) * unit
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - wall_s)
    except ValueError:
        return None


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
