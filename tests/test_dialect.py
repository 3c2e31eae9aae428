"""models/schema/dialect.py: where subschemas stand and where a $ref leads, held against a validator."""

from typing import Any
from urllib.parse import quote

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema.dialect import KEYWORDS, LISTS, MAPS, SINGLE, Refs, children, escape, is_near_miss, moves, parts

Schema = dict[str, Any]
LATEST = "https://json-schema.org/draft/2020-12/schema"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
LEAF: Schema = {"type": "string"}


def nested(schema: Any, keyword: str) -> Any:
    """A schema that holds another under this keyword."""
    return {keyword: {"a/b~": schema} if keyword in MAPS else [schema, LEAF] if keyword in LISTS else schema}


deep = st.recursive(
    st.sampled_from([True, False, {}, LEAF, {"enum": [{"not": 1}]}, {"default": {"items": {}}}]),
    lambda inner: st.builds(nested, inner, st.sampled_from(sorted(MAPS | LISTS | SINGLE | {"items"}))),
    max_leaves=4,
)


HOLDERS = ["allOf", "anyOf", "oneOf", "prefixItems", "not", "if", "then", "else", "items", "additionalItems"]
HOLDERS += ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies", "contains"]
HOLDERS += ["additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"]


@pytest.mark.parametrize("keyword", HOLDERS)
def test_a_schema_stands_where_the_metaschema_says_so(keyword: str) -> None:
    dialect = LATEST if keyword not in ("additionalItems", "dependencies") else DRAFT_7
    for part in (LEAF, {"type": "none of them"}):
        schema = {"$schema": dialect} | nested(part, keyword)
        assert part in [child for _, child in children(schema, "")]
        assert jsonschema_rs.meta.is_valid(schema) == (part is LEAF)


@pytest.mark.parametrize("keyword", ["enum", "const", "default", "examples", "$comment", "x-order", "required"])
def test_a_value_is_no_schema(keyword: str) -> None:
    schema = {keyword: [{"not": LEAF}], "allOf": [{keyword: {"a": LEAF}}]}
    assert [at for at, _ in parts(schema)] == ["", "/allOf/0"]


def test_a_list_of_items_and_names_among_dependencies() -> None:
    schema = {"items": [LEAF, {"items": True}], "dependencies": {"a": ["b"], "c": LEAF}}
    assert [at for at, _ in parts(schema)] == ["", "/items/0", "/items/1", "/dependencies/c"]


@settings(max_examples=50)
@given(schema=deep)
def test_a_pointer_leads_to_its_part(schema: Any) -> None:
    whole = {"allOf": [schema]}
    refs = Refs(whole)
    found = list(parts(whole))
    for at, node in found:
        assert refs.find(f"#{at}") == (at, node)
        assert refs.find(f"#{quote(at)}") == (at, node)
        assert all(place.startswith(f"{at}/") for place, _ in children(node, at))
    assert len({at for at, _ in found}) == len(found)
    assert list(refs.parts()) == found


@settings(max_examples=50)
@given(names=st.lists(st.text("a/~%0 1é", max_size=3), min_size=1, max_size=4, unique=True), data=st.data())
def test_a_ref_leads_where_a_validator_goes(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    ref = f"#/$defs/{quote(escape(name))}"
    schema = {"$ref": ref, "$defs": {each: {"const": each} for each in names}}
    assert Refs(schema).find(ref) == (f"/$defs/{escape(name)}", {"const": name})
    assert [each for each in names if jsonschema_rs.is_valid(schema, each)] == [name]


@pytest.mark.parametrize("key", ["$anchor", "$dynamicAnchor"])
def test_an_anchor_is_found_in_its_own_resource_alone(key: str) -> None:
    inner = {"$id": "http://example.com/inner", "$defs": {"x": {key: "hidden"}}}
    refs = Refs({"$id": "http://example.com/x#", "$defs": {"a": {key: "named"}, "b": inner}})
    assert refs.find("#named") == refs.find("http://example.com/x#named") == ("/$defs/a", {key: "named"})
    assert refs.find("#hidden") is None
    assert refs.find("http://example.com/inner#hidden") is None


@pytest.mark.parametrize("ref", ["", "other.json", "#/type", "#/required/0", "#/allOf/2", "#/allOf/x", "#/no", "#none"])
def test_a_ref_that_leads_to_no_schema(ref: str) -> None:
    assert Refs({"type": "object", "required": ["a"], "allOf": [LEAF, True]}).find(ref) is None


def test_what_only_a_ref_leads_to_is_a_part_and_a_loop_ends() -> None:
    schema = {"properties": {"a": {"$ref": "#/x/y"}}, "x": {"y": {"items": {"$ref": "#"}}, "z": LEAF}}
    assert {at for at, _ in Refs(schema).parts()} == {"", "/properties/a", "/x/y", "/x/y/items"}


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_a_keyword_in_other_letters_is_a_near_miss(keyword: str) -> None:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in keyword)
    for other in (keyword.upper(), keyword.lower(), snake, snake.replace("_", "-"), f"{keyword}:", f"{keyword} "):
        assert is_near_miss(other), other
    assert not is_near_miss(f"_{keyword}")


NOTES = ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "nullable", "example"]
NOTES += ["$schema", "$id", "id", "$comment", "$anchor", "discriminator", "contentMediaType", "x-order", "label"]


@pytest.mark.parametrize("key", NOTES)
def test_a_note_is_no_near_miss(key: str) -> None:
    assert not is_near_miss(key)


def test_an_id_that_is_a_name_moves_nothing() -> None:
    assert [moves(base) for base in ("#a", "", None, 5, "a", "http://example.com/")] == [False] * 4 + [True] * 2
