"""What a held model can say: everything that is right, nothing that is wrong, and never nothing at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import RunConfig
from agent.conversation import Message, ToolSpec
from agent.errors import ModelUnfit
from agent.harmony.codec import Codec, recipients
from agent.harmony.constrain import Guide, Guides, open_guides, token_bytes
from agent.harmony.parser import Parsed, Parser
from agent.harmony.tokens import CALL, CHANNEL, END, MESSAGE, OPENING, RETURN, START, VOCABULARY_SIZE
from agent.patch.model import Fault, PatchError
from agent.patch.parse import parse
from agent.tools.base import Tool
from agent.tools.names import Resolved, resolve
from agent.tools.open import declare, open_tools
from tests.agent.harmony.faults import faults, stream
from tests.agent.harmony.guided import babble, forbidden, may_come
from tests.agent.harmony.streams import STREAMS

TOOLS = open_tools(RunConfig())
TRAINED = declare(TOOLS, "trained")
GENERIC = declare(TOOLS, "generic")
SLOW = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Damage that a held model may still do: outside of headers and calls nothing is forbidden.
IN_TEXT = {
    "stray_end",
    "missing_start",
    "missing_end",
    "split_body",
    "stray_control",
    "final_before_call",
    "after_call",
}


def parsed(codec: Codec, ids: list[int], tools: tuple[ToolSpec, ...] = TRAINED) -> Parsed:
    parser = Parser(codec.token_bytes, recipients(tools))
    parser.feed(OPENING)
    parser.feed(ids)
    return parser.finish(stopped=True)


def only_call(codec: Codec, ids: list[int], tools: tuple[ToolSpec, ...]) -> Message:
    found = parsed(codec, ids, tools)
    (message,) = found.messages
    assert found.repairs == ()
    assert message.recipient in recipients(tools)
    return message


def begun(codec: Codec, text: str) -> tuple[int, ...]:
    return (*OPENING, *codec.encode_sampled(text))


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_well_formed_can_be_said(guides: Guides, codec: Codec, name: str) -> None:
    guide = guides.guide(TRAINED, OPENING)
    assert forbidden(guide, codec.encode_sampled(STREAMS[name])) is None
    assert guide.let_go == []


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("<|channel|>commentary to=container.exe <|constrain|>json<|message|>", ".exe"),
        ("<|channel|>commentary to=browser.search<|message|>", "browser"),
        ("<|channel|>commentary to=functions.shell<|message|>", ".shell"),
        ("<|channel|>commentary code<|message|>", " code"),
        ("<|channel|>thoughts<|message|>", "thought"),
        ("<|channel|><|message|>", "<|message|>"),
        ("<|channel|>analysis to=python <|constrain|>python<|message|>", "<|constrain|>"),
        ("<|channel|>commentary to=container.exec <|constrain|>xml<|message|>", "xml"),
        ('<|channel|>commentary to=container.exec<|message|>{"cmd":["ls"]}<|call|>', "cmd"),
        ('<|channel|>commentary to=container.exec<|message|>{"command":"ls"}<|call|>', '":"'),
        ('<|channel|>commentary to=container.exec<|message|>{"command":["ls"]<|call|>', "<|call|>"),
        ('<|channel|>commentary to=container.exec<|message|>{"command":["ls"]}<|end|>', "<|end|>"),
        ("<|channel|>commentary to=container.exec<|message|>ls -la<|call|>", "ls"),
        ('<|channel|>commentary to=repo_browser.open_file<|message|>{"line_start":3}<|call|>', "}"),
        ('<|channel|>commentary to=repo_browser.apply_patch<|message|>{"patch":"--- a.py', "---"),
        (
            '<|channel|>commentary to=repo_browser.apply_patch<|message|>{"patch":"*** Begin Patch\\n*** End Patch"}',
            " End",
        ),
    ],
)
def test_what_is_wrong_cannot_be_said(guides: Guides, codec: Codec, said: str, place: str) -> None:
    ids = codec.encode_sampled(said)
    at = forbidden(guides.guide(TRAINED, OPENING), ids)
    assert at is not None
    assert codec.decode([ids[at]]) == place


@pytest.mark.parametrize("name", STREAMS)
def test_every_recorded_fault_is_impossible_or_harms_no_header_and_no_call(
    guides: Guides, codec: Codec, name: str
) -> None:
    """Of all single faults, those that a held model could still commit leave headers whole and calls that tools take."""
    origin = stream(codec, name, STREAMS[name])
    tried = possible = 0
    for fault in faults(codec, origin, seed=5):
        if fault.cut or fault.position % 3:  # a cut is no fault of the model's; a third of the places is enough
            continue
        tried += not fault.text
        if forbidden(guides.guide(TRAINED, OPENING), fault.ids) is not None:
            continue
        possible += not fault.text
        found = parsed(codec, list(fault.ids))
        assert {repair.kind for repair in found.repairs} <= IN_TEXT | ({"missing_message"} if fault.text else set())
        for message in found.messages:
            if message.is_call and message.recipient != "python":
                body = resolve(message.recipient or "", message.text, TOOLS)
                assert isinstance(body, Resolved), fault
                assert set(body.repairs) <= {"arguments"}, (fault, body)
    assert tried > 5
    assert possible <= tried / 2, "what is left are ends and starts between messages"


@pytest.mark.parametrize("style", ["trained", "generic"])
@SLOW
@given(seed=st.integers(0, 1 << 32), tool=st.sampled_from(sorted(TOOLS)))
def test_whatever_is_said_the_tools_take(guides: Guides, codec: Codec, style: str, seed: int, tool: str) -> None:
    tools = declare(TOOLS, style)
    (name,) = recipients(declare({tool: TOOLS[tool]}, style))
    opening = codec.encode_sampled(f"<|channel|>commentary to={name}")
    said = babble(guides.guide(tools, (*OPENING, *opening)), codec, seed)
    if said[-1] != CALL:  # python takes any text; the others may go on for long
        return
    message = only_call(codec, [*opening, *said], tools)
    body = resolve(message.recipient or "", message.text, TOOLS, style)
    assert isinstance(body, Resolved)
    assert body.tool == tool
    assert set(body.repairs) <= {"arguments"}, "a list of words may be an odd command"
    _is_taken(TOOLS[tool], message.text, body.text)


def _patch_fault(text: str) -> Fault | None:
    try:
        parse(text)
    except PatchError as error:
        return error.fault
    return None


def _is_taken(tool: Tool, said: str, canonical: str) -> None:
    if tool.name == "apply_patch":
        assert _patch_fault(canonical) in {None, Fault.PATH}, "it is a patch; where it leads is the tool's to say"
    elif tool.name != "python":
        jsonschema.validate(json.loads(said, strict=False), dict(tool.spec.parameters or {}))


VALUES = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["red", "green", 3]},
            {"const": "x"},
            {"type": "string", "pattern": "^[a-f]{2,4}$"},
            {"type": "integer", "minimum": 3, "maximum": 20},
            {"anyOf": [{"type": "boolean"}, {"type": "integer"}]},
            {"type": ["string", "null"]},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 3}, inner),
        st.builds(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties),
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        ),
    ),
    max_leaves=4,
)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, object]:
    names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=8)
    properties = draw(st.dictionaries(names, VALUES, max_size=5))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required}


@SLOW
@given(schema=schemas(), seed=st.integers(0, 1 << 32))
def test_random_schemas_are_kept_in_any_order(
    guides: Guides, codec: Codec, schema: dict[str, object], seed: int
) -> None:
    tools = (ToolSpec("paint", "Paint it.", schema), ToolSpec("other", "", {"type": "object", "properties": {}}))
    opening = codec.encode_sampled("<|channel|>commentary to=functions.paint <|constrain|>json<|message|>")
    guide = guides.guide(tools, (*OPENING, *opening))
    said = babble(guide, codec, seed)
    assert guide.let_go == []
    if said[-1] == CALL:
        message = only_call(codec, [*opening, *said], tools)
        pairs = json.loads(message.text, strict=False, object_pairs_hook=list)
        assert len({name for name, _ in pairs}) == len(pairs), "an argument was given twice"
        assert {name for name, _ in pairs} <= set(schema["properties"])  # type: ignore[call-overload]  # a dict
        jsonschema.validate(json.loads(message.text, strict=False), schema)


def test_arguments_come_in_any_order_and_with_any_bounded_spacing(guides: Guides, codec: Codec) -> None:
    for body in (
        '{"path":"a","line_end":3,"line_start":1}',
        '{"line_start": 1, "path": "a"}',
        '{\n  "line_numbers": true,\n  "path": "a"\n}',
    ):
        said = codec.encode_sampled(f"<|channel|>commentary to=repo_browser.open_file<|message|>{body}<|call|>")
        assert forbidden(guides.guide(TRAINED, OPENING), said) is None, body
    blanks = codec.encode_sampled("<|channel|>commentary to=container.exec<|message|>{" + " \n" * 400)
    assert forbidden(guides.guide(TRAINED, OPENING), blanks) is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#/definitions/none"}}},
        {"type": "object", "properties": {"a": {"type": "strange"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)("}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}}, "required": ["a"]},
        {"type": "object", "required": ["undeclared"]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": None},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": 5},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": [["a"]]},
        {"type": "object", "properties": ["a"]},
        {"$defs": {"b": {"type": "boolean"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}},
        {"type": "object", "properties": {"a": True, "b": {}}},
        {"type": "array", "items": {"type": "string"}},
        {"properties": {"a": {"type": "string"}}},
        {},
    ],
)
def test_schemas_that_are_odd_or_wrong_stop_nobody(guides: Guides, codec: Codec, schema: dict[str, object]) -> None:
    tools = (ToolSpec("odd", "", schema), *TRAINED)
    opening = codec.encode_sampled("<|channel|>commentary to=functions.odd <|constrain|>json<|message|>")
    for seed in range(5):
        guide = guides.guide(tools, (*OPENING, *opening))
        said = babble(guide, codec, seed, most=100)
        assert guide.let_go == []
        if said[-1] == CALL:
            json.loads(only_call(codec, [*opening, *said], tools).text, strict=False)
    whole = codec.encode_sampled(STREAMS["a call, recipient after the channel"])
    assert forbidden(guides.guide(tools, OPENING), whole) is None, "the other tools are as they were"


def test_reasoning_and_answers_are_free_and_known_to_be(guides: Guides, codec: Codec) -> None:
    for channel in ("analysis", "commentary", "final"):
        guide = guides.guide(TRAINED, begun(codec, f"<|channel|>{channel}<|message|>"))
        for token in codec.encode('I call to=nobody {"command":'):
            assert guide.is_free(()), channel
            assert guide.is_free((None,)), "the step after the next can be launched as if there were no guide"
            assert guide.allowed(()) == (None,)
            guide.take(token)
        assert guide.is_free((5, 6, 7, END)), "also behind a guess"
        assert not guide.is_free((END, START))
        assert not guide.is_free((END, None)), "it may be a start"
    python = guides.guide(TRAINED, begun(codec, "<|channel|>analysis to=python code<|message|>"))
    assert python.is_free((None,)), "any text is a program"


def test_what_stands_between_is_free_and_the_next_header_is_held(guides: Guides, codec: Codec) -> None:
    guide = guides.guide(TRAINED, begun(codec, "<|channel|>analysis<|message|>Hm.<|end|>"))
    assert guide.allowed(()) == (None,)
    guide.take(START)
    assert any_allowed_only(guide) == codec.encode("assistant"), "nobody else may be spoken for"


def any_allowed_only(guide: Guide) -> list[int]:
    (row,) = guide.allowed(())
    assert row is not None
    return [token for token in range(VOCABULARY_SIZE) if may_come(row, token)]


def test_a_message_whose_end_was_left_out_is_held_too(guides: Guides, codec: Codec) -> None:
    for cut in ("<|start|>assistant<|channel|>", "<|channel|>commentary"):
        guide = guides.guide(TRAINED, begun(codec, f"<|channel|>analysis<|message|>Hm.{cut}"))
        assert not guide.is_free(())
        assert guide.let_go == []
    text = guides.guide(TRAINED, begun(codec, "<|channel|>analysis<|message|>Hm.<|channel|>nothing"))
    assert text.is_free(()), "no header begins like this: the text goes on"


@pytest.mark.parametrize("name", ["a patch", "a call, recipient before the channel", "a preamble, then a call"])
def test_held_behind_any_opening_as_if_it_had_been_sampled(guides: Guides, codec: Codec, name: str) -> None:
    """A continuation (a stream that was cut, a prefill) begins in the middle of a header or body."""
    ids = codec.encode_sampled(STREAMS[name])
    whole = guides.guide(TRAINED, OPENING)
    for cut in range(len(ids)):
        resumed = guides.guide(TRAINED, (*OPENING, *ids[:cut]))
        assert resumed.allowed(()) == whole.allowed(()), cut
        assert resumed.let_go == []
        whole.take(ids[cut])


@pytest.mark.parametrize("name", ["a patch", "reasoning, then a call", "python with its type"])
def test_masks_behind_a_guess_are_those_behind_the_same_tokens(guides: Guides, codec: Codec, name: str) -> None:
    ids = codec.encode_sampled(STREAMS[name])
    rows = []
    guide = guides.guide(TRAINED, OPENING)
    for token in ids:
        rows += guide.allowed(())
        guide.take(token)
    for start in range(0, len(ids) - 8, 3):
        guessing = guides.guide(TRAINED, (*OPENING, *ids[:start]))
        assert list(guessing.allowed(ids[start : start + 7])) == rows[start : start + 8]
        assert list(guessing.allowed(())) == rows[start : start + 1], "a guess leaves no trace"


def test_a_guess_that_is_forbidden_needs_no_masks_behind_it(guides: Guides, codec: Codec) -> None:
    guide = guides.guide(TRAINED, begun(codec, "<|channel|>commentary to="))
    first, *rest = guide.allowed(codec.encode("nobody knows this"))
    assert first is not None
    assert rest == [None] * (len(codec.encode("nobody knows this")))
    assert guide.let_go == []


def test_what_does_not_fit_is_let_go_and_said_until_the_next_message(guides: Guides, codec: Codec) -> None:
    guide = guides.guide(TRAINED, (*OPENING, *codec.encode(" to=nobody")))
    assert guide.let_go == ["a token that does not fit"]
    assert guide.is_free((None,))
    for token in (MESSAGE, 5, END, START):
        guide.take(token)
    assert not guide.is_free(())


def test_where_nothing_may_come_everything_may(guides: Guides, codec: Codec) -> None:
    guide = guides.guide(TRAINED, begun(codec, "<|channel|>commentary to=container.exec<|message|>"))
    guide._matcher.consume_token(RETURN)  # type: ignore[union-attr]  # what no mask allows: the library is in error now
    assert list(guide.allowed(())) == [None]
    assert len(guide.let_go) == 1
    assert guide.is_free((None,))


def test_without_tools_nobody_can_be_called(guides: Guides, codec: Codec) -> None:
    call = codec.encode_sampled("<|channel|>commentary to=container.exec<|message|>")
    assert forbidden(guides.guide((), OPENING), call) == call.index(codec.encode(" to")[0])
    final = codec.encode_sampled("<|channel|>final <|constrain|>json<|message|>{}<|return|>")
    assert forbidden(guides.guide((), OPENING), final) is None


@SLOW
@given(seed=st.integers(0, 1 << 32), tools=st.sampled_from([(), TRAINED, GENERIC]))
def test_from_the_start_of_an_answer_there_is_always_a_way(
    guides: Guides, codec: Codec, seed: int, tools: tuple[ToolSpec, ...]
) -> None:
    guide = guides.guide(tools, OPENING)
    said = babble(guide, codec, seed)
    assert guide.let_go == []
    found = parsed(codec, said, tools)
    assert {repair.kind for repair in found.repairs} <= IN_TEXT


def test_any_token_may_be_taken_at_any_time(guides: Guides) -> None:
    @SLOW
    @given(st.lists(st.sampled_from([START, CHANNEL, MESSAGE, END, CALL, RETURN, 5, 173_781, 35_644, 201_087])))
    def check(ids: list[int]) -> None:
        guide = guides.guide(TRAINED, ())
        for token in ids:
            free = guide.is_free(())
            assert (guide.allowed(())[0] is None) or not free
            sure = guide.is_free((None,))
            guide.take(token)
            assert guide.is_free(()) or not sure, "what was said to be free ahead is free"

    check()


def test_each_id_has_its_bytes(codec: Codec, cache_dir: Path) -> None:
    spelled = token_bytes(cache_dir)
    assert len(spelled) == VOCABULARY_SIZE
    for token in (*range(0, 199_998, 997), 199_997):
        assert spelled[token] == codec.token_bytes(token)
    assert [spelled[token] for token in (START, CHANNEL, CALL)] == [b"<|start|>", b"<|channel|>", b"<|call|>"]
    assert len(set(spelled)) == VOCABULARY_SIZE


def test_the_library_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, cache_dir: Path, codec: Codec) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ModelUnfit, match=r"llguidance, which is not installed: pip install .*--constrain off"):
        open_guides(cache_dir, codec.encode)
