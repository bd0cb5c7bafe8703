"""From artifacts to a branch, a pull request and a comment, at both services, with real git over HTTP; and all that may go wrong."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ci import artifacts, words
from agent.errors import PolicyRefused, ServiceError
from agent.events import Outcome
from agent.log import LOG_NAME
from agent.runs import PATCH_NAME
from sandbox.errors import DiffRefused, WorktreeError
from tests import forge as forges
from tests.agent.ci.bench import BUGGY, CLAIM, FIXED, Bench, diff, git, make_repository
from tests.forge import TOKEN, Fault

BRANCH = "agent/issue/12"
MARKER = "<!-- gpt-oss-agent:issue/12 -->"


@pytest.fixture(params=["github", "gitlab"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    repository = make_repository(tmp_path / "checkout")
    with forges.serving(repository, tmp_path) as forge:
        yield Bench(request.param, forge, repository, tmp_path / "artifacts")


ON_GITHUB = pytest.mark.parametrize("bench", ["github"], indirect=True)


def message(bench: Bench, branch: str = BRANCH) -> str:
    return bench.forge.git("log", "-1", "--format=%B", branch)


def test_a_change_becomes_a_branch_a_pull_request_and_a_comment(bench: Bench) -> None:
    bench.fixed()
    before = git(bench.repository, "status", "--porcelain"), git(bench.repository, "for-each-ref")
    proposal = bench.publish()
    assert proposal is not None
    assert proposal.new
    assert bench.forge.git("rev-parse", f"{BRANCH}^") == git(bench.repository, "rev-parse", "HEAD")
    assert bench.forge.git("show", f"{BRANCH}:calc.py") == FIXED.strip()
    assert bench.forge.git("log", "-1", "--format=%an <%ae> %cn", BRANCH) == "gpt-oss-agent <agent@gpt-oss-agent.invalid> gpt-oss-agent"  # fmt: skip
    ((number, pull),) = bench.forge.pulls.items()
    assert (pull["branch"], pull["target"]) == (BRANCH, "main")
    assert pull["body"].startswith(f"{MARKER}\nFixes #12.\n")
    assert bench.comment().startswith(f"{MARKER}\nA change is proposed in {'#' if bench.service == 'github' else '!'}{number}: passed.")  # fmt: skip
    assert (git(bench.repository, "status", "--porcelain"), git(bench.repository, "for-each-ref")) == before


def test_what_others_wrote_does_nothing_where_it_is_shown(bench: Bench) -> None:
    bench.fixed()
    bench.publish()
    (pull,) = bench.forge.pulls.values()
    assert pull["title"] == "double skip ci adds, fixes 9 eve 9"
    assert message(bench).splitlines()[0] == pull["title"]
    for text in (message(bench), pull["title"]):
        assert not set(text.splitlines()[0]) & set("#@[]:`<>!")
    assert CLAIM.splitlines()[0] not in message(bench), "the model's words are in no commit message"
    body = pull["body"]
    assert body.count("<!--") == 1, "one marker, ours"
    fence = body.index("````\nFixed.")
    end = body.index("\n````", fence + 4)
    for text in ("#99", "@ada", "evil.example", "/close"):
        assert body.count(text) == 1
        assert fence < body.index(text) < end
    assert "\n/close" not in body


def test_publishing_again_changes_nothing(bench: Bench) -> None:
    bench.fixed()
    bench.publish()
    at, writes = bench.forge.tip(BRANCH), bench.forge.writes()
    proposal = bench.publish()
    assert proposal is not None
    assert not proposal.new
    assert bench.forge.tip(BRANCH) == at
    assert bench.forge.writes() == writes


def test_the_next_event_brings_the_same_three_up_to_date(bench: Bench) -> None:
    bench.fixed()
    bench.publish()
    first = bench.forge.tip(BRANCH)
    (bench.repository / "README.md").write_text("calc, and more\n")  # meanwhile main went on
    git(bench.repository, "commit", "-q", "-am", "More")
    git(bench.repository, "push", "-q", str(bench.forge.git_dir), "main")
    bench.fixed({"calc.py": FIXED + "\n\nhalf = 1 / 2\n"}, Outcome.UNVERIFIED)
    proposal = bench.publish()
    assert proposal is not None
    assert not proposal.new
    assert bench.forge.tip(BRANCH) != first
    assert bench.forge.git("rev-list", "--count", f"main..{BRANCH}") == "1"
    (pull,) = bench.forge.pulls.values()
    assert pull["body"].startswith(f"{MARKER}\nFor #12.\n"), "what no check saw closes no issue"
    assert "half" in pull["body"]
    assert ": unverified." in bench.comment()


def test_after_a_merge_there_is_a_new_pull_request_on_the_same_branch(bench: Bench) -> None:
    bench.fixed()
    bench.publish()
    next(iter(bench.forge.pulls.values()))["state"] = "merged"
    proposal = bench.publish()
    assert proposal is not None
    assert proposal.new
    assert len(bench.forge.pulls) == 2


@pytest.mark.parametrize("outcome", [Outcome.CHECKS_FAILED, Outcome.NO_CHANGE, Outcome.REFUSED])
def test_what_is_not_good_enough_is_answered_and_not_proposed(bench: Bench, outcome: Outcome) -> None:
    bench.fixed(outcome=outcome)
    assert bench.publish() is None
    assert bench.forge.tip(BRANCH) is None
    assert not bench.forge.pulls
    assert outcome.value.replace("_", " ") in bench.comment()


def test_a_run_that_could_not_begin_is_answered(bench: Bench) -> None:
    bench.failed("sandbox", "no Docker engine answers <!-- x -->")
    assert bench.publish() is None
    assert "no Docker engine answers" in bench.comment()
    assert bench.comment().count("<!--") == 1


@ON_GITHUB
def test_a_job_that_died_is_answered(bench: Bench) -> None:
    assert bench.publish() is None
    assert "ended without a result" in bench.comment()


@ON_GITHUB
def test_nothing_asked_is_nothing_published(bench: Bench) -> None:
    bench.failed("ignored", "no label")
    assert bench.publish() is None
    assert not bench.forge.comments


def test_a_pull_requests_own_branch_is_the_target(bench: Bench) -> None:
    git(bench.repository, "switch", "-q", "-c", "shorter")
    git(bench.repository, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(bench.repository, "push", "-q", str(bench.forge.git_dir), "shorter")
    number = bench.forge.open_pull("shorter", "main")
    bench.fixed()
    asked = bench.asked("pull", number, None)
    bench.publish(asked)
    pull = bench.forge.pulls[number + 1]
    assert (pull["branch"], pull["target"]) == (f"agent/pull/{number}", "shorter")
    assert "For " in pull["body"].splitlines()[1]
    (comment,) = bench.forge.comments
    assert comment["number"] == number


def test_a_pull_request_that_moved_or_comes_from_a_fork_is_left_alone(bench: Bench) -> None:
    git(bench.repository, "push", "-q", str(bench.forge.git_dir), "main:shorter")
    number = bench.forge.open_pull("shorter", "main")
    bench.fixed()
    copy = bench.repository.with_name("elsewhere")
    git(bench.repository, "clone", "-q", "-b", "shorter", str(bench.forge.git_dir), str(copy))
    git(copy, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(copy, "push", "-q", "origin", "HEAD")
    asked = bench.asked("pull", number, None)
    with pytest.raises(PolicyRefused, match="has moved"):
        bench.publish(asked)
    assert "ask again" in bench.comment()
    bench.forge.pulls[number]["in_project"] = False
    with pytest.raises(PolicyRefused, match="fork"):
        bench.publish(asked)
    assert bench.forge.tip(asked.branch) is None


def test_a_failing_check_has_a_pull_request_and_no_comment(bench: Bench) -> None:
    bench.fixed()
    asked = bench.asked("check", None, "main", actor="")
    bench.publish(asked)
    (pull,) = bench.forge.pulls.values()
    assert (pull["branch"], pull["target"]) == ("agent/check/main", "main")
    assert pull["title"].startswith("Fix ")
    assert not bench.forge.comments


# Who may not


@pytest.mark.parametrize("role", ["read", None])
def test_who_may_not_write_gets_nothing_not_even_a_comment(bench: Bench, role: str | None) -> None:
    bench.forge.roles = {} if role is None else {"ada": role, "42": role}
    bench.fixed()
    with pytest.raises(PolicyRefused, match="has no write access"):
        bench.publish()
    assert not bench.forge.writes()
    assert bench.forge.tip(BRANCH) is None


# Somebody else's branch


@ON_GITHUB
@pytest.mark.parametrize("how", ["added", "amended", "merged", "theirs"])
def test_a_branch_that_somebody_worked_on_is_left_alone(bench: Bench, how: str) -> None:
    bench.fixed()
    copy = bench.repository.with_name("elsewhere")
    if how == "theirs":
        git(bench.repository, "push", "-q", str(bench.forge.git_dir), f"main:refs/heads/{BRANCH}")
    else:
        bench.publish()
    git(bench.repository, "clone", "-q", "-b", BRANCH, str(bench.forge.git_dir), str(copy))
    if how == "added":
        git(copy, "commit", "-q", "--allow-empty", "-m", "mine")
    elif how == "amended":
        git(copy, "commit", "-q", "--amend", "--no-edit", "--reset-author")
    elif how == "merged":
        git(copy, "commit", "-q", "--allow-empty", "-m", "side")
        git(copy, "checkout", "-q", "-b", "x", "HEAD^")
        git(copy, "merge", "-q", "--no-ff", "-m", "merge", BRANCH)
        git(copy, "branch", "-q", "-f", BRANCH, "x")
    git(copy, "push", "-q", "-f", "origin", BRANCH)
    theirs = bench.forge.tip(BRANCH)
    bench.fixed({"calc.py": FIXED + "# other\n"})
    with pytest.raises(PolicyRefused, match="somebody else has changed the branch"):
        bench.publish()
    assert bench.forge.tip(BRANCH) == theirs
    assert "somebody else" in bench.comment()


@ON_GITHUB
def test_a_push_that_comes_between_is_not_overwritten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease holds: what was looked at must still be there at the moment of the push."""
    from sandbox import remote

    bench.fixed()
    seal = remote.seal

    def meanwhile(*arguments: object) -> str:
        git(bench.repository, "push", "-q", str(bench.forge.git_dir), f"main:refs/heads/{BRANCH}")
        return seal(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote, "seal", meanwhile)
    with pytest.raises(PolicyRefused, match="somebody else"):
        bench.publish()
    assert bench.forge.tip(BRANCH) == git(bench.repository, "rev-parse", "main")


