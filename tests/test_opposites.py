"""models/schema/opposites.py: no value fits a schema and its opposite; where nothing is left out, each fits one."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.schema.dialect import Node
from models.schema.kinds import Kinds
from models.schema.opposites import LONG, MOST, Opposites, all_of, any_of
from tests.test_logic import schemas, values
from tests.test_reader import as_schema, read

EDGES = [0, 1, 2, 3, 0.5, 2.5, "", "a", "ab", "abc", [], [1], [1, 2], {}, {"a": 1}, {"a": "", "b": 2}, True, None]
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


def judge(definitions: dict[str, Node], node: Node) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(as_schema(definitions, node))


def opposite(node: Node, beside: Node = True) -> tuple[Node, bool]:
    """As a schema, and whether it is all."""
    found = Opposites({"": node}).find(node, Kinds({}).conjuncts(beside))
    return any_of(found.ways), found.all


@settings(max_examples=80, deadline=None, suppress_health_check=SLOW)
@given(one=schemas(), other=schemas(1), tried=st.lists(values, min_size=6, max_size=12))
def test_no_value_fits_both_and_each_one_of_them_where_that_is_all(one: Any, other: Any, tried: list[Any]) -> None:
    read_both = read({"properties": {"one": one, "other": other}})
    if read_both.faults:
        return
    definitions, parts = read_both.definitions, read_both.definitions[""]["properties"]
    own, beside = judge(definitions, parts["one"]), judge(definitions, parts["other"])
    for near in (True, parts["other"]):
        found = Opposites(definitions).find(parts["one"], Kinds(definitions).conjuncts(near))
        against = judge(definitions, any_of(found.ways))
        for value in tried:
            if near is True or beside.is_valid(value):
                assert not (own.is_valid(value) and against.is_valid(value)), (value, found)
                assert not found.all or own.is_valid(value) != against.is_valid(value), (value, found)


@pytest.mark.parametrize(
    "node",
    [
        {"properties": {"a": {"type": "string"}, "b": {"minimum": 2}}},
        {"enum": ["a", "ab", "", 0, 2.5, True, None]},
        {"minimum": 1, "exclusiveMaximum": 3},
        {"minLength": 1, "maxLength": 2, "minItems": 1, "maxProperties": 1},
        {"anyOf": [{"type": "string"}, {"allOf": [{"type": "number"}, {"minimum": 2}]}]},
        {"not": {"type": "string", "pattern": "a"}},
        {"$ref": ""},
        False,
    ],
)
def test_what_can_be_said_as_a_whole(node: Node) -> None:
    definitions = {"": {"type": "object", "properties": {"a": {"type": "null"}}}}
    found = Opposites(definitions).find(node, [])
    own, against = judge(definitions, node), judge(definitions, any_of(found.ways))
    assert found.all

    @settings(max_examples=15, deadline=None)
    @given(value=values)
    def check(value: Any) -> None:
        assert all(own.is_valid(each) != against.is_valid(each) for each in (value, *EDGES))

    check()


@pytest.mark.parametrize(
    "node",
    [
        {"pattern": "a"},
        {"multipleOf": 3},
        {"items": {"type": "string"}},
        {"type": "integer"},  # no keyword tells a fraction
        {"enum": [{"a": 1}]},
        {"enum": ["x" * (LONG + 1)]},
        {"enum": list(range(MOST + 1))},
        {"additionalProperties": False},
        {"oneOf": [{"type": "string"}, {"type": "null"}]},
    ],
)
def test_what_can_be_said_in_part_says_so(node: Node) -> None:
    assert opposite(node)[1] is False


@pytest.mark.parametrize(
    ("node", "beside", "ways"),
    [
        ({"type": "integer"}, {"type": ["integer", "string"]}, {"type": ["string"]}),
        ({"pattern": "a"}, {"type": "number"}, False),  # it says nothing of numbers, so they all fit
        ({"type": "string", "pattern": "a"}, {"type": "number"}, True),
        ({"required": ["a"]}, {"type": "object", "required": ["a"]}, False),
        ({"enum": [True]}, {"type": "boolean"}, {"enum": [False]}),
    ],
)
def test_what_stands_beside_it_makes_it_shorter(node: Node, beside: Node, ways: Node) -> None:
    found, all_of_it = opposite(node, beside)
    assert all_of_it
    assert found == ways


def test_a_loop_ends() -> None:
    chain = {"type": "object", "properties": {"next": {"$ref": ""}, "a": {"type": "string"}}}
    found, whole = opposite(chain)
    assert not whole
    against = judge({"": chain}, found)
    assert [against.is_valid(value) for value in (1, {"a": 1}, {"a": "b"}, {})] == [True, True, False, False]


@given(parts=st.lists(st.sampled_from([True, False, {"type": "string"}, {"minLength": 1}]), max_size=4), value=values)
def test_all_and_any(parts: list[Node], value: Any) -> None:
    each = [jsonschema_rs.is_valid(part, value) for part in parts]
    assert jsonschema_rs.is_valid(all_of(parts), value) == all(each)
    assert jsonschema_rs.is_valid(any_of(parts), value) == any(each)
