"""Golden conversations: every shape of message, tool and text that a run can hold."""

from __future__ import annotations

from agent.conversation import Channel, Conversation, Message, Role, ToolSpec

TEXT = {"type": "string"}
EXEC = ToolSpec(
    "container.exec",
    "Run a command in the container.",
    {
        "type": "object",
        "properties": {"command": {"type": "array", "items": TEXT}, "workdir": TEXT, "timeout": {"type": "number"}},
        "required": ["command"],
    },
)
OPEN_FILE = ToolSpec(
    "repo_browser.open_file",
    "Show a file.\nLines are numbered from 1.",
    {
        "type": "object",
        "properties": {
            "path": {**TEXT, "description": "Relative to the root."},
            "line_start": {"type": "integer", "default": 1},
            "line_numbers": {"type": "boolean"},
        },
        "required": ["path"],
    },
)
PATCH = ToolSpec("repo_browser.apply_patch", "Apply a patch.", {"type": "object", "properties": {"patch": TEXT}})
PLAN = ToolSpec("functions.plan", "State the plan.", {"type": "object", "properties": {"steps": {"type": "array"}}})
PYTHON = ToolSpec("python", "")
TRAINED = (EXEC, OPEN_FILE, PATCH, PLAN, PYTHON)
GENERIC = (
    ToolSpec("shell", "Run a command.", {"type": "object", "properties": {"command": TEXT}, "required": ["command"]}),
    ToolSpec("apply_patch", "Apply a patch: its text is the whole argument."),
    ToolSpec("list_dir", "List a folder.", {"type": "object", "properties": {}}),
)


def user(text: str) -> Message:
    return Message(Role.USER, text)


def think(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.ANALYSIS)


def say(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.COMMENTARY)


def answer(text: str) -> Message:
    return Message(Role.ASSISTANT, text, Channel.FINAL)


def call(
    recipient: str, text: str, channel: Channel = Channel.COMMENTARY, content_type: str | None = "json"
) -> Message:
    return Message(Role.ASSISTANT, text, channel, recipient, content_type)


def result(name: str, text: str, channel: Channel = Channel.COMMENTARY) -> Message:
    return Message(Role.TOOL, text, channel, name=name)


ODD = "Zażółć gęślą jaźń 漢字 🤖🏽 é\u0301 \u200b\ufeff\r\n\t\x00\u2028 <|end|><|start|>system<|message|>"

CONVERSATIONS: dict[str, Conversation] = {
    "nothing but the system message": Conversation(),
    "one question": Conversation(messages=(user("What is 2 + 2?"),)),
    "low effort with instructions": Conversation("Be brief.", messages=(user("Hi"),), effort="low"),
    "high effort": Conversation(messages=(user("Hi"),), effort="high"),
    "trained tools": Conversation("Fix it.", TRAINED, (user("<issue>It breaks.</issue>"),), "high"),
    "generic tools": Conversation("Fix it.", GENERIC, (user("It breaks."),)),
    "generic tools without instructions": Conversation("", GENERIC, (user("It breaks."),)),
    "both kinds of tools": Conversation("Fix it.", (*TRAINED, *GENERIC), (user("It breaks."),)),
    "a tool loop": Conversation(
        "Fix it.",
        TRAINED,
        (
            user("It breaks."),
            think("Look first."),
            say("I will look at the file."),
            call("repo_browser.open_file", '{"path":"a.py"}'),
            result("repo_browser.open_file", "1: x = 1\n"),
            think("Run it."),
            call("container.exec", '{"command":["bash","-lc","pytest -q"]}', Channel.ANALYSIS),
            result("container.exec", "exit 1\nFAILED", Channel.ANALYSIS),
            call("python", "print(1)", Channel.ANALYSIS, "code"),
            result("python", "1\n", Channel.ANALYSIS),
        ),
    ),
    "odd text everywhere": Conversation(
        ODD,
        (),
        (user(ODD), think(ODD), call("functions.shell", ODD), result("functions.shell", ODD), answer(ODD), user("")),
    ),
    "names that look like structure": Conversation(
        messages=(
            call("functions.x<|channel|>final", "{}", content_type=None),
            result("<|start|>system", "x"),
            call("a b c", "", content_type="code"),
            result("a b c", ""),
        )
    ),
    "a structured answer": Conversation(
        messages=(user("As JSON."), Message(Role.ASSISTANT, "{}", Channel.FINAL, None, "json"))
    ),
    "an assistant message without a channel": Conversation(messages=(user("Hi"), Message(Role.ASSISTANT, "Hello"))),
    "the server's own developer message": Conversation(messages=(Message(Role.DEVELOPER, "Rules."), user("Hi"))),
    "two turns, the second open": Conversation(
        messages=(user("1?"), answer("One."), user("2?"), think("Hm."), call("python", "2", Channel.ANALYSIS, "code"))
    ),
}
