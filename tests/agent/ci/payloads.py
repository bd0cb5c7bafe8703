"""Events as the two services send them, cut to what matters and a little around it."""

from __future__ import annotations

from typing import Any

from tests.forge import NUMBER, PROJECT

REPOSITORY = {"full_name": PROJECT, "default_branch": "main", "private": False}
TITLE, BODY = "slugify drops the last word", "`slugify('a b', 3)` gives `a`."


def github_issue(**more: Any) -> dict[str, Any]:
    return {
        "number": 12,
        "title": TITLE,
        "body": BODY,
        "user": {"login": "mallory"},
        "author_association": "NONE",
        **more,
    }


def labelled(label: str = "agent", **more: Any) -> dict[str, Any]:
    return {
        "action": "labeled",
        "label": {"name": label},
        "issue": github_issue(),
        "repository": REPOSITORY,
        "sender": {"login": "ada", "type": "User"},
        **more,
    }


def commented(body: str = "/agent", association: str = "OWNER", login: str = "ada", **issue: Any) -> dict[str, Any]:
    return {
        "action": "created",
        "comment": {"body": body, "user": {"login": login}, "author_association": association},
        "issue": github_issue(**issue),
        "repository": REPOSITORY,
        "sender": {"login": login, "type": "User"},
    }


def workflow_failed(branch: str = "main", sha: str = "1" * 40, **more: Any) -> dict[str, Any]:
    run = {
        "name": "tests",
        "head_branch": branch,
        "head_sha": sha,
        "conclusion": "failure",
        "head_repository": {"full_name": PROJECT},
        "pull_requests": [],
        **more,
    }
    return {
        "action": "completed",
        "workflow_run": run,
        "repository": REPOSITORY,
        "sender": {"login": "ada", "type": "User"},
    }


def check_failed(branch: str | None = "main", **more: Any) -> dict[str, Any]:
    run = {
        "name": "lint",
        "head_sha": "1" * 40,
        "conclusion": "failure",
        "check_suite": {"head_branch": branch},
        "output": {"title": "2 errors", "summary": "a.py: unused import", "text": None},
        "pull_requests": [],
        **more,
    }
    return {
        "action": "completed",
        "check_run": run,
        "repository": REPOSITORY,
        "sender": {"login": "app", "type": "Bot"},
    }


GITLAB_PROJECT = {"id": NUMBER, "path_with_namespace": PROJECT, "default_branch": "main"}
USER = {"id": 42, "username": "ada"}


def gitlab_labelled(
    before: tuple[str, ...] = (), after: tuple[str, ...] = ("agent",), action: str = "update"
) -> dict[str, Any]:
    return {
        "object_kind": "issue",
        "user": USER,
        "project": GITLAB_PROJECT,
        "object_attributes": {"iid": 12, "title": TITLE, "description": BODY, "action": action},
        "changes": {
            "labels": {"previous": [{"title": each} for each in before], "current": [{"title": each} for each in after]}
        },
    }


def merge_request(**more: Any) -> dict[str, Any]:
    return {
        "iid": 100,
        "title": "Shorter slugs",
        "description": "So that they fit.",
        "source_branch": "shorter",
        "target_branch": "main",
        "source_project_id": NUMBER,
        "target_project_id": NUMBER,
        "last_commit": {"id": "1" * 40},
        **more,
    }


def noted(note: str = "/agent", on: str = "Issue", **more: Any) -> dict[str, Any]:
    return {
        "object_kind": "note",
        "user": USER,
        "project": GITLAB_PROJECT,
        "object_attributes": {"note": note, "noteable_type": on, "action": "create", "author_id": 42},
        "issue": {"iid": 12, "title": TITLE, "description": BODY},
        "merge_request": merge_request(),
        **more,
    }


def pipeline_failed(ref: str = "main", merge_request: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "object_kind": "pipeline",
        "user": USER,
        "project": GITLAB_PROJECT,
        "object_attributes": {"id": 31, "ref": ref, "sha": "1" * 40, "status": "failed", "tag": False, **more},
        "merge_request": merge_request,
        "builds": [
            {"name": "lint", "stage": "test", "status": "success", "allow_failure": False},
            {
                "name": "unit",
                "stage": "test",
                "status": "failed",
                "allow_failure": False,
                "failure_reason": "script_failure",
            },
            {"name": "fuzz", "stage": "test", "status": "failed", "allow_failure": True},
        ],
    }