# A hostile artifact


@ON_GITHUB
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({".github/workflows/x.yml": "on: push\n"}, "configures the service"),
        ({".gitlab-ci.yml": "x: {script: [curl]}\n"}, "CI"),
        ({"tools/action.yml": "runs: {}\n"}, "action"),
        ({"AGENTS.md": "Obey.\n"}, "instructions"),
        ({"leak": "-> /etc/passwd"}, "link"),
        ({"leak": "-> ../../secret"}, "link"),
        ({"calc.py": FIXED, "docs/CODEOWNERS": "* @mallory\n"}, "review"),
    ],
)
def test_a_patch_that_may_not_leave_does_not(bench: Bench, files: dict[str, str | None], said: str) -> None:
    bench.fixed(files)
    with pytest.raises(DiffRefused, match=said):
        bench.publish()
    assert bench.forge.tip(BRANCH) is None
    assert "refused: nothing was published" in bench.comment()


NEW = "diff --git a/{0} b/{0}\nnew file mode 100644\nindex 0000000..e69de29\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+x\n"


@ON_GITHUB
@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (NEW.format("../../evil").encode(), "outside the repository"),
        (NEW.format(".git/hooks/pre-push").encode(), "git directory"),
        (NEW.format(".gitmodules").encode(), "submodules"),
        (b"#!/bin/sh\nrm -rf /\n", "line 1 of the diff"),
        (b"\xff\xfe\x00", "cut off"),
    ],
)
def test_a_patch_that_is_none_is_refused(bench: Bench, patch: bytes, said: str) -> None:
    bench.left(patch)
    with pytest.raises(DiffRefused, match=said):
        bench.publish()
    assert bench.forge.tip(BRANCH) is None


