"""What agents copy: patches of this repository's history and of the sample tasks, behind the files that they change.

A text is a prompt (the files as a tool gives them to the model) and the answer (the patch in the form that apply_patch reads, or
a file as it is afterwards), in the tokens of gpt-oss.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.harmony.vocabulary import load_encoding

ROOT = Path(__file__).resolve().parent.parent
ANSWER_TOKENS = range(60, 4000)
PROMPT_TOKENS = 30_000
FILES = 5


@dataclass(frozen=True)
class Text:
    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def task_texts() -> list[Text]:
    """The reference patch of each sample task."""
    found = []
    for folder in sorted((ROOT / "tasks").iterdir()):
        diff = (folder / "reference.patch").read_text(encoding="utf-8")
        files = {path: (folder / "repo" / path).read_text(encoding="utf-8") for path in _changed(diff)}
        found.append((folder.name, files, patch_of(diff)))
    return _encoded(found)


def history_texts(repository: Path = ROOT, commits: int = 150) -> tuple[list[Text], list[Text]]:
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
    return _encoded(patches), _encoded(rewrites)


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


def _encoded(found: list[tuple[str, dict[str, str], str]]) -> list[Text]:
    with tempfile.TemporaryDirectory() as folder:
        encoding = load_encoding(Path(folder))

        def ids(text: str) -> tuple[int, ...]:
            return tuple(encoding.encode(text, allowed_special=set(), disallowed_special=()))

        texts = [Text(name, tuple(_prompt(ids, files)), ids(answer)) for name, files, answer in found]
    return [text for text in texts if len(text.answer) in ANSWER_TOKENS and len(text.prompt) <= PROMPT_TOKENS]


def _prompt(ids: Callable[[str], tuple[int, ...]], files: dict[str, str]) -> Iterator[int]:
    for path, content in files.items():
        yield from ids(f"$ cat {path}\n{content}\n")
