"""Files that a change at a stranger's request may not touch: what a service, a tool or the next agent obeys without a human decision.

A bug fix does not need to change them, and a change to them would act with rights that its author does not have: a workflow
runs with the repository's secrets, a hook on a maintainer's machine, an instruction file controls the next run, an attribute
hides a file from review. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from sandbox.errors import DiffRefused

# The reason, and the names (in lower case) of files and folders, anywhere in the tree.
PROTECTED: Mapping[str, tuple[str, ...]] = {
    "it configures the service that hosts the repository": (".github", ".gitlab", ".gitea", ".forgejo"),
    "it says what CI does, with CI's rights": (
        "*.gitlab-ci.y*ml", ".travis.y*ml", ".drone.y*ml", "*appveyor.y*ml", ".cirrus.y*ml", ".cirrus.star",
        ".woodpecker*", "azure-pipelines*.y*ml", "bitbucket-pipelines.y*ml", "buildspec*.y*ml", "cloudbuild*.y*ml",
        "codemagic.y*ml", "jenkinsfile*", ".circleci", ".buildkite", ".semaphore", ".teamcity", ".azure-pipelines", ".azuredevops",
        ".tekton", ".prow.y*ml", ".zuul*", "zuul.y*ml", "zuul.d", ".taskcluster.y*ml", ".build.yml", ".builds", ".space.kts", "bitrise.y*ml", "codefresh.y*ml",
        "netlify.toml", "vercel.json",
    ),
    "it is an action that workflows run": ("action.y*ml",),
    "it decides who is asked for a review": ("codeowners", "owners_aliases"),
    "bots merge and change by it, with rights of their own": (
        ".mergify*", "renovate.json*", ".renovaterc*", ".kodiak.toml", ".bulldozer.y*ml", ".policy.y*ml", ".packit.y*ml",
    ),
    "it decides how git and reviewers see other files": (".gitattributes",),
    "hooks run on the machines of those who check the change out": (
        ".husky", ".githooks", ".git-hooks", ".pre-commit-config.y*ml", ".pre-commit-hooks.y*ml", "lefthook*.*", ".lefthook*", ".overcommit.yml",
    ),
    "editors and shells run it where the change is checked out": (
        ".envrc", ".vscode", ".idea", ".zed", ".devcontainer", ".devcontainer.json", "*.code-workspace", ".dir-locals.el", ".exrc", ".nvimrc",
        ".nvim.lua", ".lvimrc",
    ),
    "it decides where packages or large files come from, or go": (".lfsconfig", ".npmrc", ".yarnrc*", ".pnpmfile.cjs", ".pypirc", "pip.conf", ".cargo"),
    "agents take instructions from it": (
        "agents.md", "agents.override.md", "agent.toml", "claude*.md", "gemini.md", "qwen.md", "copilot*.md", ".mcp.json",
        ".aider*", ".cursor*", ".windsurf*", ".cline*", ".roo*", ".claude", ".codex", ".gemini", ".qwen", ".agents", ".opencode",
        "agent.md", "warp.md", ".rules", ".augment*", ".openhands", ".factory", ".crush*", ".continue*", ".kiro", ".junie", ".goosehints", ".amazonq", ".trae",
    ),
}  # fmt: skip
# Characters that HFS+ ignores in names, and what Windows drops at the end of a name.
_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]|[. ]+$")


def protection(path: str) -> str | None:
    """Return why a path is protected, or None. Names are compared as the most lenient file system does."""
    names = [_IGNORED.sub("", part).split(":")[0].casefold() for part in re.split(r"[/\\]", path)]
    return next(
        (why for why, known in PROTECTED.items() for each in known if any(fnmatchcase(name, each) for name in names)),
        None,
    )


def admit(paths: Iterable[str]) -> None:
    """Raise DiffRefused, with the path and the reason, if one of the paths is protected."""
    for path in paths:
        if why := protection(path):
            raise DiffRefused(f"{path!r} may not be changed under --policy ci: {why}")
