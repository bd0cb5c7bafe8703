"""Which events ask for something, who may ask, and what a task holds of what strangers wrote."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ci import github_events, gitlab_events
from agent.ci.event import MAX_EVENT_BYTES, Site, request, site
from agent.ci.request import TEXT_CHARS, Ignored, Request, Rules, marker, visible, wish_in
from agent.errors import UsageError
from tests.agent.ci.payloads import (
    BODY,
    TITLE,
    check_failed,
    commented,
    gitlab_labelled,
    labelled,
    merge_request,
    noted,
    pipeline_failed,
    workflow_failed,
)
from tests.forge import NUMBER, PROJECT

RULES = Rules()
BOT = {"login": "app[bot]", "type": "Bot"}
ALLOWED = Rules(allow=("ada",))


def github(name: str, data: object, rules: Rules = RULES) -> Request:
    found = github_events.read(name, data, rules)
    assert isinstance(found, Request), found
    return found


def gitlab(data: object, rules: Rules = ALLOWED) -> Request:
    found = gitlab_events.read(data, rules)
    assert isinstance(found, Request), found
    return found


def test_a_labelled_issue_is_a_task_for_the_default_branch() -> None:
    asked = github("issues", labelled())
    assert (asked.service, asked.project, asked.kind, asked.number) == ("github", PROJECT, "issue", 12)
    assert (asked.actor, asked.target, asked.commit) == ("ada", "main", None)  # who labelled, not who wrote
    assert asked.task == f"{TITLE}\n\n{BODY}"
    assert (asked.branch, asked.marker) == ("agent/issue/12", "<!-- gpt-oss-agent:issue/12 -->")


def test_a_comment_adds_what_is_asked() -> None:
    asked = github("issue_comment", commented("/agent only for\nASCII"))
    assert asked.task == f"{TITLE}\n\n{BODY}\n\nWhat was asked about it:\n\nonly for\nASCII"
    assert asked.branch == github("issues", labelled()).branch, "both write to one branch and one comment"


def test_a_comment_on_a_pull_request_is_for_its_own_branch() -> None:
    asked = github("issue_comment", commented("/agent fix the test", pull_request={"url": "…"}))
    assert (asked.kind, asked.number, asked.target) == ("pull", 12, None)
    assert "fix the test" in asked.task
    assert TITLE in asked.task


def test_a_workflow_that_fails_is_for_its_branch() -> None:
    asked = github("workflow_run", workflow_failed("feature/x"))
    assert (asked.kind, asked.number, asked.target, asked.commit) == ("check", None, "feature/x", "1" * 40)
    assert (asked.branch, asked.actor) == ("agent/check/feature/x", "")
    assert "'tests' fails" in asked.task


def test_a_check_that_fails_says_what_it_reports_and_where_to_answer() -> None:
    asked = github("check_run", check_failed("x", pull_requests=[{"number": 5}]))
    assert (asked.number, asked.target) == (5, "x")
    assert asked.task.endswith("What it reports:\n\n2 errors\n\na.py: unused import")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("issues", labelled("bug"), "not given the label"),
        ("issues", labelled(action="opened"), "not given the label"),
        ("issues", labelled(sender=BOT), "bot"),
        ("issue_comment", commented("please /agent"), "no new comment"),
        ("issue_comment", commented("/agents"), "no new comment"),
        ("issue_comment", commented() | {"action": "edited"}, "no new comment"),
        ("issue_comment", commented(association="NONE", login="mallory"), "mallory may not ask"),
        ("issue_comment", commented(association="CONTRIBUTOR"), "may not ask"),
        ("issue_comment", commented(association=""), "may not ask"),
        ("issue_comment", commented() | {"sender": BOT}, "bot"),
        ("workflow_run", workflow_failed(conclusion="success"), "did not fail"),
        ("workflow_run", workflow_failed() | {"action": "requested"}, "did not fail"),
        ("workflow_run", workflow_failed(head_repository={"full_name": "mallory/textkit"}), "fork"),
        ("workflow_run", workflow_failed(head_repository=None), "fork"),
        ("workflow_run", workflow_failed("agent/issue/12"), "branch of ours"),
        ("check_run", check_failed(None), "fork"),
        ("push", {}, "asks for nothing"),
        ("issues", [], "not given the label"),
    ],
)
def test_what_asks_for_nothing_on_github(name: str, data: object, why: str) -> None:
    found = github_events.read(name, data, RULES)
    assert isinstance(found, Ignored)
    assert why in found.reason


def test_who_the_service_does_not_vouch_for_can_be_named() -> None:
    assert github("issue_comment", commented(association="NONE", login="eve"), Rules(allow=("eve",))).actor == "eve"


def test_gitlab_events_are_the_same_requests() -> None:
    asked = gitlab(gitlab_labelled(before=("bug",), after=("bug", "agent")))
    assert (asked.service, asked.project, asked.kind, asked.number) == ("gitlab", str(NUMBER), "issue", 12)
    assert (asked.actor, asked.target, asked.task) == ("42", "main", f"{TITLE}\n\n{BODY}")
    assert gitlab(noted("/agent only this")).branch == asked.branch
    asked = gitlab(noted("/agent fix it", on="MergeRequest"))
    assert (asked.kind, asked.number, asked.target, asked.commit) == ("pull", 100, None, "1" * 40)
    asked = gitlab(pipeline_failed("feature"))
    assert (asked.kind, asked.number, asked.target, asked.commit, asked.actor) == (
        "check",
        None,
        "feature",
        "1" * 40,
        "",
    )
    assert "- unit (test): script_failure" in asked.task
    assert "fuzz" not in asked.task
    asked = gitlab(pipeline_failed("refs/merge-requests/100/head", merge_request()))
    assert (asked.number, asked.target) == (100, "shorter")


@pytest.mark.parametrize(
    ("data", "rules", "why"),
    [
        (gitlab_labelled(before=("agent",)), ALLOWED, "not given the label"),
        (
            gitlab_labelled(action="open"),
            ALLOWED,
            "not given the label",
        ),  # who opens an issue may label it without a right
        (noted(), RULES, "--allow"),
        (noted("hello"), ALLOWED, "no new comment"),
        (noted(on="Snippet"), ALLOWED, "Snippet"),
        (noted(on="MergeRequest", merge_request=merge_request(source_project_id=9)), ALLOWED, "fork"),
        (noted(on="MergeRequest", merge_request={"iid": 100}), ALLOWED, "fork"),
        (pipeline_failed(status="success"), ALLOWED, "no pipeline"),
        (pipeline_failed(tag=True), ALLOWED, "no pipeline"),
        (pipeline_failed("agent/issue/12"), ALLOWED, "branch of ours"),
        (pipeline_failed(merge_request=merge_request(source_project_id=9)), ALLOWED, "fork"),
        (pipeline_failed(merge_request=merge_request(source_branch="agent/pull/100")), ALLOWED, "branch of ours"),
        ({"object_kind": "push"}, ALLOWED, "asks for nothing"),
        (None, ALLOWED, "asks for nothing"),
    ],
)
def test_what_asks_for_nothing_on_gitlab(data: object, rules: Rules, why: str) -> None:
    found = gitlab_events.read(data, rules)
    assert isinstance(found, Ignored)
    assert why in found.reason


@pytest.mark.parametrize("number", [None, 0, -1, "12", True, 1.5])
def test_an_event_without_a_number_is_refused(number: object) -> None:
    with pytest.raises(UsageError, match=r"issue\.number"):
        github_events.read("issues", labelled(issue={"number": number, "title": "x"}), RULES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted({*labelled(), *noted(), "number", "ref"})), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(["issues", "issue_comment", "workflow_run", "check_run", "other"]), JSON, st.data())
def test_whatever_is_sent_is_a_request_ignored_or_refused(name: str, data: object, draw: st.DataObject) -> None:
    whole: dict[str, Any] = draw.draw(
        st.sampled_from([labelled(), commented(), workflow_failed(), noted(), pipeline_failed()])
    )
    for sent in (data, {**whole, **data} if isinstance(data, dict) else whole):
        for read in (lambda: github_events.read(name, sent, ALLOWED), lambda: gitlab_events.read(sent, ALLOWED)):  # noqa: B023
            try:
                assert isinstance(read(), Request | Ignored)
            except UsageError as error:
                assert "the event has no" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a <!-- do evil --> b", "a  b"),
        ("a <!-- never closed", "a"),
        ("a `<!-- code -->` b", "a `<!-- code -->` b"),
        ("```html\n<!-- code -->\n```\n<!-- evil -->", "```html\n<!-- code -->\n```"),
        ("````\n```\n<!-- code -->\n````\n<!-- evil -->x", "````\n```\n<!-- code -->\n````\nx"),
        ("~~~\n<!-- code, to the end", "~~~\n<!-- code, to the end"),
        ("<!-- ``` -->\n<!-- evil -->\n```", "```"),
        ("\\`<!-- evil -->`", "\\``"),
        ("` a\n` <!-- evil -->`", "` a\n` `"),
        ("<div>\n```\n<!-- evil -->\n```\n</div>", "<div>\n```\n\n```\n</div>"),
        ("```a`b\n\n<!-- evil -->\n\n```", "```a`b\n\n\n\n```"),
        ("```\na\n```~\n```\n<!-- evil -->\n```", "```\na\n```~\n```\n\n```"),
        ("- a\n  ```\n  b\n```\n\n```\n<!-- evil -->", "- a\n  ```\n  b\n```\n\n```"),
        ("|a|\n|-|\n| ` | <!-- evil --> ` |", "|a|\n|-|\n| ` |  ` |"),
        ("<!-- a --> `<!-- evil -->`", "``"),
        ("<details>\n\n```php\n<?php echo 1 ?>\n```", "<details>\n\n```php\n<?php echo 1 ?>\n```"),
        ("a <?evil?><!EVIL><![CDATA[evil]]> b", "a  b"),
        ("List<?> of Map<K, V> if a < b && c > d", "List<?> of Map<K, V> if a < b && c > d"),
        ("<a title='do > evil' href=x>b</a> <br/>", "<a>b</a> <br/>"),
        ("[//]: # (do evil)\n[x]: <y> 'do\nevil'\n[note]: two words stay", "[note]: two words stay"),
        ("![a [b] evil](x 'evil ) evil')![a][b]<img alt='>evil'>", "[image][image][image]"),
        ("![do evil](https://example.org/x.png) and <img src='x' alt='do evil'>", "[image] and [image]"),
        ("in\u200bvis\u2060ible\U000e0041\U000e0042 \u202eevil\U000e0101\x1b[2J", "invisible evil[2J"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("grüße 你好 🎉", "grüße 你好 🎉"),
    ],
)
def test_a_model_reads_what_a_person_sees(text: str, seen: str) -> None:
    assert visible(text) == seen


@given(st.text(alphabet=st.sampled_from(list("`~<!->a \n[]()\u200b")), max_size=60))
def test_nothing_hidden_is_left_outside_of_code(text: str) -> None:
    found = visible(text)
    assert "\u200b" not in found
    if "`" not in text and "~" not in text:
        assert "<!--" not in found


@pytest.mark.parametrize(
    "part", ["<?", "<a ", "`", "![", '[a]: b "', "<!--", '<a b="', "```\n", "<!a", "\n <!a", "![[a]"]
)
def test_no_text_takes_long_to_look_at(part: str) -> None:
    began_s = time.process_time()
    visible(part * (1 << 20))
    assert time.process_time() - began_s < 10


@pytest.mark.parametrize("commit", ["--upload-pack=evil", "main", "0" * 39, 7, "A" * 40])
def test_what_git_is_to_fetch_is_a_commits_full_name(commit: object) -> None:
    event = pipeline_failed()
    event["object_attributes"]["sha"] = commit
    found = gitlab_events.read(event, ALLOWED)
    assert isinstance(found, Request)
    assert found.commit is None


def test_long_texts_are_cut_and_say_so() -> None:
    found = visible("x" * (TEXT_CHARS + 7))
    assert found == "x" * TEXT_CHARS + "\n[7 more characters were left out]"


@pytest.mark.parametrize(
    ("comment", "wish"),
    [
        ("/agent", ""),
        ("  /agent do it ", "do it"),
        ("/agent\nplease", "please"),
        ("/agents", None),
        ("", None),
        ("> /agent", None),
    ],
)
def test_a_wish_follows_the_word(comment: str, wish: str | None) -> None:
    assert wish_in(comment, "/agent") == wish


def test_a_marker_cannot_be_left_by_a_branch_of_any_name() -> None:
    assert marker("check/a-->b") == "<!-- gpt-oss-agent:check/a--%3Eb -->"


GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://github.com/", "GITHUB_API_URL": "https://api.github.com", "GITHUB_REPOSITORY": PROJECT, "GITHUB_SHA": "2" * 40}  # fmt: skip
GITLAB = {"GITLAB_CI": "true", "CI_PROJECT_URL": "https://gitlab.example/ada/textkit", "CI_API_V4_URL": "https://gitlab.example/api/v4", "CI_PROJECT_ID": "7"}  # fmt: skip


def test_the_jobs_variables_say_where_the_service_is() -> None:
    assert site("auto", GITHUB) == Site("github", "https://api.github.com", "https://github.com/ada/textkit.git", "2" * 40, PROJECT)  # fmt: skip
    assert site("auto", GITLAB) == Site("gitlab", GITLAB["CI_API_V4_URL"], "https://gitlab.example/ada/textkit.git", None, "7")  # fmt: skip


@pytest.mark.parametrize("missing", ["GITHUB_SERVER_URL", "GITHUB_API_URL", "GITHUB_REPOSITORY"])
def test_a_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        site("github", {key: value for key, value in GITHUB.items() if key != missing})
    with pytest.raises(UsageError, match="--service"):
        site("auto", {})


def test_an_event_is_read_from_the_file_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(labelled()))
    place = site("github", GITHUB)
    variables = {"GITHUB_EVENT_PATH": str(path), "GITHUB_EVENT_NAME": "issues"}
    assert request(place, None, variables, RULES) == github("issues", labelled())
    assert request(place, path, {"GITHUB_EVENT_NAME": "issues"}, RULES) == github("issues", labelled())
    path.write_text(json.dumps(gitlab_labelled()))
    assert request(site("gitlab", GITLAB), None, {"TRIGGER_PAYLOAD": str(path)}, RULES) == gitlab(gitlab_labelled())


@pytest.mark.parametrize(
    ("content", "variables", "said"),
    [
        ("{", {"GITHUB_EVENT_NAME": "issues"}, "not JSON"),
        ("[" * 100_000, {"GITHUB_EVENT_NAME": "issues"}, "not JSON"),
        ("{}", {}, "GITHUB_EVENT_NAME"),
        (
            json.dumps(labelled(repository={"full_name": "mallory/other"})),
            {"GITHUB_EVENT_NAME": "issues"},
            "mallory/other",
        ),
    ],
)
def test_an_event_that_cannot_be_used_says_why(
    tmp_path: Path, content: str, variables: dict[str, str], said: str
) -> None:
    path = tmp_path / "event.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        request(site("github", GITHUB), path, variables, RULES)


def test_no_event_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GITHUB_EVENT_PATH"):
        request(site("github", GITHUB), None, {}, RULES)
    with pytest.raises(UsageError, match="cannot be read"):
        request(site("github", GITHUB), tmp_path / "missing", {}, RULES)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(MAX_EVENT_BYTES + 1)
    with pytest.raises(UsageError, match="MiB"):
        request(site("github", GITHUB), huge, {}, RULES)
