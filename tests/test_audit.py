"""models/audit.py: an answer is what was demanded or an error, and its evidence points into the caller's own text."""

import json
import socket
from fractions import Fraction
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from models.audit import Demand, audit, demanded, parse, read, trace, validator
from models.failure import Failure
from models.question import Question
from serving.protocol import Prompt

ANY: dict[str, Any] = {}
LABEL = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
INVOICE = "INVOICE no. A-77\nDate: 2024-03-05\nNet 10.00\nVAT 2.00\nTotal 12.00\nDear Ms Zebra"


def asked(prompt: str = "Extract.", document: Any = INVOICE, **fields: Any) -> Question:
    context = {} if document is None else {"document": document}
    question: Question = Prompt.model_validate({"prompt": prompt, "context": context, **fields})
    return question


def demand(schema: dict[str, Any], *given: Any, **fields: Any) -> Demand:
    return read(asked(*given, **fields), schema)


def told(answer: Any, schema: dict[str, Any], *given: Any, **fields: Any) -> dict[str, Any]:
    return audit(json.dumps(answer), demand(schema, *given, **fields))


def refused(answer: Any, schema: dict[str, Any], *given: Any, **fields: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        told(answer, schema, *given, **fields)
    return caught.value


# ---- schemas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [{"type": "foo"}, {"type": "string", "pattern": "("}, {"required": "a"}])
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Failure) as caught:
        validator(schema)
    assert caught.value.code == "schema_invalid"
    with pytest.raises(Failure, match="schema_invalid"):
        read(asked(), schema)


def test_a_validator_fetches_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"$id": url, "$ref": "other.json"}, {"properties": {"a": {"$ref": url}}}):
            with pytest.raises(Failure) as caught:
                validator(schema)
            assert caught.value.code == "schema_invalid"
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.timeout(30)
def test_a_pattern_is_checked_in_linear_time() -> None:
    with pytest.raises(Failure) as caught:
        parse(json.dumps("a" * 50_000 + "!"), {"type": "string", "pattern": "^(a+)+$"})
    assert caught.value.code == "answer_invalid"
    with pytest.raises(Failure) as caught:
        validator({"type": "string", "pattern": "^(a+)+(?!b)$"})  # needs backtracking
    assert caught.value.code == "schema_invalid"


