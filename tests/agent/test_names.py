"""The spellings of names, arguments and bodies that were observed in the wild, each with the call that it means."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.broken_json import meant
from agent.config import RunConfig
from agent.harmony.codec import Codec, open_codec, recipients
from agent.harmony.parser import Parser
from agent.harmony.tokens import OPENING
from agent.tools.names import Resolved, Unknown, resolve
from agent.tools.open import TRAINED_NAMES, declare, open_tools
from agent.tools.text import CallError, arguments

TOOLS = open_tools(RunConfig())
PATCH = "*** Begin Patch\n*** Update File: a.py\n@@\n-x = \"1\"\n+x = '2'\n*** End Patch"
UNENDED = PATCH.removesuffix("*** End Patch")  # whole only where something else says so
LS = {"command": ["bash", "-lc", "ls -R"]}
BASH = '{"command":["bash","-lc","ls -R"]}'
OPEN = {"path": "src/a.py", "line_start": 1, "line_end": 20}


def body(**arguments: object) -> str:
    return json.dumps(arguments)


# recipient, body as the model wrote it, our tool, canonical body (a dictionary for JSON)
VARIANTS: list[tuple[str, str, str, object]] = [
    # names (G7, G8, G9)
    ("container.exec", BASH, "shell", LS),
    ("container_exec", BASH, "shell", LS),
    ("functions.container.exec", BASH, "shell", LS),
    ("functions.functions.shell", BASH, "shell", LS),
    ("functions.exec", BASH, "shell", LS),
    ("functions.exec_command", BASH, "shell", LS),
    ("exec", BASH, "shell", LS),
    ("bash", BASH, "shell", LS),
    ("local_shell", BASH, "shell", LS),
    ("Shell", BASH, "shell", LS),
    ("shell.exec", BASH, "shell", LS),
    ("container.exec<|channel|>commentary", BASH, "shell", LS),
    ("container.exec code", BASH, "shell", LS),
    ("container.exec <|constrain|>json", BASH, "shell", LS),
    ("assistant to=container.exec", BASH, "shell", LS),
    ("to=functions.container.exec", BASH, "shell", LS),
    ("`container.exec`", BASH, "shell", LS),
    ("container.exec()", BASH, "shell", LS),
    ("functions__shell", BASH, "shell", LS),
    ("run", BASH, "shell", LS),
    ("apply_patch", PATCH, "apply_patch", PATCH),
    ("applypatch", PATCH, "apply_patch", PATCH),
    ("apply-patch", PATCH, "apply_patch", PATCH),
    ("applyPatch", PATCH, "apply_patch", PATCH),
    ("functions.apply_patch", PATCH, "apply_patch", PATCH),
    ("functions.functions.apply_patch", PATCH, "apply_patch", PATCH),
    ("repo_browser.apply_patch", body(patch=PATCH), "apply_patch", PATCH),
    ("repo_browser.applypatch", body(patch=PATCH), "apply_patch", PATCH),
    ("repo_browser.edit", body(patch=PATCH), "apply_patch", PATCH),
    ("repo_browser.open_file", body(path="a"), "open_file", {"path": "a"}),
    ("repo_browser.open", body(path="a"), "open_file", {"path": "a"}),
    ("repo_browser.read_file", body(path="a"), "open_file", {"path": "a"}),
    ("read_file", body(path="a"), "open_file", {"path": "a"}),
    ("repo_browser.list_files", body(path="a"), "list_dir", {"path": "a"}),
    ("repo_browser.find", body(path="a", depth=2), "list_dir", {"path": "a", "depth": 2}),
    ("repo_browser.print_tree", body(path="", depth=2), "print_tree", {"path": "", "depth": 2}),
    ("repobrowser.printTree", body(path=""), "print_tree", {"path": ""}),
    ("repo_browser.grep", body(path="", query="x"), "search", {"path": "", "query": "x"}),
    ("python3", "print(1)", "python", "print(1)"),
    ("functions.python", "print(1)", "python", "print(1)"),
    (
        "update_plan",
        body(plan=[{"step": "a", "status": "in_progress"}]),
        "plan",
        {"steps": [{"text": "a", "state": "in_progress"}]},
    ),
    ("functions.plan", body(steps=["a"], current=1), "plan", {"steps": ["a"], "current": 1}),
    # arguments (G10)
    ("container.exec", body(cmd=["ls"]), "shell", {"command": ["ls"]}),
    ("container.exec", body(commands=["ls"]), "shell", {"command": ["ls"]}),
    ("container.exec", body(cmd="ls -R"), "shell", {"command": "ls -R"}),
    ("container.exec", body(command="ls -R"), "shell", {"command": "ls -R"}),
    ("container.exec", body(command=["ls -R | head"]), "shell", {"command": "ls -R | head"}),
    ("container.exec", body(command=["bash -lc", "ls -R"]), "shell", LS),
    ("container.exec", body(command=["bash", "ls -R"]), "shell", {"command": ["bash", "-c", "ls -R"]}),
    ("container.exec", body(commands=["cd src", "ls -a"]), "shell", {"command": "cd src && ls -a"}),
    ("container.exec", body(command='["bash", "-lc", "ls -R"]'), "shell", LS),
    ("container.exec", body(cmd=["ls"], cwd="src"), "shell", {"command": ["ls"], "workdir": "src"}),
    ("container.exec", body(cmd=["ls"], timeout_ms=5000), "shell", {"command": ["ls"], "timeout": 5}),
    ("container.exec", body(cmd=["ls"], timeout_ms=1_200_000), "shell", {"command": ["ls"], "timeout": 1_200_000}),
    ("container.exec", body(command="bash", args=["-lc", "ls -R"]), "shell", LS),
    ("container.exec", body(args=["ls -R"], command="bash -lc"), "shell", LS),
    ("container.exec", body(command=["cd", "a b", "&&", "ls"]), "shell", {"command": "cd 'a b' && ls"}),
    ("container.exec", body(command=["bash", "-lc", "ls", "-R"]), "shell", LS),
    (
        "container.exec",
        body(command=["bash", "-lc", "ls", "a b", "|", "wc"]),
        "shell",
        {"command": ["bash", "-lc", "ls 'a b' | wc"]},
    ),
    (
        "container.exec",
        body(command=["sh", "-c", "ls $1", "_", "a"]),
        "shell",
        {"command": ["sh", "-c", "ls $1", "_", "a"]},
    ),
    ("container.exec", body(command=["grep", "&&", "a"]), "shell", {"command": ["grep", "&&", "a"]}),
    ("container.exec", body(cmd=["ls"], timeout="60"), "shell", {"command": ["ls"], "timeout": 60}),
    ("container.exec", body(arguments={"cmd": ["ls"]}), "shell", {"command": ["ls"]}),
    ("container.exec", body(name="container.exec", arguments=BASH), "shell", LS),
    ("repo_browser.open_file", body(file_path="src/a.py", start_line=1, end_line=20), "open_file", OPEN),
    ("repo_browser.open_file", body(filename="src/a.py", line_start="1", line_end="20"), "open_file", OPEN),
    ("repo_browser.open_file", body(path="src/a.py", view_range=[1, 20]), "open_file", OPEN),
    ("repo_browser.open_file", body(path="a", view_range=[3, -1]), "open_file", {"path": "a", "line_start": 3}),
    ("repo_browser.open_file", body(path="a", line_end=-1), "open_file", {"path": "a"}),
    ("repo_browser.open_file", body(filePath="src/a.py", startLine=1.0, endLine=20), "open_file", OPEN),
    ("repo_browser.open_file", body(path=["a"], line_numbers="True"), "open_file", {"path": "a", "line_numbers": True}),
    ("repo_browser.search", body(path="", pattern="x"), "search", {"path": "", "query": "x"}),
    (
        "repo_browser.search",
        body(dir="src", regex="x", limit=5),
        "search",
        {"path": "src", "query": "x", "max_results": 5},
    ),
    ("repo_browser.print_tree", body(directory="src", max_depth="3"), "print_tree", {"path": "src", "depth": 3}),
    (
        "plan",
        body(todos=[{"content": "a", "status": "done"}]),
        "plan",
        {"steps": [{"text": "a", "state": "completed"}]},
    ),
    # patches (G12)
    ("apply_patch", body(input=PATCH), "apply_patch", PATCH),
    ("apply_patch", body(command=["apply_patch", PATCH]), "apply_patch", PATCH),
    ("apply_patch", body(anything=PATCH), "apply_patch", PATCH),
    ("apply_patch", json.dumps(PATCH), "apply_patch", PATCH),
    ("apply_patch", body(patch=UNENDED), "apply_patch", PATCH),
    ("apply_patch", UNENDED, "apply_patch", UNENDED),
    ("container.exec", body(cmd=f"apply_patch <<'EOF'\n{UNENDED}EOF"), "apply_patch", PATCH),
    ("apply_patch", json.dumps(["apply_patch", PATCH]), "apply_patch", PATCH),
    ("apply_patch", PATCH.replace("\n", "\\n"), "apply_patch", PATCH),
    ("apply_patch", body(patch=PATCH.replace("\n", "\\n")), "apply_patch", PATCH),
    ("apply_patch", f"```diff\n{PATCH}\n```", "apply_patch", PATCH),
    ("apply_patch", f"apply_patch <<'EOF'\n{PATCH}\nEOF", "apply_patch", PATCH),
    ("apply_patch", '{"patch": "' + PATCH + '"}', "apply_patch", PATCH),
    ("apply_patch", '{"patch": "' + PATCH.replace("\n", "\\n") + '"', "apply_patch", PATCH),
    ("container.exec", body(command=["apply_patch", PATCH]), "apply_patch", PATCH),
    ("container.exec", body(command=["bash", "-lc", f"apply_patch <<'EOF'\n{PATCH}\nEOF\n"]), "apply_patch", PATCH),
    ("container.exec", body(command=f"applypatch << PATCH\n{PATCH}\nPATCH"), "apply_patch", PATCH),
    (
        "container.exec",
        body(cmd=f"cd sub && apply_patch <<EOF\n{PATCH}\nEOF"),
        "apply_patch",
        PATCH.replace("a.py", "sub/a.py"),
    ),
    ("container.exec", body(command=["bash", "-lc", PATCH]), "apply_patch", PATCH),
    ("shell", PATCH, "apply_patch", PATCH),
    # bodies (G11)
    ("container.exec", "ls -R", "shell", {"command": "ls -R"}),
    ("container.exec", '"ls -R"', "shell", {"command": "ls -R"}),
    ("container.exec", '["bash","-lc","ls -R"]', "shell", LS),
    ("container.exec", BASH + "]", "shell", LS),
    ("container.exec", BASH[:-1], "shell", LS),
    ("container.exec", BASH + BASH, "shell", LS),
    ("container.exec", BASH[:-2] + "}", "shell", LS),
    ("container.exec", "{command: ['bash', '-lc', 'ls -R']}", "shell", LS),
    ("container.exec", BASH + "<|call|>", "shell", LS),
    ("container.exec", "<|constrain|>json" + BASH, "shell", LS),
    ("container.exec", "json\n" + BASH, "shell", LS),
    ("container.exec", f"```json\n{BASH}\n```", "shell", LS),
    (
        "container.exec",
        '{"command": ["bash", "-lc", "cat > x <<E\na\nE"]}',
        "shell",
        {"command": ["bash", "-lc", "cat > x <<E\na\nE"]},
    ),
    ("container.exec", '{"cmd": ["ls"],}', "shell", {"command": ["ls"]}),
    ("container.exec", '{"cmd": ["cat", " a\\n"],}', "shell", {"command": ["cat", " a\n"]}),
    (
        "container.exec",
        "{'cmd': ['cat', ' a\\\\n'], 'workdir': 'b\\n'}",
        "shell",
        {"command": ["cat", " a\\n"], "workdir": "b\n"},
    ),
    (
        "container.exec",
        r'{"cmd":["bash","-lc","python -c "import os, sys; print(r\"\d\", {1: 2})""],"timeout":10}',
        "shell",
        {"command": ["bash", "-lc", r'python -c "import os, sys; print(r"\d", {1: 2})"'], "timeout": 10},
    ),
    ("container.exec", '{"command": "echo "a, b", "c""}', "shell", {"command": 'echo "a, b", "c"'}),
    # one tool taken for another
    ("python", BASH, "shell", LS),
    ("python", PATCH, "apply_patch", PATCH),
    ("python", body(input=PATCH), "apply_patch", PATCH),
    ("python", f"apply_patch <<'EOF'\n{PATCH}\nEOF", "apply_patch", PATCH),
    ("python", body(code="print(1)"), "python", "print(1)"),
    ("python", '{"code": "a = 1\nprint(a)"}', "python", "a = 1\nprint(a)"),
    ("python", "```python\nprint(1)\n```", "python", "print(1)"),
    ("python", json.dumps("import os\nprint(1)"), "python", "import os\nprint(1)"),
    ("python", "[1, 2]", "python", "[1, 2]"),
    ("python", '{"a": 1}["a"]', "python", '{"a": 1}["a"]'),
    ("repo_browser.open_file", "src/a.py", "open_file", {"path": "src/a.py"}),
    ("repo_browser.open_file", "src/a.py:1-20", "open_file", OPEN),
    ("repo_browser.search", "def f", "search", {"query": "def f"}),
    ("repo_browser.print_tree", "", "print_tree", {"path": ""}),
    (
        "plan",
        "1. [x] look\n2. fix",
        "plan",
        {"steps": [{"text": "look", "state": "completed"}, {"text": "fix", "state": "pending"}]},
    ),
]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return open_codec(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("recipient", "text", "tool", "expected"), VARIANTS)
def test_observed_variants(recipient: str, text: str, tool: str, expected: object) -> None:
    found = resolve(recipient, text, TOOLS)
    assert isinstance(found, Resolved)
    assert found.tool == tool
    assert (json.loads(found.text) if isinstance(expected, dict) else found.text) == expected


def test_there_are_enough_of_them() -> None:
    assert len({(recipient, text) for recipient, text, _, _ in VARIANTS}) >= 100


@pytest.mark.parametrize(
    ("recipient", "said"),
    [
        ("browser.search", "There is no web here"),
        ("browser.open", "There is no web here"),
        ("functions.frobnicate", "container.exec"),
        ("", "container.exec"),
        ("<|constrain|>json", "container.exec"),
        ("shell or python", "container.exec"),
        ("open", "container.exec"),
        ("find", "container.exec"),
        ("edit", "container.exec"),
        ("serch", "Did you mean repo_browser.search?"),
        ("repo_browser.run_tests", "Any program runs with container.exec."),
        ("repo_browser.create_file", "Files are made, changed and deleted with repo_browser.apply_patch."),
        ("str_replace_editor", "Files are made, changed and deleted with repo_browser.apply_patch."),
        ("repo_browser.search.open_file", "There is no tool"),
        ("x" * 500, "…"),
    ],
)
def test_what_is_not_clear_is_answered_with_what_exists(recipient: str, said: str) -> None:
    found = resolve(recipient, body(x=1), TOOLS)
    assert isinstance(found, Unknown)
    assert said in found.answer
    assert "repo_browser.apply_patch" in found.answer
    assert len(found.answer) < 500


def test_a_patch_to_nobody_is_told_where_patches_go() -> None:
    found = resolve("functions.write", PATCH, TOOLS)
    assert isinstance(found, Unknown)
    assert found.answer.endswith("A patch goes to repo_browser.apply_patch.")


@pytest.mark.parametrize("text", [UNENDED, body(patch=UNENDED)[:-2], body(patch=UNENDED)[:-1]])
def test_a_patch_that_may_be_cut_off_is_not_ended(text: str) -> None:
    found = resolve("apply_patch", text, TOOLS)
    assert isinstance(found, Resolved)
    assert "End Patch" not in found.text


def test_a_tool_that_is_not_on_offer() -> None:
    reading = {name: tool for name, tool in TOOLS.items() if not tool.writes}
    for text in (PATCH, body(patch=PATCH)):
        found = resolve("apply_patch", text, reading, "generic")
        assert isinstance(found, Unknown)
        assert found.answer == (
            "The tool apply_patch is not on offer in this run. These are: plan, print_tree, list_dir, search, open_file."
        )
    found = resolve("apply_patch", PATCH, {}, "generic")
    assert isinstance(found, Unknown)
    assert found.answer == "The tool apply_patch is not on offer in this run. There are none."


@pytest.mark.parametrize(
    ("recipient", "text"),
    [
        ("container.exec", '{"command": ["bash", "-lc", "rm -rf /tmp/x'),  # cut off inside the command
        ("container.exec", '{"command": ["rm", "-rf"'),  # and inside the list
        ("container.exec", '{"command": '),
        ("container.exec", '{"command"'),  # an object that was begun, not a list of one word
        ("container.exec", '{"command": ["ls"], "workdir"'),  # elsewhere the command means something else
        ("container.exec", BASH + '{"command":["pwd"]}'),  # two calls
        ("container.exec", f"{BASH[:-1]},}}{BASH}"),
        ("container.exec", '{"command": "ls"\n "workdir": "src"}'),  # no comma, no colon, no bracket: what ends where?
        ("container.exec", '{"command": "ls", "workdir" "src"}'),
        ("container.exec", '{"command": "ls", "timeout" 5, "workdir": "src"}'),
        ("container.exec", '{"command": "bash", "-lc", "ls"], "workdir": "src"}'),
        ("container.exec", '{"cmd": ["say "a", "b""], "workdir": "src"}'),
        ("container.exec", '["bash", -lc", "ls"]'),
        ("container.exec", '["bash", "-lc", "echo "]"]'),
        ("container.exec", '{"command": "echo "}"}'),
        ("container.exec", '{"command": ["ls"], "timeout": 60'),  # or 600
        ("container.exec", r'{"cmd": ["grep", "\\\\\"a"] "timeout": 5}'),
        ("container.exec", '{"command":["rg","-n","a", "b"", "c"", "src"]}'),  # which words?
        ("container.exec", '{"command": ["ls"], "cmd": ["pwd"]}'),  # two commands
        ("container.exec", '{"path": "src"}'),
        ("python", '{"code": "print(1)", "path": "x"}'),
        ("repo_browser.open_file", '{"path": "a'),
        ("repo_browser.open_file", "two\nlines"),
        ("repo_browser.open_file", f'{{"path": "a", "line_start": "{"9" * 400}"}}'),
    ],
)
def test_what_cannot_be_read_with_certainty_is_left_for_the_tool_to_refuse(recipient: str, text: str) -> None:
    found = resolve(recipient, text, TOOLS)
    assert isinstance(found, Resolved)
    if found.text == text:
        return
    assert json.loads(found.text) == json.loads(text)


@pytest.mark.parametrize(
    "script",
    [
        f"apply_patch <<'EOF'\n{PATCH}\nEOF\npytest",
        f"ls && apply_patch <<'EOF'\n{PATCH}\nEOF",
        f"cat > p <<'EOF'\n{PATCH}\nEOF",
        f"cd $HOME && apply_patch <<'EOF'\n{PATCH}\nEOF",
        f"echo '{PATCH}'",
    ],
)
def test_a_command_that_does_more_than_patch_stays_a_command(script: str) -> None:
    found = resolve("container.exec", body(command=script), TOOLS)
    assert isinstance(found, Resolved)
    assert (found.tool, json.loads(found.text)["command"]) == ("shell", script)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), 5_000])
def test_a_time_of_any_length_can_be_read(value: float) -> None:
    found = resolve("container.exec", body(cmd=["ls"], timeout_ms=value), TOOLS)
    assert isinstance(found, Resolved)
    assert json.loads(found.text)["timeout"] == (5 if value == 5_000 else value)


def test_repairs_are_named() -> None:
    assert resolve("container.exec", BASH, TOOLS) == Resolved("shell", json.dumps(LS))
    assert resolve("bash", "ls", TOOLS) == Resolved("shell", '{"command": "ls"}', ("name", "body"))
    assert resolve("container.exec", '{"commands": ["ls"],}', TOOLS) == Resolved(
        "shell", '{"command": ["ls"]}', ("json", "arguments")
    )
    shell = resolve("container.exec", body(command=["apply_patch", PATCH]), TOOLS)
    assert shell == Resolved("apply_patch", PATCH, ("name", "patch-command"))


# As gpt-oss writes them when nothing goes wrong: recipient, channel and type, body, our tool.
CANONICAL = [
    ("container.exec", "commentary to={} <|constrain|>json", BASH, "shell"),
    ("container.exec", "commentary to={} <|constrain|>json", body(command=["ls"], workdir="src", timeout=60), "shell"),
    ("container.exec", "analysis to={} code", BASH, "shell"),
    ("python", "analysis to={} code", "{'a': 1}['a']", "python"),
    ("python", "analysis to={}", "import os\nprint(os.getcwd())", "python"),
    ("functions.plan", "commentary to={} <|constrain|>json", body(steps=[], current=1), "plan"),
    ("functions.plan", "commentary to={} json", body(steps=[{"text": "a", "state": "pending"}]), "plan"),
    ("repo_browser.print_tree", "commentary to={} code", body(path="", depth=2), "print_tree"),
    ("repo_browser.search", "commentary to={} code", body(path="src", query="x", max_results=5), "search"),
    ("repo_browser.open_file", "commentary to={} code", body(**OPEN, line_numbers=True), "open_file"),
    ("repo_browser.open_file", "commentary to={} code", body(path="a", line_start=None), "open_file"),
    ("repo_browser.list_dir", "analysis to={} code", body(path="", depth=1), "list_dir"),
    ("repo_browser.apply_patch", "commentary to={} <|constrain|>json", body(patch=PATCH), "apply_patch"),
    ("repo_browser.apply_patch", "commentary to={} code", PATCH, "apply_patch"),
]


@pytest.mark.parametrize(("recipient", "header", "text", "tool"), CANONICAL)
def test_what_is_well_formed_counts_as_no_repair(codec, recipient: str, header: str, text: str, tool: str) -> None:
    """From the sampled ids to the tool: a run's numbers of repairs would say nothing otherwise."""
    parser = Parser(codec.token_bytes, recipients(declare(TOOLS, "trained")))
    parser.feed([*OPENING, *codec.encode_sampled(f"<|channel|>{header.format(recipient)}<|message|>{text}<|call|>")])
    parsed = parser.finish(stopped=True)
    assert parsed.repairs == ()
    (call,) = parsed.messages
    found = resolve(call.recipient or "", call.text, TOOLS)
    assert isinstance(found, Resolved)
    assert (found.tool, found.repairs) == (tool, ())


