"""GitLab's REST API (v4), as far as publishing needs it: https://docs.gitlab.com/api/rest/."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from agent.ci.event import Site
from agent.ci.request import at, text_at
from agent.ci.rest import Rest
from agent.ci.service import Proposal, Pull
from agent.errors import ServiceError
from agent.model.client import Clock

DEVELOPER = 30  # the lowest role that may push


class GitLab:
    """One project on GitLab. See Service."""

    git_user = "oauth2"

    def __init__(self, site: Site, token: str, author: str | None, clock: Clock) -> None:
        self._rest = Rest(site.api_url, {"PRIVATE-TOKEN": token, "User-Agent": "gpt-oss-agent"}, token, clock)
        self._project = site.project
        self._path = f"/projects/{quote(site.project, safe='')}"
        self._author = author

    def close(self) -> None:
        """Close the connections; see Service."""
        self._rest.close()

    def may_write(self, actor: str) -> bool:
        """Query the user's role, including roles through groups; see Service."""
        try:
            found = self._rest.ask("GET", f"{self._path}/members/all/{quote(actor, safe='')}")
        except ServiceError as error:
            if error.status == 404:
                return False
            raise
        level = at(found, "access_level")
        return isinstance(level, int) and level >= DEVELOPER and text_at(found, "state") in ("active", "")

    def pull(self, number: int) -> Pull:
        """Fetch it; see Service."""
        found = self._rest.ask("GET", f"{self._path}/merge_requests/{number}")
        same = at(found, "source_project_id") == at(found, "target_project_id")
        return Pull(text_at(found, "source_branch"), text_at(found, "sha"), same)

    def propose(self, branch: str, target: str, title: str, body: str) -> Proposal:
        """Find the open one by its branches, or open one; see Service."""
        found = self._open(branch, target)
        if found is None:
            wanted = {"title": title, "description": body, "source_branch": branch, "target_branch": target}
            try:
                return self._proposal(self._rest.ask("POST", f"{self._path}/merge_requests", wanted), new=True)
            except ServiceError as error:
                # 409 means that it exists: opened by a request whose answer was lost, or by another job.
                found = self._open(branch, target) if error.status == 409 else None
                if found is None:
                    raise
        if (text_at(found, "title"), text_at(found, "description")) != (title, body):
            change = {"title": title, "description": body}
            found = self._rest.ask("PUT", f"{self._path}/merge_requests/{at(found, 'iid')}", change)
        return self._proposal(found, new=False)

    def comment(self, kind: str, number: int, marker: str, body: str) -> None:
        """Find our own by its author and its beginning, or write one; see Service."""
        place = f"{self._path}/{'issues' if kind == 'issue' else 'merge_requests'}/{number}/notes"
        author = self._me()
        for found in self._rest.pages(place):
            if text_at(found, "author", "username") == author and text_at(found, "body").startswith(marker):
                if text_at(found, "body") != body:
                    self._rest.ask("PUT", f"{place}/{at(found, 'id')}", {"body": body})
                return
        self._rest.ask("POST", place, {"body": body})

    def _open(self, branch: str, target: str) -> Mapping[str, object] | None:
        wanted = {"state": "opened", "source_branch": branch, "target_branch": target}
        listed = self._rest.pages(f"{self._path}/merge_requests", wanted)
        same = (each for each in listed if at(each, "source_project_id") == at(each, "target_project_id"))
        return next((each for each in same if text_at(each, "source_branch") == branch), None)

    def _proposal(self, found: object, *, new: bool) -> Proposal:
        return Proposal(f"!{at(found, 'iid')}", text_at(found, "web_url"), new)

    def _me(self) -> str:
        if self._author is None:
            self._author = text_at(self._rest.ask("GET", "/user"), "username")
        return self._author
