"""Reads GitLab's webhooks, as a triggered pipeline gets them: a labelled issue, a comment, a failed pipeline.

Payloads: https://docs.gitlab.com/user/project/integrations/webhook_events/. A webhook does not say what its user may do: GitLab is
queried for that before anything is published, and ``--allow`` names those who may start a run by a comment. Pure.
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


def read(data: object, rules: Rules) -> Request | Ignored:
    """Return the request in a webhook. Raises UsageError if the webhook lacks a required field."""
    match text_at(data, "object_kind"):
        case "issue":
            return _labelled(data, rules)
        case "note":
            return _commented(data, rules)
        case "pipeline":
            return _failed(data)
        case kind:
            return Ignored(f"a webhook of kind {kind!r} asks for nothing")


def _labelled(data: object, rules: Rules) -> Request | Ignored:
    """Read an issue that got the label by an update: anyone who opens an issue may label it then, but later it needs a permission."""
    before, after = (
        {text_at(label, "title") for label in at(data, "changes", "labels", when) or []}
        for when in ("previous", "current")
    )
    if text_at(data, "object_attributes", "action") != "update" or rules.label not in after - before:
        return Ignored(f"the issue was not given the label {rules.label!r}")
    return _about(data, "issue", at(data, "object_attributes"), "")


def _commented(data: object, rules: Rules) -> Request | Ignored:
    note = at(data, "object_attributes")
    wish = wish_in(text_at(note, "note"), rules.word)
    if text_at(note, "action") not in ("create", "") or wish is None:
        return Ignored(f"no new comment that begins with {rules.word!r}")
    author = text_at(data, "user", "username")
    if author not in rules.allow:
        return Ignored(f"{author} may not ask by a comment: --allow names those who may")
    match text_at(note, "noteable_type"):
        case "Issue":
            return _about(data, "issue", at(data, "issue"), wish)
        case "MergeRequest" if _is_from_fork(at(data, "merge_request")):
            return Ignored("the merge request comes from a fork, where nothing can be published")
        case "MergeRequest":
            return _about(data, "pull", at(data, "merge_request"), wish)
        case kind:
            return Ignored(f"a comment on a {kind} asks for nothing")


def _about(data: object, kind: str, thing: object, wish: str) -> Request:
    """Return the request about an issue or a merge request."""
    return asked(
        "gitlab",
        str(number_at(data, "project", "id")),
        kind,
        number_at(thing, "iid"),
        text_at(thing, "title"),
        text_at(thing, "description"),
        wish,
        str(number_at(data, "user", "id")),
        None if kind == "pull" else text_at(data, "project", "default_branch"),
        commit_at(thing, "last_commit", "id"),
    )


def _failed(data: object) -> Request | Ignored:
    pipeline, merge_request = at(data, "object_attributes"), at(data, "merge_request")
    branch = text_at(pipeline, "ref")
    if text_at(pipeline, "status") not in FAILURES or at(pipeline, "tag"):
        return Ignored("no pipeline of a branch failed")
    if merge_request is not None and _is_from_fork(merge_request):
        return Ignored("the pipeline ran on a fork, where nothing can be published")
    if merge_request is not None:
        branch = text_at(merge_request, "source_branch")
    if branch.startswith(BRANCH_PREFIX):
        return Ignored(f"{branch} is a branch of ours: its failures show in its merge request")
    builds = at(data, "builds") or []
    failed = [
        f"- {text_at(build, 'name')} ({text_at(build, 'stage')}): {text_at(build, 'failure_reason') or 'failed'}"
        for build in builds
        if text_at(build, "status") in FAILURES and not at(build, "allow_failure")
    ]
    return asked(
        "gitlab",
        str(number_at(data, "project", "id")),
        "check",
        number_at(merge_request, "iid") if merge_request is not None else None,
        text_at(pipeline, "name") or "pipeline",
        "\n".join(failed),
        target=branch,
        commit=commit_at(pipeline, "sha"),
    )


def _is_from_fork(merge_request: object) -> bool:
    source, target = (at(merge_request, f"{side}_project_id") for side in ("source", "target"))
    return source is None or source != target
