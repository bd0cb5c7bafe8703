"""What agents copy: patches of this repository's history and of the sample tasks, behind the files that they change.

A text is a prompt (the files as a tool gives them to the model) and the answer (the patch in a call of apply_patch, or as plain
text, or a file as it is afterwards), in the tokens of gpt-oss.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.conversation import Message, Role
from agent.harmony.codec import Codec, open_codec
from agent.model.patch_drafts import PatchDrafts

ROOT = Path(__file__).resolve().parent.parent
ANSWER_TOKENS = range(60, 4000)
PROMPT_TOKENS = 30_000
FILES = 5


Draft = tuple[tuple[int, str], ...]
Found = list[tuple[str, dict[str, str], str]]
"""(name, files, answer)"""


@dataclass(frozen=True)
class Text:
    """``drafts``: what the agent's own drafter says before each token of the answer, for machines without the vocabulary."""

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    drafts: tuple[Draft, ...] = ()


def task_texts(*, calls: bool = True) -> list[Text]:
    """The reference patch of each sample task, in a call or as plain text."""
    found = []
    for folder in sorted((ROOT / "tasks").iterdir()):
        diff = (folder / "reference.patch").read_text(encoding="utf-8")
        files = {path: (folder / "repo" / path).read_text(encoding="utf-8") for path in _changed(diff)}
        found.append((folder.name, files, patch_of(diff)))
    return _encoded(found, _in_call if calls else str)


def history_texts(repository: Path = ROOT, commits: int = 150, *, calls: bool = True) -> tuple[list[Text], list[Text]]:
    """Commits of a history that change a few files and create none: the patch, and the first file rewritten whole."""
    log = _git(repository, "log", "--no-merges", f"-{commits}", "--format=%h").split()
    patches, rewrites = [], []
    for commit in log:
        if _git(repository, "diff-tree", "--root", "--no-commit-id", "-r", "--diff-filter=AD", "--name-only", commit):
            continue
        diff = _git(repository, "show", "--format=", "--no-color", commit)
        files = {path: _git(repository, "show", f"{commit}~:{path}") for path in _changed(diff)}
        if 0 < len(files) <= FILES:
            patches.append((commit, files, patch_of(diff)))
            path = next(iter(files))
            rewrites.append((commit, {path: files[path]}, _git(repository, "show", f"{commit}:{path}")))
    return _encoded(patches, _in_call if calls else str), _encoded(rewrites, str)


def patch_of(diff: str) -> str:
    """A unified diff of changed files as a patch for apply_patch."""
    lines = ["*** Begin Patch"]
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            lines.append(f"*** Update File: {line[6:]}")
        elif line.startswith("@@"):
            lines.append(("@@" + line.split("@@", 2)[2]).rstrip())
        elif line[:1] in {" ", "+", "-"} and not line.startswith("--- "):
            lines.append(line)
    return "\n".join([*lines, "*** End Patch", ""])


def _changed(diff: str) -> list[str]:
    return [line[6:] for line in diff.splitlines() if line.startswith("+++ b/")]


def _git(repository: Path, *args: str) -> str:
    ran = subprocess.run(["git", "-C", str(repository), *args], capture_output=True, check=True)
    return ran.stdout.decode("utf-8", "replace")


def _in_call(patch: str) -> str:
    return json.dumps({"patch": patch}, ensure_ascii=False)


def _encoded(found: Found, form: Callable[[str], str]) -> list[Text]:
    with tempfile.TemporaryDirectory() as folder:
        codec = open_codec(Path(folder))
    texts = []
    for name, files, answer in found:
        prompt, ids = tuple(_prompt(codec.encode, files)), tuple(codec.encode(form(answer)))
        if len(ids) in ANSWER_TOKENS and len(prompt) <= PROMPT_TOKENS:
            texts.append(Text(name, prompt, ids, tuple(_drafts(codec, files, ids))))
    return texts


def _prompt(ids: Callable[[str], list[int]], files: dict[str, str]) -> Iterator[int]:
    for path, content in files.items():
        yield from ids(f"$ cat {path}\n{content}\n")


def _drafts(codec: Codec, files: dict[str, str], answer: tuple[int, ...]) -> Iterator[Draft]:
    messages = []
    for path, content in files.items():
        messages.append(Message(Role.ASSISTANT, json.dumps({"path": path}), recipient="repo_browser.open_file"))
        messages.append(Message(Role.TOOL, content))
    drafter = PatchDrafts(codec.encode, codec.token_bytes).drafter(messages)
    for token in answer:
        yield tuple(drafter.draft())
        drafter.take(token)
