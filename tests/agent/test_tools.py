"""Every tool over a real sandbox, local and Docker: the answers that the model reads, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.events import PlanStep, StepState
from tests.agent.workshop import FILES, KINDS, Workshop, open_workshop


@pytest.fixture(scope="module", params=KINDS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One sandbox for all tests that leave no trace in it."""
    yield from open_workshop(request.param, tmp_path_factory.mktemp("tools"))


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workshop]:
    """A sandbox of one's own, to change files in."""
    yield from open_workshop(request.param, tmp_path)


class TestShell:
    def test_exit_code_output_and_folder(self, shop: Workshop) -> None:
        result = shop("shell", command=["bash", "-lc", "echo hi; echo oops >&2; exit 3"])
        assert result.text == (
            f"<exit_code>3</exit_code>\n<output>\nhi\noops\n</output>\n<cwd>{shop.sandbox.workspace}</cwd>"
        )
        assert (result.ok, result.exit_code, result.cut_bytes) == (True, 3, 0)

    @pytest.mark.parametrize("command", ["echo $((1 + 1))", ["sh", "-c", "echo $((1 + 1))"], ["expr", "1", "+", "1"]])
    def test_lines_and_words(self, shop: Workshop, command: object) -> None:
        assert "\n2\n" in shop("shell", command=command).text

    def test_a_login_shell_keeps_the_path(self, shop: Workshop) -> None:
        plain = shop("shell", command=["printenv", "PATH"]).text
        assert shop("shell", command=["bash", "-lc", "printenv PATH"]).text == plain

    def test_a_folder_lasts_for_one_command(self, shop: Workshop) -> None:
        result = shop("shell", command="pwd", workdir="src")
        assert f"{shop.sandbox.workspace}/src\n" in result.text
        assert "<cwd>src</cwd>" in result.text
        assert f"\n{shop.sandbox.workspace}\n" in shop("shell", command=["pwd"]).text
        assert shop("shell", command=["pwd"], workdir="nowhere").exit_code != 0

    def test_a_program_that_is_not_there(self, shop: Workshop) -> None:
        assert shop("shell", command=["no-such-program-x"]).exit_code == 127

    def test_output_keeps_head_and_tail_and_states_the_cut(self, shop: Workshop) -> None:
        result = shop("shell", command="seq 1 20000")
        assert "\n1\n2\n3\n" in result.text
        assert "\n19999\n20000\n" in result.text
        assert result.cut_bytes > 90_000
        assert f"{result.cut_bytes} bytes from the middle" in result.text
        assert len(result.text) < 4600

    def test_a_command_that_hangs_is_killed(self, shop: Workshop) -> None:
        result = shop("shell", command="echo started; sleep 60", timeout=1)
        assert (result.ok, result.exit_code) == (False, None)
        assert "killed after 1 s" in result.text
        assert "started" in result.text

    def test_milliseconds_are_understood(self, shop: Workshop) -> None:
        assert shop("shell", command="sleep 60", timeout=1000).duration_s < 10

    def test_a_time_that_nobody_can_wait_is_the_longest_that_there_is(self, shop: Workshop) -> None:
        assert shop("shell", command="echo here", timeout=10**400).exit_code == 0

    def test_half_a_character_names_no_program(self, shop: Workshop) -> None:
        assert shop("shell", command=["\ud800"]).exit_code == 126
        assert shop("shell", command=["pwd"], workdir="\ud800").exit_code == 126
        assert shop("shell", command="echo here").exit_code == 0

    def test_colours_are_left_out(self, shop: Workshop) -> None:
        assert "\nred\n" in shop("shell", command=r"printf '\033[31mred\033[0m\n'").text

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("{}", "'command' is missing"),
            ('{"command": 3}', "must be a list of words"),
            ('{"command": []}', "must be a list of words"),
            ('{"command": "  "}', "empty"),
            ('{"command": "a\\u0000b"}', "NUL"),
            ('{"command": ["a\\u0000b"]}', "NUL"),
            ('{"command": ["ls"], "timeout": "soon"}', "'timeout' must be"),
            ('{"command": ["ls"], "timeout": -1}', "'timeout' must be"),
            ('{"command": ["ls"], "timeout": NaN}', "'timeout' must be"),
            ('{"command": ["ls"', "not a JSON object"),
            ("[1]", "must be a JSON object"),
            ('{"command": ["bash", "-lc", "cd src && apply_patch < x; ls"]}', "apply_patch is a tool of its own"),
            ('{"command": ["apply_patch", "x", "y"]}', "apply_patch is a tool of its own"),
        ],
    )
    def test_what_is_no_command(self, shop: Workshop, body: str, said: str) -> None:
        result = shop("shell", body)
        assert not result.ok
        assert said in result.text
        assert "correct" in result.text or "NUL" in result.text


