"""Reads GitHub's events: a labelled issue, a comment that begins with the command word, a failed check.

Payloads: https://docs.github.com/en/webhooks/webhook-events-and-payloads. Pure.
"""

from __future__ import annotations

from agent.ci.request import (
    BRANCH_PREFIX,
    FAILURES,
    Ignored,
    Request,
    Rules,
    asked,
    at,
    commit_at,
    number_at,
    text_at,
    wish_in,
)

# Who may start a run, by GitHub's author association. Their write permission is checked again before anything is published.
ASSOCIATIONS = ("OWNER", "MEMBER", "COLLABORATOR")


def read(name: str, data: object, rules: Rules) -> Request | Ignored:
    """Return the request in the event ``name``. Raises UsageError if the event lacks a required field."""
    if text_at(data, "sender", "type") == "Bot" and name in ("issues", "issue_comment"):
        return Ignored(f"{text_at(data, 'sender', 'login')} is a bot, and bots may not start each other")
    match name:
        case "issues":
            return _labelled(data, rules)
        case "issue_comment":
            return _commented(data, rules)
        case "workflow_run" | "check_run":
            return _failed(data, name)
        case _:
            return Ignored(f"an event {name!r} asks for nothing")


def _labelled(data: object, rules: Rules) -> Request | Ignored:
    if text_at(data, "action") != "labeled" or text_at(data, "label", "name") != rules.label:
        return Ignored(f"the issue was not given the label {rules.label!r}")
    return _about(data, "", text_at(data, "sender", "login"))


def _commented(data: object, rules: Rules) -> Request | Ignored:
    wish = wish_in(text_at(data, "comment", "body"), rules.word)
    if text_at(data, "action") != "created" or wish is None:
        return Ignored(f"no new comment that begins with {rules.word!r}")
    author = text_at(data, "comment", "user", "login")
    association = text_at(data, "comment", "author_association")
    if association not in ASSOCIATIONS and author not in rules.allow:
        return Ignored(
            f"{author} may not ask: GitHub calls them {association or 'nothing'}, not one of {', '.join(ASSOCIATIONS)}"
        )
    return _about(data, wish, author)


def _about(data: object, wish: str, actor: str) -> Request:
    """Return the request about an issue or a pull request, which has the fields of an issue here."""
    is_pull = at(data, "issue", "pull_request") is not None
    return asked(
        "github",
        text_at(data, "repository", "full_name"),
        "pull" if is_pull else "issue",
        number_at(data, "issue", "number"),
        text_at(data, "issue", "title"),
        text_at(data, "issue", "body"),
        wish,
        actor,
        None if is_pull else text_at(data, "repository", "default_branch"),
    )


def _failed(data: object, name: str) -> Request | Ignored:
    run = at(data, name)
    branch = text_at(run, "head_branch") or text_at(run, "check_suite", "head_branch")
    project = text_at(data, "repository", "full_name")
    if text_at(data, "action") != "completed" or text_at(run, "conclusion") not in FAILURES:
        return Ignored("the check did not fail")
    # If the head is in a fork, a check_run's suite names no repository, and then no branch either.
    if (
        not branch
        or text_at(run, "head_repository", "full_name") not in (project, "")
        or (name == "workflow_run" and not text_at(run, "head_repository", "full_name"))
    ):
        return Ignored("the check ran on a fork, where nothing can be published")
    if branch.startswith(BRANCH_PREFIX):
        return Ignored(f"{branch} is a branch of ours: its failures show in its pull request")
    pulls = at(run, "pull_requests") or []
    output = "\n\n".join(filter(None, (text_at(run, "output", part) for part in ("title", "summary", "text"))))
    return asked(
        "github",
        project,
        "check",
        number_at(run, "pull_requests", 0, "number") if pulls else None,
        text_at(run, "name"),
        output,
        target=branch,
        commit=commit_at(run, "head_sha"),
    )
