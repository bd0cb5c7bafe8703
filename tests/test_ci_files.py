"""The action, the workflow and the template are what the services take, pinned, and do what docs/ci.md says: their scripts are run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from agent.ci.request import Rules
from agent.policy import TOKEN_VARIABLES
from tests.agent.ci.payloads import pipeline_failed
from tests.e2e.conftest import ROOT, TASK, git
from tests.e2e.conftest import place as place
from tests.e2e.test_ci import BRANCH, Jobs, labelled
from tests.e2e.test_ci import jobs as jobs
from tests.forge import PROJECT, TOKEN

ACTION, WORKFLOW, TEMPLATE = ROOT / "action.yml", ROOT / "docs/ci/github.yml", ROOT / "docs/ci/gitlab.yml"
CONSTRAINTS = ROOT / "docs/ci/constraints.txt"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@pytest.mark.parametrize(
    ("schema", "path"),
    [("vendor.github-actions", ACTION), ("vendor.github-workflows", WORKFLOW), ("vendor.gitlab-ci", TEMPLATE)],
)
def test_the_service_takes_it(schema: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(ACTION)["runs"]["steps"]
    for job in read(WORKFLOW)["jobs"].values():
        found += job["steps"]
    return found


def test_everything_that_runs_is_pinned() -> None:
    for path in (ACTION, WORKFLOW):
        for line in path.read_text().splitlines():
            if found := re.search(r"uses: (\S+)(.*)", line):
                own = found[1] == "OWNER/gpt-oss-agent@COMMIT"
                assert own or re.fullmatch(r"\S+@[0-9a-f]{40}", found[1]), line
                assert own or re.fullmatch(r" # v\d+\.\d+\.\d+", found[2]), line
    template = read(TEMPLATE)
    for image in (template[".agent"]["image"], template["agent:fix"]["services"][0]["name"]):
        assert re.fullmatch(r"\w+:\d+\.\d+\.\d+-\w+", image)


def test_what_an_event_says_is_never_a_part_of_a_script() -> None:
    for step in steps():
        assert "${{" not in step.get("run", ""), step


def test_what_asks_for_nothing_pushes_no_request_out_of_the_queue() -> None:
    workflow = read(WORKFLOW)
    assert f"( {workflow['jobs']['fix']['if']} ) && 'asked' || github.run_id" in workflow["concurrency"]["group"]


def test_only_one_job_may_write() -> None:
    workflow = read(WORKFLOW)
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["fix"]["permissions"] == {"contents": "read"}
    assert set(workflow["jobs"]["publish"]["permissions"].values()) == {"write"}
    for job in workflow["jobs"].values():
        checkout, action = job["steps"]
        assert checkout["with"]["persist-credentials"] is False
        assert ("token" in action["with"]) == (action["with"]["command"] == "publish")
    fix = next(step for step in read(ACTION)["runs"]["steps"] if step.get("name") == "Fix")
    assert not set(fix["env"]) & TOKEN_VARIABLES
    assert "secrets" not in ACTION.read_text()


def test_defaults_are_those_of_the_program() -> None:
    inputs = read(ACTION)["inputs"]
    assert (inputs["label"]["default"], inputs["word"]["default"]) == (Rules().label, Rules().word)


def test_the_template_takes_out_what_gitlab_gives_every_job() -> None:
    script = "\n".join(read(TEMPLATE)["agent:fix"]["script"])
    (names,) = re.findall(r"^unset (.*)$", script, re.MULTILINE)
    assert set(names.split()) == {name for name in TOKEN_VARIABLES if name.startswith("CI_")}
    assert script.index("unset") < script.index("agent ci $AGENT_ASKERS --out")


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """The agent where the action installs it."""
    path = tmp_path / "runner" / "agent-environment" / "bin" / "agent"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
    path.chmod(0o755)
    return path


def run_step(
    jobs: Jobs, name: str, shim: Path, inputs: dict[str, str], payload: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as a runner does: its script by bash -eo pipefail, its env with the inputs put in."""
    (step,) = [step for step in read(ACTION)["runs"]["steps"] if step.get("name") == name]
    defaults = {key: str(value.get("default", "")) for key, value in read(ACTION)["inputs"].items()} | inputs
    env = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: defaults[found[1]], value)
        for key, value in step.get("env", {}).items()
    }
    script = shim.with_name("step.sh")
    script.write_text(step["run"])
    runner = {"RUNNER_TEMP": str(shim.parents[2]), "GITHUB_STEP_SUMMARY": str(shim.parents[2] / "summary")}
    wrapped = {**runner, **env, "AGENT_WIRE": "scripted", "AGENT_SCRIPT": str(TASK / "script.json")}
    done: subprocess.CompletedProcess[str] = jobs.job(
        "github", "step", payload, program=["bash", "-eo", "pipefail", str(script)], more=wrapped
    )
    return done