class TestPython:
    def test_variables_live_and_the_last_value_is_shown(self, fresh: Workshop) -> None:
        assert fresh("python", "import os\nx = 20").text.startswith("[no output")
        assert fresh("python", "x += 1\nx * 2").text == "42\n"
        assert fresh("python", "print(os.getcwd())").text == f"{fresh.sandbox.workspace}\n"

    def test_files_can_be_kept_where_the_model_was_trained_to(self, fresh: Workshop) -> None:
        if not fresh.tools["python"].has_data_folder:  # type: ignore[attr-defined]
            assert "/mnt/data" not in fresh.tools["python"].spec.description
            return
        assert fresh("python", "open('/mnt/data/x', 'w').write('kept')").text == "4\n"
        assert "kept" in fresh("shell", command="cat /mnt/data/x").text
        assert fresh.sandbox.diff() == b""

    def test_modules_of_the_repository_are_for_the_code_not_for_the_interpreter(self, fresh: Workshop) -> None:
        for name in ("array", "ast", "os", "socket", "struct", "types"):
            fresh.sandbox.write(f"{name}.py", b"MINE = True\n" if name == "socket" else b"1/0\n")
        assert fresh("python", "import socket\nx = 1").ok
        assert fresh("python", "x + 1").text == "2\n"

    def test_cells_are_counted_by_what_ran(self, fresh: Workshop) -> None:
        fresh("python", "x = 1")
        assert 'File "<cell 2>"' in fresh("python", "1/0").text

    def test_output_of_processes_and_errors_comes_in_order(self, fresh: Workshop) -> None:
        result = fresh(
            "python", "import os, sys\nprint('a', flush=True)\nos.system('echo b')\nsys.stderr.write('c\\n')\n1/0"
        )
        assert result.text.startswith("a\nb\nc\nTraceback")
        assert '  File "<cell 1>", line 5, in <module>\n    1/0\n' in result.text
        assert "driver" not in result.text
        assert (result.ok, result.exit_code) == (True, 1)

    def test_definitions_can_be_pickled_and_looked_into(self, fresh: Workshop) -> None:
        fresh("python", "import pickle, inspect\nclass A:\n    pass\ndef f():\n    return 7")
        assert fresh("python", "type(pickle.loads(pickle.dumps(A()))) is A").text == "True\n"
        assert "return 7" in fresh("python", "inspect.getsource(f)").text

    def test_the_shell_lines_of_a_notebook(self, fresh: Workshop) -> None:
        """The trained text calls it a notebook, so it is written to as one."""
        cell = "print('a')\nif True:\n    !echo 'b' | tr b c\n!exit 3\n%cd src\n!ls words.py"
        assert fresh("python", cell).text == "a\nc\n[exit code 3]\nwords.py\n"
        assert fresh("python", "%%bash\nfor i in 1 2; do\n  echo $i\ndone").text == "1\n2\n"
        assert fresh("python", 'x = """\n!echo no\n"""\nx').text == "'\\n!echo no\\n'\n"

    def test_a_syntax_error_shows_its_line(self, fresh: Workshop) -> None:
        result = fresh("python", "!echo no\nx = = 1")
        assert "line 1\n    !echo no" in result.text
        result = fresh("python", "x = = 1")
        assert "SyntaxError" in result.text
        assert "x = = 1" in result.text

    def test_leaving_keeps_the_interpreter(self, fresh: Workshop) -> None:
        fresh("python", "x = 1")
        assert fresh("python", "raise SystemExit('bye')").text == "SystemExit: bye\n"
        assert fresh("python", "import sys\nsys.exit()").exit_code == 0
        assert fresh("python", "x").text == "1\n"

    def test_running_out_of_time_loses_the_variables_and_says_so(self, fresh: Workshop) -> None:
        fresh.tools["python"] = type(fresh.tools["python"])(1.0, 4000)  # type: ignore[call-arg]
        fresh("python", "x = 1")
        result = fresh("python", "print('begun', flush=True)\nwhile True: pass")
        assert (result.ok, result.exit_code) == (False, 124)
        assert (
            result.text
            == "begun\n[Killed after 1 s. All variables are lost; the next call starts a fresh interpreter.]"
        )
        assert "NameError" in fresh("python", "x").text

    def test_a_dead_interpreter_is_replaced(self, fresh: Workshop) -> None:
        result = fresh("python", "import os, signal\nprint('going', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
        assert result.text.startswith("going\n[The interpreter died.")
        assert fresh("python", "1 + 1").text == "2\n"

    def test_it_outlives_a_killed_command(self, fresh: Workshop) -> None:
        fresh("python", "x = 5")
        assert fresh("shell", command="sleep 60", timeout=0.5).exit_code is None
        assert fresh("python", "x").text == "5\n"

    def test_closed_streams_and_threads_do_no_harm(self, fresh: Workshop) -> None:
        fresh("python", "import sys\nsys.stdout.close()")
        assert fresh("python", "import sys\nsys.stdout = sys.__stdout__ = open(1, 'w', closefd=False)").exit_code == 0
        assert fresh("python", "print('again')").text == "again\n"

    def test_much_output_is_bounded(self, fresh: Workshop) -> None:
        result = fresh("python", "for i in range(100000): print(i)")
        assert result.text.startswith("0\n1\n")
        assert "99999\n[" in result.text
        assert result.cut_bytes > 500_000

    def test_nothing_to_run(self, fresh: Workshop) -> None:
        assert not fresh("python", "  ").ok

    def test_stateless(self, fresh: Workshop) -> None:
        fresh.tools["python"] = type(fresh.tools["python"])(20.0, 4000, stateful=False)  # type: ignore[call-arg]
        assert fresh("python", "x = 1\nprint(x)").text == "1\n"
        result = fresh("python", "x")
        assert "NameError" in result.text
        assert result.exit_code == 1
        assert "fresh interpreter" in fresh.tools["python"].spec.description


PATCH = """\
*** Begin Patch
*** Update File: src/words.py
@@ def last(text):
-    return text.split()[-1]
+    return text.split()[-1] if text else ""
*** End Patch"""


def patch(*body: str) -> str:
    return "\n".join(["*** Begin Patch", *body, "*** End Patch"])


class TestApplyPatch:
    def test_a_change(self, fresh: Workshop) -> None:
        result = fresh("apply_patch", PATCH)
        assert (result.ok, result.text, result.changed_paths) == (True, "Done.\nM src/words.py", ("src/words.py",))
        assert fresh.sandbox.read("src/words.py").endswith(b'return text.split()[-1] if text else ""\n')
        again = fresh("apply_patch", PATCH)
        assert not again.ok
        assert again.text.startswith("The patch was not applied; no file was changed.\nline 4 of the patch")

    def test_several_files_and_the_executable_bit(self, fresh: Workshop) -> None:
        result = fresh(
            "apply_patch",
            patch(
                "*** Add File: new/folder/a.txt",
                "+one",
                "*** Delete File: latin.txt",
                "*** Update File: run.sh",
                "*** Move to: bin/run",
                "@@",
                "-echo ran",
                "+echo moved",
                f"*** Update File: {fresh.sandbox.workspace}/crlf.txt",
                "@@",
                "-b",
                "+B",
            ),
        )
        assert result.text == "Done.\nA new/folder/a.txt\nD latin.txt\nM bin/run\nM crlf.txt"
        assert fresh.sandbox.read("crlf.txt") == b"a\r\nB\r\n"
        assert "\nmoved\n" in fresh("shell", command="bin/run").text
        assert fresh("shell", command="test -e latin.txt || test -e run.sh").exit_code == 1

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("../evil", "outside the repository"),
            ("/etc/evil", "outside the repository"),
            ("out/evil", "through a link"),
            ("out/not/there/evil", "through a link"),
            (".git/config", "git's own"),
            ("src", "is a folder"),
            ("run.sh/x", "not applied"),
        ],
    )
    def test_confinement(self, shop: Workshop, path: str, said: str) -> None:
        before = shop.sandbox.diff()
        result = shop("apply_patch", patch("*** Add File: ok.txt", "+x", f"*** Add File: {path}", "+x"))
        assert not result.ok
        assert said in result.text
        assert shop.sandbox.diff() == before

    def test_through_links_inside(self, fresh: Workshop) -> None:
        assert fresh("apply_patch", PATCH.replace("src/words.py", "inner.py")).ok
        assert b"if text" in fresh.sandbox.read("src/words.py")
        both = patch("*** Add File: inner.py", "+x", "*** Add File: src/words.py", "+y")
        assert "one file through a link" in fresh("apply_patch", both).text
        fresh("shell", command="ln -s .git/config sly; ln -s .git gitlink; ln -s gone dangling")
        assert "git's own" in fresh("apply_patch", patch("*** Add File: sly", "+x")).text
        assert "git's own" in fresh("apply_patch", patch("*** Add File: gitlink/x", "+x")).text
        assert "not a regular file" in fresh("apply_patch", patch("*** Add File: dangling", "+x")).text

    def test_a_write_that_fails_undoes_those_before_it(self, fresh: Workshop) -> None:
        fresh("shell", command="mkdir shut && chmod 555 shut")
        if fresh("shell", command="touch shut/probe").exit_code == 0:
            fresh("shell", command="rm -r shut; ln -s shut shut")
        before = fresh.sandbox.diff()
        result = fresh(
            "apply_patch", patch("*** Add File: aa", "+x", "*** Delete File: crlf.txt", "*** Add File: shut/b", "+x")
        )
        assert not result.ok
        assert "no file was changed" in result.text
        assert fresh.sandbox.diff() == before
        assert fresh.sandbox.read("crlf.txt") == FILES["crlf.txt"]

    def test_notes_and_odd_names(self, fresh: Workshop) -> None:
        result = fresh("apply_patch", "Here:\n" + patch("*** Add File: a b'\"$(x)\n+one"))
        assert result.text == "Done.\nA a b'\"$(x)\nNote: text around the patch was left out."
        assert fresh.sandbox.read("a b'\"$(x)") == b"one\n"

    def test_a_file_that_is_elsewhere_is_named(self, shop: Workshop) -> None:
        wrong = PATCH.replace("src/words.py", "a/src/words.py")
        assert "there is no file a/src/words.py.\nDid you mean src/words.py?" in shop("apply_patch", wrong).text
        new = PATCH.replace("src/words.py", "src/new.py")
        assert "To create it, use '*** Add File: src/new.py'" in shop("apply_patch", new).text

    def test_no_patch_at_all(self, fresh: Workshop) -> None:
        assert "first line must be" in fresh("apply_patch", "fix it").text


