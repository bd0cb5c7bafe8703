from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import DiffRefused
from sandbox.protected import PROTECTED, admit, protection


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml",
        ".github",  # as a link, it would move every workflow
        ".GitHub/Workflows/ci.yml",
        ".git\u200chub/workflows/ci.yml",
        ".github./workflows/ci.yml",
        ".github::$INDEX_ALLOCATION/x",
        r"a\.github\x",
        "CODEOWNERS",
        "docs/CODEOWNERS",
        ".gitlab-ci.yml",
        "ci/build.gitlab-ci.yaml",
        ".gitlab/merge_request_templates/a.md",
        "action.yml",
        "tools/lint/action.yaml",
        ".gitattributes",
        "src/.gitattributes",
        ".husky/pre-commit",
        ".pre-commit-config.yaml",
        "lefthook.yml",
        ".vscode/tasks.json",
        ".devcontainer/devcontainer.json",
        ".envrc",
        ".npmrc",
        "packages/a/.npmrc",
        "AGENTS.md",
        "src/agents.md",
        "agent.toml",
        "CLAUDE.local.md",
        ".cursorrules",
        ".cursor/rules/a.mdc",
        "Jenkinsfile.release",
        ".circleci/config.yml",
        "azure-pipelines.yml",
        ".nvim.lua",
        "crates/a/.cargo/config.toml",
        ".kiro/steering/a.md",
        ".tekton/push.yaml",
        ".taskcluster.yml",
        ".builds/a.yml",
        "zuul.d/jobs.yaml",
        "web/netlify.toml",
        ".mergify.yml",
        "renovate.json5",
        ".lfsconfig",
        "AGENT.md",
    ],
)
def test_what_others_obey_is_protected(path: str) -> None:
    assert protection(path)
    with pytest.raises(DiffRefused, match="--policy ci"):
        admit(["src/a.py", path])


@pytest.mark.parametrize(
    "path",
    [
        "src/words.py",
        "github/client.py",
        "docs/github.md",
        "src/actions.py",
        "src/action.py",
        "transaction.yml",
        "agent/config.toml",
        "my-agents.md",
        "tests/test_agents.py",
        ".gitignore",
        "package.json",
        "pyproject.toml",
        "src/idea.py",
        "claude.py",
        "src/continue.py",
        "cargo/config.toml",
    ],
)
def test_what_is_only_source_is_not(path: str) -> None:
    assert protection(path) is None
    admit([path])


NAMES = sorted({name.replace("*", "x") for names in PROTECTED.values() for name in names})


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(["a", "src", "B c"]), max_size=3), st.booleans(), st.booleans())
def test_a_protected_name_is_protected_wherever_it_is_and_however_it_is_written(
    name: str, above: list[str], upper: bool, below: bool
) -> None:
    path = "/".join([*above, name.upper() if upper else name, *(["x"] if below else [])])
    assert protection(path)
