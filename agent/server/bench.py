"""The built-in tools of one request: a browser and an interpreter. Each call runs in a thread that can be abandoned.

An error of a tool is its result, for the model to read; it never fails the request. If the request ends during a call, the
call's sandbox is closed, and an answer that still comes from the web is ignored.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from agent.conversation import Message, ToolSpec
from agent.events import ToolResult
from agent.model.cancel import Cancel
from agent.server.builtin import CODE, Offer, Wanted
from agent.server.interpreters import Interpreter, Interpreters
from agent.server.responses import new_id
from agent.tools.base import Tool
from agent.tools.browser.browser import SOURCE_PREFIX, Browser, browser_tools
from agent.tools.browser.citations import Source
from agent.tools.browser.page import Page
from agent.tools.browser.services import Document, Hit, Service, WebError
from agent.tools.names import Resolved, Unknown, resolve
from agent.tools.open import declare
from agent.tools.python import TRAINED_TIMEOUT_S, Python
from agent.tools.text import CallError, arguments
from sandbox.base import Sandbox
from sandbox.errors import SandboxError, WorktreeError

log = logging.getLogger(__name__)

MOST_CALLS = 64
MOST_OUTPUT_BYTES = 10_000
MOST_RUNNING = 64  # calls at a time, including abandoned ones
BUSY = (
    "This server runs as many calls as it can at the moment. Answer without this one, or try again in a little while."
)
LOST = (
    "There is no sandbox for this call, or it was lost in the middle of it, and with it all variables and files. "
    "Another call starts a fresh one."
)
FRESH = "[This is a fresh sandbox: the variables and files of earlier calls are gone.]\n"
_NOWHERE = cast("Sandbox", None)  # passed to the browser, which does not use a sandbox
SPENT = "There may be no more calls of your tools in this answer. Say what you found with those that you made."


@dataclass(frozen=True, slots=True)
class Work:
    """A call of a built-in tool, as it is reported to the client. ``detail`` are the specific fields of its item: an action, or code
    and container.

    ``tool`` is empty if the call is not run; then ``text`` is the result for the model.
    """

    tool: str
    text: str
    id: str = ""
    kind: Literal["web", "code"] = "web"
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a call. ``sources`` are the URLs that a search found."""

    work: Work
    result: ToolResult
    sources: tuple[str, ...] = ()


class Builtins:
    """A server's built-in tools. ``browser`` opens a browser with an empty history."""

    def __init__(
        self,
        browser: Callable[[], Browser] | None = None,
        interpreters: Interpreters | None = None,
        memory_bytes: int = 0,
    ) -> None:
        self.browser = browser
        self.interpreters = interpreters
        self.offer = Offer(browser is not None, interpreters is not None, memory_bytes)
        self.running = threading.BoundedSemaphore(MOST_RUNNING)

    def close(self) -> None:
        """Close the sandboxes; a call that is still running ends with its sandbox."""
        if self.interpreters is not None:
            self.interpreters.close()


