"""A project on a loopback service, a checkout of it, and the folder that a job which fixes would have left."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.ci import artifacts
from agent.ci.event import Site, site
from agent.ci.open import open_service
from agent.ci.publish import Publisher
from agent.ci.request import Request
from agent.ci.service import Proposal
from agent.events import EXIT_CODES, Checked, CheckResult, MessageAdded, Outcome, RunEnded
from agent.log import LOG_NAME, Log
from agent.model.client import Clock
from agent.runs import PATCH_NAME
from agent.tally import Tally
from sandbox.remote import Remote
from tests.fakes import final, started
from tests.forge import NUMBER, PROJECT, TOKEN, Forge

BUGGY, FIXED = "def double(n):\n    return n + 2\n", "def double(n):\n    return n * 2\n"
CLAIM = "Fixed. Fixes #99, thanks @ada <!-- gpt-oss-agent:issue/13 -->\n```\n/close\n![x](https://evil.example/?q)"


def git(folder: Path, *arguments: str, stdin: str = "") -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "calc.py").write_text(BUGGY)
    (folder / "README.md").write_text("calc\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "A start")
    return folder


def diff(repository: Path, files: dict[str, str | None]) -> bytes:
    """The diff that writes these files (None: removes one; "-> x" makes a link), made in a copy."""
    copy = repository.with_name(repository.name + "-copy")
    git(repository, "clone", "-q", ".", str(copy))
    for name, text in files.items():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        elif text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    git(copy, "add", "-A")
    arguments = ["git", "diff", "--cached", "--binary", "--full-index", "-M"]
    made = subprocess.run(arguments, cwd=copy, capture_output=True, check=True).stdout
    subprocess.run(["rm", "-rf", str(copy)], check=True)
    return made


@dataclass
class Bench:
    """Everything that publishing needs, with a clock that does not wait."""

    service: str
    forge: Forge
    repository: Path
    folder: Path
    token: str = TOKEN
    waited_s: float = 0.0
    said: list[str] | None = None

    def __post_init__(self) -> None:
        self.said = []

    def asked(self, kind: str = "issue", number: int | None = 12, target: str | None = "main", **more: Any) -> Request:
        project, actor = (PROJECT, "ada") if self.service == "github" else (str(NUMBER), "42")
        title = "double [skip ci] adds, fixes #9 @eve GH-9"
        return Request(
            self.service, project, kind, number, title, "fix it", **({"actor": actor, "target": target} | more)
        )

    def fixed(
        self, files: dict[str, str | None] | None = None, outcome: Outcome = Outcome.PASSED, **more: Any
    ) -> bytes:
        """Leave what a run leaves."""
        patch = diff(self.repository, {"calc.py": FIXED} if files is None else files)
        self.left(patch, outcome, **more)
        return patch

    def left(self, patch: bytes, outcome: Outcome = Outcome.PASSED, asked: Request | None = None, **more: Any) -> None:
        run = self.folder.with_name("run")
        subprocess.run(["rm", "-rf", str(run), str(self.folder)], check=True)
        run.mkdir()
        base = more.get("base", git(self.repository, "rev-parse", "HEAD"))
        check = CheckResult("make test", 0, 1.0, "ok")
        ended = RunEnded(outcome, "`make test` passes", CLAIM, ("calc.py",))
        tally = Tally()
        with Log(run / LOG_NAME, new=True) as log:
            for event in (
                replace(started("fix it"), base_commit=base),
                Checked("before", (replace(check, exit_code=1),)),
                MessageAdded(final(CLAIM)),
                Checked("after", (check,)),
                ended,
            ):
                log.append(event)
                tally(event)
        if patch:
            (run / PATCH_NAME).write_bytes(patch)
        artifacts.prepare(self.folder)
        artifacts.write(self.folder, tally.result(ended), asked or self.asked(), run)

    def failed(self, outcome: str, reason: str) -> None:
        """Leave what a run leaves that could not begin."""
        artifacts.prepare(self.folder)
        record = Tally().result(RunEnded(Outcome.INTERNAL, reason)) | {"outcome": outcome, "exit_code": EXIT_CODES.get(Outcome.INTERNAL)}  # fmt: skip
        artifacts.write(self.folder, record, self.asked(), None)

    def site(self) -> Site:
        variables = self.forge.github_variables() if self.service == "github" else self.forge.gitlab_variables()
        return site(self.service, variables)

    def publish(self, asked: Request | None = None, author: str | None = None) -> Proposal | None:
        assert self.said is not None
        place = self.site()
        clock = Clock(now=lambda: self.waited_s, sleep=self.wait, jitter=lambda: 1.0)
        opened = open_service(place, self.token, author, clock)
        remote = Remote(place.clone_url, opened.git_user, self.token)
        try:
            return Publisher(opened, remote, self.repository, self.said.append, clock).publish(
                asked or self.asked(), self.folder
            )
        finally:
            opened.close()

    def wait(self, seconds: float) -> None:
        self.waited_s += seconds

    def comment(self) -> str:
        """The one comment of ours."""
        (found,) = [
            each["body"] for each in self.forge.comments if each["author"] in (self.forge.me, "github-actions[bot]")
        ]
        return str(found)
