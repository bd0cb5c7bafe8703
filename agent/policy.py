"""`--policy ci`: restrictions for runs whose task is written by strangers.

Anyone who can open an issue writes a part of the prompt. So a run has nothing that they could abuse through the model:
no token with write access is in the process, no tool has a network, and the files that control a run (AGENTS.md,
agent.toml) are read from a trusted commit, not from the checkout, which may be the head of a pull request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agent.config import RunConfig, process_environment
from agent.errors import PolicyRefused, UsageError
from sandbox import plumbing

# Variables whose value, whatever it is, can give write access to a repository, a registry or a machine.
TOKEN_VARIABLES = frozenset({
    "GITHUB_TOKEN", "GH_TOKEN", "GITHUB_PAT", "GH_PAT", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN", "INPUT_TOKEN",
    "INPUT_GITHUB_TOKEN", "INPUT_GITHUB-TOKEN", "ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "GITLAB_TOKEN", "GITLAB_PRIVATE_TOKEN", "PRIVATE_TOKEN", "GITLAB_API_TOKEN", "CI_JOB_TOKEN", "CI_JOB_JWT", "CI_JOB_JWT_V1", "CI_JOB_JWT_V2",
    "CI_DEPLOY_PASSWORD", "CI_REGISTRY_PASSWORD", "CI_DEPENDENCY_PROXY_PASSWORD", "CI_REPOSITORY_URL",
    "NPM_TOKEN", "NODE_AUTH_TOKEN", "PYPI_TOKEN", "PYPI_API_TOKEN", "TWINE_PASSWORD", "UV_PUBLISH_TOKEN", "POETRY_PYPI_TOKEN_PYPI",
    "CARGO_REGISTRY_TOKEN", "SSH_AUTH_SOCK", "GIT_ASKPASS", "SSH_ASKPASS",
})  # fmt: skip
# The formats of GitHub's and GitLab's tokens, in whatever variable they are.
TOKEN = re.compile(r"\b(gh[oprsu]_\w{20}|github_pat_\w{20}|gl(pat|dt|rt|cbt|ptt|ft|soat|agent|imt)-[\w.-]{16})")
IN_URL = re.compile(r"://[^/\s@]+@")
GIT_SETTINGS = r"^(http\..*extraheader|remote\..*url|url\..*insteadof)$"


def admit(config: RunConfig, repository: Path, environ: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration with its policy applied.

    Raises PolicyRefused if the process has something that is forbidden, UsageError if the trusted commit is missing.

    Under ``ci`` only committed files are copied in: a runner's checkout may contain files that other steps left there.
    """
    if config.policy != "ci":
        return config
    wanted = (
        ("sandbox", config.sandbox, "docker", "tools would run on the runner itself"),
        ("network", config.network, "none", "tools could send away what they read"),
        ("browser", config.browser, "off", "the model's requests would leave this machine"),
    )
    for key, value, only, why in wanted:
        if value != only:
            raise PolicyRefused(f"--policy ci allows only {key} = {only}, and it is {value}: {why}")
    if found := tokens(process_environment() if environ is None else environ):
        raise PolicyRefused(
            f"--policy ci: {', '.join(found)} in the environment may hold a token with write access. Remove it from this "
            f"step: leave it out of `env:`, or start the agent with: env {' '.join(f'-u {name}' for name in found)} agent …"
        )
    if settings := git_credentials(repository):
        raise PolicyRefused(
            f"--policy ci: git's configuration contains credentials ({', '.join(settings)}). Remove them before the agent "
            "starts: `persist-credentials: false` for actions/checkout, otherwise git config --unset-all NAME, or git remote "
            "set-url with a URL without a user"
        )
    if config.trusted_commit is not None:
        _require(repository, config.trusted_commit)
    return replace(config, include_uncommitted=False)


def tokens(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that contain, or may contain, a token with write access."""
    return sorted(name for name, value in environ.items() if value and (name in TOKEN_VARIABLES or TOKEN.search(value)))


def git_credentials(repository: Path) -> list[str]:
    """Return the names of git's settings that contain credentials for the repository, without values or users in URLs."""
    done = plumbing.attempt(["config", "--includes", "-z", "--get-regexp", GIT_SETTINGS], repository)
    found = set()
    for line in done.stdout.decode("utf-8", "replace").split("\0")[:-1]:
        name, _, value = line.partition("\n")
        if name.endswith("extraheader") or IN_URL.search(name) or IN_URL.search(value):
            found.add(IN_URL.sub("://…@", name))
    return sorted(found)


def trusted_text(repository: Path, commit: str, name: str) -> str:
    """Return a regular file in the root of a commit as text, "" if there is none. Raises UsageError if the commit is missing."""
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
