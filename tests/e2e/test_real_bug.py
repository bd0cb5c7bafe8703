"""A real bug of a real project, repaired end to end: the chat wire, a Docker container, checks that fail before and pass after.

pathspec 0.12.1 was released to fix its issue 84: PathSpec.match_file() returned None instead of False for a file that no
pattern matches. The fix is taken out of the released source again; the project's own tests, which came with the fix, fail.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.model_server import Server

SDIST = "pathspec-0.12.1.tar.gz"
SHA256 = "a482d51503a1ab33b1c67a6c3813a26953dbdc71c31dacaef9a838c4e29f5712"
BROKEN_TEST = "tests/test_03_pathspec.py::PathSpecTest::test_01_match_file_3_unmatch"

PLAN = {
    "plan": [
        {"step": "Reproduce: run the tests", "status": "in_progress"},
        {"step": "Make match_file() return a bool", "status": "pending"},
        {"step": "Run the tests again", "status": "pending"},
    ]
}
PATCH = """*** Begin Patch
*** Update File: pathspec/pathspec.py
@@ def match_file(
 \t\tinclude, _index = self._match_file(enumerate(self.patterns), norm_file)
-\t\treturn include
+\t\treturn bool(include)
*** End Patch"""
TURNS = [
    {"tool": "plan", "arguments": PLAN},
    {"shell": "grep -n 'match_file' pathspec/pathspec.py"},
    {"shell": "python -m pytest -q tests/test_03_pathspec.py 2>&1 | tail -n 15"},
    {"shell": "sed -n '255,285p' pathspec/pathspec.py"},
    {"patch": PATCH},
    {"shell": "python -m pytest -q tests/test_03_pathspec.py 2>&1 | tail -n 3"},
    {"final": "PathSpec.match_file() returned None for a file that no pattern matches; it now returns False."},
]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(folder),
        "--retries",
        "8",
        "--timeout",
        "60",
        "pathspec==0.12.1",
    ]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, f"this test needs a package index to fetch {SDIST} from:\n{done.stderr}"
    found = folder / SDIST
    assert hashlib.sha256(found.read_bytes()).hexdigest() == SHA256
    return found


@pytest.fixture
def repository(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / SDIST.removesuffix(".tar.gz")
    source = root / "pathspec" / "pathspec.py"
    fixed = source.read_bytes()
    assert fixed.count(b"return bool(include)") == 1
    source.write_bytes(fixed.replace(b"return bool(include)", b"return include"))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "pathspec with its bug 84"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    return root


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server(TURNS, None)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.mark.docker
def test_the_bug_is_fixed_and_the_checks_saw_it(repository: Path, server: Server, tmp_path: Path) -> None:
    command = [
        *(
            sys.executable,
            "-m",
            "agent",
            "fix",
            "PathSpec.match_file() returns None for a file that no pattern matches",
        ),
        *("--repo", str(repository), "--endpoint", server.url, "--model", "gpt-oss-20b", "--wire", "chat"),
        *("--image", "host", "--json", "--yes"),
    ]
    root = Path(__file__).resolve().parents[2]
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    result = lines[-1]
    checked = {line["when"]: line["results"][0] for line in lines if line.get("event") == "Checked"}
    assert checked["before"]["exit_code"] == 1
    assert checked["after"]["exit_code"] == 0
    before = {name for name, outcome in checked["before"]["tests"].items() if outcome == "failed"}
    after = {name for name, outcome in checked["after"]["tests"].items() if outcome == "passed"}
    assert [name for name in before if name.endswith("test_01_match_file_3_unmatch")]
    assert before <= after
    assert len(after) > 100

    branch = result["branch"]
    show = ["git", "-C", str(repository)]
    diff = subprocess.run([*show, "diff", "main", branch], capture_output=True, text=True, check=True).stdout
    assert [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}] == [
        "-\t\treturn include",
        "+\t\treturn bool(include)",
    ]
    count = subprocess.run(
        [*show, "rev-list", "--count", f"main..{branch}"], capture_output=True, text=True, check=True
    )
    assert count.stdout.strip() == "1"
    status = subprocess.run([*show, "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == "", "the person's own checkout was touched"
