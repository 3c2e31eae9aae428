"""models/rules.py: what "x-check" may say, and what comes of it on a finished answer."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.failure import Failure
from models.reading import LONGEST
from models.rules import KINDS, MAX_POINTERS, MAX_RULES, MAX_TEXT, read
from models.verdict import MAX_ELEMENTS, MAX_LISTED, Result, broken, check

CENTS = st.integers(-(10**12), 10**12)
DIGITS = st.text("0123456789", min_size=1, max_size=30)
SUM = {"rule": "sum", "of": ["/lines/*/amount"], "equals": "/total"}
PRODUCT = {"rule": "product", "of": ["/lines/*/quantity", "/lines/*/price"], "equals": "/lines/*/amount"}
EQUAL = {"rule": "equal", "of": ["/total", "/due"]}
ORDER = {"rule": "order", "of": ["/issued", "/due"]}
IBANS = ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32", "nl91abna0417164300", "FR1420041010050500013M02606"]
VATS = ["DE136695976", "BE0697449992", "FR 61 954 506 077", "IT00743110157", "EL094259216", "PL 8567346215"]
CARDS = ["79927398713", "4111 1111 1111 1111", "4111-1111-1111-1111", 79927398713]


def judge(rule: dict[str, Any], answer: Any) -> Result:
    [result] = check(read({"x-check": [rule]}), answer)
    return result


def refused(schema: dict[str, Any]) -> str:
    """The pointer that the refusal begins with."""
    with pytest.raises(Failure) as caught:
        read(schema)
    assert caught.value.code == "schema_invalid"
    return caught.value.message.split(": it must be ")[0]


def lines(*amounts: Any) -> list[dict[str, Any]]:
    return [{"amount": amount} for amount in amounts]


def euros(cents: int) -> float:
    return cents / 100


# What a rule may say


def test_a_schema_without_rules_has_none() -> None:
    assert read({"type": "object"}) == read({"x-check": []}) == ()
    assert check((), {"total": 1}) == []


def test_a_rule_is_read_as_it_is_written() -> None:
    rule = {**SUM, "minus": ["/a~1b", "/m~0n"], "tolerance": 0.01, "on_fail": "error", "name": "total"}
    [found] = read({"x-check": [rule]})
    assert (found.kind, found.name, found.on_fail, found.tolerance) == ("sum", "total", "error", Decimal("0.01"))
    assert (found.of, found.minus, found.equals) == ((("lines", "*", "amount"),), (("a/b",), ("m~n",)), ("total",))


def test_a_rule_without_more_reports_by_its_pointer_and_exactly() -> None:
    first, second = read({"x-check": [EQUAL, ORDER]})
    assert (first.name, second.name) == ("/x-check/0", "/x-check/1")
    assert (first.on_fail, first.tolerance, first.minus, first.equals) == ("report", Decimal(0), (), None)


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ({}, ""),
        (None, ""),
        ("sum", ""),
        ([[EQUAL]], "/0"),
        ([EQUAL, "sum"], "/1"),
        ([EQUAL] * (MAX_RULES + 1), ""),
        ([{"of": ["/a"]}], "/0/rule"),
        ([{**SUM, "rule": "SUM"}], "/0/rule"),
        ([{**SUM, "rule": ["sum"]}], "/0/rule"),
        ([{**SUM, "on_fial": "error"}], "/0/on_fial"),
        ([{**SUM, "a/b~": 1}], "/0/a~1b~0"),
        ([{**EQUAL, "equals": "/a"}], "/0/equals"),
        ([{**PRODUCT, "minus": ["/a"]}], "/0/minus"),
        ([{**ORDER, "tolerance": 1}], "/0/tolerance"),
        ([{**SUM, "on_fail": "warn"}], "/0/on_fail"),
        ([{**SUM, "on_fail": ["error"]}], "/0/on_fail"),
        ([{**SUM, "name": ""}], "/0/name"),
        ([{**SUM, "name": 7}], "/0/name"),
        ([{**SUM, "name": "x" * (MAX_TEXT + 1)}], "/0/name"),
        ([{**SUM, "tolerance": -0.01}], "/0/tolerance"),
        ([{**SUM, "tolerance": "0.01"}], "/0/tolerance"),
        ([{**SUM, "tolerance": True}], "/0/tolerance"),
        ([{**SUM, "tolerance": None}], "/0/tolerance"),
        ([{**SUM, "tolerance": float("nan")}], "/0/tolerance"),
        ([{**SUM, "tolerance": 1e300}], "/0/tolerance"),
        ([{**SUM, "of": "/a"}], "/0/of"),
        ([{**SUM, "of": []}], "/0/of"),
        ([{**SUM, "of": ["/a"] * (MAX_POINTERS + 1)}], "/0/of"),
        ([{**SUM, "minus": ["/a"] * (MAX_POINTERS + 1)}], "/0/minus"),
        ([{**SUM, "minus": None}], "/0/minus"),
        ([{"rule": "sum", "of": ["/a"]}], "/0/equals"),
        ([{**SUM, "equals": ["/a"]}], "/0/equals"),
        ([{**SUM, "of": ["/a", ""]}], "/0/of/1"),
        ([{**SUM, "of": ["a"]}], "/0/of/0"),
        ([{**SUM, "of": ["/a~2"]}], "/0/of/0"),
        ([{**SUM, "of": [7]}], "/0/of/0"),
        ([{**SUM, "minus": ["/a", "/~"]}], "/0/minus/1"),
        ([{**SUM, "of": ["/" + "a" * MAX_TEXT]}], "/0/of/0"),
        ([{"rule": "product", "of": ["/a"], "equals": "/b"}], "/0/of"),
        ([{"rule": "equal", "of": ["/a"]}], "/0/of"),
        ([{"rule": "order", "of": ["/a"]}], "/0/of"),
        ([{"rule": "iban", "of": []}], "/0/of"),
    ],
)
def test_a_refusal_begins_with_the_pointer_of_what_is_wrong(given: Any, at: str) -> None:
    assert refused({"x-check": given}) == f"/x-check{at}"


@pytest.mark.parametrize(
    ("rule", "at"),
    [
        ({"rule": "product", "of": ["/a/*/x", "/b/*/y"], "equals": "/a/*/z"}, "of/1"),
        ({"rule": "product", "of": ["/a/*/x", "/a/*/y"], "equals": "/z"}, ""),
        ({"rule": "equal", "of": ["/a/*/x", "/b/*/y"]}, "of/1"),
        ({"rule": "order", "of": ["/a/*/b/*/x", "/a/*/c/*/y"]}, "of/1"),
        ({"rule": "sum", "of": ["/a/*/x", "/b/*/y"], "equals": "/a/*/z"}, "of/1"),
        ({"rule": "sum", "of": ["/a/*/x", "/b/*/y"], "minus": ["/c/*/*"], "equals": "/z"}, ""),
        ({"rule": "sum", "of": ["/a/*/b/*/x", "/a/*/y", "/y"], "equals": "/a/*/z"}, ""),
        ({"rule": "sum", "of": ["/a/*/y"], "equals": "/a/*/b/*/z"}, ""),
        ({"rule": "iban", "of": ["/a/*/x", "/b/*/y"]}, ""),
    ],
)
def test_what_is_judged_line_by_line_has_the_same_lines(rule: dict[str, Any], at: str) -> None:
    if at:
        assert refused({"x-check": [rule]}) == f"/x-check/0/{at}"
    else:
        assert read({"x-check": [rule]})


def test_a_rule_belongs_at_the_root() -> None:
    money = {"type": "number", "x-check": [SUM]}
    assert refused({"properties": {"total": money}}) == "/properties/total/x-check"
    assert refused({"x-check": [SUM], "$defs": {"a/b": {"items": money}}}) == "/$defs/a~1b/items/x-check"
    assert refused({"anyOf": [{}, money]}) == "/anyOf/1/x-check"
    assert refused({"properties": {"properties": money}}) == "/properties/properties/x-check"
    assert refused({"components": {"total": money}}) == "/components/total/x-check"


def test_a_property_or_a_value_may_be_called_so() -> None:
    assert read({"properties": {"x-check": {"type": "string"}}, "$defs": {"x-check": {}, "const": {}}}) == ()
    assert read({"properties": {"a": {"const": {"x-check": 1}, "default": {"x-check": 1}}}}) == ()
    assert refused({"properties": {"const": {"x-check": 1}}}) == "/properties/const/x-check"


# Which pointers a schema cannot have

MONEY = {"type": "number"}
LINE = {"type": "object", "properties": {"amount": MONEY, "note": {"type": ["string", "null"]}, "extra": {}}}
CLOSED = {**LINE, "additionalProperties": False}


@pytest.mark.parametrize(
    ("properties", "pointer"),
    [
        ({"a": {"type": "boolean"}}, "/a"),
        ({"a": {"type": ["array", "null"]}}, "/a"),
        ({"a": False}, "/a"),
        ({"a": CLOSED}, "/a/total"),
        ({"a": CLOSED}, "/a/amount/x"),
        ({"a": {**LINE, "additionalProperties": {"type": "boolean"}}}, "/a/b"),
        ({"a": {"type": "array", "items": CLOSED}}, "/a/amount"),
        ({"a": {"type": "array", "items": CLOSED}}, "/a/*/total"),
        ({"a": {"type": "array", "items": CLOSED}}, "/a/*"),
        ({"a": {"type": "array", "items": {"$ref": "#/$defs/closed"}}}, "/a/*/total"),
        ({"a": {"$ref": "#/$defs/a~1b%20c"}}, "/a/total"),
        ({"a": CLOSED}, "/a/*"),
        ({"a": MONEY}, "/a/0"),
    ],
)
def test_a_pointer_that_no_answer_can_have(properties: dict[str, Any], pointer: str) -> None:
    defs = {"closed": CLOSED, "a/b c": {"$ref": "#/$defs/closed"}}
    rule = {"rule": "sum", "of": ["/b", pointer], "equals": "/b"}
    assert refused({"properties": properties, "$defs": defs, "x-check": [rule]}) == "/x-check/0/of/1"
    assert refused({"properties": properties, "$defs": defs, "x-check": [{**SUM, "equals": pointer}]}).startswith(
        "/x-check"
    )


@pytest.mark.parametrize(
    ("properties", "pointer"),
    [
        ({}, "/a"),
        ({"a": MONEY}, "/a"),
        ({"a": {"type": ["null", "integer"]}}, "/a"),
        ({"a": {"enum": [1, 2]}}, "/a"),
        ({"a": True}, "/a"),
        ({"a": LINE}, "/a/total"),
        ({"a": CLOSED}, "/a/note"),
        ({"a": CLOSED}, "/a/extra/x/*"),
        ({"a": {**CLOSED, "patternProperties": {"^t": MONEY}}}, "/a/total"),
        ({"a": {"type": "array", "items": CLOSED}}, "/a/*/amount"),
        ({"a": {"type": "array", "items": CLOSED}}, "/a/0/total"),
        ({"a": {"items": CLOSED, "prefixItems": [LINE]}}, "/a/*/total"),
        ({"a": {"items": [CLOSED]}}, "/a/*/total"),
        ({"a": {"anyOf": [{"type": "array", "items": CLOSED}, {"type": "null"}]}}, "/a/*/total"),
        ({"a": {"$ref": "#/$defs/closed", "type": "boolean"}}, "/a/amount"),
        ({"a": {"$ref": "#/$defs/round"}}, "/a/x"),
        ({"a": {"$ref": "#/$defs/none"}}, "/a/x"),
        ({"a": {"$ref": "other.json#/$defs/closed"}}, "/a/x"),
        ({"a": {"additionalProperties": False}}, "/a/0"),
        ({"a": {"$ref": "http://127.0.0.1/x"}}, "/a/x"),
        ({"a": {"$ref": "#"}}, "/a/a/a"),
    ],
)
def test_a_pointer_that_some_answer_may_have(properties: dict[str, Any], pointer: str) -> None:
    defs = {"closed": CLOSED, "round": {"$ref": "#/$defs/round"}}
    rule = {"rule": "sum", "of": [pointer], "equals": "/b"}
    assert read({"properties": properties, "$defs": defs, "x-check": [rule]})


@pytest.mark.parametrize(
    ("kind", "type_"), [("order", "number"), ("iban", "integer"), ("vat", "object"), ("luhn", "boolean")]
)
def test_a_pointer_to_a_type_that_the_rule_cannot_judge(kind: str, type_: str) -> None:
    rule = {"rule": kind, "of": ["/b", "/a"]}
    assert refused({"properties": {"a": {"type": type_}}, "x-check": [rule]}) == "/x-check/0/of/1"
    assert read({"properties": {"a": {"type": [type_, "string"]}}, "x-check": [rule]})


# Sums, products, equality


@pytest.mark.parametrize(
    ("amounts", "total"),
    [
        ((), 0),
        ((7,), 7),
        ((0.1, 0.2), 0.3),
        ((1e15, 0.01), Decimal("1000000000000000.01")),
        ((1e40, -1e40, 1e-40), 1e-40),
        (("RM 1.234,50", "(0.50)"), "1,234.00"),
    ],
)
def test_a_sum_that_holds(amounts: tuple[Any, ...], total: Any) -> None:
    assert judge(SUM, {"lines": lines(*amounts), "total": total}).passed is True


def test_a_sum_that_does_not_hold_says_by_what() -> None:
    result = judge({**SUM, "name": "total"}, {"lines": lines(0.1, Decimal("0.20")), "total": 0.31})
    assert result == Result("total", False, "report", "it does not hold", "0.30", "0.31", ("/total",))


def test_the_tolerance_is_included_and_exact() -> None:
    rule = {**SUM, "tolerance": 0.01}
    assert judge(rule, {"lines": lines(0.1, 0.2), "total": 0.31}).passed is True
    assert judge(rule, {"lines": lines(0.1, 0.2), "total": 0.29}).passed is True
    assert judge(rule, {"lines": lines(0.1, 0.2), "total": Decimal("0.31000000000000000001")}).passed is False


def test_what_is_taken_off_a_sum() -> None:
    rule = {"rule": "sum", "of": ["/net", "/tax"], "minus": ["/discounts/*"], "equals": "/total"}
    assert judge(rule, {"net": 100, "tax": 19, "discounts": [5, 4.5], "total": 109.5}).passed is True
    assert judge(rule, {"net": 100, "tax": 19, "discounts": [5, 4.5], "total": 119}).expected == "109.5"


@given(st.lists(CENTS, max_size=30), st.integers(0, 100))
def test_a_sum_made_of_its_parts_holds(parts: list[int], slack: int) -> None:
    text = json.dumps({"lines": lines(*map(euros, parts)), "total": euros(sum(parts))})
    assert judge({**SUM, "tolerance": euros(slack)}, json.loads(text)).passed is True


@given(st.lists(CENTS, max_size=30), st.integers(0, 100), st.integers(1, 10**6), st.sampled_from([1, -1]))
def test_a_sum_that_is_off_by_more_than_the_tolerance_fails(parts: list[int], slack: int, more: int, sign: int) -> None:
    total = sum(parts) + sign * (slack + more)
    result = judge({**SUM, "tolerance": euros(slack)}, {"lines": lines(*map(euros, parts)), "total": euros(total)})
    assert (result.passed, result.pointers) == (False, ("/total",))
    assert Decimal(result.found or 0) - Decimal(result.expected or 0) == Decimal(total - sum(parts)) / 100


def test_a_sum_may_be_taken_line_by_line() -> None:
    rule = {"rule": "sum", "of": ["/orders/*/lines/*/amount", "/orders/*/fee", "/flat"], "equals": "/orders/*/total"}
    orders = [
        {"lines": lines(1, 2), "fee": 3, "total": 7},
        {"lines": [], "fee": 3, "total": 4},
        {"lines": lines(5), "fee": 3, "total": 8},
    ]
    assert judge(rule, {"flat": 1, "orders": orders[:2]}).passed is True
    result = judge(rule, {"flat": 1, "orders": orders})
    assert (result.passed, result.pointers) == (False, ("/orders/2/total",))
    assert (result.expected, result.found, result.reason) == ("9", "8", "it does not hold (1 of 3)")


def test_a_product_is_taken_line_by_line() -> None:
    good, bad = {"quantity": 3, "price": 0.1, "amount": 0.3}, {"quantity": 3, "price": 0.1, "amount": 0.31}
    assert judge(PRODUCT, {"lines": [good] * 3}).passed is True
    result = judge(PRODUCT, {"lines": [good, bad, good, bad]})
    assert (result.passed, result.pointers) == (False, ("/lines/1/amount", "/lines/3/amount"))
    assert (result.expected, result.found, result.reason) == ("0.3", "0.31", "it does not hold (2 of 4)")
    assert judge({**PRODUCT, "tolerance": 0.01}, {"lines": [good, bad]}).passed is True


def test_a_product_with_one_value_for_all_lines() -> None:
    rule = {"rule": "product", "of": ["/lines/*/net", "/rate"], "equals": "/lines/*/tax"}
    assert judge(rule, {"rate": 0.2, "lines": [{"net": 5, "tax": 1}, {"net": "12,50", "tax": 2.5}]}).passed is True
    assert judge(rule, {"rate": "20%", "lines": [{"net": 5, "tax": 1}]}).passed is None


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(-5, 5))
def test_a_product_holds_only_where_it_is_exact(quantity: int, price: int, off: int) -> None:
    line = {"quantity": quantity / 1000, "price": euros(price), "amount": Decimal(quantity * price + off) / 10**5}
    assert judge(PRODUCT, {"lines": [line]}).passed is (off == 0)


@pytest.mark.parametrize(
    ("due", "passed"), [(9.5, True), ("9,50", True), (Decimal("9.500"), True), (9.51, False), ("-9.5", False)]
)
def test_equality(due: Any, passed: bool) -> None:
    result = judge(EQUAL, {"total": 9.5, "due": due})
    assert result.passed is passed
    assert result.expected == "9.5"
    assert result.pointers == (() if passed else ("/total", "/due"))


def test_equality_is_of_all_with_all() -> None:
    rule = {"rule": "equal", "of": ["/a", "/b", "/c"], "tolerance": 1}
    assert judge(rule, {"a": 1, "b": 2, "c": 1.5}).passed is True
    result = judge(rule, {"a": 2, "b": 1, "c": 3.1})
    assert (result.passed, result.expected, result.found) == (False, "2", "3.1")


def test_equality_line_by_line() -> None:
    rule = {"rule": "equal", "of": ["/lines/*/rate", "/rate"]}
    assert judge(rule, {"rate": 19, "lines": [{"rate": 19}, {"rate": "19"}]}).passed is True
    assert judge(rule, {"rate": 19, "lines": [{"rate": 19}, {"rate": 7}]}).pointers == ("/lines/1/rate", "/rate")


# Days


@pytest.mark.parametrize(
    ("issued", "due", "passed"),
    [
        ("2018-12-25", "2019-01-24", True),
        ("2018-12-25", "2018-12-25", True),
        ("2018-12-25T23:00:00", "2018-12-25T01:00:00", True),
        ("2018-12-25", "2018-12-24", False),
        ("25.12.2018", "24 Dec 2018", False),
        ("03/04/2018", "05/05/2018", True),
        ("03/04/2018", "04/03/2018", None),
        ("03/04/2018", "2018-03-20", None),
        ("03/04/2018", "2018-03-01", False),
        ("2018-03-20", "03/04/2018", None),
    ],
)
def test_order(issued: str, due: str, passed: bool | None) -> None:
    result = judge(ORDER, {"issued": issued, "due": due})
    assert result.passed is passed
    assert result.expected is result.found is None
    assert (result.reason is None) == (passed is True)


def test_an_order_that_no_reading_keeps_fails() -> None:
    rule = {"rule": "order", "of": ["/a", "/b", "/c"]}
    assert judge(rule, {"a": "2018-05-05", "b": "01/09/2018", "c": "2018-02-01"}).pointers == ("/a", "/b", "/c")
    open_one = judge(rule, {"a": "2018-01-05", "b": "01/09/2018", "c": "2018-12-01"})
    assert open_one.passed is True
    assert judge(rule, {"a": "2018-05-05", "b": "01/09/2018", "c": "2018-12-01"}).pointers == ("/b",)


def test_order_line_by_line() -> None:
    rule = {"rule": "order", "of": ["/ordered", "/lines/*/sent", "/lines/*/received"]}
    sent = [{"sent": "2018-12-26", "received": "2018-12-27"}, {"sent": "2018-12-26", "received": "2018-12-25"}]
    assert judge(rule, {"ordered": "2018-12-25", "lines": sent[:1]}).passed is True
    result = judge(rule, {"ordered": "2018-12-25", "lines": sent})
    assert result.pointers == ("/ordered", "/lines/1/sent", "/lines/1/received")


# Check digits


@pytest.mark.parametrize(
    ("kind", "value"),
    [*(("iban", text) for text in IBANS), *(("vat", text) for text in VATS), *(("luhn", text) for text in CARDS)],
)
def test_check_digits_that_fit(kind: str, value: Any) -> None:
    assert judge({"rule": kind, "of": ["/a/*"]}, {"a": [value, value]}).passed is True


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("iban", "DE88370400440532013000"),
        ("iban", "DE8937040044053201300"),
        ("iban", "XX89370400440532013000"),
        ("iban", "DE\u0668\u0669370400440532013000"),
        ("iban", "nonsense"),
        ("iban", "DE89370400440532013000" + " DE" * LONGEST),
        ("vat", "DE136695977"),
        ("vat", "BE0697449991"),
        ("vat", "FR61954506078"),
        ("vat", "IT00743110158"),
        ("vat", "DE"),
        ("luhn", "79927398714"),
        ("luhn", "4111 1111 1111 1112"),
        ("luhn", 79927398710),
        ("luhn", "0"),
        ("luhn", "7992739871x"),
        ("luhn", "-18"),
        ("luhn", "\u0661\u0668"),
        ("luhn", "0" * (LONGEST + 1)),
    ],
)
def test_check_digits_that_do_not_fit(kind: str, value: Any) -> None:
    result = judge({"rule": kind, "of": ["/a"]}, {"a": value})
    assert (result.passed, result.pointers, result.expected) == (False, ("/a",), None)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("iban", 7),
        ("iban", ""),
        ("vat", 136695976),
        ("vat", "136695976"),
        ("vat", "CHE-123.456.788"),
        ("vat", "0E136695976"),
        ("luhn", 18.0),
        ("luhn", True),
        ("luhn", -18),
        ("luhn", 18 * 10**LONGEST),
        ("luhn", {"a": "18"}),
    ],
)
def test_check_digits_that_nobody_can_judge(kind: str, value: Any) -> None:
    result = judge({"rule": kind, "of": ["/a"]}, {"a": value})
    assert (result.passed, result.pointers) == (None, ("/a",))


def test_each_number_is_judged_by_itself() -> None:
    rule = {"rule": "iban", "of": ["/own", "/payees/*/iban"]}
    answer = {"own": IBANS[0], "payees": [{"iban": IBANS[1]}, {"iban": "DE00"}, {"iban": None}, {}, {"iban": "x"}]}
    result = judge(rule, answer)
    assert (result.passed, result.pointers) == (False, ("/payees/1/iban", "/payees/4/iban"))
    assert result.reason == "it does not hold (2 of 6)"
    assert judge(rule, {**answer, "payees": answer["payees"][:1]}).passed is True
    assert judge(rule, {"own": IBANS[0], "payees": [{"iban": None}, {}]}).pointers == (
        "/payees/0/iban",
        "/payees/1/iban",
    )


@given(st.text("0123456789", min_size=18, max_size=18), st.integers(0, 19), st.integers(1, 9))
def test_every_changed_digit_of_an_iban_is_caught(account: str, place: int, shift: int) -> None:
    digits = f"{98 - int(account + '131400') % 97:02d}" + account
    changed = digits[:place] + str((int(digits[place]) + shift) % 10) + digits[place + 1 :]
    assert judge({"rule": "iban", "of": ["/a"]}, {"a": f"DE{digits}"}).passed is True
    assert judge({"rule": "iban", "of": ["/a"]}, {"a": f"DE{changed}"}).passed is False


@given(DIGITS, st.integers(0, 100), st.integers(1, 9))
def test_every_changed_digit_of_a_luhn_number_is_caught(payload: str, place: int, shift: int) -> None:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in payload[::-2])
    digits = payload + str(-(doubled + sum(map(int, payload[-2::-2]))) % 10)
    place %= len(digits)
    changed = digits[:place] + str((int(digits[place]) + shift) % 10) + digits[place + 1 :]
    assert judge({"rule": "luhn", "of": ["/a"]}, {"a": digits}).passed is True
    assert judge({"rule": "luhn", "of": ["/a"]}, {"a": changed}).passed is False


# What cannot be judged


@pytest.mark.parametrize(
    ("answer", "pointer", "reason"),
    [
        ({"lines": lines(1)}, "/total", "missing or null"),
        ({"lines": lines(1), "total": None}, "/total", "missing or null"),
        ({"total": 1}, "/lines/*/amount", "missing or null"),
        ({"lines": None, "total": 1}, "/lines/*/amount", "missing or null"),
        ({"lines": {"0": {"amount": 1}}, "total": 1}, "/lines/*/amount", "missing or null"),
        ({"lines": [{"amount": 1}, {}], "total": 1}, "/lines/1/amount", "missing or null"),
        ({"lines": lines(1, None), "total": 1}, "/lines/1/amount", "missing or null"),
        ({"lines": lines("1,234"), "total": 1234}, "/lines/0/amount", "more than one number"),
        ({"lines": lines(1234), "total": "1.234"}, "/total", "more than one number"),
        ({"lines": lines("n/a"), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines(True), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines([1]), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines(float("nan")), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines(Decimal("1e999999999")), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines(10**LONGEST), "total": 10**LONGEST}, "/lines/0/amount", "no number"),
        ({"lines": lines(1 << 100_000), "total": 1}, "/lines/0/amount", "no number"),
        ({"lines": lines(*[0] * (MAX_ELEMENTS + 1)), "total": 0}, "/lines/*/amount", str(MAX_ELEMENTS)),
        ([], "/lines/*/amount", "missing or null"),
    ],
    ids=range(18),
)
def test_a_sum_that_cannot_be_judged(answer: Any, pointer: str, reason: str) -> None:
    result = judge(SUM, answer)
    assert (result.passed, result.pointers, result.expected, result.found) == (None, (pointer,), None, None)
    assert reason in (result.reason or "")


@pytest.mark.parametrize(
    ("rule", "pointer"),
    [
        (PRODUCT, "/lines/*/quantity"),
        (EQUAL, "/total"),
        (ORDER, "/issued"),
        ({"rule": "iban", "of": ["/a"]}, "/a"),
        ({"rule": "vat", "of": ["/a/*"]}, "/a/*"),
        ({"rule": "luhn", "of": ["/a/0"]}, "/a/0"),
    ],
)
def test_no_rule_passes_on_an_empty_answer(rule: dict[str, Any], pointer: str) -> None:
    assert judge(rule, {}) == Result("/x-check/0", None, "report", "a value is missing or null", pointers=(pointer,))


@pytest.mark.parametrize("value", ["soon", "12/2018", 20181225, True, ["2018-12-25"]])
def test_a_day_that_is_none(value: Any) -> None:
    result = judge(ORDER, {"issued": "2018-12-25", "due": value})
    assert (result.passed, result.pointers, result.reason) == (None, ("/due",), "a value is no date")


def test_over_no_lines_a_rule_has_passed_and_says_so() -> None:
    result = judge(PRODUCT, {"lines": []})
    assert (result.passed, result.reason) == (True, "there is nothing to judge")


def test_a_line_that_fails_outweighs_one_that_cannot_be_judged() -> None:
    unknown, bad = {"quantity": None, "price": 1, "amount": 1}, {"quantity": 2, "price": 1, "amount": 1}
    assert judge(PRODUCT, {"lines": [unknown, bad]}).pointers == ("/lines/1/amount",)
    result = judge(PRODUCT, {"lines": [unknown, {"quantity": 1, "price": 1, "amount": 1}]})
    assert (result.passed, result.pointers) == (None, ("/lines/0/quantity",))
    assert result.reason == "a value is missing or null (1 of 2)"


def test_the_pointers_of_a_result_are_bounded() -> None:
    bad = {"quantity": 2, "price": 1, "amount": 1}
    result = judge(PRODUCT, {"lines": [bad] * (MAX_LISTED + 5)})
    assert (len(result.pointers), result.reason) == (MAX_LISTED, "it does not hold (105 of 105)")


def test_keys_with_a_slash_or_a_tilde() -> None:
    rule = {"rule": "equal", "of": ["/a~1b/*", "/m~0n"]}
    assert judge(rule, {"a/b": [1], "m~n": 1}).passed is True
    assert judge(rule, {"a/b": [1, 2], "m~n": 1}).pointers == ("/a~1b/1", "/m~0n")
    assert judge({"rule": "equal", "of": ["/~01", "/~01"]}, {"~1": 1, "/": 2}).expected == "1"


@given(st.lists(st.integers(1 - 10**LONGEST, 10**LONGEST - 1), min_size=MAX_POINTERS, max_size=MAX_POINTERS))
def test_the_largest_product_is_exact(factors: list[int]) -> None:
    names = [f"/{at}" for at in range(len(factors))]
    answer: dict[str, Any] = {str(at): factor for at, factor in enumerate(factors)}
    result = judge({"rule": "product", "of": names, "equals": "/c"}, {**answer, "c": Decimal(f"1e-{LONGEST}")})
    exact = 1
    for factor in factors:
        exact *= factor
    assert (result.passed, result.expected) == (False, str(exact))


# What makes the answer an error


def test_what_is_broken() -> None:
    rules = [{**EQUAL, "on_fail": on_fail, "name": on_fail} for on_fail in ("error", "report")]
    found = read({"x-check": rules})
    assert broken(check(found, {"total": 1, "due": 1})) == []
    for answer in ({"total": 1, "due": 2}, {"total": 1, "due": None}, {"total": 1, "due": "1,234"}):
        assert [result.rule for result in broken(check(found, answer))] == ["error"]


def test_results_come_in_the_order_of_the_rules() -> None:
    names = [f"rule {at}" for at in range(MAX_RULES)]
    results = check(read({"x-check": [{**EQUAL, "name": name} for name in names]}), {"total": 1, "due": 1})
    assert [result.rule for result in results] == names


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from([*IBANS, *VATS, "1,234"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(sorted(KINDS)), VALUES)
def test_every_answer_is_judged_somehow(kind: str, answer: Any) -> None:
    rule: dict[str, Any] = {"rule": kind, "of": ["/a/*/b", "/c"], "on_fail": "error"}
    result = judge(rule | ({"equals": "/a/*/c"} if "equals" in KINDS[kind].keys else {}), answer)
    assert (result.reason is None or result.reason == "there is nothing to judge") == (result.passed is True)
    assert bool(result.pointers) == (result.passed is not True)
    assert broken([result]) == ([] if result.passed else [result])
