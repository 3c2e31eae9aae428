"""models/schema/fields.py: which strings are copy-only, wherever the schema says so; and where it cannot say so."""

from typing import Any

import pytest

from models.failure import Failure
from models.schema.dialect import Schema
from models.schema.fields import Fields, fields

TEXT = {"type": "string"}
COPY = {"type": "string", "x-verbatim": True}


def at(schema: Schema, *path: str) -> str | None:
    """The pointer of what makes the value at `path` copy-only."""
    found = fields(schema)
    assert found is not None
    site = found.root
    for step in filter(None, path):
        site = found.item(site, int(step)) if step.isdigit() else found.member(site, step)
    return found.copied(site)


def of(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties}


def refusal(schema: Schema) -> Failure:
    with pytest.raises(Failure) as caught:
        fields(schema)
    return caught.value


@pytest.mark.parametrize("schema", [{}, TEXT, of(a=TEXT), of(a=TEXT | {"x-verbatim": False}), {"const": COPY}])
def test_a_schema_may_have_none(schema: Schema) -> None:
    assert fields(schema) is None


@pytest.mark.parametrize("schema", [of(**{"x-verbatim": TEXT}), {"default": COPY, "examples": [COPY], "enum": [COPY]}])
def test_a_name_or_a_value_is_no_keyword(schema: Schema) -> None:
    assert fields(schema) is None


PERSON = of(name=COPY, note=TEXT, children={"type": "array", "items": {"$ref": "#"}})
CYCLE = {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, COPY]}}
PATTERNS = {"patternProperties": {"^n": COPY, "/": TEXT}, "additionalProperties": COPY}
# Where the values at these paths are said to be copied.
CASES: list[tuple[Schema, dict[str, str | None]]] = [
    (COPY, {"": "", "a": None, "0": None}),
    (of(a=COPY, b=TEXT), {"a": "/properties/a", "b": None, "c": None, "": None}),
    (of(**{"a/b~c %41": COPY}), {"a/b~c %41": "/properties/a~1b~0c %41", "a/b~c A": None}),
    (of(a={"type": ["string", "null"], "x-verbatim": True}), {"a": "/properties/a"}),
    (of(a={"items": COPY}), {"a.0": "/properties/a/items", "a.9000": "/properties/a/items", "a": None}),
    (
        {"prefixItems": [TEXT, COPY], "items": {"items": COPY}},
        {"0": None, "1": "/prefixItems/1", "2.0": "/items/items"},
    ),
    ({"items": [COPY, TEXT], "additionalItems": COPY}, {"0": "/items/0", "1": None, "2": "/additionalItems"}),
    (of(a=TEXT) | {"additionalProperties": COPY}, {"a": None, "b": "/additionalProperties"}),
    (of(a=TEXT) | {"unevaluatedProperties": COPY}, {"a": None, "b": "/unevaluatedProperties"}),
    (of(no=TEXT) | PATTERNS, {"nr": "/patternProperties/^n", "no": "/patternProperties/^n", "a/b": None}),
    (of(no=TEXT) | PATTERNS, {"else": "/additionalProperties"}),
    (of(a={"anyOf": [{"type": "null"}, COPY]}), {"a": "/properties/a/anyOf/1"}),
    (of(a={"oneOf": [COPY, {"type": "integer"}]}), {"a": "/properties/a/oneOf/0"}),
    ({"allOf": [of(a=TEXT), of(a={"x-verbatim": True})]}, {"a": "/allOf/1/properties/a"}),
    ({"anyOf": [of(a=COPY), of(a=TEXT, b=TEXT)]}, {"a": "/anyOf/0/properties/a", "b": None}),
    ({"if": of(k=TEXT), "then": of(a=COPY)}, {"a": "/then/properties/a", "k": None}),
    ({"if": of(k=TEXT), "else": of(a=COPY)}, {"a": "/else/properties/a", "k": None}),
    ({"dependentSchemas": {"k": of(a=COPY)}}, {"a": "/dependentSchemas/k/properties/a", "k": None}),
    ({"dependencies": {"k": ["l"], "m": of(a=COPY)}}, {"a": "/dependencies/m/properties/a"}),
    (of(a={"$ref": "#/$defs/c"}) | {"$defs": {"c": COPY}}, {"a": "/$defs/c"}),
    (of(a={"$ref": "#/$defs/c", "x-verbatim": True}) | {"$defs": {"c": TEXT}}, {"a": "/properties/a"}),
    (of(a={"$ref": "#/x/c"}) | {"x": {"c": {"$ref": "#/y"}}, "y": COPY}, {"a": "/y"}),
    (of(a={"$ref": "#c"}) | {"$defs": {"c": COPY | {"$anchor": "c"}}}, {"a": "/$defs/c"}),
    (PERSON, {"children.3.children.1.name": "/properties/name", "children.3.note": None, "children.3": None}),
    ({"$ref": "#/$defs/a", "$defs": CYCLE}, {"": "/$defs/b/anyOf/1"}),
]