@pytest.mark.parametrize(
    ("recipient", "given"),
    [
        ("container.exec", {"cmd": ["ls"], "timeout": 10000}),
        ("functions.plan", {"plan": [{"step": "a", "status": "in_progress"}, {"step": "b", "status": "pending"}]}),
        ("repo_browser.apply_patch", {"input": PATCH}),
    ],
)
def test_other_trained_names_of_arguments_are_no_repair(recipient: str, given: dict[str, object]) -> None:
    resolved = resolve(recipient, json.dumps(given), TOOLS)
    assert isinstance(resolved, Resolved)
    assert resolved.repairs == ()


@pytest.mark.parametrize(
    ("recipient", "tool"),
    [
        ("repo_browser_search", "search"),
        ("functions_plan", "plan"),
        ("container_exec", "shell"),
        ("repo_browser", "search"),
    ],
)
def test_a_dotted_name_without_its_dot(recipient: str, tool: str) -> None:
    resolved = resolve(recipient, '{"query": "x", "path": ""}', TOOLS)
    assert (resolved.tool if isinstance(resolved, Resolved) else "") == tool


@pytest.mark.parametrize("recipient", ["", "assistant", "assistant<|channel|>analysis", "functions", "commentary"])
def test_a_call_whose_name_was_lost_is_known_by_arguments_that_fit_one_tool_only(recipient: str) -> None:
    for text, tool in (
        (BASH, "shell"),
        (body(patch=PATCH), "apply_patch"),
        (body(query="x", path=""), "search"),
        (body(path="a", line_start=3), "open_file"),
        (body(code="print(1)"), "python"),
        (body(plan=["a"]), "plan"),
    ):
        resolved = resolve(recipient, text, TOOLS)
        assert isinstance(resolved, Resolved)
        assert (resolved.tool, "name" in resolved.repairs) == (tool, True)
    for text in (body(path="src"), body(cmd="ls"), body(), "ls", "{", BASH[:-6]):
        assert isinstance(resolve(recipient, text, TOOLS), Unknown)


