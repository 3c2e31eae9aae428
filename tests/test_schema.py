"""models/engine/schema.py: what may be compiled at all, and what would cost too much."""

import json
from typing import Any

import pytest

from models.engine.schema import MAX_BYTES, MAX_DIVISOR, MAX_PATTERNS, MAX_VISITS, admit
from models.failure import Failure

STRING = {"type": "string"}


def refused(schema: dict[str, Any]) -> str:
    with pytest.raises(Failure) as caught:
        admit(schema)
    assert caught.value.code == "schema_unsupported"
    return caught.value.message


def all_of(patterns: list[str]) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}


def divisors(*values: float) -> dict[str, Any]:
    return {"properties": {str(number): {"multipleOf": value} for number, value in enumerate(values)}}


def doubling(depth: int, keyword: str = "allOf") -> dict[str, Any]:
    """2^depth visits in a few hundred bytes."""
    twice = [{keyword: [{"$ref": f"#/$defs/{level + 1}"}] * 2} for level in range(depth)]
    return {"$ref": "#/$defs/0", "$defs": {str(level): part for level, part in enumerate([*twice, STRING])}}


def test_an_admitted_schema_comes_back_as_json() -> None:
    schema = {"type": "object", "properties": {"b": STRING, "a": {"enum": ["é", 1, None]}}}
    assert json.loads(admit(schema)) == schema
    assert list(json.loads(admit(schema))["properties"]) == ["b", "a"]


def test_the_size_is_bounded() -> None:
    room = MAX_BYTES - len(json.dumps({"description": ""}))
    assert len(admit({"description": "x" * room})) == MAX_BYTES
    assert str(MAX_BYTES) in refused({"description": "x" * (room + 1)})


def test_different_patterns_are_counted_wherever_they_are() -> None:
    enough = [f"a{number}" for number in range(MAX_PATTERNS)]
    assert admit(all_of(enough))
    assert "patterns" in refused(all_of([*enough, "b"]))
    names = {"patternProperties": {name: STRING for name in enough}}
    assert admit(names)
    assert "patterns" in refused({"allOf": [names, {"items": [{"pattern": "b"}]}]})


def test_a_pattern_used_often_counts_once() -> None:
    assert admit(all_of(["^[0-9]{4}$"] * 100))


def test_a_property_may_be_called_pattern() -> None:
    properties = {"pattern": STRING, "multipleOf": STRING, "$id": STRING, "$ref": STRING, "patternProperties": STRING}
    assert admit({"type": "object", "properties": properties})


@pytest.mark.parametrize("values", [(0.01, 0.05, 0.25, 5, 10), (1e-7, 1e9), (MAX_DIVISOR - 1,), (0,), (-7.5,), (True,)])
def test_divisors_that_come_together_soon(values: tuple[float, ...]) -> None:
    assert admit(divisors(*values))


@pytest.mark.parametrize("values", [(MAX_DIVISOR + 1,), (101, 103, 107), (1234567.1,), (1 << 25,), (3.00001, 2.9)])
def test_divisors_that_come_together_late(values: tuple[float, ...]) -> None:
    assert str(MAX_DIVISOR) in refused(divisors(*values))


@pytest.mark.parametrize("ref", ["#", "#/$defs/a~1b", "#/$defs/a%20b", "#/$defs/t~0", "#/anyOf/1", "#/anyOf/1/items"])
def test_a_ref_into_the_schema(ref: str) -> None:
    defs = {"a/b": STRING, "a b": STRING, "t~": STRING}
    assert admit({"$ref": ref, "$defs": defs, "anyOf": [STRING, {"items": STRING}]})


@pytest.mark.parametrize(
    "ref",
    [
        "http://127.0.0.1/x",
        "file:///x",
        "x.json",
        "#anchor",
        "#/$defs/none",
        "#/anyOf/9",
        "#/anyOf/x",
        "#/$defs/a/b/c",
        "",
    ],
)
def test_a_ref_out_of_the_schema(ref: str) -> None:
    for schema in ({"$ref": ref}, {"type": "object", "properties": {"x": {"items": [{"$ref": ref}]}}}):
        assert "$ref" in refused({**schema, "$defs": {"a": {"$anchor": "anchor"}}, "anyOf": [STRING]})


def test_an_id_below_the_top_would_move_what_refs_mean() -> None:
    assert admit({"$id": "http://example.com/x", "$ref": "#/$defs/a", "$defs": {"a": STRING}})
    assert "$id" in refused({"$defs": {"a": {"$id": "http://example.com/a"}}})


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "prefixItems"])
def test_refs_that_double_are_bounded(keyword: str) -> None:
    assert admit(doubling(8, keyword))
    assert str(MAX_VISITS) in refused(doubling(14, keyword))
    assert str(MAX_VISITS) in refused(doubling(100, keyword))


@pytest.mark.parametrize("name", ["$defs", "definitions"])
def test_a_property_called_like_the_definitions_hides_nothing(name: str) -> None:
    assert str(MAX_VISITS) in refused({"properties": {name: doubling(40)}, "$defs": doubling(40)["$defs"]})


def test_many_uses_of_one_definition_are_no_doubling() -> None:
    money = {"type": "object", "properties": {"amount": {"type": "number"}, "currency": STRING}}
    fields = {f"field{number}": {"$ref": "#/$defs/money"} for number in range(500)}
    assert admit({"properties": fields, "$defs": {"money": money}})


def test_recursion_is_no_doubling() -> None:
    node = {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}}
    assert admit({"$ref": "#/$defs/node", "$defs": {"node": node}})


def test_a_long_chain_is_refused_and_not_a_crash() -> None:
    chain: dict[str, Any] = {str(level): {"$ref": f"#/$defs/{level + 1}"} for level in range(1500)}
    assert "deeply" in refused({"$ref": "#/$defs/0", "$defs": {**chain, "1500": STRING}})