class Bench:
    """The tools of one request. Used by the request's thread.

    ``pages`` and ``container`` continue the conversation's earlier state; ``newest_search`` is the item of its last web call.
    """

    def __init__(
        self, builtins: Builtins, wanted: Wanted, pages: Sequence[Page] = (), container: str | None = None
    ) -> None:
        self._builtins = builtins
        self._wanted = wanted
        self.container = wanted.container or container
        self.newest_search: str | None = None
        self._interpreter: Interpreter | None = None
        self._left = min(wanted.most_calls or MOST_CALLS, MOST_CALLS)
        self.browser = self._open_browser(pages) if wanted.web else None
        tools: list[Tool] = [Python(TRAINED_TIMEOUT_S, MOST_OUTPUT_BYTES, has_data_folder=True)] if wanted.code else []
        tools += browser_tools(self.browser) if self.browser is not None else ()
        self._tools = {tool.name: tool for tool in tools}

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The declarations, as gpt-oss was trained with them."""
        return declare(self._tools, "trained")

    @property
    def note(self) -> str:
        """What else the model is told because of the request's tools."""
        return f"The person you answer is in or near {self._wanted.place}." if self._wanted.place else ""

    def work(self, call: Message, functions: Sequence[ToolSpec]) -> Work | None:
        """Return the work for a call of the model; None if the call is for the client."""
        recipient = call.recipient or ""
        if recipient.removeprefix("functions.") in {tool.name for tool in functions}:
            return None
        meant = resolve(recipient, call.text, self._tools)
        if isinstance(meant, Unknown):
            ours = not functions or recipient.partition(".")[0] in self._wanted.names
            return Work("", meant.answer) if ours else None
        if self._left < 1:
            return Work("", SPENT)
        self._left -= 1
        return self._code(meant) if meant.tool == CODE else self._web(meant)

    def run(self, work: Work, cancel: Cancel) -> Done:
        """Run it. Raises Cancelled if the request ends meanwhile."""
        if not work.tool:
            return Done(work, ToolResult(work.text, ok=False))
        result = self._awaited(work, cancel)
        if work.kind == "code":
            return Done(work, result)
        self.newest_search = work.id
        page = self._newest() if result.ok else None
        sources = tuple(link.url for link in page.links.values()) if page and work.tool == "browser_search" else ()
        if page and work.tool == "browser_open":
            opened = page.url.removeprefix(SOURCE_PREFIX)
            work = replace(work, detail={"action": {"type": "open_page", "url": opened}})
        return Done(work, result, sources)

    def _awaited(self, work: Work, cancel: Cancel) -> ToolResult:
        """Run a call in a daemon thread, which is abandoned if the request ends first."""
        if not self._builtins.running.acquire(blocking=False):
            return ToolResult(BUSY, ok=False)
        over = threading.Event()
        results: list[ToolResult] = []

        def call() -> None:
            try:
                results.append(self._run(work))
            finally:
                self._builtins.running.release()
                over.set()

        threading.Thread(target=call, name="tool", daemon=True).start()
        with cancel.by(over.set):
            over.wait()
        if results:
            return results[0]
        if work.kind == "code":  # a web call does not use the sandbox, whose variables are kept
            self._drop()
        if cancel.called:
            raise cancel.error()
        raise RuntimeError("a tool raised; the traceback of its thread says why")

    def cited(self, cursor: int) -> Source | None:
        """Return the source of a citation, or None if it points to nothing."""
        return self.browser.cited(cursor) if self.browser is not None else None

    def close(self) -> None:
        """Release what the request holds."""
        if self._interpreter is not None and self._builtins.interpreters is not None:
            self._builtins.interpreters.give(self._interpreter)
            self._interpreter = None

    def _run(self, work: Work) -> ToolResult:
        tool, interpreter = self._tools[work.tool], self._interpreter
        if work.kind == "web":
            return tool.run(work.text, _NOWHERE)
        if interpreter is None:
            return ToolResult(BUSY, ok=False)
        fresh, interpreter.lost = interpreter.lost, False
        try:
            result = tool.run(work.text, interpreter.opened())
        except (SandboxError, WorktreeError):
            if self._interpreter is interpreter:  # otherwise it was closed because the request ended
                log.warning("a sandbox was lost; --verbose says how")
                log.info("a sandbox was lost", exc_info=True)
                self._drop()
            return ToolResult(LOST, ok=False)
        return replace(result, text=FRESH + result.text) if fresh else result

    def _drop(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None and self._builtins.interpreters is not None:
            self._builtins.interpreters.discard(interpreter)

    def _code(self, meant: Resolved) -> Work:
        pool = self._builtins.interpreters
        if self._interpreter is None and pool is not None:
            self._interpreter = pool.take(self.container)
        self.container = self._interpreter.id if self._interpreter else self.container
        detail = {"code": meant.text, "container_id": self.container or "none"}
        return Work(meant.tool, meant.text, new_id("ci"), "code", detail)

    def _web(self, meant: Resolved) -> Work:
        try:
            given = arguments(meant.text, "{}")
        except CallError:
            given = {}
        return Work(meant.tool, meant.text, new_id("ws"), "web", {"action": self._action(meant.tool, given)})

    def _action(self, tool: str, given: Mapping[str, Any]) -> dict[str, Any]:
        match tool:
            case "browser_search":
                query = str(given.get("query", ""))
                return {"type": "search", "query": query, "queries": [query]}
            case "browser_open":
                address = given.get("id")
                told = isinstance(address, str) and "://" in address
                return {"type": "open_page", "url": address if told else None}
            case _:
                page = self._newest(given.get("cursor"))
                return {
                    "type": "find_in_page",
                    "pattern": str(given.get("pattern", "")),
                    "url": page.url if page else "",
                }

    def _newest(self, cursor: object = None) -> Page | None:
        pages = self.browser.pages if self.browser is not None else []
        if isinstance(cursor, int) and 0 <= cursor < len(pages):
            return pages[cursor]
        return pages[-1] if pages else None

    def _open_browser(self, pages: Sequence[Page]) -> Browser:
        assert self._builtins.browser is not None
        browser = self._builtins.browser()
        browser.pages += pages
        browser.usual_hits = self._wanted.hits
        if self._wanted.domains:
            browser.service = Fenced(browser.service, self._wanted.domains)
        return browser


@dataclass(frozen=True, slots=True)
class Fenced:
    """A search service restricted to some domains and their subdomains."""

    inner: Service
    domains: tuple[str, ...]

    @property
    def name(self) -> str:
        """The service's name."""
        return self.inner.name

    def search(self, query: str, most: int) -> tuple[Hit, ...]:
        """See Service. Requests more hits than it returns, because some are filtered out."""
        return tuple(hit for hit in self.inner.search(query, 2 * most) if self._allows(hit.url))[:most]

    def fetch(self, url: str) -> Document:
        """See Service."""
        if not self._allows(url):
            raise WebError(f"Only pages of {', '.join(self.domains)} may be opened in this conversation.")
        return self.inner.fetch(url)

    def _allows(self, url: str) -> bool:
        try:
            host = (urlsplit(url).hostname or "").lower()
        except ValueError:
            return False
        return any(host == domain or host.endswith(f".{domain}") for domain in self.domains)
