"""models/schema/keywords.py: a keyword in other words says the same to a validator, or is a fault by its pointer."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema.formats import FREE, INTEGERS, PATTERNS
from models.schema.keywords import MOST, SAFE, is_plain
from tests.test_logic import values
from tests.test_reader import as_schema, read

Schema = dict[str, Any]


def faults(schema: Schema) -> list[tuple[str, str]]:
    return list(read(schema).faults)


def fits(schema: Schema, value: Any) -> bool:
    """Whether a value fits what has been read without a fault."""
    found = read(schema)
    assert not found.faults
    return jsonschema_rs.is_valid(as_schema(found.definitions), value)


@pytest.mark.parametrize(
    ("schema", "keyword", "at"),
    [
        ({"$dynamicRef": "#a"}, "$dynamicRef", "/$dynamicRef"),
        ({"x-guidance": {}}, "x-guidance", "/x-guidance"),
        ({"contains": {}}, "contains", "/contains"),
        ({"contains": {}, "minContains": 0, "maxContains": 1}, "contains", "/contains"),
        ({"uniqueItems": True}, "uniqueItems", "/uniqueItems"),
        ({"uniqueItems": True, "maxItems": 2}, "uniqueItems", "/uniqueItems"),
        ({"allOf": [{}], "unevaluatedItems": False}, "unevaluatedItems", "/unevaluatedItems"),
        ({"format": "colour"}, "format", "/format"),
        ({"type": ["string", "null"], "format": "int32"}, "format", "/format"),
        ({"propertyNames": {"pattern": "a", "maxLength": 2}}, "propertyNames", "/propertyNames"),
        ({"patternProperties": {"(?!/)": {}}}, "patternProperties", "/patternProperties/(?!~1)"),
        ({"properties": {"~": {"pattern": "\\b"}}}, "pattern", "/properties/~0/pattern"),
        *(({key: MOST + 1}, key, f"/{key}") for key in ("minLength", "minItems", "minProperties")),
        *(({key: SAFE + 1}, key, f"/{key}") for key in ("minimum", "exclusiveMinimum", "multipleOf")),
        *(({key: -SAFE - 1}, key, f"/{key}") for key in ("maximum", "exclusiveMaximum")),
        ({"const": {"a": [SAFE + 1]}}, "const", "/const"),
        ({"enum": [{"\x00": 1}]}, "enum", "/enum"),
    ],
)
def test_what_cannot_be_said_is_a_fault_at_its_place(schema: Schema, keyword: str, at: str) -> None:
    assert faults(schema) == [(keyword, at)]


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": True, "maxItems": 1},
        {"contains": {"type": "string"}, "minContains": 0},
        {"type": ["array", "null"], "format": "colour"},
        {"maxLength": MOST * 9, "maxItems": 10**30, "minItems": MOST, "maximum": 1e300, "minimum": -1e300},
        {"$defs": {"a": {"uniqueItems": True}}, "description": "x"},
    ],
)
def test_what_says_nothing_or_too_much_to_matter_is_no_fault(schema: Schema) -> None:
    assert faults(schema) == []


NAMED = [{"minLength": 1, "type": "string"}, {"minLength": 2}, {"maxLength": 1}, {"enum": ["a", 1]}, {"pattern": "^a"}]
SAID: list[Schema] = [
    *({"propertyNames": part} for part in (*NAMED, False, True, {"type": "integer"}, {"type": "string"})),
    *({"properties": {"a": True}, "unevaluatedProperties": part} for part in (True, False, {"type": "integer"})),
    *({"prefixItems": [{}] * n, "unevaluatedItems": part} for n in (1, 2) for part in (True, False)),
    *({"dependentRequired": {a: [b], b: []}} for a in "ab" for b in "abc"),
    *({"dependentSchemas": {"a": part, "c": True}} for part in ({"maxProperties": 1}, False, {})),
    *({"minimum": low, "exclusiveMaximum": 3, "minLength": 1.0, "maxItems": 2} for low in range(-2, 3)),
    *({"const": value} for value in (1, 1.0, 0.5, [1], {"a": None}, "", False)),
]


@settings(max_examples=100, deadline=None)
@given(schema=st.sampled_from(SAID), tried=st.lists(values, min_size=4, max_size=8))
def test_what_is_put_in_other_words_says_the_same(schema: Schema, tried: list[Any]) -> None:
    assert [fits(schema, value) for value in tried] == [jsonschema_rs.is_valid(schema, value) for value in tried]


def test_a_pattern_and_a_format_hold_both_and_the_shorter_length_counts() -> None:
    both = {"type": "string", "format": "email", "pattern": "^a", "maxLength": 9}
    for schema in (both, dict(reversed(both.items()))):
        assert fits(schema, "a@b.cc")
        for other in ("b@b.cc", "abc", "a@bbbbb.cc"):
            assert not fits(schema, other)
    assert fits({"format": "hostname", "maxLength": 999}, "a." * 126 + "a")
    assert not fits({"format": "hostname", "maxLength": 999}, "a." * 127 + "a")


@pytest.mark.parametrize("name", sorted(PATTERNS.keys() | FREE))
def test_a_format_of_strings_says_nothing_of_numbers(name: str) -> None:
    assert fits({"type": ["string", "integer"], "format": name}, 5)
    assert fits({"type": "number", "format": name}, 0.5)
    assert fits({"format": name}, "\x7f \ud7ff") == (name in FREE)


@pytest.mark.parametrize("name", INTEGERS)
def test_a_format_of_numbers_is_a_range(name: str) -> None:
    low, high = INTEGERS[name]
    for kind in ("integer", ["integer", "null"]):
        assert all(fits({"type": kind, "format": name}, value) for value in (low, high))
        assert not any(fits({"type": kind, "format": name}, value) for value in (low - 1, high + 1))


@given(value=values | st.text(max_size=3) | st.integers() | st.floats())
def test_what_is_plain_comes_back_from_any_json(value: Any) -> None:
    if is_plain([value]):
        assert json.loads(json.dumps(value)) == value
        assert json.loads(json.dumps(value, ensure_ascii=False).encode()) == value
        assert not isinstance(value, int) or int(float(value)) == value
    assert is_plain(value) == is_plain({"a": [value]})
    assert not isinstance(value, str) or is_plain(value) == is_plain({value: 1})
