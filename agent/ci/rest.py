"""HTTP requests to a service's API: JSON in and out, with retries; raises only ServiceError.

::

    answer or exception                                     becomes         retried
    ─────────────────────────────────────────────────────── ─────────────── ───────────────────────────
    408, 425, 429, 5xx but 501                              Again           yes, after Retry-After if given
    403 with a spent rate limit (Retry-After, or none left) Again           yes, then
    connecting, reading or writing fails or times out       Again           yes
    401, 403, 404, 409, 422, 3xx and every other status     ServiceError    no

The whole step is retried, not a single request: a POST whose answer was lost may have succeeded, so the step first checks
whether it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import httpx2

from agent.errors import ServiceError
from agent.model.client import Clock
from agent.model.faults import BREAKS, message_in, retry_after_s

T = TypeVar("T")

PATIENCE_S = 120.0
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
TIMEOUT_S = 30.0
PAGE = 100
MOST_PAGES = 50
_AGAIN = frozenset({408, 425, 429})
_REMEDIES = {
    301: "the project has moved; use its new name in the job",
    401: "the token is not valid, or no longer: use another",
    403: "the token may not do this: give it the rights that docs/ci.md names",
    404: "it is not there, or the token may not see it",
}


class Again(ServiceError):
    """A temporary failure. ``wait_s`` is the wait that the service asked for, if it did."""

    def __init__(self, message: str, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(message, status)
        self.wait_s = wait_s


def persist(work: Callable[[], T], clock: Clock, say: Callable[[str], None], patience_s: float = PATIENCE_S) -> T:
    """Do a step, and retry it after temporary failures. Raises ServiceError when the retries are used up."""
    began_s = clock.now()
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return work()
        except Again as error:
            rest_s = error.wait_s if error.wait_s is not None else wait_s * (0.5 + 0.5 * clock.jitter())
            if clock.now() - began_s + rest_s > patience_s:
                raise ServiceError(
                    f"{error}; gave up after {clock.now() - began_s:.0f} s (the next try was due in {rest_s:.0f} s)",
                    error.status,
                ) from error
            say(f"{error}; retrying in {rest_s:.0f} s")
            clock.sleep(rest_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


class Rest:
    """One service's API at ``base_url``. ``secret`` is removed from all error messages."""

    def __init__(self, base_url: str, headers: Mapping[str, str], secret: str, clock: Clock) -> None:
        self.clock = clock
        self._base_url = base_url
        self._secret = secret
        self._http = httpx2.Client(headers=dict(headers), timeout=TIMEOUT_S, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        params: Mapping[str, str | int] | None = None,
    ) -> Any:  # noqa: ANN401 - JSON
        """Make one request and return the JSON that comes back. Raises Again and ServiceError."""
        url = self._base_url + path
        content = None if body is None else json.dumps(body).encode("ascii")
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(method, url, content=content, headers=headers, params=params)
        except httpx2.LocalProtocolError as error:  # its text repeats the header, and with it the token
            raise ServiceError(f"no request can be sent to {url}: a header is malformed; check the token") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ServiceError(f"no request can be sent to {url}: check the API's URL") from error
        except BREAKS as error:
            said = str(error).replace(self._secret, "***") or type(error).__name__
            raise Again(f"{method} {url} failed: {said}") from error
        if not response.is_success:
            raise self._refusal(method, url, response)
        with suppress(ValueError):
            return response.json()
        raise ServiceError(f"the answer to {method} {url} is not JSON; is the API's URL right?")

    def pages(self, path: str, params: Mapping[str, str | int] | None = None) -> Iterator[Any]:
        """Yield the items of a list, page by page. Raises as ``ask`` does, and ServiceError if the list does not end."""
        for page in range(1, MOST_PAGES + 1):
            items = self.ask("GET", path, params={**(params or {}), "per_page": PAGE, "page": page})
            if not isinstance(items, list):
                raise ServiceError(f"the answer to GET {self._base_url}{path} is not a list")
            yield from items
            if len(items) < PAGE:
                return
        raise ServiceError(f"{self._base_url}{path} has more than {MOST_PAGES * PAGE} items")

    def _refusal(self, method: str, url: str, response: httpx2.Response) -> ServiceError:
        status, headers = response.status_code, response.headers
        said = message_in(response.text).replace(self._secret, "***")
        told = f"{method} {url} was answered with HTTP {status}" + (f": {said}" if said else "")
        wait_s = retry_after_s(headers, wall_s=self.clock.wall())
        spent = status in (403, 429) and headers.get("x-ratelimit-remaining") == "0"
        if wait_s is None and spent and headers.get("x-ratelimit-reset", "").isdigit():
            wait_s = max(0.0, int(headers["x-ratelimit-reset"]) - self.clock.wall())
        if status in _AGAIN or (status >= 500 and status != 501) or (status == 403 and (spent or wait_s is not None)):
            return Again(told, status, wait_s)
        return ServiceError(f"{told}; {_REMEDIES.get(status, 'retrying would not help')}", status)
