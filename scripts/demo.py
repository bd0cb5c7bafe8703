"""`make demo`: fix the sample repository in tasks/slugify. Everything is real but the model, which is a recording."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASK = ROOT / "tasks" / "slugify"
PLACE = ROOT / "build" / "demo"
REPOSITORY = PLACE / "textkit"
RUNS = PLACE / "runs"
IDENTITY = ("-c", "user.name=Demo", "-c", "user.email=demo@example.invalid")


def main() -> int:
    print(
        "`agent fix` fixes a bug in a sample repository, in a container.\n"
        "The model is a RECORDING, tasks/slugify/script.json. The container, the commands, the edits, the checks before and\n"
        "after, the branch and its commit are real.\n",
        flush=True,
    )
    lay_out()
    image = ["--image", "host"] if sys.platform == "linux" else []
    command = [
        *("fix", f"@{TASK / 'prompt.md'}", "--repo", str(REPOSITORY), "--runs-dir", str(RUNS)),
        *("--wire", "scripted", "--script", str(TASK / "script.json"), *image),
    ]
    done = subprocess.run([sys.executable, "-m", "agent", *command], check=False)
    if done.returncode != 0:
        return done.returncode
    return look_from_outside()


def lay_out() -> None:
    """A fresh copy of the sample repository, with one commit."""
    shutil.rmtree(PLACE, ignore_errors=True)
    shutil.copytree(TASK / "repo", REPOSITORY)
    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git(*IDENTITY, "commit", "--quiet", "--message=textkit 1.4.0")


def look_from_outside() -> int:
    """Check the branch out elsewhere and let the task's own check decide."""
    branch = git("for-each-ref", "--format=%(refname:short)", "--count=1", "refs/heads/agent")
    result = PLACE / "result"
    subprocess.run(["git", "clone", "--quiet", "--branch", branch, str(REPOSITORY), str(result)], check=True)
    verdict = subprocess.run([str(TASK / "check.sh")], cwd=result, check=False, capture_output=True, text=True)
    if verdict.returncode != 0:
        print(f"\ntasks/slugify/check.sh does not agree:\n{verdict.stdout}{verdict.stderr}", flush=True)
        return 1
    place = REPOSITORY.relative_to(Path.cwd()) if REPOSITORY.is_relative_to(Path.cwd()) else REPOSITORY
    print(f"\ntasks/slugify/check.sh agrees. Look at it: git -C {place} show {branch}")
    return 0


def git(*arguments: str) -> str:
    """Run git in the sample repository and return what it prints."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
