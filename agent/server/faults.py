"""What a client is told when a request fails: OpenAI's error format, the right status, and nothing about this machine.

::

    raised                                  status  type                    code
    ─────────────────────────────────────── ─────── ─────────────────────── ───────────────────────
    BadRequest                              400     invalid_request_error   its own
    ContextOverflow                         400     invalid_request_error   context_length_exceeded
    NotThere                                404     invalid_request_error   not_found
    Refusal                                 its own its own                 its own
    EndpointUnreachable                     503     server_error            backend_unreachable
    EndpointRefused, with status 429        429     rate_limit_error        rate_limit_exceeded
    InvalidAnswer                           502     server_error            invalid_answer
    ScriptEnded                             502     server_error            script_ended
    any other ModelError                    502     server_error            backend_error
    any unexpected error                    500     server_error            internal_error

A backend's message can contain its address, a path of this machine or a piece of a prompt, so it goes only to the log
(``--verbose``) and never to the client. Our own messages about a request name its fields, not their values.
"""

from __future__ import annotations

from typing import Any

from agent.errors import ContextOverflow, EndpointRefused, EndpointUnreachable, ModelError, ScriptEnded


class Refusal(Exception):
    """A request is refused. ``message`` is for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's format."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class BadRequest(Refusal):
    """A request is invalid. ``param`` is the field, as a path (``input[2].content``)."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code or "invalid_value")


class NotThere(Refusal):
    """Something was requested by its id and is not stored (any more)."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(404, message, param=param, code="not_found")


class InvalidAnswer(ModelError):
    """The model answered several times, but never in the form that the request demands."""


def refusal(error: Exception) -> Refusal:
    """Translate the error that ended a request, by the table above."""
    match error:
        case Refusal():
            return error
        case ContextOverflow():
            said = "The conversation does not fit the model's context window. Shorten it, or serve a larger window."
            return BadRequest(said, code="context_length_exceeded")
        case EndpointUnreachable():
            said = "The model behind this server does not answer. Try again later."
            return Refusal(503, said, kind="server_error", code="backend_unreachable", retry_after_s=5)
        case EndpointRefused(status=429):
            said = "The model behind this server has no capacity left. Try again later."
            return Refusal(429, said, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=5)
        case InvalidAnswer():
            return Refusal(502, str(error), kind="server_error", code="invalid_answer")
        case ScriptEnded():
            return Refusal(502, f"This server plays a script: {error}.", kind="server_error", code="script_ended")
        case ModelError():
            said = "The model behind this server failed. The server's operator can see the reason with --verbose."
            return Refusal(502, said, kind="server_error", code="backend_error")
        case _:
            return Refusal(
                500, "This server failed with an internal error.", kind="server_error", code="internal_error"
            )
