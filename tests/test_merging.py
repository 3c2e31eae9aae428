"""models/merging.py and models/sightings.py: every rule by which answers to windows become one, with real evidence."""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from models import evidence
from models.failure import Failure
from models.merging import Merged, merge
from models.sightings import Reading
from models.windows import Piece, Window, split


def read(window: Window, pages: Sequence[str], value: Any) -> Reading:
    """An answer with the evidence that the window's own text gives for it, placed in the pages."""
    document = evidence.Document([piece.text(pages) for piece in window.pieces])
    found = {}
    for each in evidence.locate(document, value):
        if each.page is not None and each.start is not None and each.end is not None:
            piece = window.pieces[each.page]
            each = replace(each, page=piece.page, start=each.start + piece.start, end=each.end + piece.start)
            assert pages[piece.page][each.start : each.end] == each.text
        found[each.pointer] = each
    return Reading(window, value, found, {pointer: {"raw": 0.5 + window.number / 100} for pointer in found})


def parts(marked: str, *answers: Any) -> tuple[Merged, list[Reading], str]:
    """Answers merged to windows of a text in which ⟦ and ⟧ mark where each begins and ends; they may overlap."""
    text = re.sub("[⟦⟧]", "", marked)
    starts, ends, at = [0], [], 0
    for sign in marked:
        if sign == "⟦":
            starts.append(at)
        elif sign == "⟧":
            ends.append(at)
        else:
            at += 1
    spans = zip(starts, [*ends, len(text)], strict=True)
    windows = [Window(number, (Piece(0, start, end),)) for number, (start, end) in enumerate(spans)]
    readings = [read(window, [text], value) for window, value in zip(windows, answers, strict=True)]
    return merge(readings, [text]), readings, text


def origin(merged: Merged) -> dict[str, int]:
    return {pointer: given.window for pointer, given in merged.origin.items()}


def sure(merged: Merged) -> Any:
    """The value of an answer about which there is no doubt."""
    assert (merged.conflicts, merged.uncertain) == ({}, [])
    return merged.value


TEXT = "Invoice 77 from Ada⟧ Lovelace\nis about nothing more.\n⟦Total: 12.50 EUR\nsay no more."


@pytest.mark.parametrize(
    ("first", "second", "value", "window"),
    [
        ("77", "99", "77", 0),  # one stands in the text
        ("99", "12.50", "12.50", 1),
        (77, None, 77, 0),
        (None, 12.5, 12.5, 1),
        ("", "12.50", "12.50", 1),
        ("99", None, "99", 0),  # it stands nowhere, which evidence says
        ("99", "", "99", 0),
        (None, "99", "99", 1),
        (None, True, True, 1),
        (False, None, False, 0),
        (0, None, 0, 0),
        (True, True, True, 0),
        (None, None, None, 0),
        ("", None, "", 0),
        ("99", "99", "99", 0),
        (99, 99.0, 99, 0),
        ("NONE", "  nonE ", "NONE", 0),
        ("\uff21\uff23", "ac", "\uff21\uff23", 0),
    ],
)
def test_one_of_two_scalars(first: Any, second: Any, value: Any, window: int) -> None:
    merged, _, _ = parts(TEXT, {"it": first}, {"it": second})
    assert sure(merged) == {"it": value}
    assert type(merged.value["it"]) is type(value)
    assert origin(merged) == {"/it": window}


@pytest.mark.parametrize(
    ("first", "second"),
    [("77", "12.50"), (77, 12.5), ("99", "98"), (True, False), ("a", 1), (1, True), ("007", "7"), ("1.10", "1.1")],
)
def test_different_values_that_count_alike_are_a_conflict(first: Any, second: Any) -> None:
    merged, _, _ = parts(TEXT, {"it": first}, {"it": second})
    assert merged.value == {"it": first}
    assert [(each.window, each.value) for each in merged.conflicts["/it"]] == [(0, first), (1, second)]


def test_a_conflict_names_all_who_count_and_where_they_stand() -> None:
    answers = [{"a/b": [{"t": 5}]}, {"a/b": [{"t": 8}]}]
    merged, readings, text = parts("Date 1. Total 5.⟧ And then ⟦on Total 8 it ends.", *({"total": t} for t in (5, 8)))
    told = merged.tell(readings)["windows"]
    (conflict,) = told["conflicts"]
    assert conflict["pointer"] == "/total"
    assert [each["value"] for each in conflict["candidates"]] == [5, 8]
    assert [text[each["start"] : each["end"]] for each in conflict["candidates"]] == ["5", "8"]
    assert [each["window"] for each in conflict["candidates"]] == [0, 1]
    merged, _, _ = parts("Total 5.⟧ And ⟦on.", *answers)
    assert [each["a/b"][0]["t"] for each in answers] == [5, 8]
    assert not merged.conflicts  # of two elements of an array; but of what one property holds:
    merged, _, _ = parts("x⟧⟦y", {"a/b": {"t~": 5}}, {"a/b": {"t~": 8}})
    assert list(merged.conflicts) == ["/a~1b/t~0"]