@ON_GITHUB
def test_a_patch_for_another_base_is_refused(bench: Bench) -> None:
    bench.fixed(base="0" * 40)
    with pytest.raises(PolicyRefused, match="is checked out here"):
        bench.publish()
    bench.left(diff(bench.repository, {"calc.py": FIXED}).replace(b"n + 2", b"n - 2"))
    with pytest.raises(PolicyRefused, match="does not apply to"):
        bench.publish()
    assert bench.forge.tip(BRANCH) is None


@ON_GITHUB
def test_a_patch_that_is_not_there_or_does_nothing_is_refused(bench: Bench) -> None:
    bench.left(b"")
    with pytest.raises(PolicyRefused, match="contains no patch"):
        bench.publish()


@ON_GITHUB
@pytest.mark.parametrize("name", [artifacts.RESULT_NAME, LOG_NAME, PATCH_NAME])
def test_a_link_or_a_pipe_in_the_artifact_is_refused(bench: Bench, name: str, tmp_path: Path) -> None:
    bench.fixed()
    secret = tmp_path / "secret"
    (bench.folder / name).rename(secret)
    (bench.folder / name).symlink_to(secret)
    with pytest.raises(PolicyRefused, match="not a regular file"):
        bench.publish()
    (bench.folder / name).unlink()
    os.mkfifo(bench.folder / name)
    with pytest.raises(PolicyRefused, match="not a regular file"):
        bench.publish()
    assert bench.forge.tip(BRANCH) is None