class TestPlan:
    def test_steps_by_number(self, shop: Workshop) -> None:
        result = shop("plan", steps=["look", "  fix\nit ", "test"], current=2)
        assert result.plan == (
            PlanStep("look", StepState.COMPLETED),
            PlanStep("fix it", StepState.IN_PROGRESS),
            PlanStep("test", StepState.PENDING),
        )
        assert result.text == "The plan now:\n[x] look\n[>] fix it\n[ ] test"
        assert {step.state for step in shop("plan", steps=["a"], current=2).plan or ()} == {StepState.COMPLETED}

    def test_steps_with_states(self, shop: Workshop) -> None:
        result = shop("plan", steps=[{"text": "a", "state": "completed"}, {"text": "b"}])
        assert result.plan == (PlanStep("a", StepState.COMPLETED), PlanStep("b"))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({}, "'steps' must be a list"),
            ({"steps": []}, "'steps' must be a list"),
            ({"steps": [1]}, "Step 1 is not text"),
            ({"steps": [" "]}, "Step 1 is empty"),
            ({"steps": ["a"] * 41}, "at most 40"),
            ({"steps": ["a"], "current": "x"}, "'current' must be"),
            ({"steps": [{"text": "a", "state": "nearly"}]}, "must be one of"),
        ],
    )
    def test_what_is_no_plan(self, shop: Workshop, arguments: dict[str, object], said: str) -> None:
        result = shop("plan", **arguments)
        assert (result.ok, result.plan) == (False, None)
        assert said in result.text