def test_declarations() -> None:
    trained, generic = declare(TOOLS, "trained"), declare(TOOLS, "generic")
    assert [spec.name for spec in generic] == list(TOOLS)
    assert [spec.name for spec in trained] == [TRAINED_NAMES.get(name, name) for name in TOOLS]
    assert {spec.name: spec.parameters for spec in trained}["python"] is None
    for spec in (*trained, *generic):
        resolved = resolve(spec.name, "{}", TOOLS)
        assert isinstance(resolved, Resolved)
        assert "name" not in resolved.repairs
        for schema in (spec.parameters or {"properties": {}})["properties"].values():
            assert schema["type"] in {"string", "integer", "boolean", "array"}
    with pytest.raises(ValueError, match="style must be"):
        declare(TOOLS, "other")


def test_the_python_choice_is_told_to_the_model() -> None:
    stateless = open_tools(replace(RunConfig(), python="stateless"))
    assert "fresh interpreter" in stateless["python"].spec.description
    assert "live across calls" in TOOLS["python"].spec.description
    assert declare(stateless, "trained")[2].description == stateless["python"].spec.description


@pytest.mark.parametrize(
    ("choice", "is_true"),
    [({}, True), ({"sandbox": "none"}, False), ({"command_timeout_s": 60.0}, False), ({"python": "stateless"}, False)],
)
def test_the_trained_text_of_python_is_used_where_it_is_true(choice: dict[str, object], is_true: bool) -> None:
    tools = open_tools(replace(RunConfig(), **choice))
    described = {spec.name: spec.description for spec in declare(tools, "trained")}["python"]
    assert described == ("" if is_true else tools["python"].spec.description)
    assert "After 120 s" in TOOLS["python"].spec.description


