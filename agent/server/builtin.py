"""Reads which built-in tools a request asks for. Pure.

If the server has no web search, the tool is ignored, like tools of unknown types, because clients send it by default. A
code interpreter is sent only by clients that need one, so it is refused if there is none; so are settings of both that cannot be honoured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.conversation import ToolSpec
from agent.server.fields import Fields

WEB_TYPES = frozenset(
    {
        "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "browser_search",
    }
)  # fmt: skip
CODE_TYPE = "code_interpreter"
WEB, CODE = "browser", "python"  # the names that the model uses for them
RESERVED: Mapping[str, frozenset[str]] = {
    WEB: frozenset({"browser", "browser_search", "browser_open", "browser_find"}),
    CODE: frozenset({"python"}),
}
HITS: Mapping[str, int] = {"low": 5, "medium": 10, "high": 20}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Offer:
    """The built-in tools of this server."""

    web: bool = False
    code: bool = False
    memory_bytes: int = 0  # of a sandbox


@dataclass(frozen=True, slots=True)
class Wanted:
    """The built-in tools that a request asks for. ``hits`` is the number of search results if the model does not choose one.

    ``domains``: only these may be searched and opened (empty: all). ``container`` is the one that the caller named;
    ``place`` is the user's location as text. ``most_calls`` bounds the calls of one answer.
    """

    web: bool = False
    code: bool = False
    hits: int = HITS["medium"]
    domains: tuple[str, ...] = ()
    place: str = ""
    container: str | None = None
    most_calls: int | None = None

    def __bool__(self) -> bool:
        return self.web or self.code

    @property
    def names(self) -> frozenset[str]:
        """The model's names for the requested tools."""
        return frozenset(name for name, wanted in ((WEB, self.web), (CODE, self.code)) if wanted)


def tool_name(kind: str) -> str | None:
    """Return the model's name for a built-in tool's type; None for any other type."""
    return WEB if kind in WEB_TYPES else CODE if kind == CODE_TYPE else None


def read_builtin(body: Fields, offer: Offer, functions: Sequence[ToolSpec]) -> Wanted:
    """Read which built-in tools ``tools`` asks for. Raises BadRequest."""
    found: dict[str, Any] = {}
    for tool in body.objects("tools"):
        match tool_name(tool.text("type")):
            case "browser" if offer.web:
                found |= {"web": True, **read_web(tool)}
            case "python":
                if not offer.code:
                    said = (
                        "is not enabled on this server: its operator can enable it with agent serve --code-interpreter"
                    )
                    raise tool.wrong("type", said)
                found |= {"code": True, "container": _container(tool, offer)}
    wanted = Wanted(**found, most_calls=body.integer("max_tool_calls", 1) if found else None)
    taken = {name for kind in wanted.names for name in RESERVED[kind]}
    if clash := next((tool.name for tool in functions if tool.name in taken), None):
        raise body.wrong("tools", f"declares a function {clash}, which is also the name of a requested built-in tool")
    return wanted


def read_web(tool: Fields) -> dict[str, Any]:
    """Read the settings of a web search, from either API."""
    filters = tool.object("filters")
    if filters is not None and "blocked_domains" in filters:
        raise filters.wrong("blocked_domains", "is not supported by this server")
    domains = filters.list("allowed_domains") if filters is not None else []
    if filters is not None and not all(isinstance(domain, str) and domain for domain in domains):
        raise filters.wrong("allowed_domains", "must be an array of domains")
    return {
        "hits": HITS[tool.choice("search_context_size", HITS, "medium")],
        "domains": tuple(domain.lower().removeprefix("*.").strip(".") for domain in domains),
        "place": _place(tool.object("user_location")),
    }


def _place(location: Fields | None) -> str:
    if location is None:
        return ""
    inner = location.object("approximate") or location
    said = [" ".join(inner.text(name, "").split()) for name in ("city", "region", "country")]
    zone = " ".join(inner.text("timezone", "").split())
    return ", ".join(filter(None, said)) + (f" (time zone {zone})" if zone else "")


def _container(tool: Fields, offer: Offer) -> str | None:
    value = tool.raw("container")
    if value is None or isinstance(value, str):
        return value
    spec = Fields(value, tool.path("container"))
    spec.choice("type", ("auto",))
    if spec.list("file_ids"):
        raise spec.wrong("file_ids", "cannot be honoured: this server keeps no files")
    policy = spec.object("network_policy")
    if policy is not None and policy.text("type") != "disabled":
        raise spec.wrong("network_policy", "cannot be honoured: the sandbox has no network")
    size = spec.choice("memory_limit", ("1g", "4g", "16g", "64g"), "1g")
    if "memory_limit" in spec and int(size[:-1]) * _GIB > offer.memory_bytes:
        raise spec.wrong("memory_limit", f"is more than this server's sandboxes have ({offer.memory_bytes >> 20} MiB)")
    return None
