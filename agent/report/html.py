"""HTML that is safe by construction: text is escaped unless it is ``Markup``, which only ``element`` and ``join`` create."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable

from agent.lines import clean

VOID = frozenset({"meta", "link", "input", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | None


def escape(text: str) -> Markup:
    """Return the text escaped for HTML, with control characters made visible."""
    return Markup(html.escape(clean(text), quote=False))


def join(children: Iterable[Child]) -> Markup:
    """Concatenate the children; plain text is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children if child))


def element(tag: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Return an element. ``class_`` is the attribute class, ``aria_sort`` aria-sort; None and False leave an attribute out."""
    told = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    return Markup(f"<{tag}{told}>" if tag in VOID else f"<{tag}{told}>{join(children)}</{tag}>")


def _attribute(key: str, value: str | int | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(clean(shown))}"'


def document(title: str, style: str, script: str, *body: Child) -> str:
    """Return a whole page that loads nothing: its policy allows only its own style and script, by their hashes."""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        # Without an icon, a browser would request /favicon.ico, which the policy forbids.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )
    page = element("html", head, element("body", *body, element("script", Markup(script))), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
