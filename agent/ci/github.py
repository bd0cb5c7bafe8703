"""GitHub's REST API, as far as publishing needs it: https://docs.github.com/en/rest."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from agent.ci.event import Site
from agent.ci.request import at, text_at
from agent.ci.rest import Rest
from agent.ci.service import Proposal, Pull
from agent.errors import ServiceError
from agent.model.client import Clock

# The author of comments by a job's own GITHUB_TOKEN, which may not query its identity.
JOB_AUTHOR = "github-actions[bot]"
HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", "User-Agent": "gpt-oss-agent"}


class GitHub:
    """One repository on GitHub. See Service."""

    git_user = "x-access-token"

    def __init__(self, site: Site, token: str, author: str | None, clock: Clock) -> None:
        self._rest = Rest(site.api_url, {**HEADERS, "Authorization": f"Bearer {token}"}, token, clock)
        self._project = site.project
        self._path = f"/repos/{quote(site.project)}"
        self._author = author

    def close(self) -> None:
        """Close the connections; see Service."""
        self._rest.close()

    def may_write(self, actor: str) -> bool:
        """Query the user's permission; see Service."""
        try:
            found = self._rest.ask("GET", f"{self._path}/collaborators/{quote(actor, safe='')}/permission")
        except ServiceError as error:
            if error.status == 404:
                return False
            raise
        return text_at(found, "permission") in ("admin", "write")

    def pull(self, number: int) -> Pull:
        """Fetch it; see Service."""
        head = at(self._rest.ask("GET", f"{self._path}/pulls/{number}"), "head")
        return Pull(text_at(head, "ref"), text_at(head, "sha"), text_at(head, "repo", "full_name") == self._project)

    def propose(self, branch: str, target: str, title: str, body: str) -> Proposal:
        """Find the open one by its branches, or open one; see Service."""
        found = self._open(branch, target)
        if found is None:
            wanted = {"title": title, "body": body, "head": branch, "base": target}
            try:
                return self._proposal(self._rest.ask("POST", f"{self._path}/pulls", wanted), new=True)
            except ServiceError as error:
                # 422 may mean that it exists: opened by a request whose answer was lost, or by another job.
                found = self._open(branch, target) if error.status == 422 else None
                if found is None:
                    raise
        if (text_at(found, "title"), text_at(found, "body")) != (title, body):
            found = self._rest.ask("PATCH", f"{self._path}/pulls/{at(found, 'number')}", {"title": title, "body": body})
        return self._proposal(found, new=False)

    def comment(self, kind: str, number: int, marker: str, body: str) -> None:
        """Find our own by its author and its beginning, or write one; see Service."""
        del kind  # a pull request's comments are those of an issue
        author = self._me()
        for found in self._rest.pages(f"{self._path}/issues/{number}/comments"):
            if text_at(found, "user", "login") == author and text_at(found, "body").startswith(marker):
                if text_at(found, "body") != body:
                    self._rest.ask("PATCH", f"{self._path}/issues/comments/{at(found, 'id')}", {"body": body})
                return
        self._rest.ask("POST", f"{self._path}/issues/{number}/comments", {"body": body})

    def _open(self, branch: str, target: str) -> Mapping[str, object] | None:
        owner = self._project.partition("/")[0]
        wanted = {"state": "open", "head": f"{owner}:{branch}", "base": target}
        listed = self._rest.pages(f"{self._path}/pulls", wanted)
        return next((each for each in listed if text_at(each, "head", "ref") == branch), None)

    def _proposal(self, found: object, *, new: bool) -> Proposal:
        return Proposal(f"#{at(found, 'number')}", text_at(found, "html_url"), new)

    def _me(self) -> str:
        if self._author is None:
            try:
                self._author = text_at(self._rest.ask("GET", "/user"), "login")
            except ServiceError as error:
                if error.status != 403:
                    raise
                self._author = JOB_AUTHOR
        return self._author
