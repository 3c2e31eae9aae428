"""models/schema/reader.py, logic.py and writer.py: another schema that says the same, held against a validator."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.failure import Failure
from models.schema.admitted import Admitted, admit
from models.schema.writer import Writer

Schema = dict[str, Any]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
NAMES = ["a", "b", "c"]
WORDS = ["", "a", "ab", "b", "abc"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from([0.5, 2.5]) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
names = st.lists(st.sampled_from(NAMES), unique=True, max_size=2)
types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object", ["string", "null"]])
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "type": types,
    "const": values,
    "enum": st.lists(values, min_size=1, max_size=3),
    "minimum": st.integers(-2, 3),
    "exclusiveMaximum": st.integers(-2, 3),
    "multipleOf": st.sampled_from([1, 2, 0.5]),
    "minLength": st.integers(0, 2),
    "maxLength": st.integers(0, 2),
    "pattern": st.sampled_from(["^a", "b$", "^[ab]*$"]),
    "required": names,
    "minItems": st.integers(0, 2),
    "maxItems": st.integers(0, 2),
    "minProperties": st.integers(0, 2),
    "uniqueItems": st.booleans(),
    "propertyNames": st.sampled_from([{"maxLength": 1}, {"enum": ["a", "b"]}, {"pattern": "^[ab]"}, False]),
    "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names, max_size=2),
}
HOLDERS = [
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "properties", "additionalProperties"),
    *("items", "prefixItems", "dependentSchemas", "patternProperties", "unevaluatedProperties", "contains"),
]


@st.composite
def schemas(draw: st.DrawFn, depth: int = 3) -> Any:
    """A schema of a few keywords, of which some hold others."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.booleans())
    schema: Schema = {key: draw(PLAIN[key]) for key in draw(st.lists(st.sampled_from(sorted(PLAIN)), max_size=2))}
    for key in draw(st.lists(st.sampled_from(HOLDERS), max_size=2)) if depth else ():
        inner = schemas(depth - 1)
        if key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            schema[key] = draw(st.lists(inner, min_size=1, max_size=3))
        elif key in ("properties", "dependentSchemas"):
            schema[key] = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=2))
        elif key == "patternProperties":
            schema[key] = {draw(st.sampled_from(["^a", "c$"])): draw(inner)}
        else:
            schema[key] = draw(inner)
    return schema


def admitted(schema: Any) -> Admitted | None:
    try:
        return admit(schema if isinstance(schema, dict) else {"allOf": [schema]})
    except Failure as failure:
        assert failure.code == "schema_unsupported", failure.message
        assert '" at /' in failure.message
        return None


def fits(text: str, value: Any) -> bool:
    return jsonschema_rs.validator_for(json.loads(text)).is_valid(value)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(schema=schemas(), tried=st.lists(values, min_size=4, max_size=12), draft=st.sampled_from([None, None, DRAFT_7]))
def test_what_is_written_allows_nothing_else_and_all_of_it_unless_it_says_so(
    schema: Any, tried: list[Any], draft: str | None
) -> None:
    if draft and isinstance(schema, dict):
        schema = {"$schema": draft} | schema
    if (found := admitted(schema)) is None:
        return
    free = Writer(found.definitions, None).text
    bounded = next(found.candidates())
    judge = jsonschema_rs.validator_for(schema)
    for value in tried:
        if fits(free, value):
            assert judge.is_valid(value), (value, free)
        elif not found.narrowed and not draft:
            assert not judge.is_valid(value), (value, free)
        if fits(bounded.text, value):
            assert fits(free, value)
        if bounded.inner and fits(bounded.inner, value) and "pattern" not in free:
            assert fits(bounded.text, value)


JUNK = ["null", "true", "0", "-1", "1.5", '""', '"a"', "[]", "{}", "[{}]", '{"a": 1}', '["a"]', '{"$id": "a"}', '"#"']


def places(schema: Any) -> list[Any]:
    """All objects and arrays in it that have something in them."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return [schema] * bool(inner) + [place for part in inner for place in places(part)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas(), draft=st.sampled_from([None, DRAFT_7]), data=st.data())
def test_whatever_stands_anywhere_is_refused_by_name_or_read(
    schema: Any, draft: str | None, data: st.DataObject
) -> None:
    whole = {"allOf": [json.loads(json.dumps(schema))]} | ({"$schema": draft} if draft else {})
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(whole)))
        keys = [*place, *HOLDERS, "$ref"] if isinstance(place, dict) else range(len(place))
        place[data.draw(st.sampled_from(list(keys)))] = json.loads(data.draw(st.sampled_from(JUNK)))
    try:
        for each in admit(whole).candidates():
            json.loads(each.text)
    except Failure as failure:
        assert failure.code in ("schema_unsupported", "schema_invalid")
        assert '" at /' in failure.message


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "not": {"enum": ["a", "abc"]}}, ["", "ab", "b"], ["a", "abc", 1]),
        ({"not": {"type": "string"}}, [1, None, {}], [""]),
        ({"type": "number", "not": {"enum": [1, 2.5]}}, [0, 2, 2.75], [1, 2.5]),
        ({"type": "integer", "not": {"minimum": 3}}, [2], [3]),
        ({"not": {"required": ["a", "b"]}}, [{"a": 1}, {}], [{"a": 1, "b": 1}, 5]),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}, 5]),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 1}]}, ["ab"], ["a", 1]),
        (
            {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["a"]}, "else": {"required": ["b"]}},
            [{"k": "x", "a": 1}, {"a": 1}, {"k": "y", "b": 1}],
            [{"k": "x"}, {}, {"k": "y", "a": 1}],
        ),
        (
            {"propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "integer"}},
            [{"a": 1}],
            [{"b": 1}, {"a": ""}],
        ),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
        ({"enum": ["a", "bb", 3], "not": {"minLength": 2}, "uniqueItems": True}, ["a"], ["bb", 3]),
    ],
)
def test_it_is_said_in_other_words(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    found = admit(schema)
    assert not found.narrowed
    text = Writer(found.definitions, None).text
    assert not {"not", "oneOf", "if", "propertyNames"} & set(json.loads(text))
    assert [fits(text, value) for value in good + bad] == [True] * len(good) + [False] * len(bad)


def test_what_can_be_said_in_part_is_and_it_is_told() -> None:
    one = {"type": "object", "properties": {"a": {"type": "array", "items": {"minimum": 1}}}, "required": ["a"]}
    found = admit({"oneOf": [one, {"type": "object", "required": ["b"]}]})
    assert found.narrowed == [("oneOf", "/oneOf")]
    text = Writer(found.definitions, None).text
    assert fits(text, {"a": [1]})
    assert fits(text, {"b": 1})
    assert not fits(text, {"a": [1], "b": 1})
    assert not fits(text, {"a": [0], "b": 1})  # though only the second of them fits
