"""models/leniency.py: a window may answer all that fits the schema, and more; and of that more nothing stays."""

import json
from copy import deepcopy
from typing import Any

import jsonschema
import pytest

from models.failure import Failure
from models.leniency import NAMED, name_some, relax, settle
from models.question import compact
from models.schema.admitted import admit
from tests.conftest import EXAMPLES

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1, "x-verbatim": True}, "price": {"type": "number"}},
    "required": ["name", "price"],
    "additionalProperties": False,
}
INVOICE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "x-evidence": "required"},
        "total": {"$ref": "#/$defs/money"},
        "kind": {"enum": ["invoice", "credit note"]},
        "paid": {"type": ["boolean", "null"]},
        "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "items": {"type": "array", "items": ITEM, "minItems": 1, "maxItems": 3},
        "x-check": {"type": "string", "description": "a property, for once"},
        "pay": {"oneOf": [{"properties": {"by": {"const": "card"}}}, {"properties": {"by": {"const": "cash"}}}]},
    },
    "required": ["number", "total", "items"],
    "minProperties": 3,
    "$defs": {"money": {"type": "number", "minimum": 0, "x-evidence": "required"}},
    "x-check": [{"rule": "sum", "of": ["/items/*/price"], "equals": "/total"}],
}
WHOLE: dict[str, Any] = {"number": "7", "total": 3, "items": [{"name": "Tea", "price": 3}]}


def fits(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_each_property_may_be_null_and_lists_may_be_empty() -> None:
    relaxed = relax(INVOICE)
    jsonschema.Draft202012Validator.check_schema(relaxed)
    assert fits(relaxed, WHOLE)
    for name in ("number", "total", "kind", "paid", "due", "x-check"):
        assert fits(relaxed, {**WHOLE, name: None})
    assert fits(relaxed, {"number": None, "total": None, "items": []})
    assert fits(relaxed, {"number": None, "total": None, "items": [{"name": "Tea", "price": None}]})
    assert relaxed["properties"]["paid"] == INVOICE["properties"]["paid"]
    assert relaxed["properties"]["due"] == INVOICE["properties"]["due"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},  # all required are there, if only as null
        {**WHOLE, "total": -1},
        {**WHOLE, "total": "3"},
        {**WHOLE, "kind": "letter"},
        {**WHOLE, "items": [WHOLE["items"][0]] * 4},
        {**WHOLE, "items": [{"name": "", "price": 1}]},
        {**WHOLE, "items": [{"name": "Tea"}]},
        {**WHOLE, "items": [{**WHOLE["items"][0], "more": 1}]},
        {**WHOLE, "items": [None]},
        {**WHOLE, "items": None},  # as it can be empty
        {**WHOLE, "pay": {"by": "cheque"}},
        {**WHOLE, "pay": {"by": None}},  # as it would fit both
        [],
    ],
)
def test_all_else_stays_as_it_was(wrong: Any) -> None:
    assert not fits(relax(INVOICE), wrong)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"oneOf": [{"minItems": 2}, {"maxItems": 1}]}, [1]),
        ({"not": {"minItems": 2}}, [1]),
        ({"if": {"minItems": 2}, "then": {"maxItems": 3}, "else": {"maxItems": 1}}, [1]),
        ({"oneOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["b"]}]}, {"a": None, "b": 1}),
    ],
)
def test_what_fitted_still_fits(schema: dict[str, Any], value: Any) -> None:
    assert fits(schema, value)
    assert fits(relax({"properties": {"x": schema}}), {"x": value})


def test_rules_and_demands_are_left_out_wherever_they_stand() -> None:
    schema = {"oneOf": [INVOICE, {"not": INVOICE}], "then": INVOICE, "additionalProperties": INVOICE, "x-check": []}
    text = compact(relax(schema))
    assert '"x-evidence"' not in text
    assert '"x-check":[' not in text
    assert text.count('"x-check":{') == 4  # the property stays
    assert text.count('"x-verbatim":true') == 4


