"""The event that started a job, and what the job's variables say about the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.ci import github_events, gitlab_events
from agent.ci.request import Ignored, Request, Rules
from agent.errors import UsageError

MAX_EVENT_BYTES = 32 << 20  # GitHub's own limit for a payload is 25 MB
SERVICES = ("github", "gitlab")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a service is, for one project. ``commit`` is the one that the job's own definition comes from: it is trusted."""

    service: str
    api_url: str
    clone_url: str
    commit: str | None
    project: str


def site(service: str, environ: Mapping[str, str]) -> Site:
    """Return what the job's variables say. ``service`` may be auto. Raises UsageError naming the variable that is missing."""
    if service == "auto":
        service = next(
            (name for name in SERVICES if environ.get(f"{name.upper()}_ACTIONS" if name == "github" else "GITLAB_CI")),
            "",
        )
        if not service:
            raise UsageError(
                "this is neither a job of GitHub Actions nor of GitLab CI (GITHUB_ACTIONS, GITLAB_CI): name it with --service"
            )

    def variable(name: str) -> str:
        if not environ.get(name):
            raise UsageError(f"{name} is not set: jobs of {service} have it; set it yourself to try this elsewhere")
        return environ[name].rstrip("/")

    if service == "github":
        project = variable("GITHUB_REPOSITORY")
        clone_url = f"{variable('GITHUB_SERVER_URL')}/{project}.git"
        return Site(service, variable("GITHUB_API_URL"), clone_url, environ.get("GITHUB_SHA"), project)
    clone_url = f"{variable('CI_PROJECT_URL')}.git"
    return Site(service, variable("CI_API_V4_URL"), clone_url, environ.get("CI_COMMIT_SHA"), variable("CI_PROJECT_ID"))


def request(place: Site, file: Path | None, environ: Mapping[str, str], rules: Rules) -> Request | Ignored:
    """Return the request in the job's event; ``file`` replaces the file that the variables name.

    Raises UsageError if there is no event, it cannot be read, or it belongs to another project.
    """
    data = _load(place.service, file, environ)
    if place.service == "github":
        name = environ.get("GITHUB_EVENT_NAME")
        if not name:
            raise UsageError("GITHUB_EVENT_NAME is not set: the event's file does not say what kind of event it is")
        found = github_events.read(name, data, rules)
    else:
        found = gitlab_events.read(data, rules)
    if isinstance(found, Request) and found.project != place.project:
        raise UsageError(f"the event is about the project {found.project!r}, and this job is one of {place.project!r}")
    return found


def _load(service: str, file: Path | None, environ: Mapping[str, str]) -> object:
    variable = "GITHUB_EVENT_PATH" if service == "github" else "TRIGGER_PAYLOAD"
    named = environ.get(variable)
    if file is None and not named:
        raise UsageError(f"there is no event: {variable} is not set, and no --event names a file")
    path = file or Path(str(named))
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_EVENT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the event {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_EVENT_BYTES:
        raise UsageError(f"the event {path} has more than {MAX_EVENT_BYTES >> 20} MiB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the event {path} is not JSON: {error}") from error
