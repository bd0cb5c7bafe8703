"""Opens the service; only this module chooses between them."""

from __future__ import annotations

from agent.ci.event import Site
from agent.ci.github import GitHub
from agent.ci.gitlab import GitLab
from agent.ci.service import Service
from agent.model.client import Clock


def open_service(site: Site, token: str, author: str | None, clock: Clock | None = None) -> Service:
    """Return the service at a site. ``author`` is the author of our comments there, if it cannot be queried."""
    made = GitHub if site.service == "github" else GitLab
    return made(site, token, author, clock or Clock())