def test_the_schema_itself_is_not_changed() -> None:
    before = deepcopy(INVOICE)
    relax(INVOICE)["properties"]["number"]["anyOf"].clear()
    assert before == INVOICE


def test_where_a_reference_leads_through_properties_nothing_moves() -> None:
    schema = {
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "string", "x-evidence": "required"}}}},
        "items": {"$ref": "#/properties/a/properties/b"},
        "minItems": 2,
    }
    stripped = json.loads(compact(schema).replace(',"x-evidence":"required"', ""))
    assert relax(schema) == stripped


@pytest.mark.parametrize("path", sorted((EXAMPLES / "schemas").glob("*.json")), ids=lambda path: path.stem)
def test_what_can_be_enforced_can_be_when_relaxed(path: Any) -> None:
    schema = json.loads(path.read_text())
    assert admit(schema)
    assert admit(relax(schema))


def test_null_is_left_out_where_the_schema_does_not_allow_it() -> None:
    item = {"type": "object", "properties": {"n": {"type": "integer"}, "o/p": {"type": ["integer", "null"]}}}
    schema = {"type": "object", "properties": {"a": item, "b": {"type": "array", "items": item}}, "required": ["b"]}
    value: dict[str, Any] = {"a": {"n": None, "o/p": None}, "b": [{"n": 1}, {"n": None, "o/p": 2}], "c": None}
    assert settle(value, schema) == {"/a/n", "/b/1/n"}
    assert value == {"a": {"o/p": None}, "b": [{"n": 1}, {"o/p": 2}], "c": None}
    assert fits(schema, value)
    whole = deepcopy(value)
    assert settle(value, schema) == set()
    assert value == whole


def test_null_goes_step_by_step() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    schema = {"properties": {"a": {"anyOf": [inner, {"type": "string"}]}, "b": inner}, "required": ["a"]}
    value: dict[str, Any] = {"a": {}, "b": {"n": None}}
    assert settle(value, schema) == {"/b/n"}


@pytest.mark.parametrize("count", [1, NAMED + 3])
def test_what_is_wanted_and_nowhere_is_an_error_that_names_it(count: int) -> None:
    names = [f"field {number}" for number in range(count)]
    schema = {"properties": {name: {"type": "string"} for name in names}, "required": names}
    with pytest.raises(Failure) as refused:
        settle({name: None for name in names} | {"other": "secret"}, schema)
    assert refused.value.code == "answer_invalid"
    assert "/field 0" in refused.value.message
    assert ("and 3 more" in refused.value.message) == (count > NAMED)
    assert "secret" not in refused.value.message


def test_what_else_is_wrong_is_for_others_to_say() -> None:
    assert (
        settle({"a": 1, "b": [None]}, {"properties": {"a": {"type": "string"}, "b": {"items": {"type": "null"}}}})
        == set()
    )
    assert settle(None, {"type": "object"}) == set()


def test_long_names_are_cut() -> None:
    schema: dict[str, Any] = {"properties": {"x" * 1000: {}, "b": {}}}
    assert name_some(["/" + "x" * 1000, "/b"], schema) == "/" + "x" * 99 + ", /b"


def test_names_that_are_not_the_schemas_are_not_told() -> None:
    price = {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]}
    schema = {"additionalProperties": price, "properties": {"rows": {"items": price}}}
    told = name_some(["/Ada's secret/price", "/Bob's/price", "/rows/0/price", "/1234/price"], schema)
    assert told == "/*/price, /rows/*/price"
    with pytest.raises(Failure, match="/\\*/price") as refused:
        settle({"Ada's secret": {"price": None}}, schema)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("form", ["anyOf", "oneOf"])
def test_null_is_left_out_where_no_form_allows_it(form: str) -> None:
    """As pydantic writes `Address | None`."""
    address = {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}
    schema = {"properties": {"to": {form: [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$defs": {"a": address}}
    value = {"to": {"street": "Main St", "city": None}}
    assert settle(value, schema) == {"/to/city"}
    assert fits(schema, value)