@ON_GITHUB
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (artifacts.RESULT_NAME, b"[1]", "not a result"),
        (artifacts.RESULT_NAME, b'{"outcome": "fine", "reason": "x"}', "'fine'"),
        (artifacts.RESULT_NAME, b'{"outcome": "passed"}', "not a result"),
        (artifacts.RESULT_NAME, b'{"outcome": "limit", "reason": "x"}', "contradicts itself"),
        (artifacts.RESULT_NAME, b"{", "not JSON"),
        (artifacts.RESULT_NAME, b"[" * 100_000, "not JSON"),
        (LOG_NAME, b"{}\n", "not an event record"),
        (LOG_NAME, b"[" * 100_000 + b"\n", "not a JSON record|maximum recursion"),
        (PATCH_NAME, b"x" * (artifacts.MAX_PATCH_BYTES + 1), "MiB"),
    ],
)
def test_an_artifact_that_we_did_not_write_is_refused(bench: Bench, name: str, content: bytes, said: str) -> None:
    bench.fixed()
    (bench.folder / name).write_bytes(content)
    with pytest.raises(PolicyRefused, match=said):
        bench.publish()
    assert bench.forge.tip(BRANCH) is None
    assert "refused" in bench.comment()


def leaves(data: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    match data:
        case dict():
            for key, value in data.items():
                yield from leaves(value, (*path, key))
        case list():
            for at, value in enumerate(data):
                yield from leaves(value, (*path, at))
        case _:
            yield path


@ON_GITHUB
@pytest.mark.parametrize(
    "odd", [float("nan"), float("inf"), -1, 10**4000, "", "\ud800", "\n::x::\n<!-- y -->", None, True, [], {}]
)
def test_a_log_with_anything_odd_in_it_is_read_or_refused(bench: Bench, odd: object) -> None:
    bench.fixed()
    log = bench.folder / LOG_NAME
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    for at, line in enumerate(lines):
        for path in leaves(line):
            forged = json.loads(json.dumps(lines))
            place = forged[at]
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = odd
            log.write_text("".join(json.dumps(each) + "\n" for each in forged))
            try:
                found = artifacts.read(bench.folder)
            except PolicyRefused:
                continue
            assert found is not None
            body = words.proposal(bench.asked(), found)
            assert body.count("<!--") == 1
            json.dumps(body).encode("ascii")


@ON_GITHUB
def test_prices_that_are_no_numbers_are_refused(bench: Bench) -> None:
    bench.fixed()
    log = bench.folder / LOG_NAME
    first, *rest = log.read_text().splitlines(keepends=True)
    record = json.loads(first)
    record["config"] = {"price_input": {}, "price_output": 1}
    log.write_text(json.dumps(record) + "\n" + "".join(rest))
    with pytest.raises(PolicyRefused, match="not one of ours"):
        artifacts.read(bench.folder)


def test_a_summary_in_the_artifact_is_not_believed(bench: Bench) -> None:
    bench.fixed()
    (bench.folder / artifacts.SUMMARY_NAME).write_text("@everyone read https://evil.example")
    (bench.folder / artifacts.PAGE_NAME).write_text("<script>evil</script>")
    record = json.loads((bench.folder / artifacts.RESULT_NAME).read_text())
    record["ci"] |= {"number": 1, "branch": "main", "project": "mallory/x", "marker": "<!-- other -->"}
    (bench.folder / artifacts.RESULT_NAME).write_text(json.dumps(record))
    bench.publish()
    (pull,) = bench.forge.pulls.values()
    assert "evil.example" not in pull["body"].split("````")[0]
    assert pull["branch"] == BRANCH
    assert bench.comment().startswith(MARKER)


@ON_GITHUB
def test_a_shallow_checkout_is_enough(bench: Bench) -> None:
    git(bench.repository, "commit", "-q", "--allow-empty", "-m", "second")
    git(bench.repository, "push", "-q", str(bench.forge.git_dir), "main")
    shallow = bench.repository.with_name("shallow")
    git(bench.repository, "clone", "-q", "--depth=1", f"file://{bench.forge.git_dir}", str(shallow))
    bench.fixed()
    bench.repository = shallow
    bench.publish()
    bench.publish()
    assert bench.forge.git("rev-list", "--count", f"main..{BRANCH}") == "1"


# Comments


def test_only_our_own_comment_is_replaced(bench: Bench) -> None:
    bench.forge.add_comment(12, "mallory", f"{MARKER}\nlooks like it")
    bench.forge.add_comment(12, bench.forge.me, f"I wrote {MARKER} once")
    bench.forge.add_comment(12, bench.forge.me, "<!-- gpt-oss-agent:issue/1 -->\nabout another")
    for number in range(120):
        bench.forge.add_comment(12, f"person{number}", "me too")
    bench.forge.add_comment(12, bench.forge.me, f"{MARKER}\nold")
    before = [dict(each) for each in bench.forge.comments]
    bench.failed("sandbox", "no engine")
    bench.publish()
    assert bench.forge.comments[:-1] == before[:-1]
    assert len(bench.forge.comments) == len(before)
    assert "no engine" in bench.forge.comments[-1]["body"]


@ON_GITHUB
def test_a_jobs_own_token_does_not_know_its_name(bench: Bench) -> None:
    bench.forge.knows_me = False
    bench.fixed()
    bench.publish()
    bench.failed("sandbox", "no engine")
    bench.publish()
    assert [each["author"] for each in bench.forge.comments] == ["github-actions[bot]"]
    assert "no engine" in bench.comment()


@ON_GITHUB
def test_the_name_can_be_given(bench: Bench) -> None:
    bench.forge.me = "other[bot]"
    bench.failed("sandbox", "no engine")
    bench.publish(author="other[bot]")
    bench.publish(author="other[bot]")
    assert len(bench.forge.comments) == 1
    assert not [each for each in bench.forge.requests if each[1].endswith("/user")]


# Faults


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("where", [r"POST .*(pulls|merge_requests)$", r"POST .*(comments|notes)$"])
def test_what_passes_is_asked_again_and_done_once(bench: Bench, where: str, after: bool) -> None:
    bench.fixed()
    bench.forge.faults = [Fault(where, 502, after=after), Fault(where, 429, {"Retry-After": "7"}, after=after)]
    bench.publish()
    assert len(bench.forge.pulls) == 1
    assert bench.comment()
    assert bench.waited_s >= (1.0 if after else 8.0)


@ON_GITHUB
@pytest.mark.parametrize("where", ["GET .*upload-pack", "GET .*receive-pack", "POST .*receive-pack"])
@pytest.mark.parametrize("after", [False, True])
def test_a_push_that_fails_is_made_again_and_done_once(bench: Bench, where: str, after: bool) -> None:
    bench.fixed()
    bench.forge.faults = [Fault(where, 503, after=after), Fault(where, 429)]
    bench.publish()
    assert bench.forge.git("rev-list", "--count", f"main..{BRANCH}") == "1"
    assert bench.waited_s >= 1.0
    assert len(bench.forge.pulls) == 1


@ON_GITHUB
def test_a_push_that_is_not_allowed_is_not_tried_again(bench: Bench) -> None:
    bench.fixed()
    bench.forge.faults = [Fault("GET .*receive-pack", 403)]
    with pytest.raises(WorktreeError, match=r"403(.|\n)*write access to contents"):
        bench.publish()
    assert bench.waited_s == 0


@ON_GITHUB
def test_a_spent_rate_limit_is_waited_for(bench: Bench) -> None:
    bench.fixed()
    bench.forge.faults = [
        Fault("permission", 403, {"Retry-After": "60"}, body={"message": "You have exceeded a secondary rate limit"}),
        Fault("POST .*pulls$", 403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}),
    ]
    bench.publish()
    assert 60 <= bench.waited_s < 70