class TestOpenFile:
    def test_whole_and_part(self, shop: Workshop) -> None:
        assert shop("open_file", path="crlf.txt").text == "[crlf.txt, lines 1 to 2 of 2.]\na\r\nb\r"
        part = shop("open_file", path="long.txt", line_start=10, line_end=11, line_numbers=True)
        assert part.text == "[long.txt, lines 10 to 11 of 5000.]\n10\tline 10\n11\tline 11"

    def test_what_does_not_fit_says_where_to_go_on(self, shop: Workshop) -> None:
        text = shop("open_file", path="long.txt").text
        assert len(text) < 4200
        assert text.startswith("[long.txt, lines 1 to ")
        last = int(text.rsplit("line ", 1)[1])
        assert f"The rest did not fit: go on from line {last + 1}.]" in text

    def test_what_is_not_text_is_not_shown(self, fresh: Workshop) -> None:
        fresh.sandbox.write("image.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
        assert fresh("open_file", path="image.png").text.startswith("image.png is not UTF-8 text.")

    def test_wide_lines_empty_files_and_bytes(self, shop: Workshop) -> None:
        assert "x [49000 more bytes in this line]\nend" in shop("open_file", path="wide.txt").text
        assert shop("open_file", path="empty").text == "empty is empty."
        assert shop("open_file", path="latin.txt").text.endswith("caf\ufffd\nplain")
        assert "needle 2" in shop("open_file", path="-dash").text
        assert "def first" in shop("open_file", path=f"{shop.sandbox.workspace}/src/words.py").text

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({}, "'path' is missing"),
            ({"path": "lib/words.py"}, "There is no lib/words.py. Did you mean src/words.py?"),
            ({"path": "zzz"}, "Use print_tree"),
            ({"path": "src"}, "is a folder; use list_dir"),
            ({"path": "long.txt", "line_start": 9000}, "has only 5000 lines"),
            ({"path": "long.txt", "line_start": 9, "line_end": 3}, "before it starts"),
            ({"path": "long.txt", "line_start": "x"}, "must be a whole number"),
            ({"path": "a\0b"}, "NUL"),
        ],
    )
    def test_mistakes(self, shop: Workshop, arguments: dict[str, object], said: str) -> None:
        result = shop("open_file", **arguments)
        assert not result.ok
        assert said in result.text


