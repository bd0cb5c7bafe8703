"""A chat turn by turn: what it keeps, what stops it, and that it can always go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.chat.talk import INSTRUCTIONS, STOPPED, WITH_SANDBOX, chosen_tools
from agent.config import RunConfig
from agent.conversation import Message, Role
from agent.errors import EndpointUnreachable, LogError, UsageError
from agent.events import Delta, MessageAdded, Outcome, Repaired, Sampled, ToolFinished, ToolResult
from agent.model.scripted import ScriptedModel, load_script
from agent.position import GO_ON, open_call
from agent.tools.open import open_tools
from sandbox.base import Sandbox
from sandbox.errors import SandboxError, SandboxLost
from tests.agent.chat.talks import FunctionTool, Shown, folder_sandbox, talk_with
from tests.fakes import FaultyModel, analysis, call, final, user

HELLO = [analysis("greet"), final("Hello.")]


def texts(talk: object) -> list[str]:
    return [message.text for message in talk.state.conversation.messages]  # type: ignore[attr-defined]


def test_turns_add_up() -> None:
    talk, shown = talk_with([HELLO, [final("Fine.")]]), Shown()
    assert talk.turn("hi", shown).outcome is Outcome.ANSWERED
    assert talk.turn("how are you?", shown).claimed == "Fine."
    assert texts(talk) == ["hi", "greet", "Hello.", "how are you?", "Fine."]
    assert shown.of(Delta)
    assert talk.reasoning == ""
    talk.undo()
    assert talk.reasoning == "greet"


def test_calls_run_until_there_is_an_answer() -> None:
    ran: list[str] = []

    def act(text: str, sandbox: Sandbox) -> ToolResult:
        ran.append(text)
        return ToolResult("42")

    python = Message(Role.ASSISTANT, "6*7", analysis("").channel, "python")
    talk, shown = talk_with([[python], [final("42.")]], {"python": FunctionTool("python", act)}), Shown()
    talk.turn("compute", shown)
    assert ran == ["6*7"]
    assert texts(talk) == ["compute", "6*7", "42", "42."]


def test_an_unknown_tool_and_a_silence_are_answered() -> None:
    talk = talk_with([[call("functions.fly")], [analysis("hm")], [final("I cannot.")]])
    assert talk.turn("fly", Shown()).outcome is Outcome.ANSWERED
    assert "There is no tool 'functions.fly'" in texts(talk)[2]
    assert GO_ON in texts(talk)


def test_steps_are_capped_and_the_next_turn_has_as_many_again() -> None:
    turns = [[call("functions.fly", number=number)] for number in range(5)] + [[final("I give up.")]]
    talk, shown = talk_with(turns, steps=3), Shown()
    ended = talk.turn("fly", shown)
    assert (ended.outcome, len(shown.of(Sampled))) == (Outcome.LIMIT, 3)
    assert open_call(talk.state.conversation) is None
    assert talk.turn("go on", Shown()).claimed == "I give up."


def test_a_model_that_cannot_be_asked_costs_only_the_message() -> None:
    answered = [MessageAdded(final("Back.")), Sampled(1, 1, "stop")]
    talk, shown = talk_with(FaultyModel([EndpointUnreachable("nobody answers"), answered])), Shown()
    ended = talk.turn("hi", shown)
    assert (ended.outcome, ended.reason) == (Outcome.ENDPOINT, "nobody answers (your message was taken back)")
    assert shown.ended == ended
    assert texts(talk) == []
    assert talk.turn("hi again", Shown()).claimed == "Back."
    assert texts(talk) == ["hi again", "Back."]


def test_what_was_done_before_a_fault_stays() -> None:
    first = [MessageAdded(call("functions.fly")), Sampled(1, 1, "call")]
    talk = talk_with(FaultyModel([first, EndpointUnreachable("gone")]))
    talk.turn("fly", Shown())
    assert len(texts(talk)) == 3
    assert open_call(talk.state.conversation) is None


def test_ctrl_c_in_a_call_answers_it_and_the_chat_goes_on() -> None:
    def act(text: str, sandbox: Sandbox) -> ToolResult:
        raise KeyboardInterrupt

    both = [call("python", code="1"), call("python", code="2")]
    talk = talk_with([both, [final("Stopped.")]], {"python": FunctionTool("python", act)})
    assert talk.turn("compute", Shown()).outcome is Outcome.INTERRUPTED
    assert texts(talk)[-2:] == [STOPPED, STOPPED]
    assert talk.state.pending is None
    assert talk.turn("and now?", Shown()).claimed == "Stopped."


def test_ctrl_c_in_an_answer_closes_the_stream_and_takes_the_message_back() -> None:
    model = FaultyModel([[Delta(None, "long "), Delta(None, "story")]])

    def show(event: object, state: object) -> None:
        if isinstance(event, Delta):
            raise KeyboardInterrupt

    talk = talk_with(model)
    assert talk.turn("tell", show).outcome is Outcome.INTERRUPTED
    assert model.closed == 1
    assert texts(talk) == []


def test_a_lost_sandbox_is_a_result_and_the_next_call_has_a_new_one(tmp_path: Path) -> None:
    seen: list[Sandbox | None] = []

    def act(text: str, sandbox: Sandbox) -> ToolResult:
        said = sandbox.exec(["pwd"], 10.0).output.decode().strip()
        seen.append(talk.place.sandbox)
        if len(seen) == 1:
            raise SandboxLost("the container is gone")
        return ToolResult(said)

    turns = [[call("python", code="1")], [call("python", code="2")], [final("Done.")]]
    talk = talk_with(turns, {"python": FunctionTool("python", act)}, folder_sandbox(tmp_path))
    assert talk.turn("go", Shown()).outcome is Outcome.ANSWERED
    assert "the container is gone" in texts(talk)[2]
    assert texts(talk)[4].endswith("/workspace")
    assert seen[0] is not seen[1]
    talk.place.close()
    talk.place.close()
    assert talk.place.sandbox is None


def test_an_engine_that_is_gone_with_the_sandbox_ends_no_chat() -> None:
    @dataclass
    class Gone:
        """A sandbox whose engine was stopped: nothing can be done with it any more, not even an end."""

        def close(self) -> None:
            raise SandboxError("the engine does not answer")

    def act(text: str, sandbox: Sandbox) -> ToolResult:
        talk.place.opened()
        raise SandboxLost("the container is gone")

    turns = [[call("python", code="1")], [final("Done.")]]
    talk = talk_with(turns, {"python": FunctionTool("python", act)}, lambda: cast("Sandbox", Gone()))
    assert talk.turn("go", Shown()).claimed == "Done."
    assert "the container is gone" in texts(talk)[2]
    assert talk.place.sandbox is None


def test_no_sandbox_is_started_for_tools_that_need_none() -> None:
    tool = FunctionTool("browser_search", lambda text, sandbox: ToolResult("found"), writes=False)
    talk = talk_with([[call("browser.search", query="x")], [final("It is so.")]], {"browser_search": tool})
    assert talk.turn("look", Shown()).outcome is Outcome.ANSWERED
    assert talk.state.conversation.messages[2].text == "found"
    assert WITH_SANDBOX not in talk.state.conversation.instructions


def test_instructions_are_ours_or_the_persons() -> None:
    python = {"python": FunctionTool("python", lambda text, sandbox: ToolResult(""))}
    assert talk_with([]).state.conversation.instructions == INSTRUCTIONS
    assert WITH_SANDBOX in talk_with([], python).state.conversation.instructions
    assert talk_with([], python, system="Speak Latin.").state.conversation.instructions == "Speak Latin."


def test_effort_counts_from_the_next_answer_and_survives_undo() -> None:
    model = FaultyModel([[MessageAdded(final("a")), Sampled(1, 1, "stop")]] * 2)
    talk = talk_with(model)
    talk.turn("one", Shown())
    talk.set_effort("high")
    talk.turn("two", Shown())
    talk.undo()
    assert [asked.effort for asked in model.asked] == ["medium", "high"]
    assert (talk.state.conversation.effort, texts(talk)) == ("high", ["one", "a"])


def test_undo_takes_back_turn_by_turn_with_what_the_harness_said() -> None:
    talk = talk_with([HELLO, [analysis("hm")], [final("Yes.")]])
    talk.turn("hi", Shown())
    before = talk.state
    talk.turn("well?", Shown())
    assert talk.undo() == "well?"
    assert talk.state == before
    assert talk.undo() == "hi"
    assert talk.undo() is None
    talk.turn("hi", Shown())
    talk.clear()
    assert texts(talk) == []


def test_saved_loaded_and_played(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    turns = [HELLO, [call("functions.fly")], [final("No wings.")]]
    talk = talk_with(turns, system="Be a bird.", api_key="sk-very-secret", exa_api_key="k-secret")
    talk.turn("hi", Shown())
    talk.turn("fly", Shown())
    assert talk.save(path) == 7
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in path.read_bytes()

    python = {"python": FunctionTool("python", lambda text, sandbox: ToolResult(""))}
    other = talk_with([*turns, [final("Still here.")]], python)
    assert other.load(path) == 7
    assert texts(other) == texts(talk)
    assert other.state.conversation.instructions == "Be a bird."
    assert [spec.name for spec in other.state.conversation.tools] == ["python"]
    assert other.turn("and?", Shown()).claimed == "Still here."

    played = talk_with(ScriptedModel(load_script(path)))
    assert [played.turn(text, Shown()).claimed for text in ("hi", "fly")] == ["Hello.", "No wings."]


def test_what_is_no_chat_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    talk = talk_with([HELLO])
    talk.turn("hi", Shown())
    before = talk.state
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text(json.dumps({"seq": 0, "at": 1.0, "event": "PlanChanged", "steps": []}) + "\n")
    for name in ("text", "empty", "other", "missing", "."):
        with pytest.raises(LogError):
            talk.load(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be written"):
        talk.save(tmp_path / "no" / "where")
    assert talk.state == before


def test_a_chat_that_was_cut_off_in_a_call_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    talk = talk_with([[call("functions.fly")], [final("x")]])
    talk.turn("fly", Shown())
    talk.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"ToolFinished"')])  # its line is torn, so it never took effect
    other = talk_with([[final("Again.")]])
    other.load(path)
    assert texts(other)[-1] == STOPPED
    assert other.turn("go on", Shown()).claimed == "Again."


def test_the_tools_that_were_asked_for() -> None:
    tools = open_tools(RunConfig(browser="exa", exa_api_key="k"))
    assert set(chosen_tools(tools, python=True, files=False, web=False)) == {"python"}
    assert set(chosen_tools(tools, python=False, files=False, web=True)) == {
        "browser_search",
        "browser_open",
        "browser_find",
    }
    files = chosen_tools(tools, python=False, files=True, web=False)
    assert {name for name, tool in files.items() if tool.writes} == {"apply_patch"}
    assert chosen_tools(tools, python=False, files=False, web=False) == {}


ANSWER = st.sampled_from(
    [HELLO, [call("functions.fly")], [analysis("hm")], [call("python", code="1"), call("python", code="2")]]
)


@given(st.lists(ANSWER, max_size=6), st.integers(1, 3))
def test_whatever_a_model_says_the_chat_goes_on(answers: list[list[Message]], steps: int) -> None:
    """After any turn nothing is left open, undoing all turns leads back to nothing, and messages alternate properly."""
    python = {"python": FunctionTool("python", lambda text, sandbox: ToolResult("1"))}
    events = [[*map(MessageAdded, answer), Sampled(1, 1, "stop")] for answer in answers]
    talk = talk_with(FaultyModel([*events, *[EndpointUnreachable("no more")] * 40]), python, steps=steps)
    for text in ("one", "two", "three"):
        shown = Shown()
        talk.turn(text, shown)
        assert shown.ended.outcome in {Outcome.ANSWERED, Outcome.LIMIT, Outcome.ENDPOINT}
        assert open_call(talk.state.conversation) is None
        assert talk.state.pending is None
    while (said := talk.undo()) is not None:
        assert said in {"one", "two", "three"}
    assert talk.state.conversation.messages == ()


def test_repairs_are_part_of_the_record() -> None:
    tool = {"python": FunctionTool("python", lambda text, sandbox: ToolResult("1"))}
    talk, shown = talk_with([[call("py", code="1")], [final("1")]], tool), Shown()
    talk.turn("go", shown)
    assert shown.of(Repaired)
    assert shown.of(ToolFinished)
    assert user("go") == talk.state.conversation.messages[0]
