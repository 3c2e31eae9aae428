"""models/schema/writer.py: what is written is enforced as a validator reads it; bounds stand where there are none."""

import json
from functools import lru_cache
from typing import Any

import jsonschema
import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Validator
from llguidance import LLMatcher, LLTokenizer

from models.engine.grammar import LAYOUT
from models.schema.admitted import admit
from models.schema.bounds import Limits, limits_for
from models.schema.writer import Bounds, Writer
from tests.test_logic import admitted, schemas, values

Schema = dict[str, Any]
STRING, NULL = Schema(type="string"), Schema(type="null")
USUAL = Limits()
BYTES = LLTokenizer("byte")
REACHING: dict[str, Any] = {"maxLength": "a" * 7, "maxItems": [None] * 5, "maximum": 99, "propertyNames": {"aaa": 1}}
BASE: Schema = {"type": "object", "properties": {"id": NULL}, "required": ["id"]}
TOGETHER: list[Schema] = [
    {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": NULL}}], "$defs": {"base": BASE}},
    {"$ref": "#/$defs/base", "properties": {"b": NULL}, "$defs": {"base": BASE}},
]


def written(schema: Schema, limits: Limits | None = None, to_measure: bool = False) -> tuple[Validator, Writer]:
    """What was written, for a validator and as it is."""
    made = Writer(admit(schema).definitions, limits, to_measure)
    return jsonschema_rs.validator_for(json.loads(made.text)), made


@lru_cache(8)
def matcher(text: str) -> LLMatcher:
    return LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(text, overrides=LAYOUT), log_level=0)


def takes(text: str, value: Any) -> bool:
    """Whether a value can be produced, byte for byte."""
    found = matcher(text).deep_copy()
    answer = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return found.try_consume_tokens(list(answer)) == len(answer) and found.is_accepting()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(schema=schemas(), tried=st.lists(values, min_size=6, max_size=10))
def test_nothing_is_enforced_otherwise_than_a_validator_reads_it(schema: Any, tried: list[Any]) -> None:
    if not (found := admitted(schema)):
        return
    text = Writer(found.definitions, limits_for(found.definitions)).text
    own, judge = jsonschema_rs.validator_for(schema), jsonschema_rs.validator_for(json.loads(text))
    for value in tried if not matcher(text).is_error() else ():
        assert not takes(text, value) or (own.is_valid(value) and judge.is_valid(value)), (value, text)


FIELDS: Schema = {
    "name": STRING,
    "tags": {"type": ["array", "number"], "items": STRING},
    "more": {"$ref": "#/$defs/more"},
}
MORE: Schema = {"anyOf": [{"type": "object", "properties": {"more": {"$ref": "#/$defs/more"}}}, NULL]}
RECORD: Schema = {"type": "object", "properties": FIELDS, "required": ["name"], "$defs": {"more": MORE}}
simple = st.none() | st.integers(-5, 5) | st.sampled_from([True, 0.25, "a", "é\n", [], ["a"], [1], {"more": {}}])
deep = simple | st.builds(lambda value: {"more": {"more": value}}, simple)


@settings(max_examples=80, deadline=None)
@given(record=st.dictionaries(st.sampled_from([*FIELDS, "x"]), deep), named=st.booleans())
def test_an_ordinary_record_within_the_bounds_keeps_its_verdict(record: Schema, named: bool) -> None:
    record, (judge, made) = record | ({"name": "a"} if named else {}), written(RECORD, USUAL)
    fits = jsonschema_rs.is_valid(RECORD, record) and "x" not in record
    assert judge.is_valid(record) == fits
    assert takes(made.text, {name: record[name] for name in [*FIELDS, "x"] if name in record}) == fits


@pytest.mark.parametrize("schema", [RECORD, {}, STRING, {"allOf": [BASE, {"required": ["b"]}]}, {"minLength": 1}])
def test_without_limits_nothing_is_supplied(schema: Schema) -> None:
    judge, made = written(schema)
    for value in ("x" * 9999, [[[[[[[[[1]]]]]]]]] * 300, {"n" * 999: 1}, {"id": None, "b": 10**17, "name": ""}, 1e-12):
        assert judge.is_valid(value) == jsonschema_rs.is_valid(schema, value) and not made.supplied


@pytest.mark.parametrize(
    ("schema", "supplied"),
    [
        ({"type": ["string", "null"], "pattern": "^a*$"}, {"maxLength": 7}),
        ({"type": "array", "items": NULL}, {"maxItems": 5}),
        ({"type": "number", "minimum": 0}, {"maximum": 99, "decimals": 2}),
        ({"type": "object", "properties": {"a": NULL}}, {"additionalProperties": False}),
        ({"type": "object", "additionalProperties": {"enum": [1]}}, {"propertyNames": 3, "maxProperties": 100}),
    ],
)
def test_each_bound_is_told_by_its_keyword_and_measured_in_the_inner_text(schema: Schema, supplied: Bounds) -> None:
    few = Limits(characters=7, name=3, items=5, whole=99, decimals=2)
    (judge, made), (inner, measure) = written(schema, few), written(schema, few.inner(), to_measure=True)
    assert made.supplied == supplied and "pattern" not in measure.text
    for key in supplied.keys() & REACHING.keys():
        assert judge.is_valid(REACHING[key]) and not inner.is_valid(REACHING[key])


@pytest.mark.parametrize("schema", TOGETHER)
def test_schemas_that_look_at_one_value_close_it_together(schema: Schema) -> None:
    judge, both, more = written(schema, USUAL)[0], {"id": None, "b": None}, {"id": None, "b": None, "c": None}
    assert judge.is_valid(both) and not judge.is_valid(more) and jsonschema_rs.is_valid(schema, more)


def test_a_name_with_a_line_feed_does_not_get_around_its_pattern() -> None:
    schema = {"type": "object", "patternProperties": {"^a$": NULL}}
    for judge in (jsonschema.Draft202012Validator(schema), written(schema)[0]):
        assert not judge.is_valid({"a\n": 1})  # Python's $ stands before it as well


def test_pointers_of_the_caller_are_named_anew() -> None:
    odd = {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "array", "items": {"$ref": "#/$defs/a~1b%25"}}}}
    judge, made = written(odd, USUAL)
    assert judge.is_valid([[], [[]]]) and not judge.is_valid([[1]]) and "%" not in made.text