@given(st.text(max_size=40), st.text(max_size=80))
def test_nothing_escapes_for_any_text(recipient: str, text: str) -> None:
    for name in (
        recipient,
        "container.exec",
        "python",
        "apply_patch",
        "plan",
        "repo_browser.open_file",
        "repo_browser.search",
        "find",
    ):
        assert isinstance(resolve(name, text, TOOLS), Resolved | Unknown)


@pytest.mark.parametrize("levels", [300, 900, 1000, 100_000])
@pytest.mark.parametrize("opening", ["[", "{", '{"command":', '{"arguments":{"path":', '{"plan":['])
def test_nothing_escapes_however_deep_a_body_is_nested(opening: str, levels: int) -> None:
    closing = "".join({"[": "]", "{": "}"}[sign] for sign in reversed(opening) if sign in "[{")
    for text in (opening * levels, opening * levels + "1" + closing * levels):
        for name in TOOLS:
            meant = resolve(name, text, TOOLS)
            assert isinstance(meant, Resolved)
            with contextlib.suppress(CallError):
                arguments(meant.text, "{}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["cmd", "command", "path", "plan", "x", "arguments"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON, st.integers(0, 60))
def test_nothing_escapes_for_any_json_and_any_cut_of_it(value: object, cut: int) -> None:
    text = json.dumps(value)
    for name in TOOLS:
        assert isinstance(resolve(name, text, TOOLS), Resolved)
        assert isinstance(resolve(name, text[:cut], TOOLS), Resolved)


def test_arguments_that_a_looping_model_repeats_are_read_in_time() -> None:
    text = '{"command": "ls' + '", "a": "b' * 10_000
    began = time.process_time()
    assert resolve("container.exec", text, TOOLS).text == text
    assert time.process_time() - began < 3


def test_a_patch_command_with_many_spaces_behind_it_is_read_in_time() -> None:
    text = f"apply_patch <<EOF\n*** Begin Patch\nEOF{' ' * 40_000}x"
    began = time.process_time()
    assert isinstance(resolve("python", text, TOOLS), Resolved)
    assert time.process_time() - began < 3


PIECES = ['"', '\\"', ", ", ": ", "echo a", '"b, c"', "{", "}", "[1]", "\\d", "\n", 'print("x", y)', '"], "n": 1']


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), st.booleans())
def test_a_script_whose_quotes_are_not_escaped_is_read_whole_or_not_at_all(script: str, timed: bool) -> None:
    written = f'{{"command": ["bash", "-lc", "{script}"]' + (', "timeout": 5}' if timed else "}")
    with contextlib.suppress(ValueError):
        json.JSONDecoder(strict=False).raw_decode(written)
        return  # it is JSON as it is, but for line breaks and what follows its end
    found = resolve("container.exec", written, TOOLS)
    assert isinstance(found, Resolved)
    if found.text != written:
        assert json.loads(found.text)["command"][:2] == ["bash", "-lc"]
        (read,) = json.loads(found.text)["command"][2:]
        assert read == script.replace('\\"', '"')


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=4), st.integers(0, 100))
@example(["0", "0", "00000\x1f\n"], 47)  # json_repair takes what ends a text for space around it
def test_a_command_that_was_cut_never_runs_as_another(words: list[str], cut: int) -> None:
    """Whatever a prefix of a call is read as: either the whole command or nothing that runs."""
    text = json.dumps({"command": ["prog", *words]}, ensure_ascii=False)
    found = resolve("container.exec", text[:cut], TOOLS)
    assert isinstance(found, Resolved)
    try:
        command = json.loads(found.text)
    except ValueError:
        return
    assert command.get("command", ["prog", *words]) == ["prog", *words]


FAULTS = {
    "a comma too many": lambda text: text.replace(', "workdir"', ',, "workdir"'),
    "a comma at the end": lambda text: f"{text[:-1]},}}",
    "no comma": lambda text: text.replace(', "workdir"', ' "workdir"'),
    "no colon": lambda text: text.replace('"workdir":', '"workdir"'),
    "no brace": lambda text: text[:-1],
    "no quote": lambda text: text.replace('"workdir"', 'workdir"'),
    "twice, with a comma at the end": lambda text: f"{text[:-1]},}}{text}",
}


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join), st.booleans(), st.sampled_from([*FAULTS])
)
def test_a_call_with_a_fault_is_read_as_it_was_meant_or_not_at_all(script: str, as_list: bool, fault: str) -> None:
    call = {"command": ["bash", "-lc", script] if as_list else script, "workdir": "a\n", "timeout": 5}
    assert meant(FAULTS[fault](json.dumps(call))) in (call, None)