@pytest.mark.parametrize(("schema", "expected"), CASES)
def test_a_string_is_copied_where_the_schema_says_so(schema: Schema, expected: dict[str, str | None]) -> None:
    for path, pointer in expected.items():
        assert at(schema, *path.split(".")) == pointer


@pytest.mark.parametrize("value", [1, "true", None, []])
def test_the_keyword_is_true_or_false(value: Any) -> None:
    refused = refusal(of(a={"type": "array", "items": TEXT | {"x-verbatim": value}}))
    assert refused.code == "schema_invalid"
    assert "#/properties/a/items/x-verbatim" in refused.message


@pytest.mark.parametrize(
    "part",
    [
        {"type": "integer"},
        {"type": ["integer", "null"]},
        {"type": "array", "items": COPY},
        {"enum": [1, 2]},
        {"const": {"a": "b"}},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"allOf": [TEXT, {"type": "object"}]},
        {"$ref": "#/$defs/number"},
        {"type": ["string", "null"], "oneOf": [{"enum": [None]}, {"$ref": "#/$defs/number"}]},
    ],
)
def test_what_cannot_be_a_string_cannot_be_copied(part: Schema) -> None:
    schema = of(**{"a/b": part | {"x-verbatim": True}}) | {"$defs": {"number": {"type": "number"}}}
    refused = refusal(schema)
    assert refused.code == "schema_invalid"
    assert refused.message.endswith("#/properties/a~1b")


@pytest.mark.parametrize(
    "part",
    [{}, {"type": ["null", "string"]}, {"enum": [1, "a"]}, {"anyOf": [{"type": "null"}, TEXT]}, {"$ref": "#"}],
)
def test_what_may_be_a_string_may_be_copied(part: Schema) -> None:
    assert fields(part | {"x-verbatim": True}) is not None


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"not": COPY}, "#/not"),
        (of(a={"if": of(b=COPY)}), "#/properties/a/if/properties/b"),
        ({"contains": {"anyOf": [COPY, {}]}}, "#/contains/anyOf/0"),
        ({"propertyNames": COPY}, "#/propertyNames"),
        ({"not": {"$ref": "#/x"}, "x": COPY}, "#/x"),
    ],
)
def test_it_stands_where_something_is_said_of_a_value(schema: Schema, pointer: str) -> None:
    refused = refusal(schema)
    assert refused.code == "schema_unsupported"
    assert refused.message.endswith(pointer)


def test_what_is_said_elsewhere_as_well_may_be_copied() -> None:
    assert at({"not": {"$ref": "#/x"}, "properties": {"a": {"$ref": "#/x"}}, "x": COPY}, "a") == "/x"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (COPY, False),
        (COPY | {"maxLength": 5, "description": "pattern"}, False),
        (COPY | {"pattern": "a"}, True),
        ({"allOf": [COPY, {"minLength": 1}]}, True),
        ({"anyOf": [{"$ref": "#/$defs/date"}, {"type": "null"}]}, True),
    ],
)
def test_what_more_is_wanted_of_a_string_is_known(part: Schema, expected: bool) -> None:
    found = fields(of(a=part) | {"$defs": {"date": COPY | {"format": "date"}}})
    assert isinstance(found, Fields)
    assert found.narrowed(found.member(found.root, "a")) == expected


def test_a_hostile_pattern_takes_linear_time() -> None:
    schema = {"patternProperties": {"^(a+)+$": COPY}}
    assert at(schema, "a" * 5000 + "b") is None
    assert at(schema, "a" * 5000) == "/patternProperties/^(a+)+$"
