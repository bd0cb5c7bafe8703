"""What went wrong at an endpoint, translated once into the error tree. Pure: no sockets, no waiting.

::

    answer or exception                                   becomes                asked again
    ───────────────────────────────────────────────────── ────────────────────── ───────────
    400, 422, 500: it cannot parse what the model said    Garbled, a Transient   yes, with another seed
    any refusal that speaks of the context window, or 413 ContextOverflow        by the loop, after compaction
    408, 409, 425, 429, 5xx but 501                       Transient              yes
    429 with a spent quota                                EndpointRefused        no
    400, 401, 403, 404, 3xx, 501 and every other status   EndpointRefused        no
    an error event inside a stream                        by its code, as above
    connecting, reading or writing fails or times out     Transient              yes
    a certificate nobody vouches for, a URL of no use     EndpointRefused        no
    the stream ends early, or carries what is not JSON    Transient              yes

A Transient that outlives its retries is an EndpointUnreachable, which it is a kind of.
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

# How servers say that the prompt does not fit: OpenAI and LiteLLM, vLLM, llama.cpp (new and old), SGLang, Ollama, LM Studio, TGI.
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
# How servers say that they could not parse the model's harmony: openai-harmony (vLLM, which calls it a 400), Ollama, LM Studio,
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
    402: "the account behind the key has to be paid for",
    403: "the key is known but may not do this; use another key or ask the server's owner",
    404: "check the URL (it usually ends in /v1) and the model's name",
    405: "check the URL (it usually ends in /v1)",
    422: "the server does not take a field of the request; try another --wire",
    501: "the server lacks this interface; try another --wire",
}
_SHOWN_CHARS = 400
_MOST_SILENCES = 2  # each costs minutes
_MOST_CUTS = 5
_MOST_GARBLED = 10  # of the worst servers one answer in four is


BREAKS = (httpx2.RequestError, httpx2.InvalidURL)


class Transient(EndpointUnreachable):
    """A failure that asking again may cure. ``retry_after_s`` is what the server asked to wait, where it did.

    ``most`` bounds how often it is met in one request before that is the end; None leaves it to the time limit, which
    only fits failures that come at once.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, most: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.most = most


class Garbled(Transient):
    """The server could not parse what the model said. The same seed would say it again."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the server could not parse the model's answer: {said}", retry_after_s=0.0, most=_MOST_GARBLED
        )


def refusal(status: int, headers: Mapping[str, str], body: str, *, wall_s: float) -> ModelError:
    """Translate an answer that is not a success. ``wall_s`` is the time of day as seconds since the epoch."""
    said = message_in(body)
    if status in {400, 422, 500} and _GARBLED.search(body):  # first: it quotes the model, who may say anything
        return Garbled(said)
    if status == 413 or (status != 429 and _OVERFLOW.search(body)):
        return ContextOverflow(f"the prompt does not fit the model's window: {said or f'HTTP {status}'}")
    told = f"the endpoint answered HTTP {status}" + (f": {said}" if said else "")
    if status == 429 and _QUOTA.search(body):
        return EndpointRefused(f"{told}; the quota behind this key is spent", status)
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
    # Without a status the server broke down in the middle: what it says decides only about the window and the quota.
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
            return EndpointRefused(f"nobody vouches for the certificate of {url}: {said}; set SSL_CERT_FILE to your CA")
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return Transient(f"no connection to {url}: {said}")
        case httpx2.ReadTimeout():
            return Transient(f"{url} sent no byte for longer than silence_timeout_s", most=_MOST_SILENCES)
        case httpx2.TooManyRedirects():
            return EndpointRefused(f"{url} redirects in circles; check the URL")
        case _:
            return Transient(f"the connection to {url} broke: {said}", most=_MOST_CUTS)


def cut(what: str) -> Transient:
    """An answer that did not arrive whole."""
    return Transient(f"the answer did not arrive whole: {what}", most=_MOST_CUTS)


def refused_field(error: EndpointRefused, fields: Iterable[str]) -> str | None:
    """Return which of ``fields`` a refusal names, the longest first: the request may do without it."""
    if error.status not in {400, 422}:
        return None
    said = str(error)
    return next((name for name in sorted(fields, key=lambda name: (-len(name), name)) if name in said), None)


def message_in(body: str) -> str:
    """Return what an error body says, shortened; servers wrap it in at least five ways."""
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
    """Return the wait a server asked for: ``Retry-After-Ms``, or ``Retry-After`` as seconds or as a date (RFC 9110, 10.2.3)."""
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
