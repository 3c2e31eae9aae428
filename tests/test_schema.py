"""models/engine/schema.py: what may be compiled at all, and what would cost too much."""

import json
from typing import Any

import pytest

from models.engine.schema import MAX_BYTES, MAX_DIVISOR, MAX_PATTERNS, MAX_VISITS, admit, dump
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


def written(schema: dict[str, Any]) -> dict[str, Any]:
    """What is enforced, with all bounds."""
    made: dict[str, Any] = json.loads(next(admit(schema).candidates()).text)
    return made


def test_properties_keep_their_order_and_what_is_open_gets_a_bound() -> None:
    schema = {"type": "object", "properties": {"b": STRING, "a": {"enum": ["é", 1, None]}, "c": {"type": "array"}}}
    made = written(schema)
    assert list(made["properties"]) == ["b", "a", "c"]
    assert made["properties"]["b"]["maxLength"] > 100 and made["properties"]["c"]["maxItems"] > 10
    supplied = next(admit(schema).candidates()).supplied
    assert {"maxLength", "maxItems"} <= supplied.keys()


@pytest.mark.parametrize("bounded", [{"type": "string", "maxLength": 7}, {"type": "string", "enum": ["a"]}])
def test_what_has_a_bound_keeps_it(bounded: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": bounded}, "additionalProperties": False}
    first = next(admit(schema).candidates())
    assert "maxLength" not in first.supplied
    assert first.inner is None


def test_a_supplied_bound_leaves_room_for_what_is_asked() -> None:
    made = written({"type": "object", "properties": {"a": {"type": "string", "minLength": 5000}}})
    assert made["properties"]["a"]["maxLength"] > 5000


def test_the_size_is_bounded() -> None:
    room = MAX_BYTES - len(json.dumps({"description": ""}))
    assert len(dump({"description": "x" * room})) == MAX_BYTES
    with pytest.raises(Failure) as caught:
        dump({"description": "x" * (room + 1)})
    assert str(MAX_BYTES) in caught.value.message and '"description" at /description' in caught.value.message


def test_different_patterns_are_counted_wherever_they_are() -> None:
    enough = [f"a{number}" for number in range(MAX_PATTERNS)]
    assert admit(all_of(enough))
    assert "patterns" in refused(all_of([*enough, "b"]))
    names: dict[str, Any] = {"type": "object", "patternProperties": {name: STRING for name in enough}}
    assert admit(names)
    names["patternProperties"]["b"] = STRING
    assert '"patternProperties" at /patternProperties' in refused(names)


def test_a_pattern_used_often_counts_once() -> None:
    assert admit(all_of(["^[0-9]{4}$"] * 100))


def test_a_property_may_be_called_pattern() -> None:
    properties = {"pattern": STRING, "multipleOf": STRING, "$id": STRING, "$ref": STRING, "patternProperties": STRING}
    assert admit({"type": "object", "properties": properties})


@pytest.mark.parametrize("values", [(0.01, 0.05, 0.25, 5, 10), (MAX_DIVISOR - 1,), (7.5,)])
def test_divisors_that_come_together_soon(values: tuple[float, ...]) -> None:
    assert admit(divisors(*values))


@pytest.mark.parametrize("values", [(MAX_DIVISOR + 1,), (101, 103, 107), (1234567.1,), (1 << 25,), (3.00001, 2.9)])
def test_divisors_that_come_together_late(values: tuple[float, ...]) -> None:
    assert str(MAX_DIVISOR) in refused(divisors(*values))


@pytest.mark.parametrize("value", [0, -7.5, True])
def test_what_is_no_divisor_is_no_schema(value: float) -> None:
    with pytest.raises(Failure, match=r'schema_invalid.*"multipleOf" at /properties/0/multipleOf'):
        admit(divisors(value))


@pytest.mark.parametrize("ref", ["#/$defs/a~1b", "#/$defs/a%20b", "#/$defs/t~0", "#/anyOf/1", "#/anyOf/1/items"])
def test_a_ref_into_the_schema(ref: str) -> None:
    defs = {"a/b": STRING, "a b": STRING, "t~": STRING}
    assert admit({"$ref": ref, "$defs": defs, "anyOf": [STRING, {"items": STRING}]})


@pytest.mark.parametrize(
    "ref",
    [
        "http://127.0.0.1/x",
        "file:///x",
        "x.json",
        "#/$defs/none",
        "#/anyOf/9",
        "#/anyOf/x",
        "#/$defs/a/b/c",
        "",
    ],
)
def test_a_ref_out_of_the_schema(ref: str) -> None:
    for schema in ({"$ref": ref}, {"type": "object", "properties": {"x": {"items": [{"$ref": ref}]}}}):
        message = refused({**schema, "$defs": {"a": {}}, "anyOf": [STRING]})
        assert '"$ref" at /' in message and message.endswith("/$ref")


def test_a_ref_to_itself_leads_nowhere() -> None:
    assert '"$ref" at /$ref' in refused({"$ref": "#"})


def test_an_id_below_the_top_would_move_what_refs_mean() -> None:
    assert admit({"$id": "http://example.com/x", "$ref": "#/$defs/a", "$defs": {"a": STRING}})
    inner = {"$id": "http://example.com/a", "properties": {"b": {"$ref": "#"}}}
    assert '"$id" at /$defs/a/$id' in refused({"$ref": "#/$defs/a", "$defs": {"a": inner}})


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "prefixItems"])
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
