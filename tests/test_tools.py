"""models/tools.py: whatever the grammar lets a model say is read back to the letter, and fits its function."""

import json
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import tools
from models.question import compact
from models.tools import CALLS, CONTENT, Call


@dataclass(frozen=True)
class Function:
    name: str
    parameters: dict[str, Any] | None = None
    description: str | None = None


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "near": {"$ref": "#/$defs/place"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "in": {"$ref": "#"}, "next": {"$ref": "#/$defs/place"}},
            "additionalProperties": False,
        }
    },
}
COUNT = {"type": "object", "properties": {"$ref": {"type": "integer"}}, "additionalProperties": False}
ODD = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$id": "https://example.org/odd",
    "type": "object",
    "definitions": {"a/b%": {"const": {"$ref": "#/nowhere"}}},
    "properties": {"x": {"$ref": "#/definitions/a~1b%25"}},
    "required": ["x"],
}
FUNCTIONS = [Function("weather", CITY, "How is it?"), Function("count", COUNT), Function("odd", ODD), Function("stop")]


def judge(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("name", "arguments", "fits"),
    [
        ("weather", {"city": "Bonn"}, True),
        ("weather", {"city": "Bonn", "near": {"lat": 1, "in": {"city": "x"}, "next": {"lat": 2}}}, True),
        ("weather", {"city": "Bonn", "near": {"in": {"town": "x"}}}, False),
        ("weather", {"city": "Bonn", "near": {"next": {"next": {"lat": "1"}}}}, False),
        ("weather", {}, False),
        ("count", {"$ref": 5}, True),
        ("count", {"$ref": "5"}, False),
        ("count", {"city": "Bonn"}, False),
        ("odd", {"x": {"$ref": "#/nowhere"}}, True),
        ("odd", {"x": 1}, False),
        ("stop", {}, True),
        ("stop", {"now": True}, False),
        ("unknown", {}, False),
    ],
)
def test_arguments_are_those_of_their_function(name: str, arguments: Any, fits: bool) -> None:
    """References, also of a recursive schema, lead to where they led when each schema stood alone."""
    answer = {"tool_calls": [call("stop", {}), call(name, arguments)]}
    for may_talk in (True, False):
        assert judge(tools.schema(FUNCTIONS, may_talk, 2)).is_valid(answer) == fits
    assert CITY["properties"] == {"city": {"type": "string"}, "near": {"$ref": "#/$defs/place"}}  # and stays as it was


def test_how_many_and_whether_it_may_talk() -> None:
    stop = call("stop", {})
    for may_talk in (True, False):
        for most in (1, 3):
            fits = judge(tools.schema(FUNCTIONS, may_talk, most)).is_valid
            assert fits({"content": "Hi"}) == may_talk
            assert [fits({"tool_calls": [stop] * count}) for count in range(5)] == [
                0 < count <= most for count in range(5)
            ]
            assert not fits({"content": "Hi", "tool_calls": [stop]})
            assert not fits({})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(["f", "get_weather", "a-b"]), JSON.map(compact)), min_size=1, max_size=4))
def test_calls_are_read_to_the_letter(made: list[tuple[str, str]]) -> None:
    calls = [Call(*each) for each in made]
    assert tools.read(tools.show_calls(calls)) == ("", tuple(calls))


def test_a_number_keeps_its_digits() -> None:
    text = CALLS + '{"name":"pay","arguments":{"total":12.50,"id":12345678901234567890}}]}'
    assert tools.read(text)[1] == (Call("pay", '{"total":12.50,"id":12345678901234567890}'),)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from('\n\t"\\/'), max_size=30))
def test_what_is_said_is_told_as_it_comes(said: str) -> None:
    """Each beginning of the answer tells a beginning of what is said, in the end all."""
    whole = CONTENT + json.dumps(said, ensure_ascii=False)[1:] + "}"
    assert tools.read(whole) == (said, ())
    told, upto = [""], 0
    for end in range(1, len(whole) + 1):
        more, upto = tools.spoken(whole[:end], upto)
        assert tools.spoken(whole[:end]) == (told[-1] + more, upto)
        told.append(told[-1] + more)
    for before, after in zip(told, [*told[1:], said], strict=True):
        assert after.startswith(before)
    assert told[-1] == said
    assert len(set(told)) == len(said) + 1


def test_calls_say_nothing() -> None:
    whole = tools.show_calls([Call("f", '{"content":"x"}')])
    assert {tools.spoken(whole[:end]) for end in range(len(whole) + 1)} == {("", 0)}


def test_what_the_model_is_told() -> None:
    told = tools.tell(FUNCTIONS, may_talk=True)
    listed = json.loads(told.split("\n")[1])
    assert [(each["name"], each["parameters"]) for each in listed] == [
        (each.name, each.parameters or tools.NOTHING) for each in FUNCTIONS
    ]
    assert CONTENT in told and CONTENT not in tools.tell(FUNCTIONS, may_talk=False)


def test_what_was_called_is_shown_even_where_it_is_no_json() -> None:
    shown = json.loads(tools.show_calls([Call("f", "{not json"), Call("g", '{"a": 1}')]))
    assert shown == {"tool_calls": [call("f", "{not json"), call("g", {"a": 1})]}
    assert json.loads(tools.show_result("f", 'it says "no"\n')) == {
        "tool_result": {"name": "f", "content": 'it says "no"\n'}
    }
