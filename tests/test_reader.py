"""models/schema/reader.py: what drafts 4 to 2020-12 say in their own ways, said in one, held against validators."""

import json
from typing import Any
from urllib.parse import quote

import jsonschema
import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema.dialect import Node, Refs
from models.schema.reader import LATEST, Reader
from tests.test_logic import schemas, values

Schema = dict[str, Any]
DRAFTS: dict[Any, str] = {
    **{number: f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 6, 7)},
    **{number: f"https://json-schema.org/draft/{number}/schema" for number in ("2019-09", "2020-12")},
}


def read(schema: Schema) -> Reader:
    return Reader(schema, Refs(schema))


def as_schema(definitions: dict[str, Node], node: Node | None = None) -> Schema:
    """A schema of 2020-12 that says what definitions do, from the whole on or from a node that may refer to them."""
    root = definitions[""] if node is None else node
    return {"$schema": LATEST, "allOf": [_with_refs(root)], "$defs": {p: _with_refs(n) for p, n in definitions.items()}}


def _with_refs(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_refs(part) for part in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key == "enum" else _with_refs(value) for key, value in node.items()}
    if isinstance(ref := node.get("$ref"), str):
        made["$ref"] = f"#/$defs/{quote(ref.replace('~', '~0').replace('/', '~1'))}"
    return made


PAIR = {"type": "array", "minItems": 2}
NEED_D, FEW = {"c": {"required": ["d"]}}, {"allOf": [{"maxProperties": 3}]}
DEEP: Schema = {"properties": {"a": {"type": "integer"}, "next": {"$ref": "http://example.com/x"}}}
TEXT: Schema = {"type": "string"}
LOW, HIGH = {"type": "number", "minimum": 1, "maximum": 3}, {"type": "number", "exclusiveMinimum": 1, "maximum": 3}
LIST = [{"type": "integer"}, {}]
OLD, NEW, SIX = (4, 6, 7), ("2019-09", "2020-12"), (6, 7)
# What fits and what does not, and the spellings that some drafts and others have for it.
VERDICTS: dict[str, tuple[list[Any], list[Any]]] = {
    "list": ([[1, "a"], [2, None]], [["a", 1], [1], [1, 2, 3], 5]),
    "limit": ([2, 3, 1.5], [1, 3.5, "a"]),
    "need": (
        [{}, {"a": 1, "b": 1}, {"c": 1, "d": 1}, 5],
        [{"a": 1}, {"c": 1}, {"a": 1, "c": 1, "d": 1}, dict.fromkeys("bdef")],
    ),
    "texts": ([["a"], [], 5], [[2], ["a", 2]]),
    "loop": ([{"a": 1, "next": {"a": 2}}, {}], [{"a": "x"}, {"a": 1, "next": {"a": 2, "next": {"a": "x"}}}]),
}
SPELLINGS: list[tuple[str, tuple[Any, ...], Schema]] = [
    ("list", OLD + NEW[:1], PAIR | {"items": LIST, "additionalItems": False}),
    ("list", NEW[1:], PAIR | {"prefixItems": LIST, "items": False}),
    ("limit", (4,), LOW | {"exclusiveMinimum": True, "exclusiveMaximum": False}),
    ("limit", SIX + NEW, HIGH),
    ("need", OLD, FEW | {"dependencies": {"a": ["b"]} | NEED_D}),
    ("need", NEW, FEW | {"dependentRequired": {"a": ["b"]}, "dependentSchemas": NEED_D}),
    ("texts", OLD, {"definitions": {"n": TEXT}, "items": {"allOf": [{"$ref": "#/definitions/n"}]}}),
    ("texts", NEW, {"$defs": {"n": TEXT}, "items": {"$ref": "#/$defs/n"}}),
    ("texts", SIX, {"definitions": {"x": TEXT | {"$id": "#name"}}, "items": {"$ref": "#name"}}),
    ("texts", NEW, {"$defs": {"x": TEXT | {"$anchor": "name"}}, "items": {"$ref": "#name"}}),
    ("loop", (4,), DEEP | {"id": "http://example.com/x"}),
    ("loop", SIX + NEW, DEEP | {"$id": "http://example.com/x"}),
]
CASES = [({"$schema": DRAFTS[draft]} | schema, *VERDICTS[of]) for of, drafts, schema in SPELLINGS for draft in drafts]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES)
def test_each_draft_has_the_verdicts_of_its_own_validator(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    found = read(schema)
    judge = jsonschema_rs.Draft202012Validator(as_schema(found.definitions))
    own, second = jsonschema_rs.validator_for(schema), jsonschema.validators.validator_for(schema)(schema)
    for value in good + bad:
        assert judge.is_valid(value) == own.is_valid(value) == second.is_valid(value) == (value in good), value
    assert not found.faults
    text = json.dumps(found.definitions)
    assert not any(f'"{key}"' in text for key in ("const", "dependencies", "additionalItems", "definitions", "$defs"))


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), tried=st.lists(values, min_size=4, max_size=8))
def test_what_is_read_says_the_same_or_there_is_a_fault(schema: Any, tried: list[Any]) -> None:
    whole = {"allOf": [schema]}
    if (found := read(whole)).faults:
        return
    judge, own = jsonschema_rs.validator_for(as_schema(found.definitions)), jsonschema_rs.validator_for(whole)
    assert [judge.is_valid(value) for value in tried] == [own.is_valid(value) for value in tried]


@pytest.mark.parametrize("draft", DRAFTS.values())
def test_notes_say_nothing_and_faults_are_named_in_every_draft(draft: str) -> None:
    assert read({"$schema": draft, **TEXT, "title": "a", "default": {"not": 1}, "x-order": 1}).definitions == {
        "": {"$comment": "", **TEXT}
    }
    faulty = {"$schema": draft, "items": {"uniqueItems": True, "maxlength": 1, "pattern": "(?=a)"}}
    assert {*read(faulty).faults} == {(key, f"/items/{key}") for key in ("uniqueItems", "maxlength", "pattern")}


@pytest.mark.parametrize(
    ("schema", "listed"),
    [
        ({"const": "abc", "maxLength": 2}, []),
        ({"allOf": [{"enum": ["a", "bb"]}, {"$ref": "#/$defs/one"}], "$defs": {"one": {"maxLength": 1}}}, ["a"]),
        ({"enum": ["x1", "x2"], "not": {"const": "x1"}}, ["x2"]),
    ],
)
def test_what_lists_its_values_and_says_more_is_a_shorter_list(schema: Schema, listed: list[Any]) -> None:
    judge = jsonschema_rs.validator_for(as_schema(read(schema).definitions))
    given = schema.get("enum", [*listed, "abc", "bb"])
    assert [value for value in given if judge.is_valid(value)] == listed
