"""models/schema/kinds.py: what is said to be impossible is, to a validator; and what must be seen is seen."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.schema.dialect import Node
from models.schema.kinds import KINDS, NUMBERS, Kinds, identity, kind_of, kinds_of, property_of
from tests.test_logic import schemas, values
from tests.test_reader import as_schema, read

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
TYPES = {"null": "null", "boolean": "boolean", "object": "object", "array": "array", "string": "string"}
TYPES |= {"integer": "integer", "fraction": "number"}


def judge(definitions: dict[str, Node], node: Node) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(as_schema(definitions, node))


@given(value=values | st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_value_is_of_one_kind_that_has_its_type(value: Any) -> None:
    kind = kind_of(value)
    assert kind in KINDS
    assert jsonschema_rs.is_valid({"type": TYPES[kind]}, value)
    assert jsonschema_rs.is_valid({"type": "integer"}, value) == (kind == "integer")


@pytest.mark.parametrize("name", [*TYPES.values(), "integer"])
@settings(max_examples=30)
@given(value=values)
def test_the_kinds_of_a_type(name: str, value: Any) -> None:
    assert (kind_of(value) in kinds_of(name)) == jsonschema_rs.is_valid({"type": name}, value)
    assert kinds_of([name, "null"]) == kinds_of(name) | {"null"}


@settings(max_examples=100)
@given(one=values, other=values)
def test_values_are_identical_where_a_validator_calls_them_equal(one: Any, other: Any) -> None:
    pairs: list[tuple[Any, Any]] = [(one, other), (one, json.loads(json.dumps(one)))]
    for pair in [*pairs, (1, 1.0), (1, True), (0, False), ("1", 1), ([], {})]:
        assert (identity(pair[0]) == identity(pair[1])) == jsonschema_rs.is_valid({"const": pair[0]}, pair[1])


@settings(max_examples=70, deadline=None, suppress_health_check=SLOW)
@given(one=schemas(), other=schemas(), tried=st.lists(values, min_size=6, max_size=12))
def test_no_value_is_of_another_kind_or_fits_two_that_are_apart(one: Any, other: Any, tried: list[Any]) -> None:
    found = read({"allOf": [{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/other"}], "$defs": {"one": one, "other": other}})
    if found.faults:
        return
    definitions = found.definitions
    known, mine, yours = Kinds(definitions), definitions["/$defs/one"], definitions["/$defs/other"]
    first, second, both = judge(definitions, mine), judge(definitions, yours), judge(definitions, definitions[""])
    apart = known.apart(mine, yours)
    assert known.apart(yours, mine) == apart
    for value in tried:
        assert not first.is_valid(value) or kind_of(value) in known.kinds(mine)
        assert not both.is_valid(value) or kind_of(value) in known.kinds(definitions[""])
        assert not (apart and first.is_valid(value) and second.is_valid(value)), value
        if first.is_valid(value):
            assert all(judge(definitions, part).is_valid(value) for part in known.conjuncts(mine))


TAG_A, TAG_B = ({"type": "object", "properties": {"t": {"enum": [tag]}}, "required": ["t"]} for tag in "ab")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ({"type": "string"}, {"type": ["number", "null"]}, True),
        ({"type": "integer"}, {"type": "number"}, False),
        ({"enum": ["a", 1]}, {"enum": ["b", 2, None]}, True),
        ({"enum": ["a", 1]}, {"enum": ["b", 1.0]}, False),
        ({"enum": ["a", "b"]}, {"pattern": "^c"}, True),
        ({"enum": ["a", "cb"]}, {"pattern": "^c"}, False),
        ({"type": "number", "maximum": 3}, {"type": "integer", "minimum": 3}, False),
        ({"type": "number", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}, True),
        ({"type": "number", "exclusiveMaximum": 3}, {"type": "integer", "minimum": 3}, True),
        ({"maximum": 3}, {"minimum": 4}, False),  # of a string they say nothing
        ({"type": "string", "minLength": 3}, {"type": "string", "maxLength": 2}, True),
        ({"type": "array", "minItems": 3}, {"type": "array", "maxItems": 2}, True),
        ({"type": "array", "minItems": 2}, {"type": "array", "maxItems": 2}, False),
        (TAG_A, TAG_B, True),
        (TAG_A, TAG_B | {"required": []}, True),  # one of them requires it
        (TAG_A | {"required": []}, TAG_B | {"required": []}, False),  # {} fits both
        (TAG_A, {"type": "object", "additionalProperties": False}, True),
        ({"anyOf": [TAG_A, {"type": "null"}]}, {"anyOf": [TAG_B, {"type": "string"}]}, True),
        ({"anyOf": [TAG_A, {"type": "null"}]}, {"type": ["null", "string"]}, False),
        ({"allOf": [{"type": "string"}]}, {"$ref": "/n"}, True),
        (False, True, True),
        (True, {}, False),
    ],
)
def test_what_is_apart(one: Node, other: Node, apart: bool) -> None:
    known = Kinds({"/n": {"type": "integer"}})
    assert known.apart(one, other) is apart
    assert known.apart(other, one) is apart
    assert known.apart(one, False)


def test_a_property_is_asked_for_by_name_or_by_what_others_must_be() -> None:
    node = {"properties": {"a": {"type": "null"}}, "additionalProperties": False}
    assert [property_of(node, name) for name in "ab"] == [{"type": "null"}, False]
    assert property_of(node | {"patternProperties": {"b": {}}}, "b") is True
    assert property_of({}, "a") is True


def test_a_schema_without_end_is_looked_at_for_some_time_and_then_nothing_is_certain() -> None:
    known = Kinds({"/n": {"anyOf": [{"$ref": "/n"}] * 9, "allOf": [{"$ref": "/n"}] * 9}})
    assert not known.tired
    assert known.kinds({"$ref": "/n"}) >= NUMBERS
    assert known.tired
    assert not known.apart({"type": "string", "minLength": 3}, {"type": "string", "maxLength": 2})