class TestSearch:
    def test_expression_text_and_place(self, shop: Workshop) -> None:
        assert shop("search", query=r"needle \d").text == "-dash:1:needle 2\nsrc/deep/er/x.txt:1:needle 1"
        assert shop("search", query="split()[", path="src").text.count("src/words.py:") == 2
        assert shop("search", query="needle", path="src/deep").text == "src/deep/er/x.txt:1:needle 1"
        assert shop("search", query="def last", path="src/words.py").text == "src/words.py:5:def last(text):"
        assert shop("search", query="def last", path="src/*.py").text == "src/words.py:5:def last(text):"
        assert shop("search", query="-x-").text == "No line in the repository matches '-x-'."

    def test_bounds(self, shop: Workshop) -> None:
        text = shop("search", query="line", path="long.txt", max_results=3).text
        assert (
            text
            == "long.txt:1:line 1\nlong.txt:2:line 2\nlong.txt:3:line 3\n[3 of 5000 lines are shown; narrow the path or the query.]"
        )
        assert len(shop("search", query="x", path="wide.txt").text) < 1100

    def test_new_files_are_found_and_outside_paths_too(self, fresh: Workshop) -> None:
        fresh("shell", command="echo thimble > new.txt; mkdir -p /tmp/aside; echo thimble > /tmp/aside/y")
        assert fresh("search", query="thimble").text == "new.txt:1:thimble"
        assert fresh("search", query="thimble", path="/tmp/aside").text == "/tmp/aside/y:1:thimble"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({}, "'query' is missing"),
            ({"query": ""}, "one line of text"),
            ({"query": "a\nb"}, "one line of text"),
            ({"query": "x", "path": "nowhere"}, "There is no nowhere"),
            ({"query": "x", "max_results": 0}, "from 1 up"),
        ],
    )
    def test_mistakes(self, shop: Workshop, arguments: dict[str, object], said: str) -> None:
        result = shop("search", **arguments)
        assert not result.ok
        assert said in result.text


class TestListings:
    def test_tree_and_list(self, shop: Workshop) -> None:
        assert shop("print_tree", path="src").text == "deep/\n  er/\n    x.txt\nwords.py"
        assert shop("print_tree", path="src", depth=1).text == "deep/\nwords.py"
        assert shop("list_dir", path="src", depth=2).text == "deep/\ndeep/er/\nwords.py"
        root = shop("list_dir").text.split("\n")
        assert "run.sh" in root
        assert ".git/" not in root

    def test_what_does_not_fit(self, fresh: Workshop) -> None:
        fresh("shell", command="mkdir -p many/a; cd many; for i in $(seq 1 900); do : > a/name-$i; done; : > b")
        deep = fresh("print_tree", path="many", depth=2)
        assert deep.text == "a/\nb\n[900 or more entries did not fit; list a folder below.]"
        wide = fresh("list_dir", path="many/a").text
        assert len(wide) < 4100
        assert "entries did not fit" in wide

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"path": "nowhere"}, "There is no nowhere"),
            ({"path": "run.sh"}, "use open_file"),
            ({"depth": 0}, "from 1 up"),
        ],
    )
    def test_mistakes(self, shop: Workshop, arguments: dict[str, object], said: str) -> None:
        for name in ("print_tree", "list_dir"):
            result = shop(name, **arguments)
            assert not result.ok
            assert said in result.text

    def test_an_empty_folder(self, fresh: Workshop) -> None:
        fresh("shell", command="mkdir hollow")
        assert fresh("list_dir", path="hollow").text == "hollow is empty."