@pytest.mark.docker
def test_the_actions_steps_fix_and_publish(jobs: Jobs, shim: Path) -> None:
    done = run_step(jobs, "Fix", shim, {"image": "host", "api-key": "sk-0123"}, labelled("github"))
    assert done.returncode == 0, done.stderr
    done = run_step(jobs, "Show the summary", shim, {}, labelled("github"))
    assert done.returncode == 0, done.stderr
    assert "✅ passed" in (shim.parents[2] / "summary").read_text()
    done = run_step(jobs, "Publish", shim, {"token": TOKEN}, labelled("github"))
    assert done.returncode == 0, done.stderr
    assert jobs.forge.tip(BRANCH)
    assert len(jobs.forge.comments) == 1


def test_the_summary_of_a_job_that_died_is_none(jobs: Jobs, shim: Path) -> None:
    assert run_step(jobs, "Show the summary", shim, {}, labelled("github")).returncode == 0
    assert not (shim.parents[2] / "summary").exists()


@pytest.mark.docker
def test_the_templates_scripts_fix_and_publish(jobs: Jobs, shim: Path, tmp_path: Path) -> None:
    """With the tokens that GitLab gives every job, and only their removal keeps the agent from refusing to start."""
    template, payload = read(TEMPLATE), pipeline_failed()
    payload["object_attributes"]["sha"] = jobs.forge.tip("main")
    url = f"{jobs.forge.url}/{PROJECT}.git".replace("://", f"://oauth2:{TOKEN}@")
    gitlab = {name: "a-token" for name in TOKEN_VARIABLES if name.startswith("CI_")} | {"CI_REPOSITORY_URL": url}
    model = {
        "AGENT_WIRE": "scripted",
        "AGENT_SCRIPT": str(TASK / "script.json"),
        "AGENT_IMAGE": "host",
        "AGENT_ASKERS": "",
    }

    def run(job: str, **options: Any) -> subprocess.CompletedProcess[str]:
        script = "\n".join(template[job]["script"])
        script = script.replace("/opt/agent/bin/agent", str(shim)).replace("/tmp/checkout", str(tmp_path / "clone"))
        done: subprocess.CompletedProcess[str] = jobs.job(
            "gitlab", job, payload, program=["bash", "-eo", "pipefail", "-c", script], **options
        )
        return done

    def checked_out(checkout: Path) -> None:
        git(checkout, "remote", "set-url", "origin", url)
        jobs.out = checkout / "agent-artifacts"

    done = run("agent:fix", more={**gitlab, **model}, prepare=checked_out)
    assert done.returncode == 0, done.stderr
    assert jobs.result()["outcome"] == "passed"
    left = jobs.out
    done = run(
        "agent:publish", more={**gitlab, **model}, token=TOKEN, prepare=lambda empty: left.rename(empty / left.name)
    )
    assert done.returncode == 0, done.stderr
    (pull,) = jobs.forge.pulls.values()
    assert (pull["branch"], pull["target"]) == ("agent/check/main", "main")
    assert TOKEN not in done.stdout + done.stderr
