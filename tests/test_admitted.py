"""models/schema/admitted.py: what is admitted, what is refused by keyword and pointer, what would cost too much."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from models.failure import Failure
from models.schema.admitted import (
    MAX_ALL,
    MAX_BYTES,
    MAX_DIVISOR,
    MAX_PATTERNS,
    MAX_VISITS,
    Written,
    admit,
    dump,
    judge,
)

Schema = dict[str, Any]
STRING = {"type": "string"}
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def refused(schema: Schema, code: str = "schema_unsupported") -> str:
    """The message; it names a keyword and its pointer."""
    with pytest.raises(Failure) as caught:
        admit(schema)
    assert caught.value.code == code
    assert re.search(r'"[^"]+" at /', caught.value.message)
    return caught.value.message


def written(schema: Schema) -> Written:
    """With all bounds."""
    return next(admit(schema).candidates())


def free(schema: Schema) -> Any:
    """Without any, as it is enforced."""
    found = json.loads(list(admit(schema).candidates())[-1].text)
    return found["$defs"]["s0"] if found.get("$ref") == "#/$defs/s0" else found


def all_of(patterns: list[str]) -> Schema:
    return {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}


def divisors(*values: float) -> Schema:
    return {"properties": {str(number): {"multipleOf": value} for number, value in enumerate(values)}}


def doubling(depth: int, keyword: str = "allOf") -> Schema:
    """2^depth visits in a few hundred bytes."""
    twice = [{keyword: [{"$ref": f"#/$defs/{level + 1}"}] * 2} for level in range(depth)]
    return {"$ref": "#/$defs/0", "$defs": {str(level): part for level, part in enumerate([*twice, STRING])}}


def test_properties_keep_their_order_and_values_their_spelling() -> None:
    found = free({"type": "object", "properties": {"b": STRING, "a": {"enum": ["é", 1, None]}}})
    assert list(found["properties"].items()) == [("b", STRING), ("a", {"enum": ["é", 1, None]})]


@pytest.mark.parametrize(
    ("at", "schema"),
    [
        ('"not" at /properties/a/not', {"properties": {"a": {"type": "string", "not": {"pattern": "x"}}}}),
        ('"uniqueItems" at /items/uniqueItems', {"items": {"uniqueItems": True}}),
        ('"contains" at /anyOf/1/contains', {"anyOf": [{}, {"contains": STRING}]}),
        ('"format" at /properties/a~1b/format', {"properties": {"a/b": {"type": "string", "format": "colour"}}}),
        ('"pattern" at /pattern', {"pattern": "a\\b"}),
        ('"patternProperties" at /patternProperties/(?!a)', {"patternProperties": {"(?!a)": STRING}}),
        ('"$ref" at /properties/a/$ref', {"properties": {"a": {"$ref": "other.json"}}}),
        ('"$dynamicRef" at /$dynamicRef', {"$dynamicRef": "#a", "$dynamicAnchor": "a"}),
        ('"unevaluatedProperties" at /unevaluatedProperties', {"allOf": [STRING], "unevaluatedProperties": False}),
        ('"propertyNames" at /propertyNames', {"propertyNames": {"not": {"pattern": "a"}}}),
        ('"x-guidance" at /x-guidance', {"x-guidance": {"lenient": True}}),
        ('"x-check" at /properties/a/x-check', {"properties": {"a": {"x-check": []}}}),
        ('"oneOf" at /oneOf', {"oneOf": [{"type": "integer"}, {"type": "number"}, {"multipleOf": 0.5}]}),
        ('"enum" at /enum', {"enum": ["a", "\x00"]}),
        ('"const" at /const', {"const": 2**60 + 1}),
        ('"minimum" at /minimum', {"type": "integer", "minimum": 2**60}),
        ('"minItems" at /minItems', {"type": "array", "minItems": 10**9}),
        ('"multipleOf" at /multipleOf', {"multipleOf": 9_999_991}),
        ('"$schema" at /$defs/a/$schema', {"$defs": {"a": {"$schema": "http://example.com/x"}}}),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_pointer(at: str, schema: Schema) -> None:
    assert at in refused(schema)


def test_several_are_named_and_long_pointers_cut() -> None:
    many = {"properties": {f"{number:0>300}": {"uniqueItems": True} for number in range(9)}}
    message = refused(many)
    assert message.count('"uniqueItems" at /properties/0000') == 3
    assert len(message) < 800


@pytest.mark.parametrize("key", ["maxlength", "max_length", "additonalProperties", "requred", "type:", "Enum", "min"])
def test_what_looks_like_a_keyword_and_is_none_is_not_ignored(key: str) -> None:
    assert f'"{key}" at /properties/a/{key} (no keyword of JSON Schema)' in refused({"properties": {"a": {key: 5}}})


SILENT: dict[str, Any] = {
    **dict.fromkeys(("title", "description", "default", "$comment", "contentEncoding", "x-evidence", "x-order"), "a"),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "nullable", "x-verbatim"), True),
    **{key: [] for key in ("examples", "links", "_enum")},
    **{key: {"maxLength": 1} for key in ("discriminator", "example", "xml", "externalDocs")},
}


@pytest.mark.parametrize("key", SILENT)
def test_what_says_nothing_of_the_answer_is_left_out(key: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", key: SILENT[key]}}}
    assert free(schema) == {"type": "object", "properties": {"a": STRING}}


def test_rules_across_fields_stand_at_the_top() -> None:
    assert free({"type": "string", "x-check": [{"sum": []}]}) == STRING


def test_keywords_are_looked_for_only_where_schemas_stand() -> None:
    names = {name: STRING for name in ("not", "pattern", "multipleOf", "$id", "$ref", "maxlength", "patternProperties")}
    assert free({"type": "object", "properties": names})["properties"] == names
    assert admit({"type": "string", "default": {"$ref": "http://example.com/x"}, "examples": [{"not": 1}]})
    assert free({"enum": [{"$ref": "x", "not": 1}]}) == {"enum": [{"$ref": "x", "not": 1}]}


def test_definitions_that_nothing_leads_to_may_be_anything() -> None:
    assert free({"type": "string", "$defs": {"a": {"not": {"pattern": "a"}}}}) == STRING


@pytest.mark.parametrize(
    ("at", "schema"),
    [
        ('"type" at /properties/a/type', {"properties": {"a": {"type": "dict"}}}),
        ('"items" at /items', {"items": [STRING]}),
        ('"exclusiveMinimum" at /exclusiveMinimum', {"exclusiveMinimum": True}),
        ('"required" at /properties/a/required', {"properties": {"a": {"required": True}}}),
        ('"minLength" at /anyOf/0/minLength', {"anyOf": [{"minLength": -1}]}),
        ('"properties" at /x/a/properties', {"$ref": "#/x/a", "x": {"a": {"properties": 5}}}),
        ('"$ref" at /x/a', {"$ref": "#/x/a", "x": {"a": {"propertyNames": 5}}}),
    ],
)
def test_what_is_no_schema_is_named_too(at: str, schema: Schema) -> None:
    assert at in refused(schema, "schema_invalid")


@pytest.mark.parametrize("draft", [DRAFT_4, DRAFT_7])
def test_a_keyword_that_came_later_holds_and_is_looked_at(draft: str) -> None:
    pair = {"$schema": draft, "prefixItems": [{"type": "integer"}], "type": "array"}
    assert free(pair) == {"prefixItems": [{"type": "integer"}], "type": "array"}
    for value in (5, "a", {"a": 5}):
        assert '"prefixItems" at /prefixItems' in refused({"$schema": draft, "prefixItems": value})
        assert '"dependentRequired" at /items/dependentRequired' in refused(
            {"$schema": draft, "items": {"dependentRequired": value}}
        )


def test_an_unknown_dialect_is_refused_and_never_fetched() -> None:
    assert '"$schema" at /$schema' in refused({"$schema": "http://127.0.0.1:9/none", "type": "object"})


@pytest.mark.parametrize("pattern", ["(?=a)b", "(a)\\1", "(", "[a-", "a{2,1}"])
def test_a_pattern_that_no_validator_runs_in_linear_time_is_refused(pattern: str) -> None:
    either: list[Schema] = [{"pattern": pattern}, {"patternProperties": {pattern: {}}}]
    for schema in either:
        with pytest.raises(Failure) as caught:
            judge(schema)
        assert caught.value.code == "schema_unsupported"
        refused(schema)


def test_the_size_is_bounded() -> None:
    room = MAX_BYTES - len(json.dumps({"const": ""}))
    assert len(dump({"const": "x" * room})) == MAX_BYTES
    with pytest.raises(Failure, match=f'"const" at /const: it is larger than {MAX_BYTES} bytes'):
        dump({"const": "x" * (room + 1)})
    room = MAX_ALL - len(json.dumps({"description": ""}))
    assert len(dump({"description": "x" * room})) == MAX_ALL
    with pytest.raises(Failure, match=f'"description" at /description: it is larger than {MAX_ALL} bytes'):
        dump({"description": "x" * (room + 1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(Failure, match='"const" at /const: it holds what is not JSON'):
        dump({"const": value})


def test_patterns_are_counted_where_they_may_have_to_hold_at_once() -> None:
    enough = [f"a{number}" for number in range(MAX_PATTERNS)]
    assert admit(all_of(enough))
    assert "patterns" in refused(all_of([*enough, "b"]))
    assert "patterns" in refused({"allOf": [{"properties": {p: {"pattern": p}}} for p in [*enough, "b"]]})
    assert admit({"properties": {f"p{number}": {"pattern": f"a{number}"} for number in range(99)}})
    assert admit({"patternProperties": {f"^{name}$": STRING for name in enough}})
    assert "patternProperties" in refused({"patternProperties": {name: STRING for name in [*enough, "b"]}})


def test_a_pattern_used_often_counts_once() -> None:
    assert admit(all_of(["^[0-9]{4}$"] * 100))


@pytest.mark.parametrize("values", [(0.01, 0.05, 0.25, 5, 10), (1e-3, 1e3), (MAX_DIVISOR - 1,), (7.5,)])
def test_divisors_that_come_together_soon(values: tuple[float, ...]) -> None:
    assert admit(divisors(*values))


@pytest.mark.parametrize(
    "values",
    [(MAX_DIVISOR + 1,), (101, 103, 107), (1234567.1,), (1 << 25,), (3.00001, 2.9), (1e-7, 1e9), (50_000, 99_990)],
)
def test_divisors_that_come_together_late_or_in_numbers_too_large(values: tuple[float, ...]) -> None:
    assert str(MAX_DIVISOR) in refused(divisors(*values))


@pytest.mark.parametrize(
    "ref",
    [
        *("#/$defs/a~1b", "#/$defs/a%20b", "#/$defs/t~0", "#/anyOf/1", "#/anyOf/1/items", "#named"),
        *("http://example.com/root.json#/$defs/t~0", "http://example.com/root.json#named", "#/other/place"),
    ],
)
def test_a_ref_into_the_schema(ref: str) -> None:
    defs = {"a/b": STRING, "a b": STRING, "t~": STRING, "n": {"$anchor": "named", "type": "string"}}
    found = admit(
        {
            "$id": "http://example.com/root.json",
            "properties": {"x": {"$ref": ref}},
            "$defs": defs,
            "anyOf": [STRING, {"items": STRING}],
            "other": {"place": STRING},
        }
    )
    assert len(found.definitions) == 2


@pytest.mark.parametrize(
    "ref",
    [
        *("http://127.0.0.1/x", "file:///x", "x.json", "#anchor", "#/$defs/none", "#/anyOf/9", "#/anyOf/x"),
        *("#/$defs/a/b/c", "", "#inner", "http://example.com/other.json#/$defs/a"),
    ],
)
def test_a_ref_out_of_the_schema(ref: str) -> None:
    inner = {"$id": "http://example.com/inner", "$defs": {"i": {"$anchor": "inner"}}}
    for schema in ({"$ref": ref}, {"type": "object", "properties": {"x": {"items": {"$ref": ref}}}}):
        assert '"$ref" at ' in refused(
            {**schema, "$defs": {"a": {"type": "string"}, "inner": inner}, "anyOf": [STRING]}
        )


def test_an_id_below_the_top_would_move_what_refs_mean() -> None:
    assert admit({"$id": "http://example.com/x", "$ref": "#/$defs/a", "$defs": {"a": STRING}})
    assert admit({"$defs": {"a": {"$id": "http://example.com/a"}}})
    assert admit(
        {
            "$schema": DRAFT_7,
            "properties": {"a": {"$id": "#/properties/a", "$ref": "#/definitions/b"}},
            "definitions": {"b": STRING},
        }
    )
    inner = {"$id": "http://example.com/a", "items": {"$ref": "#/$defs/b"}}
    assert '"$id" at /$defs/a/$id' in refused({"$defs": {"a": inner, "b": STRING}})


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "prefixItems"])
def test_refs_that_double_are_bounded(keyword: str) -> None:
    if keyword != "oneOf":  # two times the same is neither
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


def test_recursion_is_no_doubling_unless_it_is_in_place() -> None:
    node = {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}}
    assert admit({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert admit({"properties": {"a": {"$ref": "#"}}})
    for loop in ({"$ref": "#"}, {"not": {"$ref": "#"}}, {"anyOf": [STRING, {"allOf": [{"$ref": "#"}]}]}):
        assert "leads to itself" in refused(loop)


def test_a_long_chain_is_refused_and_not_a_crash() -> None:
    chain: dict[str, Any] = {str(level): {"$ref": f"#/$defs/{level + 1}"} for level in range(1500)}
    assert "deeply" in refused({"$ref": "#/$defs/0", "$defs": {**chain, "1500": STRING}})


OLD = [
    ({"items": [{"type": "integer"}], "additionalItems": False}, [[1], []], [["a"], [1, 2]]),
    ({"items": [{"type": "integer"}], "anyOf": [{}], "additionalItems": False}, [[1]], [[1, 2]]),
    ({"items": {"type": "integer"}, "additionalItems": False}, [[1, 2]], [["a"]]),
    ({"dependencies": {"a": ["b"], "c": {"minProperties": 3}}}, [{"b": 1}, {"a": 1, "b": 2}], [{"a": 1}, {"c": 1}]),
    ({"definitions": {"n": {"minimum": 3}}, "properties": {"a": {"$ref": "#/definitions/n"}}}, [{"a": 3}], [{"a": 2}]),
    ({"const": 5}, [5], [6]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), OLD)
def test_draft_7_is_read_as_2020_12(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    text = json.dumps(free({"$schema": DRAFT_7, **schema}))
    assert "additionalItems" not in text
    assert "dependencies" not in text
    validator = jsonschema_rs.Draft202012Validator(json.loads(text))
    assert [validator.is_valid(value) for value in good + bad] == [True] * len(good) + [False] * len(bad)


def test_limits_that_draft_4_calls_exclusive() -> None:
    limits = {"minimum": 1, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False}
    assert free({"$schema": DRAFT_4, "type": "integer", **limits}) == {
        "type": "integer",
        "exclusiveMinimum": 1,
        "maximum": 9,
    }


def test_formats_of_numbers_are_ranges_and_of_other_types_nothing() -> None:
    whole = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
    assert free({"type": "integer", "format": "int32"})["allOf"] == [whole]
    assert free({"type": "number", "format": "double"}) == {"type": "number"}
    assert free({"type": "array", "format": "table"}) == {"type": "array"}


BIG = {"type": "array", "items": {"type": "object", "properties": {"name": STRING, "age": {"type": "integer"}}}}


def test_bounds_are_supplied_where_there_are_none_and_told() -> None:
    found = written(BIG)
    assert found.supplied == {
        "maxItems": 200,
        "additionalProperties": False,
        "maxLength": 2000,
        "maximum": 10**15 - 1,
    }
    validator = jsonschema_rs.validator_for(json.loads(found.text))
    row = {"name": "x" * 2000, "age": 10**15 - 1}
    assert validator.is_valid([row] * 200)
    for beyond in ([row] * 201, [{"name": "x" * 2001}], [{"age": 10**15}], [{"more": 1}]):
        assert not validator.is_valid(beyond)
        assert judge(BIG).is_valid(beyond)


def test_what_comes_up_against_a_bound_is_found() -> None:
    inner = written(BIG).inner
    assert inner is not None
    within = jsonschema_rs.validator_for(json.loads(inner))
    assert within.is_valid([{"name": "x" * 1999, "age": 10**14 - 1}] * 199)
    reaching: list[Any] = [[{}] * 200, [{"name": "x" * 2000}], [{"age": 10**14}]]
    assert not any(map(within.is_valid, reaching))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 9},
        {"enum": ["a", {"b": [1.5]}]},
        {"type": "string", "format": "date"},
        {"type": "array", "maxItems": 3, "items": {"type": "integer", "minimum": 0, "maximum": 9}},
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
    ],
)
def test_what_has_its_bounds_is_left_as_it_is(schema: Schema) -> None:
    assert written(schema).supplied == {}
    assert written(schema).inner is None


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "minLength": 5000}, "x" * 5000),
        ({"type": "array", "minItems": 300, "items": {"type": "null"}}, [None] * 300),
        ({"type": "integer", "minimum": 10**15, "maximum": 10**15 + 9}, 10**15),
        ({"type": "number", "minimum": 1e-12, "exclusiveMaximum": 2e-12}, 1e-12),
        ({"type": "number", "multipleOf": 65_536}, 131_072),
        ({"type": "object", "minProperties": 150}, {str(number): number for number in range(150)}),
        ({"type": "object", "properties": {"a": STRING}, "required": ["b"]}, {"b": 1}),
        (
            {"allOf": [{"properties": {"a": STRING}}, {"properties": {"b": STRING}, "required": ["b"]}]},
            {"a": "", "b": ""},
        ),
        ({"properties": {"a": STRING}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": ""}),
        (
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": {"type": "integer"}},
            {"a": "", "b": 1},
        ),
        ({"type": "string", "pattern": "^(a{3000,})$"}, "a" * 3000),
    ],
)
def test_a_bound_leaves_what_the_schema_asks_for(schema: Schema, value: Any) -> None:
    validator = jsonschema_rs.validator_for(json.loads(written(schema).text))
    assert judge(schema).is_valid(value)
    assert validator.is_valid(value)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


def test_what_may_be_anything_is_bounded_in_depth_and_names() -> None:
    open_ones: list[Schema] = [{"type": "object"}, {}, {"properties": {"a": {}}}, {"minLength": 1}]
    for schema in open_ones:
        found = written(schema)
        validator = jsonschema_rs.validator_for(json.loads(found.text))
        assert found.supplied["depth"] == 6
        assert validator.is_valid(deep(3))
        assert not validator.is_valid(deep(4))
        assert not validator.is_valid({"n" * 200: 1})


def test_definitions_that_are_composed_stay_open_and_others_are_closed() -> None:
    base = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    schema = {
        "type": "object",
        "properties": {
            "plain": {"$ref": "#/$defs/base"},
            "child": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": STRING}}]},
        },
        "$defs": {"base": base},
    }
    validator = jsonschema_rs.validator_for(json.loads(written(schema).text))
    assert validator.is_valid({"child": {"id": 1, "name": "a"}})
    assert not validator.is_valid({"child": {"id": 1, "other": "a"}})
    closed = {"type": "object", "properties": {"plain": {"$ref": "#/$defs/base"}}, "$defs": {"base": base}}
    assert not jsonschema_rs.is_valid(json.loads(written(closed).text), {"plain": {"id": 1, "other": 1}})
