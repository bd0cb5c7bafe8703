"""The scripted model: it finds its place, whatever happened to the conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.conversation import Channel, Conversation, Message, Role
from agent.errors import ScriptEnded, UsageError
from agent.events import Delta, MessageAdded, Sampled
from agent.log import LOG_NAME, Log
from agent.model.base import SamplingParams
from agent.model.scripted import ScriptedModel, load_script
from tests.fakes import analysis, call, final, started, user

TURNS = [[analysis("hm"), call("look", n=1)], [call("look", n=1)], [final("done")]]
RESULT = Message(Role.TOOL, "ok", name="look")


def answer(model: ScriptedModel, *messages: Message) -> list[Message]:
    events = list(model.sample(Conversation("", (), messages), SamplingParams()))
    assert isinstance(events[-1], Sampled)
    return [event.message for event in events if isinstance(event, MessageAdded)]


def test_it_plays_turn_after_turn() -> None:
    model = ScriptedModel(TURNS)
    said = [user("hi")]
    for turn in TURNS:
        assert answer(model, *said) == turn
        said += [*turn, RESULT]


def test_it_is_the_conversation_that_counts_and_not_how_often_it_was_asked() -> None:
    model = ScriptedModel(TURNS)
    for _ in range(3):
        assert answer(model, user("hi"), *TURNS[0], RESULT) == TURNS[1]
    assert answer(model, user("hi")) == TURNS[0]


def test_half_a_turn_is_played_to_its_end() -> None:
    assert answer(ScriptedModel(TURNS), user("hi"), TURNS[0][0]) == TURNS[0][1:]


def test_after_a_compaction_the_tail_says_where_it_is() -> None:
    turns = [[call("look", n=n)] for n in range(10)]
    assert answer(ScriptedModel(turns), user("hi"), user("summary"), *turns[6], RESULT, *turns[7], RESULT) == turns[8]


def test_equal_answers_are_told_apart_by_how_many_there_were() -> None:
    turns = [[call("look")]] * 4 + [[final("done")]]
    said = [user("hi")]
    for turn in turns:
        assert answer(ScriptedModel(turns), *said) == turn
        said += [*turn, RESULT]


def test_at_its_end_it_says_so() -> None:
    with pytest.raises(ScriptEnded, match=r"script is at its end \(answers: 3\)"):
        answer(ScriptedModel(TURNS), user("hi"), *(message for turn in TURNS for message in turn))


def test_text_comes_as_deltas_before_the_messages_and_usage_at_the_end() -> None:
    events = list(ScriptedModel(TURNS).sample(Conversation("", (), (user("hi"),)), SamplingParams()))
    assert [type(event) for event in events] == [Delta, Delta, MessageAdded, MessageAdded, Sampled]
    assert (events[0], events[-1]) == (Delta(Channel.ANALYSIS, "hm"), Sampled(9, 20, "call"))


def write(folder: Path, data: object) -> Path:
    path = folder / "script.json"
    path.write_text(json.dumps(data), "utf-8")
    return path


def test_a_script_file_is_short_to_write(tmp_path: Path) -> None:
    turn = [
        {"channel": "analysis", "text": "hm"},
        {"recipient": "container.exec", "arguments": {"command": ["ls"]}},
    ]
    turns = load_script(write(tmp_path, {"turns": [turn, [{"text": "done"}]]}))
    assert turns == [
        [analysis("hm"), Message(Role.ASSISTANT, '{"command": ["ls"]}', Channel.COMMENTARY, "container.exec", "json")],
        [final("done")],
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "must be"),
        ({"turns": {}}, "must be"),
        ({"turns": ["x"]}, "must be"),
        ({"turns": [["x"]]}, "turn 1, message 1: a message is an object"),
        ({"turns": [[], [{"text": "a"}, {"txt": "a"}]]}, "turn 2, message 2: a message is an object"),
        ({"turns": [[{"text": 1}]]}, "text and recipient are strings"),
        ({"turns": [[{"recipient": 1}]]}, "text and recipient are strings"),
        ({"turns": [[{"channel": "loud"}]]}, "channel is one of analysis, commentary, final, not 'loud'"),
    ],
)
def test_a_wrong_script_is_an_error_that_names_the_place(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_script(write(tmp_path, data))


def test_a_script_that_is_not_there_or_not_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read"):
        load_script(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{", "utf-8")
    with pytest.raises(UsageError, match=r"bad\.json is not JSON"):
        load_script(tmp_path / "bad.json")


def test_a_recorded_run_is_a_script(tmp_path: Path) -> None:
    with Log(tmp_path / LOG_NAME, new=True) as log:
        log.append(started())
        for turn in TURNS:
            for message in turn:
                log.append(
                    MessageAdded(
                        Message(
                            message.role,
                            message.text,
                            message.channel,
                            message.recipient,
                            message.content_type,
                            tokens=(1, 2),
                        )
                    )
                )
            log.append(Sampled(1, 1, "stop"))
            log.append(MessageAdded(user("[harness] go on")))
    assert load_script(tmp_path) == TURNS
    assert load_script(tmp_path / LOG_NAME) == TURNS
