"""A whole run over a chat server that does, one after the other, what servers of gpt-oss were seen to do wrong."""

from __future__ import annotations

import json

from agent.events import MessageAdded, Repaired, ToolFinished
from agent.harmony.repair import Kind
from agent.log import read
from agent.position import CUT_OFF, GO_ON
from tests.e2e.conftest import PLAIN, TASK, Place, git
from tests.servers import Reply, Request, document, serving, stream

PATCHES = [
    message["arguments"]["patch"]
    for turn in json.loads((TASK / "script.json").read_text())["turns"]
    for message in turn
    if message.get("recipient") == "repo_browser.apply_patch"
]


def answer(finish: str = "stop", **delta: object) -> Reply:
    return stream([{"choices": [{"index": 0, "delta": delta}]}, {"choices": [{"delta": {}, "finish_reason": finish}]}])


def calling(name: str, arguments: str, finish: str = "tool_calls") -> Reply:
    function = {"name": name, "arguments": arguments}
    return answer(finish, tool_calls=[{"index": 0, "id": "c", "type": "function", "function": function}])


def garbled(said: str) -> Reply:
    return stream([{"choices": [{"delta": {"reasoning": "Hm."}}]}, {"error": {"message": said, "code": 400}}])


ANSWERS: list[Reply] = [
    # the parser gives up and hands the call on as content
    answer(content='<|channel|>commentary to=functions.container_exec <|constrain|>json<|message|>{"cmd":["ls"]}'),
    # or fails, in the middle of the stream or before it
    garbled('unexpected tokens remaining in message header: Some("to=functions.shell")'),
    document({"error": "error parsing tool call: raw='{\"cmd\"', err=invalid character"}, 500),
    # quotes that are not escaped, whose commas look like those of the list
    calling("container_exec", '{"command":["bash","-lc","python3 -c "import os, sys; print(os.sep * 3)""]}'),
    answer(reasoning="I should edit."),
    answer(content=""),
    # a piece of the header as the name
    calling("assistant<|channel|>analysis", '{"command":["pwd"]}'),
    calling("repo_browser_apply_patch", json.dumps({"patch": PATCHES[0]})[:-9], "length"),
    calling("repo_browser_apply_patch", json.dumps({"patch": PATCHES[0]})),
    calling("applypatch", json.dumps({"input": PATCHES[1]})),
    answer(content="<|channel|>final<|message|>It keeps a title that just fits."),
]


def test_what_chat_servers_do_wrong_does_not_end_a_run(place: Place) -> None:
    answers = iter(ANSWERS)

    def reply(request: Request) -> Reply:
        models = document({"data": [{"id": "gpt-oss-20b", "max_model_len": 32_768}]})
        return models if request.path.endswith("/models") else next(answers)

    with serving(reply) as server:
        done = place.agent("fix", "slugify cuts too much", "--endpoint", server.url, "--wire", "chat", *PLAIN)
    assert done.returncode == 0, done.stderr
    assert next(answers, None) is None
    (folder,) = place.runs.iterdir()
    events = [entry.event for entry in read(folder / "events.jsonl")]
    results = [event.result for event in events if isinstance(event, ToolFinished)]
    assert all(result.ok for result in results)
    assert ["README.md" in result.text for result in results] == [True, False, False, False, False]
    assert "///" in results[1].text
    told = [event.message.text for event in events if isinstance(event, MessageAdded)]
    assert [text for text in told if text.startswith("[harness]")] == [GO_ON, GO_ON, CUT_OFF]
    assert [event.kind for event in events if isinstance(event, Repaired)].count(Kind.SPELT) == 2
    branch = git(place.repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/agent")
    assert git(place.repository, "diff", "--name-only", "main", branch) == "textkit/slug.py"