# ---- parse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "schema"),
    [
        ("", ANY),
        ("Paris", ANY),
        ('{"label":"a"', ANY),
        ('{"label":"a"} and more', ANY),
        ('{"label":"c"}', LABEL),
        ("{}", LABEL),
        ('["a"]', LABEL),
        ("NaN", ANY),
        ('{"a":-Infinity}', ANY),
        ('{"a":[1e999]}', ANY),
        ('{"a":"\\ud800"}', ANY),
        ('{"\\udfff":1}', ANY),
        ("[" * 3000 + "]" * 3000, ANY),
        ("1" * 5000, ANY),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(output: str, schema: dict[str, Any]) -> None:
    with pytest.raises(Failure) as caught:
        audit(output, demand(schema))
    assert caught.value.code == "answer_invalid"
    assert caught.value.message in ("the answer is not JSON", "the answer does not fit the schema")


@pytest.mark.parametrize("value", [{"label": "a"}, {"label": "b", "more": [1, 2.5, None, "é 🎉", 10**30, -0.0, {}]}])
def test_an_answer_that_is_comes_back_as_a_value(value: Any) -> None:
    assert parse(json.dumps(value), LABEL) == value
    assert parse(json.dumps(value, ensure_ascii=False), LABEL) == value


# ---- evidence ------------------------------------------------------------------------------------------------------


MULTIPLES = [
    *((0.01, 0.5), (0.01, 12.34), (0.01, 19.99), (0.01, 668123.57), (0.01, 0.555), (3, 9), (3, 10), (3, 9.0), (3, 9.5)),
    *(
        (0.1, 0.3),
        (1e-9, 12345678901234567890),
        (1e-300, 1e300),
        (3, 3 * 10**40),
        (0.5, True),
        (7, "a"),
    ),
]


@pytest.mark.parametrize(("factor", "value"), MULTIPLES)
def test_a_multiple_is_one_to_whoever_divides(factor: float, value: Any) -> None:
    """In decimals, and as the jsonschema library has it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    exact = not number or (Fraction(str(value)) / Fraction(str(factor))).denominator == 1
    usual = Draft202012Validator({"multipleOf": factor}).is_valid(value)
    if exact and usual:
        assert parse(json.dumps(value), {"multipleOf": factor}) == value
        return
    with pytest.raises(Failure, match="does not fit") as caught:
        parse(json.dumps(value), {"multipleOf": factor})
    assert ("binary floating point" in caught.value.message) == exact


def test_every_value_has_its_place_in_the_document() -> None:
    answer = {"no": "A-77", "total": 12, "day": "2024-03-05", "to": ["Ms Zebra", None, ""], "paid": True}
    found = told(answer, ANY)["evidence"]
    assert [each["pointer"] for each in found] == ["/no", "/total", "/day", "/to/0"]
    assert [each["value"] for each in found] == ["A-77", 12, "2024-03-05", "Ms Zebra"]
    for each in found:
        assert INVOICE[each["start"] : each["end"]] == each["text"]
        assert each["page"] is None
        assert each["match"] in ("exact", "normalised")
    assert found[1]["text"] == "12.00"
    assert found[0].keys() == {"pointer", "value", "page", "start", "end", "text", "match", "candidates"}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "before", ["Extract.\n\n", "Extract.\r\n\r\n", "é 🎉\n \n\n   ", "\n\n", "A-77 and 12.00\nof this:\n\n"]
)
def test_offsets_into_a_document_in_the_prompt_are_offsets_into_the_prompt(before: str) -> None:
    prompt = before + INVOICE
    found = told({"no": "A-77", "total": 12, "none": "B-99"}, ANY, prompt, None)["evidence"]
    assert [each["match"] for each in found] == ["exact", "normalised", "absent"]
    for each in found[:2]:
        assert prompt[each["start"] : each["end"]] == each["text"]
        assert each["start"] >= len(before)
    assert (found[2]["start"], found[2]["end"], found[2]["text"]) == (None, None, None)


def test_offsets_into_pages_are_offsets_into_the_page_that_is_named() -> None:
    pages = ["Page one says A-77", "é", "The total is 12.00"]
    found = told({"no": "A-77", "total": 12}, ANY, "Extract.", pages)["evidence"]
    assert [each["page"] for each in found] == [0, 2]
    for each in found:
        assert pages[each["page"]][each["start"] : each["end"]] == each["text"]
    assert told({"no": "A-77"}, ANY, "Extract.", ["A-77"])["evidence"][0]["page"] == 0


def test_without_a_document_nothing_is_said_of_evidence() -> None:
    assert told({"no": "A-77"}, ANY, "Extract.", None) == {}
    assert told({}, ANY) == {"evidence": []}


def test_the_trace_is_what_the_audit_tells() -> None:
    wanted = demand(ANY)
    assert [each.match for each in trace({"a": "A-77", "b": "no such"}, wanted)] == ["exact", "absent"]


# ---- evidence that is required -------------------------------------------------------------------------------------


def test_with_require_evidence_every_value_must_be_there() -> None:
    answer = {"no": "A-77", "lines": [{"sum": 10}, {"sum": 99}], "to": "Mr Quagga"}
    failure = refused(answer, ANY, require_evidence=True)
    assert failure.code == "evidence_absent"
    assert told({"no": "A-77", "paid": False, "due": None}, ANY, require_evidence=True)["evidence"]
    assert told(answer, ANY)["evidence"]


REQUIRED = {"type": ["string", "number"], "x-evidence": "required"}
NESTED: dict[str, dict[str, Any]] = {
    "property": {"properties": {"a": REQUIRED}},
    "nested": {"properties": {"a": {"properties": {"b": REQUIRED}}}},
    "items": {"properties": {"a": {"items": REQUIRED}}},
    "prefix": {"properties": {"a": {"prefixItems": [True, REQUIRED]}}},
    "draft 7 items": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"a": {"items": [True, REQUIRED]}},
    },
    "rows": {"properties": {"a": {"items": {"properties": {"b": REQUIRED}}}}},
    "ref": {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": REQUIRED}},
    "ref in ref": {
        "properties": {"a": {"items": {"$ref": "#/$defs/row"}}},
        "$defs": {"row": {"properties": {"b": {"$ref": "#/$defs/x"}}}, "x": REQUIRED},
    },
    "recursive": {"properties": {"a": {"$ref": "#"}, "b": REQUIRED}},
    "all of": {"allOf": [{"properties": {"a": REQUIRED}}]},
    "any of": {"properties": {"a": {"anyOf": [{"type": "null"}, REQUIRED]}}},
    "pattern": {"patternProperties": {"^a": REQUIRED}},
    "additional": {"properties": {"c": True}, "additionalProperties": REQUIRED},
    "escaped": {"properties": {"a/b~": REQUIRED}},
    "whole array": {"properties": {"a": {"type": "array", "x-evidence": "required"}}},
    "whole object": {"properties": {"a": {"type": "object", "x-evidence": "required"}}},
    "whole answer": {"x-evidence": "required"},
}


@pytest.mark.parametrize(
    ("schema", "there", "absent"),
    [
        ("property", {"a": "A-77", "b": "no such"}, {"a": "no such"}),
        ("nested", {"a": {"b": 12, "c": 99}, "b": 99}, {"a": {"b": 99}}),
        ("items", {"a": ["A-77", 12], "b": ["no such"]}, {"a": ["A-77", "no such"]}),
        ("prefix", {"a": ["no such", "A-77", "no such"]}, {"a": ["A-77", "no such"]}),
        ("draft 7 items", {"a": ["no such", "A-77", "no such"]}, {"a": ["A-77", "no such"]}),
        ("rows", {"a": [{"b": 12}, {"b": 10, "c": 99}]}, {"a": [{"b": 12}, {"b": 99}]}),
        ("ref", {"a": "A-77"}, {"a": "no such"}),
        ("ref in ref", {"a": [{"b": 12}]}, {"a": [{"b": 12}, {"b": 99}]}),
        ("recursive", {"a": {"a": {"b": 12, "c": 99}}}, {"a": {"a": {"b": 99}}}),
        ("all of", {"a": 12, "b": 99}, {"a": 99}),
        ("any of", {"a": None, "b": 99}, {"a": 99}),
        ("pattern", {"ab": 12, "ba": 99}, {"ab": 99}),
        ("additional", {"x": 12, "c": 99}, {"x": 99}),
        ("escaped", {"a/b~": 12, "a": {"b~": 99}}, {"a/b~": 99}),
        ("whole array", {"a": ["A-77", [12]], "b": 99}, {"a": ["A-77", [99]]}),
        ("whole object", {"a": {"b": "A-77"}, "b": 99}, {"a": {"b": {"c": 99}}}),
        ("whole answer", {"a": {"b": "A-77"}}, {"b": ["x", "no such"]}),
    ],
)
def test_a_field_that_requires_it_must_be_there_and_others_need_not(schema: str, there: Any, absent: Any) -> None:
    assert "evidence" in told(there, NESTED[schema])
    assert refused(absent, NESTED[schema]).code == "evidence_absent"


def test_which_values_are_demanded() -> None:
    wanted, answer = demand(NESTED["rows"]), {"a": [{"b": 1, "c": 2}], "b": 3}
    assert [demanded(wanted, answer, at) for at in ("/a/0/b", "/a/0/c", "/b")] == [True, False, False]
    assert demanded(demand(ANY, require_evidence=True), answer, "/b")
    assert not demanded(demand(ANY), answer, "/b")


@pytest.mark.parametrize("given", [{"require_evidence": True}, {"schema": REQUIRED}])
def test_evidence_needs_a_document(given: dict[str, Any]) -> None:
    schema = given.pop("schema", ANY)
    with pytest.raises(Failure) as caught:
        read(asked("No document here.", None, **given), schema)
    assert (caught.value.code, "document" in caught.value.message) == ("invalid_value", True)
    read(asked("Extract.\n\nhere", None, **given), schema)


@pytest.mark.parametrize("value", [True, "Required", "optional", None, ["required"], {}])
def test_a_demand_that_is_not_understood_is_refused(value: Any) -> None:
    with pytest.raises(Failure) as caught:
        read(asked(), {"properties": {"a": {"items": {"x-evidence": value}}}})
    assert caught.value.code == "schema_invalid"
    assert "#/properties/a/items/x-evidence" in caught.value.message


@pytest.mark.parametrize("keyword", ["not", "if", "contains", "propertyNames"])
def test_a_demand_of_what_no_value_is_is_refused(keyword: str) -> None:
    with pytest.raises(Failure) as caught:
        read(asked(), {"properties": {"a": {keyword: REQUIRED}}})
    assert caught.value.code == "schema_unsupported"
    assert f"#/properties/a/{keyword}" in caught.value.message


def test_a_property_may_be_called_like_the_keyword() -> None:
    schema = {"properties": {"x-evidence": {"type": "string"}, "a": {"const": {"x-evidence": "no"}}}}
    assert told({"x-evidence": "no such"}, schema)["evidence"][0]["match"] == "absent"
    read(asked("No document here.", None), schema)


# ---- rules ---------------------------------------------------------------------------------------------------------


def ruled(on_fail: str, *more: dict[str, Any]) -> dict[str, Any]:
    total = {"rule": "sum", "name": "total", "of": ["/net", "/vat"], "equals": "/total", "on_fail": on_fail}
    names = ("net", "vat", "total")
    return {"properties": {name: {"type": ["number", "null"]} for name in names}, "x-check": [total, *more]}


RIGHT, WRONG, UNKNOWN = ({"net": 10, "vat": 2, "total": total} for total in (12, 13, None))


def test_rules_are_reported_one_by_one() -> None:
    product = {"rule": "product", "of": ["/net", "/vat"], "equals": "/total"}
    for answer, passed in ((RIGHT, [True, False]), (WRONG, [False, False]), (UNKNOWN, [None, None])):
        checks = told(answer, ruled("report", product))["checks"]
        assert [each["passed"] for each in checks] == passed
        assert [each["rule"] for each in checks] == ["total", "/x-check/1"]
        assert json.loads(json.dumps(checks))
    wrong = told(WRONG, ruled("report"))["checks"][0]
    assert (wrong["expected"], wrong["found"], wrong["pointers"]) == ("12", "13", ("/total",))


def test_a_rule_may_make_the_answer_an_error() -> None:
    assert told(RIGHT, ruled("error"))["checks"][0]["passed"] is True
    for answer in (WRONG, UNKNOWN):
        failure = refused(answer, ruled("error"))
        assert failure.code == "check_failed"
        assert "total" in failure.message


def test_without_rules_nothing_is_said_of_them_and_no_document_is_needed() -> None:
    assert "checks" not in told(RIGHT, ANY)
    assert told(RIGHT, ruled("error"), "Add.", None).keys() == {"checks"}


def test_a_rule_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(Failure, match="schema_invalid"):
        read(asked(), {"x-check": [{"rule": "magic"}]})


# ---- messages ------------------------------------------------------------------------------------------------------


def test_a_refusal_says_where_but_nothing_of_the_answer_or_the_document() -> None:
    """Names that the schema has are told, those that the model has made up may be the document's."""
    schema = {"properties": {"to": {"properties": {"name": True}}, "lines": True}}
    answer = {
        "to": {"name": "Mr Quagga", "Ms Zebra": "Mr Okapi"},
        "Quagga": {"name": "Mr Okapi"},
        "lines": [1, {"4711": "Mr Okapi"}],
    }
    failure = refused(answer, schema, require_evidence=True)
    assert failure.message.endswith(": /to/name, /to/*, /*/*, /lines/0, /lines/1/*")
    failure = refused({"lines": [f"Okapi {number}" for number in range(50)]}, schema, require_evidence=True)
    assert failure.message.endswith(": /lines/0, /lines/1, /lines/2, /lines/3, /lines/4 and 45 more")
    assert "77" not in refused(WRONG, ruled("error"), "77").message


def test_a_long_name_is_cut() -> None:
    schema = {"properties": {"x" * 5000: True}}
    assert len(refused({"x" * 5000: "no such"}, schema, require_evidence=True).message) < 200
