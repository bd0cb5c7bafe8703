"""docs/scripts.md: its files are written, its commands are run, and they say what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent.cli.main import run
from tests.e2e.conftest import PLAIN, ROOT, git

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"`([\w.]+\.(?:json|py))`")
CODE = re.compile(r"\s+# exit code (\d+)$")


def test_every_example_does_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / ".gitignore").write_text("*.json\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "start")
    monkeypatch.chdir(repository)
    page = (ROOT / "docs/scripts.md").read_text()
    commands, end = 0, 0
    for fence in FENCE.finditer(page):
        before, end = page[end : fence.start()], fence.end()
        if fence[1] != "console":
            (repository / NAME.findall(before)[-1]).write_text(fence[2])
            continue
        for asked, *told in map(str.splitlines, fence[2].removeprefix("$ ").split("\n$ ")):
            words = [word for each in shlex.split(CODE.sub("", asked)) for word in _expanded(repository, each)]
            code = CODE.search(asked)
            assert run([*words[1:], *PLAIN]) == (int(code[1]) if code else 0), asked
            said = "".join(capsys.readouterr())
            assert not [line for line in told if line not in said], said
            commands += 1
    assert commands == 7


def _expanded(folder: Path, word: str) -> list[str]:
    """What a shell makes of a word with a star."""
    return [str(path) for path in (folder / word[: word.index("*")]).resolve().glob("*")] if "/*" in word else [word]
