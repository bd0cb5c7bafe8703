"""Schemas that callers give, from right to hostile: none reaches out of itself, and none is a fault of the server."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.harmony.codec import Codec
from agent.server.schema import mismatch, wrong_with
from tests.agent.server.served import WEATHER, Player, final, ids, raw, said, serving
from tests.servers import document
from tests.servers import serving as watched

ENDLESS = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
TREE = {"type": "object", "properties": {"inner": {"$ref": "#"}, "n": {"type": "integer"}}, "required": ["n"]}
BROKEN: list[dict[str, Any]] = [
    {"type": "nosuch"}, {"type": 5}, {"properties": 5}, {"pattern": "("}, {"$schema": 5}, {"allOf": {}}, {"required": 5},
    {"minimum": "a"}, {"properties": {"city": {"minLength": "a"}}}, {"items": 5}, {"enum": 5}, {"not": 5}, {"$ref": 5},
    {"patternProperties": {"a": {}}}, {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}},
    {"enum": ["long" * 40_000]}, {"allOf": [True] * 3000}, {"$ref": "x"}, {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "file:///etc/passwd"}, {"items": {"$dynamicRef": "other.json"}},
]  # fmt: skip


@pytest.mark.parametrize("schema", BROKEN, ids=json.dumps)
def test_what_is_no_schema_is_refused_by_name(schema: dict[str, Any]) -> None:
    assert wrong_with(schema)
    with serving(Player([said(final("{}"))])) as (url, _):
        wanted = {"format": {"type": "json_schema", "name": "w", "schema": schema}}
        answer = httpx2.post(f"{url}/responses", json={"input": "x", "text": wanted})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text.format.schema")


def test_a_reference_is_not_followed_out_of_the_schema() -> None:
    """Neither when it is read nor when an answer is held to it: the server must not ask addresses for its callers."""
    with watched(lambda _: document({"type": "object"})) as other:
        outside = f"{other.url}/schema.json"
        hidden = {"$id": outside, "properties": {"a": {"$ref": "#/nothing"}}}
        for schema in ({"$ref": outside}, {"properties": {"a": {"items": {"$ref": outside}}}}):
            assert "to the outside" in wrong_with(schema)
            mismatch('{"a": [1]}', schema)
        mismatch('{"a": 1}', hidden)
        assert other.requests == []


def test_a_text_is_held_to_its_schema() -> None:
    assert mismatch('{"city": "Oslo"}', WEATHER) == ""
    assert "at $.city" in mismatch('{"city": 1}', WEATHER)
    assert "not JSON" in mismatch('{"city"', WEATHER)
    assert "not JSON" in mismatch("[" * 100_000, WEATHER)
    assert mismatch("{}", None) == ""
    assert "not a JSON object" in mismatch("[]", None)


def test_a_schema_may_refer_to_itself() -> None:
    assert wrong_with(TREE) == ""
    assert mismatch('{"n": 1, "inner": {"n": 2}}', TREE) == ""
    assert "$.inner" in mismatch('{"n": 1, "inner": {}}', TREE)
    assert "endlessly" in mismatch("1", ENDLESS)


def bomb(levels: int) -> dict[str, Any]:
    """Few lines that come to 2**levels checks."""
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**doubled, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("schema", [bomb(60), {"pattern": "(a|a)+$"}], ids=["references", "pattern"])
def test_no_schema_takes_more_than_its_time(schema: dict[str, Any]) -> None:
    """Python's own matcher would search for years here, and let no other thread run meanwhile."""
    assert wrong_with(schema) == ""
    began_s = time.monotonic()
    assert "within 0.2 seconds" in mismatch(json.dumps("a" * 60 + "!"), schema, 0.2)
    assert time.monotonic() - began_s < 60


def test_a_pattern_is_held_to() -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", "pattern": r"^\d{4}-\d\d$"}}}
    assert mismatch('{"day": "2026-11"}', schema) == ""
    assert "at $.day" in mismatch('{"day": "today"}', schema)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(2000):
        schema = {"properties": {"a": schema}}
    assert "deeply" in wrong_with(schema)


WORDS = st.sampled_from(
    ["$ref", "$defs", "$id", "$schema", "type", "properties", "items", "allOf", "enum", "pattern", "a"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["#", "#/$defs/a", "a", "object", "x://y", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(WORDS, VALUES, max_size=4), st.sampled_from(["{}", '{"a": {"a": 1}}', "[1]", '"a"', "null"]))
@pytest.mark.filterwarnings("ignore:The metaschema specified by")
def test_nothing_escapes_for_any_schema(schema: dict[str, Any], text: str) -> None:
    if not wrong_with(schema):
        assert isinstance(mismatch(text, schema), str)


@pytest.mark.parametrize(("levels", "status"), [(50, 200), (51, 400), (400, 400)])
def test_parameters_that_no_prompt_can_hold_are_refused(codec: Codec, levels: int, status: int) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(levels):
        parameters = {"properties": {"a": parameters}}
    with serving(raw(codec, lambda _: ids(codec, [final("Hi.")]))) as (url, _):
        tool = {"type": "function", "name": "f", "parameters": parameters}
        answer = httpx2.post(f"{url}/responses", json={"input": "x", "tools": [tool]})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["param"] == "tools[0].parameters"
