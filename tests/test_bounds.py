"""models/schema/bounds.py: bounds that leave what a schema asks for, and what asks for more than there is refused."""

import re
from decimal import Decimal
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.failure import Failure
from models.schema.admitted import MAX_BYTES, MAX_DIVISOR, MAX_PATTERNS, MAX_VISITS, admit, dump
from models.schema.bounds import DECIMALS, LARGEST, WHOLE, Limits, limits_for, nodes_of, places
from models.schema.dialect import Node, parts
from models.schema.keywords import MOST, SAFE
from tests.test_logic import admitted, schemas
from tests.test_writer import written

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
MEASURED = ("characters", "name", "items", "properties", "depth")
LEAST = ("minLength", "minItems", "minProperties")
MANY: dict[str, Any] = {f"a{number}": {} for number in range(MAX_PATTERNS + 1)}


def limits(node: Node) -> Limits:
    return limits_for({"": node})


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"items": {"minItems": MOST + 1}}, '"minItems" at /items/minItems'),
        ({"anyOf": [{"minimum": SAFE + 1}]}, '"minimum" at /anyOf/0/minimum'),
        ({"properties": {"a": {"multipleOf": MAX_DIVISOR + 1}}}, '"multipleOf" at /properties/a/multipleOf'),
        ({"allOf": [{"pattern": name} for name in MANY]}, '"pattern" at /allOf/'),
        ({"items": {"patternProperties": MANY}}, '"patternProperties" at /items/patternProperties'),
        ({"anyOf": [STRING] * MAX_VISITS + [{"$ref": "#/$defs/a"}], "$defs": {"a": STRING}}, '"$ref" at /anyOf/'),
        ({"oneOf": [{"required": [a, b]} for a in "abcdefg" for b in "hijk"]}, '"oneOf" at /oneOf'),
    ],
)
def test_what_is_beyond_a_limit_is_refused_by_its_keyword(schema: Schema, at: str) -> None:
    with pytest.raises(Failure, match=re.escape(at)) as caught:
        admit(schema)
    assert caught.value.code == "schema_unsupported"


def test_what_is_too_large_is_refused_by_the_largest_keyword() -> None:
    with pytest.raises(Failure, match=f'"examples" at /examples: it is larger than {MAX_BYTES} bytes'):
        dump({"title": "a", "examples": ["x" * MAX_BYTES], "type": "string"})


@given(number=st.integers(-(10**9), 10**9), digits=st.integers(0, DECIMALS))
def test_digits_behind_the_point(number: int, digits: int) -> None:
    found = places(value := float(Decimal(number).scaleb(-digits)))
    assert Decimal(str(value)) * 10**found % 1 == 0
    assert found == 0 or Decimal(str(value)) * 10 ** (found - 1) % 1 != 0


@given(
    divisors=st.lists(st.sampled_from([0.01, 0.25, 3, 7.5, 1000, 65_536, 10**8]), max_size=3),
    numbers=st.lists(st.sampled_from([0, -5, 1.5, 0.001, 1e-7, 12345.678, WHOLE, -WHOLE - 1]), max_size=3),
)
def test_numbers_have_room_or_no_bound(divisors: list[float], numbers: list[float]) -> None:
    parts_of_it = [{"multipleOf": value} for value in divisors] + [{"minimum": value} for value in numbers]
    found = limits({"anyOf": [*parts_of_it, {"enum": numbers}]})
    if found.decimals is not None:
        assert all(value * 10**found.decimals < LARGEST for value in divisors)
        assert all(places(value) + 2 <= found.decimals <= DECIMALS for value in numbers)
    assert found.whole == (None if any(abs(value) >= WHOLE for value in numbers) else WHOLE)


@settings(deadline=None)
@given(counts=st.fixed_dictionaries(dict.fromkeys(LEAST, st.integers(0, MOST))), listed=st.integers(0, 300))
def test_counts_are_wide_enough_for_what_is_asked_for_anywhere(counts: dict[str, int], listed: int) -> None:
    found = limits({"items": {"properties": {"a": {"prefixItems": [True] * listed, **counts}}}})
    assert found.characters >= max(Limits.characters, counts["minLength"])
    assert found.items >= max(Limits.items, counts["minItems"] + listed)
    assert found.properties >= max(Limits.properties, counts["minProperties"])


def test_values_and_names_are_no_schemas_with_numbers() -> None:
    assert limits({"properties": {"minimum": STRING, "multipleOf": STRING, "minLength": STRING}}) == Limits()
    assert limits({"enum": [{"minLength": 9999}]}).characters == Limits.characters
    assert limits({"enum": [True, None, "1e99"]}) == limits({}) == Limits()


def test_the_inner_ones_are_tighter_in_all_that_is_measured() -> None:
    inner = Limits().inner()
    assert all(getattr(inner, key) < getattr(Limits, key) for key in MEASURED)
    assert inner.whole is not None and inner.whole < WHOLE and inner.closed
    assert Limits(whole=None, closed=False).inner().whole is None and not Limits(closed=False).inner().closed


@pytest.mark.parametrize(
    ("schema", "keyword", "longest", "longer"),
    [
        (STRING, "maxLength", "a" * 2000, "a" * 2001),
        ({"type": "array"}, "maxItems", [None] * 200, [None] * 201),
        ({"type": "number"}, "maximum", -WHOLE, -WHOLE - 1),
        ({"type": "object", "patternProperties": {"^a": {}}}, "maxProperties", {}, {f"a{n}": 1 for n in range(101)}),
        ({"type": "object", "additionalProperties": {}}, "propertyNames", {"a" * 100: 1}, {"a" * 102: 1}),
        ({"type": "object", "properties": {"a": {}}}, "additionalProperties", {"a": 1}, {"b": 1}),
        ({}, "depth", [[[[[[1]]]]]], [[[[[[[1]]]]]]]),
    ],
)
def test_a_bound_that_is_supplied_is_told_and_holds(schema: Schema, keyword: str, longest: Any, longer: Any) -> None:
    judge, made = written(schema, Limits())
    assert keyword in made.supplied
    assert all(jsonschema_rs.is_valid(schema, value) for value in (longest, longer))
    assert judge.is_valid(longest) and not judge.is_valid(longer)


@settings(max_examples=50)
@given(schema=schemas())
def test_all_schemas_are_looked_at(schema: Any) -> None:
    found = admitted(schema)
    for node in found.definitions.values() if found else ():
        assert sorted(map(id, nodes_of(node))) == sorted(id(part) for _, part in parts(node))