def test_what_does_not_pass_ends_it_and_the_next_time_goes_on(bench: Bench) -> None:
    bench.fixed()
    bench.forge.faults = [Fault(r"POST .*(pulls|merge_requests)$", 403, body={"message": f"may not, {TOKEN}"})]
    with pytest.raises(ServiceError, match=r"may not, \*\*\*; the token may not do this") as caught:
        bench.publish()
    assert caught.value.status == 403
    assert bench.waited_s == 0
    assert bench.publish() is not None
    assert bench.comment()


@ON_GITHUB
def test_patience_ends(bench: Bench) -> None:
    bench.fixed()
    bench.forge.faults = [Fault("permission|members", 503)] * 50
    with pytest.raises(ServiceError, match="gave up after"):
        bench.publish()
    assert 60 < bench.waited_s <= 120
    bench.forge.faults = [Fault("permission|members", 429, {"Retry-After": "3600"})]
    with pytest.raises(ServiceError, match="due in 3600 s"):
        bench.publish()


@ON_GITHUB
def test_nobody_there(bench: Bench) -> None:
    bench.fixed()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        bench.forge.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceError, match="gave up after"):
            bench.publish()


# The token


def test_a_token_of_no_use_is_never_shown(bench: Bench) -> None:
    bench.fixed()
    bench.token = "ghs_this-one-is-wrong-000000000000"
    with pytest.raises(ServiceError, match="not valid") as caught:
        bench.publish()
    assert bench.token not in str(caught.value)
    assert bench.said is not None
    assert bench.token not in "".join(bench.said)


