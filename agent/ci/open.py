"""Open a service: the one function that chooses."""

from __future__ import annotations

from agent.ci.event import Site
from agent.ci.github import GitHub
from agent.ci.gitlab import GitLab
from agent.ci.service import Service
from agent.model.client import Clock


def open_service(site: Site, token: str, author: str | None, clock: Clock | None = None) -> Service:
    """Return the service at a site. ``author`` is the name our comments have there, where it cannot be asked for."""
    made = GitHub if site.service == "github" else GitLab
    return made(site, token, author, clock or Clock())
