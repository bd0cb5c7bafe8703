"""What every Sandbox does: one suite over the helper in a container and the helper on this machine."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import diff as diffs
from sandbox import snapshot as snapshots
from sandbox.base import Sandbox
from sandbox.client import Client
from sandbox.errors import DiffRefused, SandboxLost
from sandbox.worktree import Worktree
from tests.sandbox.conftest import KINDS, git, sh


def test_a_command_gives_its_output_and_exit_code(sandbox: Sandbox) -> None:
    done = sandbox.exec(["sh", "-c", "echo out; echo err >&2; exit 3"], 10)
    assert (done.exit_code, done.output, done.truncated_bytes) == (3, b"out\nerr\n", 0)
    assert 0 < done.duration_s < 10


def test_python_sees_an_edit_of_the_same_second_and_length(sandbox: Sandbox) -> None:
    edit = "import os, pathlib; p = pathlib.Path('m.py'); p.write_text('print({})'); os.utime(p, (1, 1))"
    for number in "12":
        assert sandbox.exec(["python3", "-c", edit.format(number)], 30).exit_code == 0
        assert sandbox.exec(["python3", "-c", "import m"], 30).output.decode().strip() == number


def test_a_death_by_signal_is_128_and_its_number(sandbox: Sandbox) -> None:
    assert sandbox.exec(["sh", "-c", "kill -9 $$"], 10).exit_code == 137


@pytest.mark.parametrize(("argv", "code"), [(["no-such-program"], 127), (["./README"], 126), (["/"], 126), ([], 127)])
def test_what_cannot_start_is_a_value(sandbox: Sandbox, argv: list[str], code: int) -> None:
    done = sandbox.exec(argv, 10)
    assert done.exit_code == code
    assert b"cannot run" in done.output


def test_a_working_directory_that_is_not_there_is_named(sandbox: Sandbox) -> None:
    done = sandbox.exec(["true"], 10, cwd="nowhere")
    assert done.exit_code == 127
    assert b"nowhere is not a folder" in done.output


def test_input_directory_and_environment(sandbox: Sandbox) -> None:
    big = bytes(range(256)) * 8192
    assert sandbox.exec(["cat"], 10, stdin=big, max_output_bytes=len(big)).output == big
    assert sandbox.exec(["pwd"], 10).output.decode().strip() == sandbox.workspace
    assert sandbox.exec(["pwd"], 10, cwd="src").output.decode().strip() == f"{sandbox.workspace}/src"
    assert sandbox.exec(["sh", "-c", "echo $GREETING"], 10, env={"GREETING": "hej å"}).output.decode() == "hej å\n"
    assert sandbox.exec(["true"], 10, stdin=big).exit_code == 0  # one that does not read is not waited for


def test_the_environment_starts_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {line.split("=")[0] for line in sh(sandbox, "env").splitlines()}
    assert names <= {
        *("PATH", "HOME", "HOSTNAME", "LANG", "LC_CTYPE", "TERM", "PAGER", "GIT_PAGER", "GIT_TERMINAL_PROMPT"),
        *("PWD", "OLDPWD", "SHLVL", "_", "SANDBOX_COMMAND", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"),
    }


def test_a_login_shell_keeps_the_path(sandbox: Sandbox) -> None:
    plain = sandbox.exec(["bash", "-c", "echo $PATH"], 10).output
    assert sandbox.exec(["bash", "-lc", "echo $PATH"], 10).output == plain
    assert sandbox.exec(["sh", "-lc", "echo $PATH"], 10).output == plain


def test_a_long_command_line_arrives_whole(sandbox: Sandbox) -> None:
    text = "x" * 100_000
    assert sandbox.exec(["sh", "-c", f"printf %s {text} | wc -c"], 10).output.split() == [b"100000"]


def test_output_is_bounded_with_head_and_tail_kept(sandbox: Sandbox) -> None:
    done = sandbox.exec(
        ["sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"], 20, max_output_bytes=200
    )
    whole = b"".join(b"line %d\n" % number for number in range(5000))
    head, _, rest = done.output.partition(b"\n[... ")
    stated, _, tail = rest.partition(b" bytes left out ...]\n")
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + len(tail) + int(stated) == len(whole)
    assert int(stated) == done.truncated_bytes
    assert len(head) == len(tail) == 100


def test_at_its_time_out_a_command_is_killed_and_its_output_kept(sandbox: Sandbox) -> None:
    done = sandbox.exec(["sh", "-c", "echo before; sleep 60; echo after"], 0.5)
    assert (done.exit_code, done.output) == (None, b"before\n")
    assert done.duration_s < 30


def test_nothing_that_a_timed_out_command_started_lives_on(sandbox: Sandbox) -> None:
    sleep_s = (
        f"4242.{uuid.uuid4().int}"  # the processes of a sandbox on this machine are seen beside those of all others
    )
    escape = (
        "import os, time\n"
        "for clear in (False, True):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        f"        argv = ['sleep', '{sleep_s}']\n"
        "        os.execve('/bin/sleep', argv, {}) if clear else os.execv('/bin/sleep', argv)\n"
        "time.sleep(60)\n"
    )
    assert sandbox.exec(["python3", "-c", escape], 1.5).exit_code is None
    left = sh(sandbox, "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f 2>/dev/null; echo; done; true")
    assert f"sleep {sleep_s}" not in left


def test_what_is_left_in_the_background_lives_on_and_holds_nothing_up(sandbox: Sandbox) -> None:
    waiting = "(until [ -e go ]; do sleep 0.1; done; echo late; echo done > late.txt) & echo now"
    done = sandbox.exec(["sh", "-c", waiting], 10)
    assert (done.exit_code, done.output) == (0, b"now\n")
    sandbox.exec(["sleep", "30"], 0.3)  # another command's time-out is not its end
    assert sh(sandbox, "touch go; until [ -s late.txt ]; do sleep 0.1; done; cat late.txt") == "done\n"


def test_commands_run_side_by_side(sandbox: Sandbox) -> None:
    results: list[bytes] = []
    meet = "touch came-{}; until [ -e came-0 -a -e came-1 -a -e came-2 -a -e came-3 ]; do sleep 0.1; done; echo {}"
    threads = [
        threading.Thread(target=lambda n=n: results.append(sandbox.exec(["sh", "-c", meet.format(n, n)], 20).output))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_commands_that_end_as_others_begin_get_their_own_output(sandbox: Sandbox) -> None:
    results: list[bytes] = []

    def work(number: int) -> None:
        for _ in range(50):  # the helper closes pipes and opens new ones of the same numbers all the time
            results.append(sandbox.exec(["cat"], 60, stdin=b"%d" % number).output)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [b"%d" % number for number in range(4) for _ in range(50)]


def test_files_are_read_written_and_removed(sandbox: Sandbox) -> None:
    assert sandbox.read("run.sh") == b"#!/bin/sh\necho run\n"
    assert sandbox.read(f"{sandbox.workspace}/README") == b"words\n"
    big = bytes(range(256)) * 4096
    sandbox.write("new/deep/ü \n.bin", big)
    assert sandbox.read("new/deep/ü \n.bin") == big
    sandbox.write("run.sh", b"#!/bin/sh\necho changed\n")
    assert sandbox.exec(["./run.sh"], 10).output == b"changed\n"  # the bit stayed
    sandbox.write("run.sh", b"", executable=False)
    sandbox.write("README", b"#!/bin/sh\necho readme\n", executable=True)
    assert sandbox.exec(["./README"], 10).output == b"readme\n"
    assert sandbox.exec(["./run.sh"], 10).exit_code == 126
    sandbox.write("link", b"through the link\n")
    assert sandbox.read("src/words.py") == b"through the link\n"
    assert sh(sandbox, "readlink link") == "src/words.py\n"
    sandbox.remove("link")
    assert sandbox.read("src/words.py") == b"through the link\n"
    with pytest.raises(FileNotFoundError):
        sandbox.read("link")


def test_files_that_cannot_be_had_raise_as_open_would(sandbox: Sandbox) -> None:
    sh(sandbox, "mkfifo pipe")
    for path, kind in [("none", FileNotFoundError), ("src", IsADirectoryError), ("README/x", NotADirectoryError)]:
        with pytest.raises(kind):
            sandbox.read(path)
    with pytest.raises(FileNotFoundError):
        sandbox.remove("none")
    with pytest.raises(IsADirectoryError):
        sandbox.write("src", b"")
    with pytest.raises(PermissionError, match="Not a regular file"):  # it would hang
        sandbox.read("pipe")


@pytest.mark.parametrize("path", ["a\0b", "half a character: \ud800"])
def test_a_path_that_no_file_can_have_is_no_end_of_the_sandbox(sandbox: Sandbox, path: str) -> None:
    for verb in (sandbox.read, sandbox.remove, lambda path: sandbox.write(path, b"")):
        with pytest.raises(OSError, match=r"null|encode"):
            verb(path)
    assert sh(sandbox, "echo alive") == "alive\n"


def test_a_sparse_file_does_not_fill_the_host(sandbox: Sandbox) -> None:
    sh(sandbox, "truncate -s 40G README")
    with pytest.raises(OSError, match="File too large"):
        sandbox.read("README")
    with pytest.raises(DiffRefused, match="README: the changes are more than"):
        sandbox.diff()


def test_git_works_inside(sandbox: Sandbox) -> None:
    assert sh(sandbox, "git status --short; git branch --show-current; git describe") == "trunk\nv1.0\n"
    assert sh(sandbox, "git log --format=%s") == "two\none\n"
    assert "Ada" in sh(sandbox, "git blame src/words.py")
    sandbox.write("README", b"other words\n")
    assert "-words\n+other words\n" in sh(sandbox, "git diff")
    assert sh(sandbox, "git commit -qam inside; git fsck --strict; git log --format=%s -1") == "inside\n"


def test_the_diff_says_all_that_changed_and_nothing_else(sandbox: Sandbox, snapshot: snapshots.Snapshot) -> None:
    assert sandbox.diff() == b""
    sh(
        sandbox,
        "mkdir -p build a\\ b; touch x.pyc build/out README; printf 'a\\tb' > 'a b/new'; rm blob.bin; git mv run.sh go.sh;"
        "chmod +x src/words.py; ln -sf README link; printf '\\000\\001' > data; touch empty; git commit -qam hidden",
    )
    applied = Worktree(snapshot).apply(sandbox.diff())
    kinds = {(change.old_path, change.path) for change in applied.changes}
    assert kinds == {
        (None, "a b/new"),
        ("blob.bin", None),
        ("run.sh", "go.sh"),
        ("src/words.py", "src/words.py"),
        ("link", "link"),
        (None, "data"),
        (None, "empty"),
    }
    listed = git(snapshot.git_dir, "ls-tree", "-r", applied.tree)
    assert "100755 blob" in listed
    assert "120000 blob" in listed


@pytest.mark.parametrize("mode", ["000", "600", "100"])
def test_a_closed_folder_is_no_removed_one(sandbox: Sandbox, mode: str) -> None:
    sh(sandbox, f"mkdir new; echo x > new/file; chmod {mode} src new")
    assert diffs.paths(diffs.parse(sandbox.diff())) == ("new/file",)


def test_a_file_put_back_is_no_change(sandbox: Sandbox) -> None:
    sh(
        sandbox,
        "cp README keep; echo more >> README; mv keep README; touch src/words.py; git stash; git checkout -q HEAD~1",
    )
    assert diffs.paths(diffs.parse(sandbox.diff())) == ("README",)  # HEAD~1 has none
    sh(sandbox, "git checkout -q trunk")
    assert sandbox.diff() == b""


def test_undo_brings_back_what_was_copied_and_leaves_what_is_ignored(sandbox: Sandbox) -> None:
    sh(
        sandbox,
        "echo x >> README; rm link; mkdir link; echo x > link/new; chmod -x run.sh; mv src/words.py w; rmdir src; ln -s /etc src;"
        "mkdir build; echo kept > build/out; rm blob.bin; mkdir blob.bin; touch blob.bin/a.pyc; git add -A; git commit -qm mine",
    )
    sandbox.undo()
    assert sandbox.diff() == b""
    shown = "cat README src/words.py build/out; readlink link; [ -x run.sh ] && wc -c < blob.bin; ls"
    assert sh(sandbox, shown).split() == [
        *["words", "def", "first(text):", "return", "text.split()[0]", "kept", "src/words.py", "256"],
        *["README", "blob.bin", "build", "link", "run.sh", "src"],
    ]
    sandbox.undo()
    assert sandbox.diff() == b""


def test_a_folder_deeper_than_python_calls_itself_is_copied_and_taken_away(
    repository: Path, tmp_path: Path, opened: Callable[..., Sandbox]
) -> None:
    blob = git(repository, "hash-object", "-w", "--stdin", stdin=b"deep").strip()
    git(repository, "update-index", "--add", "--cacheinfo", f"100644,{blob},{'a/' * 1000}file")
    git(repository, "commit", "-qm", "deep")
    sandbox = opened("none", snapshots.take(repository, tmp_path / "state", include_uncommitted=False))
    assert sandbox.read("a/" * 1000 + "file") == b"deep"
    sh(sandbox, "rm blob.bin; mv a blob.bin")
    sandbox.undo()
    assert sandbox.diff() == b""


def test_a_closed_sandbox_is_gone_and_closing_twice_is_fine(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxLost, match="closed"):
        sandbox.exec(["true"], 5)


def test_what_is_written_as_another_thread_closes_meets_a_wire_that_is_gone(sandbox: Sandbox) -> None:
    assert isinstance(sandbox, Client)
    sandbox.link._wire.close()
    with pytest.raises(OSError, match=r"."):
        sandbox.link._wire.write(b"x")


def test_closing_ends_every_process_that_the_sandbox_started(sandbox: Sandbox, run_name: str) -> None:
    sign = run_name  # its processes are told from all others by their command lines
    loop = (
        "import os, sys\n"
        "for _ in range(2):\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "os.execve(sys.executable, [sys.executable, '-c', 'while True: pass', sys.argv[1]], {})\n"
    )
    sandbox.exec(["python3", "-c", loop, sign], 10)
    sandbox.exec(["sh", "-c", f"nohup sh -c 'sleep 600; : {sign}' >/dev/null 2>&1 & sleep 0.2"], 10)
    deadline_s = time.monotonic() + 60
    while len(_processes(sign)) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert len(_processes(sign)) >= 2
    sandbox.close()
    while _processes(sign) and time.monotonic() < deadline_s:  # the engine kills, and reaps a little later
        time.sleep(0.05)
    assert _processes(sign) == []


def _processes(sign: str) -> list[str]:
    """Return the command lines on this machine, those of containers included, whose last word or script has the sign."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word == sign.encode() or word.endswith(f": {sign}".encode()) for word in words):
            found.append(b" ".join(words).decode("utf-8", "replace"))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_workspace_is_restored_from_its_last_diff(
    kind: str, snapshot: snapshots.Snapshot, opened: Callable[..., Sandbox], repository: Path
) -> None:
    first = opened(kind, snapshot)
    sh(
        first,
        "rm README; rm link; mkdir README; echo x > README/x; printf '\\0' > blob.bin; chmod -x run.sh; echo hi > link; ln -s blob.bin l2;"
        "rm -r src; echo file > src",
    )
    patch = first.diff()
    first.close()
    (repository / "README").write_text("the person works on\n")
    second = opened(kind, snapshots.load(snapshot.git_dir.parent), patch=patch)
    assert second.diff() == patch
    assert (
        sh(second, "cat README/x link src; readlink l2; [ -x run.sh ] || echo plain")
        == "x\nhi\nfile\nblob.bin\nplain\n"
    )