@ON_GITHUB
def test_a_server_that_refuses_the_push_is_quoted_without_the_token(bench: Bench) -> None:
    hook = bench.forge.git_dir / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\necho 'protected branch {TOKEN}' >&2\nexit 1\n")
    hook.chmod(0o755)
    bench.fixed()
    with pytest.raises(WorktreeError, match=r"protected branch \*\*\*") as caught:
        bench.publish()
    assert TOKEN not in str(caught.value)
    assert bench.forge.tip(BRANCH) is None


def test_the_token_goes_to_the_service_and_into_no_argument_or_file(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "bin"
    wrapper.mkdir()
    real = git(bench.repository, "--exec-path")
    (wrapper / "git").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\nexec {real}/git "$@"\n')
    (wrapper / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper}:{os.environ['PATH']}")
    bench.fixed()
    bench.publish()
    arguments = (tmp_path / "arguments").read_text()
    assert "push" in arguments
    assert TOKEN not in arguments
    assert "x-access-token" not in arguments
    for path in [*bench.repository.rglob("*"), *bench.forge.git_dir.rglob("*"), *bench.folder.rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@ON_GITHUB
def test_the_persons_git_has_no_say(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook, no helper, no rewritten URL of the runner's takes part in the push."""
    trap = tmp_path / "trap"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[core]\n\thooksPath = {home}\n[credential]\n\thelper = "!touch {trap}; false"\n'
        f'[url "file:///nowhere/"]\n\tinsteadOf = {bench.forge.url}\n[http]\n\tproxy = http://127.0.0.1:9\n'
    )
    (home / "pre-push").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (home / "pre-push").chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL")
    git(bench.repository, "config", "url.file:///nowhere/.insteadOf", bench.forge.url)
    bench.fixed()
    bench.publish()
    assert bench.forge.tip(BRANCH) is not None
    assert not trap.exists()
    assert (bench.repository / "calc.py").read_text() == BUGGY
