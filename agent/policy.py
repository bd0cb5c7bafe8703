"""`--policy ci`: what a run may not have where strangers write its task, and what it may not believe.

Whoever can open an issue writes a part of the prompt. What they could reach through the model is therefore kept away from
it altogether: no token that can write is in the process, no tool has a network, and what steers a run (AGENTS.md,
agent.toml) is read from a commit that is trusted, not from the checkout, which may be a pull request's head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agent.config import RunConfig, process_environment
from agent.errors import PolicyRefused, UsageError
from sandbox import plumbing

# Variables that hold what can write to a repository, a registry or a machine, under whatever value.
TOKEN_VARIABLES = frozenset({
    "GITHUB_TOKEN", "GH_TOKEN", "GITHUB_PAT", "GH_PAT", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN", "INPUT_TOKEN",
    "INPUT_GITHUB_TOKEN", "INPUT_GITHUB-TOKEN", "ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "GITLAB_TOKEN", "GITLAB_PRIVATE_TOKEN", "PRIVATE_TOKEN", "GITLAB_API_TOKEN", "CI_JOB_TOKEN", "CI_JOB_JWT", "CI_JOB_JWT_V1", "CI_JOB_JWT_V2",
    "CI_DEPLOY_PASSWORD", "CI_REGISTRY_PASSWORD", "CI_DEPENDENCY_PROXY_PASSWORD", "CI_REPOSITORY_URL",
    "NPM_TOKEN", "NODE_AUTH_TOKEN", "PYPI_TOKEN", "PYPI_API_TOKEN", "TWINE_PASSWORD", "UV_PUBLISH_TOKEN", "POETRY_PYPI_TOKEN_PYPI",
    "CARGO_REGISTRY_TOKEN", "SSH_AUTH_SOCK", "GIT_ASKPASS", "SSH_ASKPASS",
})  # fmt: skip
# The shapes of GitHub's and GitLab's tokens, whatever variable they are in.
TOKEN = re.compile(r"\b(gh[oprsu]_\w{20}|github_pat_\w{20}|gl(pat|dt|rt|cbt|ptt|ft|soat|agent|imt)-[\w.-]{16})")
IN_URL = re.compile(r"://[^/\s@]+@")
GIT_SETTINGS = r"^(http\..*extraheader|remote\..*url|url\..*insteadof)$"


def admit(config: RunConfig, repository: Path, environ: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration as its policy has it.

    Raises PolicyRefused where the process holds what it may not, UsageError where the trusted commit is not there.

    Under ``ci`` only what is committed is copied in: a runner's checkout may hold files that other steps left there.
    """
    if config.policy != "ci":
        return config
    wanted = (
        ("sandbox", config.sandbox, "docker", "tools would run on the runner itself"),
        ("network", config.network, "none", "tools could send away what they read"),
        ("browser", config.browser, "off", "what the model asks for leaves this machine"),
    )
    for key, value, only, why in wanted:
        if value != only:
            raise PolicyRefused(f"--policy ci allows {key} = {only} alone, and it is {value}: {why}")
    if found := tokens(process_environment() if environ is None else environ):
        raise PolicyRefused(
            f"--policy ci: {', '.join(found)} in the environment may hold a token that can write. Take it out of this "
            f"step: leave it out of `env:`, or start the agent with: env {' '.join(f'-u {name}' for name in found)} agent …"
        )
    if settings := git_credentials(repository):
        raise PolicyRefused(
            f"--policy ci: git's configuration holds credentials ({', '.join(settings)}). Take them out before the agent "
            "starts: `persist-credentials: false` for actions/checkout, else git config --unset-all NAME, or git remote "
            "set-url with a URL that has no user in it"
        )
    if config.trusted_commit is not None:
        _require(repository, config.trusted_commit)
    return replace(config, include_uncommitted=False)


def tokens(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that hold, or look as if they held, a token that can write."""
    return sorted(name for name, value in environ.items() if value and (name in TOKEN_VARIABLES or TOKEN.search(value)))


def git_credentials(repository: Path) -> list[str]:
    """Return the names of git's settings that hold credentials for the repository; no value, no user of a URL is in them."""
    done = plumbing.attempt(["config", "--includes", "-z", "--get-regexp", GIT_SETTINGS], repository)
    found = set()
    for line in done.stdout.decode("utf-8", "replace").split("\0")[:-1]:
        name, _, value = line.partition("\n")
        if name.endswith("extraheader") or IN_URL.search(name) or IN_URL.search(value):
            found.add(IN_URL.sub("://…@", name))
    return sorted(found)


def trusted_text(repository: Path, commit: str, name: str) -> str:
    """Return a plain file at the top of a commit as text, "" where there is none. Raises UsageError without the commit."""
    _require(repository, commit)
    listed = plumbing.run(["ls-tree", "-z", "--full-tree", commit, "--", name], repository)
    if not listed.startswith(b"100"):  # a file; not a link, a folder or a submodule
        return ""
    oid = listed.split(b"\t")[0].split()[2].decode()
    return plumbing.run(["cat-file", "blob", oid], repository).decode("utf-8", "replace")


def _require(repository: Path, commit: str) -> None:
    asked = ["rev-parse", "-q", "--verify", f"{commit}^{{commit}}"]
    if commit.startswith("-") or plumbing.attempt(asked, repository).returncode:
        raise UsageError(
            f"the trusted commit {commit!r} is not in {repository}. Fetch it too (`fetch-depth: 0` for "
            "actions/checkout, GIT_DEPTH: 0 in GitLab), or name another with --trusted"
        )
