"""The Codex CLI's own apply_patch as the oracle of ours, and its recorded answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.patch.model import PatchError
from agent.patch.parse import parse
from agent.patch.plan import plan
from tests.agent.patch_cases import Case

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def binary() -> Path:
    """The oracle: CODEX_APPLY_PATCH, or where scripts/codex puts it."""
    found = Path(os.environ.get("CODEX_APPLY_PATCH") or ROOT / ".venv" / "codex" / "apply_patch")
    assert found.exists(), (
        f"{found} is not there: run scripts/codex (it needs npm), or leave these tests out with -m 'not codex'"
    )
    # A link of the right name makes the binary the tool.
    assert found.name == "apply_patch", f"{found} must be a link named apply_patch to the Codex binary"
    return found


@dataclass(frozen=True)
class Answer:
    """What the oracle did: whether it succeeded, and the files afterwards."""

    ok: bool
    files: Mapping[str, bytes]


def ask(case: Case, oracle: Path) -> Answer:
    """Let the oracle apply a case in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        for name, data in case.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        done = subprocess.run([oracle], input=case.patch.encode(), cwd=root, capture_output=True, check=False)
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return Answer(done.returncode == 0, files)


def digest(files: Mapping[str, bytes], *more: str) -> str:
    """A short name for files (and text) that only equal ones have."""
    told = json.dumps([sorted((name, data.hex()) for name, data in files.items()), *more])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ours:
    """What our implementation makes of a case; ``refused`` holds its error."""

    files: Mapping[str, bytes]
    notes: str = ""
    refused: str = ""


def ours(case: Case) -> Ours:
    """Apply a case with our implementation, in memory."""
    try:
        planned = plan(parse(case.patch), case.files)
    except PatchError as error:
        return Ours(case.files, refused=str(error))
    files = dict(case.files)
    for change in planned.changes:
        if change.after is None:
            del files[change.path]
        else:
            files[change.path] = change.after
    return Ours(files, notes="\n".join(planned.notes))


def difference(mine: Ours, oracle_ok: bool, same_files: bool) -> str | None:
    """Name what is wrong, by the rule of docs/decisions/0010-apply-patch.md; None when nothing is.

    Where the oracle succeeds the files are the same, but for a move onto itself, which deletes the file there. Where it
    refuses, ours refuses too or says what it read more kindly.
    """
    if oracle_ok and mine.refused:
        return f"refused what Codex applies: {mine.refused}"
    if oracle_ok and not same_files and "moved onto itself" not in mine.notes:
        return "other bytes than Codex"
    if not oracle_ok and not mine.refused and not mine.notes:
        return "accepted what Codex refuses, and did not say so"
    return None