def test_those_without_evidence_do_not_count_in_a_conflict() -> None:
    merged, _, _ = parts("A is 5.⟧ Or ⟦nothing ⟧of⟦ A is 8.", {"a": 5}, {"a": 6}, {"a": 8})
    assert [each.value for each in merged.conflicts["/a"]] == [5, 8]


def test_three_of_which_two_agree_are_a_conflict() -> None:
    merged, _, _ = parts("A is 5.⟧ Or ⟦A is 8⟧ or⟦ A is 5.", {"a": 5}, {"a": 8}, {"a": 5})
    assert [each.window for each in merged.conflicts["/a"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("marked", "values", "value", "window"),
    [
        ("by ⟦Acme Trading⟧ Limited.\nEnd", ["Acme Trading", "Acme Trading Limited"], "Acme Trading Limited", 1),
        ("by Acme ⟦Trading Limited⟧.\nEnd", ["Acme Trading Limited", "Trading Limited"], "Acme Trading Limited", 0),
        ("no. ⟦AB-1234⟧5678 of", ["AB-1234", "AB-12345678"], "AB-12345678", 1),
        ("no. ⟦AB-1234⟧5678 of", ["AB-1234", None], "AB-1234", 0),
    ],
)
def test_what_an_edge_has_cut_loses_to_what_contains_it(
    marked: str, values: list[Any], value: str, window: int
) -> None:
    merged, _, _ = parts(marked, *({"it": each} for each in values))
    assert merged.value == {"it": value}
    assert not merged.conflicts
    assert origin(merged) == {"/it": window}
    # Where none shows it whole, it cannot be known whether it is.
    assert merged.uncertain == (["/it"] if None in values else [])


def test_within_a_window_less_is_not_cut_but_different() -> None:
    merged, _, _ = parts("by ⟦Acme Trading Limited, as said⟧.\nEnd", {"it": "Acme Trading"}, {"it": "Trading Limited"})
    assert list(merged.conflicts) == ["/it"]


def test_at_an_edge_of_the_document_nothing_is_cut() -> None:
    merged, _, _ = parts("Acme and ⟦more⟧ of Acme", {"it": "Acme"}, {"it": None})
    assert sure(merged) == {"it": "Acme"}
    merged, _, _ = parts("and ⟦more⟧ of Acme", {"it": None}, {"it": "Acme"})
    assert sure(merged) == {"it": "Acme"}


def test_at_an_edge_a_value_is_whole_if_another_window_says_so() -> None:
    for answers in (["Acme", "Acme"], ["ACME", "Acme"], ["Acme Corp.", "Acme"], [None, "Acme"]):
        merged, _, _ = parts("It is ⟦so, by Acme⟧ and no more", *({"it": each} for each in answers))
        assert sure(merged) == {"it": answers[1] if answers[0] not in ("ACME", "Acme") else answers[0]}
    merged, _, _ = parts("It is ⟦so, by Acme⟧ and no more", {"it": "Acme"}, {"it": ""})
    assert merged.uncertain == ["/it"]
    # What also stands elsewhere in the window is whole there.
    merged, _, _ = parts("Acme is ⟦so, by Acme⟧ and no more", {"it": "Acme"}, {"it": ""})
    assert sure(merged) == {"it": "Acme"}


def test_objects_are_united_and_empty_ones_say_nothing() -> None:
    answers = [{"a": 1, "b": {"c": None, "d": {}}}, {"b": {"c": "x", "d": {"e": 7}}, "f": []}, {"f": [3], "b": None}]
    merged, _, _ = parts("1 x⟧⟦ x 7⟧⟦ 3", *answers)
    assert merged.value == {"a": 1, "b": {"c": "x", "d": {"e": 7}}, "f": [3]}
    assert not merged.conflicts
    assert origin(merged) == {"/a": 0, "/b/c": 1, "/b/d/e": 1, "/f/0": 2}


def test_values_of_different_kinds_are_a_conflict_unless_one_stands_nowhere() -> None:
    merged, _, _ = parts("It is Acme⟧⟦ of Paris\n", {"a": "Acme"}, {"a": {"city": "Paris"}})
    assert merged.value == {"a": "Acme"}
    assert [each.window for each in merged.conflicts["/a"]] == [0, 1]
    merged, _, _ = parts("It is ⟧⟦ of Paris now", {"a": "Acme"}, {"a": {"city": "Paris"}})
    assert sure(merged) == {"a": {"city": "Paris"}}


ROWS = "Tea 1.50\nMilk 2.75\n⟦Bread 3.10\nButter 4.25\n⟧Eggs 5.35\nSalt 6.45\n"


def rows(*named: str) -> dict[str, Any]:
    prices = dict(re.findall(r"(\w+) ([\d.]+)", ROWS))
    return {"rows": [{"name": name, "price": float(prices[name])} for name in named]}


def test_rows_in_the_overlap_count_once_and_keep_their_order() -> None:
    merged, _, _ = parts(ROWS, rows("Tea", "Milk", "Bread", "Butter"), rows("Bread", "Butter", "Eggs", "Salt"))
    assert sure(merged) == rows("Tea", "Milk", "Bread", "Butter", "Eggs", "Salt")
    assert origin(merged)["/rows/2/name"] == 0
    assert origin(merged)["/rows/4/name"] == 1


def test_rows_that_one_window_has_missed_come_where_they_belong() -> None:
    merged, _, _ = parts(ROWS, rows("Tea", "Butter"), rows("Bread", "Butter", "Salt"))
    assert [row["name"] for row in merged.value["rows"]] == ["Tea", "Bread", "Butter", "Salt"]
    merged, _, _ = parts(ROWS, rows("Tea", "Bread"), rows("Butter", "Salt"))
    assert [row["name"] for row in sure(merged)["rows"]] == ["Tea", "Bread", "Butter", "Salt"]


def test_a_row_that_is_cut_is_completed_by_its_neighbour() -> None:
    text = "Tea 1.50\n⟦Fine old bread\nfrom the oven\n⟧3.10 each\nEggs 5.35\n"
    cut = {"name": "Fine old bread from the oven", "price": None}
    whole = {"name": "Fine old bread from the oven", "price": 3.1}
    tea, eggs = {"name": "Tea", "price": 1.5}, {"name": "Eggs", "price": 5.35}
    merged, _, _ = parts(text, {"rows": [tea, cut]}, {"rows": [whole, eggs]})
    assert sure(merged) == {"rows": [tea, whole, eggs]}
    invented = {"name": "Fine old bread", "price": 9.99}
    merged, _, _ = parts(text, {"rows": [tea, cut | invented]}, {"rows": [whole, eggs]})
    assert merged.value["rows"][1]["price"] == 3.1
    assert list(merged.conflicts) == ["/rows/1/name"]  # not at the edge, so it is another reading


def test_a_row_that_is_cut_does_not_hide_how_many_rows_both_windows_show() -> None:
    """What stands in the text more often than it is named can be counted only together with its neighbours."""
    text = (
        "Tea 2.00\nIced Tea 1.50\n⟦Iced Tea 2.00\nTea 1.50\nFine old bread\nfrom the oven\n⟧3.10 each\nIced Tea 1.50\n"
    )
    names = [
        ("Tea", 2.0),
        ("Iced Tea", 1.5),
        ("Iced Tea", 2.0),
        ("Tea", 1.5),
        ("Fine old bread", 3.1),
        ("Iced Tea", 1.5),
    ]
    lines = [{"name": name, "price": price} for name, price in names]
    merged, _, _ = parts(text, {"rows": [*lines[:4], lines[4] | {"price": None}]}, {"rows": lines[2:]})
    assert sure(merged) == {"rows": lines}


def test_two_readings_of_one_row_are_a_conflict() -> None:
    text = "Tea 1.50 A1\n⟦Bread 3.10 B2\nButter 4.25 C3\n⟧Salt 6.45 D4\n"
    first = {"rows": [{"name": "Bread", "price": 3.1, "code": "B2"}]}
    second = {"rows": [{"name": "Bread", "price": 4.25, "code": "B2"}]}
    merged, _, _ = parts(text, first, second)
    assert merged.value == first
    assert {at: [each.value for each in given] for at, given in merged.conflicts.items()} == {
        "/rows/0/price": [3.1, 4.25]
    }


def test_where_as_much_speaks_for_one_row_as_for_two_both_stay_and_that_is_told() -> None:
    merged, _, _ = parts(ROWS, rows("Bread"), {"rows": [{"name": "Bread", "price": 4.25}]})
    assert [row["price"] for row in merged.value["rows"]] == [3.1, 4.25]
    assert merged.uncertain[:2] == ["/rows/0", "/rows/1"]


@pytest.mark.parametrize("other", [("Butter", 4.25), ("Salt", 4.25)])
def test_rows_under_one_heading_are_two(other: tuple[str, float]) -> None:
    text = "Tea 1.50\n⟦Monday\nBread 3.10\nButter 4.25\n⟧Salt 4.25\n"
    answers = [{"rows": [{"day": "Monday", "name": name, "price": at}]} for name, at in (("Bread", 3.1), other)]
    merged, _, _ = parts(text, *answers)
    assert merged.value["rows"] == [answers[0]["rows"][0], answers[1]["rows"][0]]
    assert not merged.conflicts


def test_elements_whose_places_are_a_guess_are_not_taken_for_one() -> None:
    """Both stand twice, so the place that they seem to share proves nothing; it is told."""
    merged, _, _ = parts("x ⟦Acme Ltd and Acme⟧ so Acme Ltd", {"of": ["Acme"]}, {"of": ["Acme Ltd"]})
    assert merged.value == {"of": ["Acme", "Acme Ltd"]}
    assert merged.uncertain == ["/of/0", "/of/1"]
    assert not merged.conflicts


COFFEE = {"what": "Coffee", "price": 3.5}


@pytest.mark.parametrize(
    ("marked", "first", "second", "count", "uncertain"),
    [
        ("Coffee 3.50\n⟦Tea 1\n⟧Coffee 3.50\n", 1, 1, 2, []),
        ("Tea 1\n⟦Coffee 3.50\n⟧Milk 2\n", 1, 1, 1, []),
        ("Coffee 3.50\n⟦Coffee 3.50\n⟧Coffee 3.50\n", 2, 2, 3, []),
        ("Coffee 3.50\n⟦Coffee 3.50\nCoffee 3.50\n⟧Milk 2\n", 3, 2, 3, []),
        ("Milk 2\n⟦Coffee 3.50\nCoffee 3.50\n⟧Coffee 3.50\n", 2, 3, 3, []),
        # Named once though it stands twice: it may be this one or that one.
        ("Coffee 3.50\n⟦Coffee 3.50\n⟧Coffee 3.50\n", 1, 1, 1, ["/rows/0"]),
        ("Coffee 3.50\n⟦Coffee 3.50\n⟧Milk 2\n", 1, 1, 1, ["/rows/0"]),
        ("Milk 2\n⟦Coffee 3.50\n⟧Coffee 3.50\n", 1, 1, 1, ["/rows/0"]),
    ],
)
def test_equal_rows_are_one_as_often_as_both_windows_show_them(
    marked: str, first: int, second: int, count: int, uncertain: list[str]
) -> None:
    merged, _, _ = parts(marked, {"rows": [COFFEE] * first}, {"rows": [COFFEE] * second})
    assert merged.value == {"rows": [COFFEE] * count}
    assert merged.uncertain == uncertain
    assert not merged.conflicts


def test_equal_elements_far_apart_stay_several() -> None:
    merged, _, _ = parts("By Ada.\n⟦None.\n⟧Of Ada.\n⟦And\n⟧Ada.", *[{"names": ["Ada"]}] * 3)
    assert merged.value == {"names": ["Ada", "Ada", "Ada"]}


def test_equal_elements_that_stand_nowhere_are_one() -> None:
    merged, _, _ = parts("x⟧⟦y⟧⟦z", {"kinds": ["food", "food"]}, {"kinds": ["drink"]}, {"kinds": ["food", True, None]})
    assert merged.value == {"kinds": ["food", "food", "drink", True, None]}
    assert merged.uncertain == ["/kinds/0"]


def test_of_a_list_element_a_cut_one_is_dropped() -> None:
    merged, _, _ = parts(
        "By ⟦Ada, Bob Lee⟧ Smith and Eve", {"of": ["Ada", "Bob Lee"]}, {"of": ["Bob Lee Smith", "Eve"]}
    )
    assert sure(merged) == {"of": ["Ada", "Bob Lee Smith", "Eve"]}


def test_an_element_longer_than_a_window_is_put_together() -> None:
    text = "Order A7\nTea 1.50\n⟦Milk 2.75\n⟧Bread 3.10\nOrder B8\nSalt 6.45\n"
    tea, milk, bread, salt = ({"name": name} for name in ("Tea", "Milk", "Bread", "Salt"))
    merged, _, _ = parts(
        text,
        {"orders": [{"no": "A7", "lines": [tea, milk]}]},
        {"orders": [{"no": None, "lines": [milk, bread]}, {"no": "B8", "lines": [salt]}]},
    )
    assert sure(merged) == {"orders": [{"no": "A7", "lines": [tea, milk, bread]}, {"no": "B8", "lines": [salt]}]}
    assert origin(merged)["/orders/0/lines/2/name"] == 1


def test_answers_of_arrays_and_scalars_at_the_root() -> None:
    merged, _, _ = parts("Ada ⟦Bob ⟧Eve", ["Ada", "Bob"], ["Bob", "Eve"])
    assert sure(merged) == ["Ada", "Bob", "Eve"]
    merged, _, _ = parts("Ada ⟦Bob ⟧Eve", None, "Eve")
    assert sure(merged) == "Eve"
    assert origin(merged) == {"": 1}


def test_what_is_told_of_a_merged_answer() -> None:
    merged, readings, text = parts(ROWS, rows("Tea"), rows("Salt") | {"more": False})
    told = merged.tell(readings)
    assert {each["pointer"]: text[each["start"] : each["end"]] for each in told["evidence"]} == {
        "/rows/0/name": "Tea",
        "/rows/0/price": "1.50",
        "/rows/1/name": "Salt",
        "/rows/1/price": "6.45",
    }
    assert told["confidence"]["/rows/0/name"] == {"raw": 0.5}
    assert told["confidence"]["/rows/1/price"] == {"raw": 0.51}
    assert told["windows"] == {
        "from": {"/rows/0/name": 0, "/rows/0/price": 0, "/rows/1/name": 1, "/rows/1/price": 1, "/more": 1},
        "conflicts": [],
        "uncertain": [],
    }


def test_answers_too_deep_are_refused() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    window = Window(0, (Piece(0, 0, 1),))
    with pytest.raises(Failure, match="answer_invalid"):
        merge([Reading(window, deep, {}), Reading(window, deep, {})], ["x"])


NAMES = ["Tea", "Coffee", "Iced Tea", "Milk", "Brown Bread", "Bread"]
LINES = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([1.5, 2.25, 13.0, 113.0])), min_size=1, max_size=90)


