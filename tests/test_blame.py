"""models/schema/blame.py: the keyword that is named is the culprit, in the caller's own words and at its place."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from models.engine.grammar import LAYOUT
from models.schema.admitted import admit
from models.schema.blame import Blame
from models.schema.dialect import KEYWORDS, Node, Refs
from models.schema.writer import Writer

Schema = dict[str, Any]
BYTES = LLTokenizer("byte")
STRING, NULL = Schema(type="string"), Schema(type="null")
ANY = ["null", "boolean", "number", "string", "array", "object"]


def blame(schema: Schema, compiles: Callable[[str], bool]) -> tuple[str, str]:
    found = admit(schema)
    return Blame(found.definitions, found.refs, lambda some: compiles(Writer(some, None).text)).find()


def starts(text: str) -> bool:
    """Whether llguidance has a first mask for a text."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(text, overrides=LAYOUT), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return not matcher.is_error()


def compiles(schema: Schema) -> bool:
    return starts(Writer(admit(schema).definitions, None).text)


def without(schema: Schema, pointer: str) -> Schema:
    """The same without what a pointer leads to."""
    made = deepcopy(schema)
    node: Any = made
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node[step]
    del node[last]
    return made


# Places for a culprit, beside what is harmless.
PLACES: dict[str, Callable[[Schema], Schema]] = {
    "/items": lambda inner: {"items": inner, "minItems": 1, "description": "pattern"},
    "/additionalProperties": lambda inner: {"additionalProperties": inner, "required": ["a"]},
    "/patternProperties/b": lambda inner: {"patternProperties": {"a": STRING, "b": inner}},
    "/properties/~1": lambda inner: {"properties": {"a": STRING, "/": inner}, "type": ["object", "string"]},
    **{f"/{key}/1": lambda inner, key=key: {key: [NULL, inner]} for key in ("allOf", "anyOf", "prefixItems")},  # type: ignore[misc]
}
CULPRITS: list[tuple[str, Any, str]] = [
    ("pattern", "^culprit$", "culprit"),
    ("format", "date", "02-29"),
    ("enum", ["a", "culprit"], "culprit"),
    ("const", "culprit", "culprit"),
    ("minLength", 7654, "7654"),
    ("multipleOf", 7654, "7654"),
    ("dependentRequired", {"a": ["culprit"]}, "culprit"),
    ("propertyNames", {"pattern": "culprit"}, "culprit"),
    ("not", {"enum": ["culprit"]}, "c(?:|u"),
]


@pytest.mark.parametrize(("keyword", "value", "mark"), CULPRITS)
@settings(max_examples=10, deadline=None)
@given(path=st.lists(st.sampled_from(sorted(PLACES)), max_size=3), by_ref=st.booleans())
def test_one_culprit_is_found_anywhere(keyword: str, value: Any, mark: str, path: list[str], by_ref: bool) -> None:
    assume("/allOf/1" not in path or keyword not in ("const", "enum"))  # lists of values become one
    schema, at = ({} if keyword == "not" else {"type": ANY}) | {keyword: value}, ""
    for place in path:
        schema, at = PLACES[place](schema), place + at
    if by_ref:
        schema, at = {"$ref": "#/$defs/x~1y", "$defs": {"x/y": schema, "z": NULL}}, "/$defs/x~1y" + at
    name, found = blame(schema, lambda text: mark not in text)
    assert found.startswith(f"{at}/{keyword}")
    assert name in (keyword, found.split("/")[-1])
    assert mark not in Writer(admit(without(schema, found)).definitions, None).text


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "string", "minLength": 5, "maxLength": 2}, {"/minLength", "/maxLength"}),
        (
            {"type": "array", "items": {"type": "array", "minItems": 3, "maxItems": 2}, "minItems": 1},
            {"/items/minItems", "/items/maxItems", "/minItems"},
        ),
        ({"type": "integer", "minimum": 7, "allOf": [{"maximum": 3}]}, {"/minimum"}),
        ({"type": "string", "format": "date", "pattern": "^x"}, {"/pattern", "/format"}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}},
            {"/$defs/a/minLength", "/$defs/a/maxLength"},
        ),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, {"/required", "/properties"}),
    ],
)
def test_without_what_is_blamed_it_can_be_compiled(schema: Schema, found: set[str]) -> None:
    assert not compiles(schema)
    name, at = blame(schema, starts)
    assert at in found
    assert at.endswith(f"/{name}") and name in KEYWORDS
    assert compiles(without(schema, at))


def test_where_nothing_helps_a_keyword_is_named_and_the_search_ends() -> None:
    definitions: dict[str, Node] = {"": {"$comment": "", "items": {"$ref": ""}, "type": "array"}}
    before = deepcopy(definitions)
    for works in (False, True):
        name, at = Blame(definitions, Refs({"items": {"$ref": "#"}}), lambda some, works=works: works).find()  # type: ignore[misc]
        assert name in KEYWORDS and at[:1] == "/"
        assert definitions == before