def name_all(pages: Sequence[str], room: int) -> list[tuple[Window, list[tuple[str, float]]]]:
    """Each window with the rows that it shows as a whole."""
    found = []
    for window in split(pages, room, lambda pieces: sum(piece.end - piece.start for piece in pieces) // 2):
        text = "\n".join(piece.text(pages) for piece in window.pieces)
        named = re.findall(r"(?m)^([A-Z][A-Za-z ]+[\d]*) (\d+\.\d\d)$", text)
        found.append((window, [(name, float(price)) for name, price in named]))
    return found


def print_out(lines: Sequence[tuple[str, float]], paged: bool) -> list[str]:
    printed = [f"{name} {price:.2f}\n" for name, price in lines]
    return ["".join(printed[at : at + 7]) for at in range(0, len(printed), 7)] if paged else ["".join(printed)]


@settings(deadline=None, max_examples=150)
@hypothesis.given(LINES, st.booleans(), st.integers(150, 300))
def test_rows_of_all_windows_are_the_rows_of_the_document(
    lines: list[tuple[str, float]], paged: bool, room: int
) -> None:
    """Of any rows, however many of them are equal, where each window has named all that it shows."""
    pages = print_out(lines, paged)
    named = [(window, [{"name": n, "price": p} for n, p in found]) for window, found in name_all(pages, room)]
    merged = merge([read(window, pages, {"rows": found}) for window, found in named], pages)
    assert [(row["name"], row["price"]) for row in sure(merged)["rows"]] == lines


@settings(deadline=None, max_examples=60)
@hypothesis.given(st.randoms(use_true_random=False), st.integers(30, 90), st.booleans(), st.integers(150, 300))
def test_rows_that_some_windows_have_missed(random: Random, count: int, paged: bool, room: int) -> None:
    """Of rows that can be told from each other all are there that any window has named, in order."""
    lines = [(f"{random.choice(NAMES)}{number:03}", random.choice([1.5, 2.25, 13.0])) for number in range(count)]
    pages = print_out(lines, paged)
    readings, seen = [], set()
    for window, found in name_all(pages, room):
        kept = [row for row in found if random.random() < 0.8]
        seen.update(kept)
        readings.append(read(window, pages, {"rows": [{"name": name, "price": price} for name, price in kept]}))
    merged = merge(readings, pages)
    rows = (merged.value or {}).get("rows", [])
    assert [(row["name"], row["price"]) for row in rows] == [row for row in lines if row in seen]
    assert not merged.conflicts
    # At the edge of a window a row may be cut, as the next has not named it.
    assert all(re.fullmatch(r"/rows/\d+/(name|price)", pointer) for pointer in merged.uncertain)
