"""models/reading.py: all readings of a printed number or date, and none of what is neither."""

import unicodedata
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.reading import LONGEST, YEARS, dates, number, numbers

CHRISTMAS = date(2018, 12, 25)


def parts(texts: str) -> list[str]:
    return texts.split("|")


DAYS = st.dates(date(YEARS.start, 1, 1), date(YEARS.stop - 1, 12, 31))
CENTS = st.integers(0, 10**12).map(lambda cents: Decimal(cents).scaleb(-2))
ENGLISH = parts("January|February|March|April|May|June|July|August|September|October|November|December")
GERMAN = parts("Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember")
FRENCH = parts("janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre")
SPANISH = parts("enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre")
ITALIAN = parts("gennaio|febbraio|marzo|aprile|maggio|giugno|luglio|agosto|settembre|ottobre|novembre|dicembre")
DUTCH = parts("januari|februari|maart|april|mei|juni|juli|augustus|september|oktober|november|december")
PORTUGUESE = parts("janeiro|fevereiro|março|abril|maio|junho|julho|agosto|setembro|outubro|novembro|dezembro")
LANGUAGES = [ENGLISH, GERMAN, FRENCH, SPANISH, ITALIAN, DUTCH, PORTUGUESE]


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("9", "9"),
        ("007", "7"),
        ("9.00", "9"),
        (".50", "0.5"),
        ("1,234", "1234 1.234"),
        ("1.234", "1234 1.234"),
        ("-1,234", "-1234 -1.234"),
        ("12,345", "12345 12.345"),
        ("0,123", "0.123"),
        ("01,234", "1.234"),
        ("1234,567", "1234.567"),
        ("1,2345", "1.2345"),
        ("1.234,50", "1234.5"),
        ("1,234.567", "1234.567"),
        ("1,234,567", "1234567"),
        ("1.234.567,89", "1234567.89"),
        ("1'234.50", "1234.5"),
        ("1\u2019234,50", "1234.5"),
        ("1 234,50", "1234.5"),
        ("1\u202f234\u00a0567.50", "1234567.5"),
        ("12,34,567.00", "1234567"),
        ("1,23,456", "123456"),
        ("9·99", "9.99"),
        ("9,-", "9"),
        ("1.234,-- EUR", "1234"),
        ("CHF 9.\u2014", "9"),
    ],
)
def test_marks_between_digits(text: str, readings: str) -> None:
    assert numbers(text) == {Decimal(each) for each in readings.split()}


@pytest.mark.parametrize(
    "text",
    parts(
        "-9.00|- 9.00|9.00-|\u22129.00|\u20139.00|(9.00)|(-9.00)|$-9.00|-$9.00|RM(9.00)|(RM 9.00)|9,00- EUR|"
        "9,00 EUR-|-9,00 EUR"
    ),
)
def test_minus_is_printed_in_many_ways(text: str) -> None:
    assert numbers(text) == {Decimal(-9)}


@pytest.mark.parametrize(
    "text",
    parts(
        "+9.00|(+9.00)|RM 9.00|RM9.00|9.00 MYR|$9|$ 9.00 USD|US $ 9.00|US$9.00|R$ 9,00|€9|9,00 €|9 Euro|"
        "eur 9|Rs.9|Fr. 9.--|9 kr.|9 Kč|9,00 zł|￥9|9円|\t9\n"
    ),
)
def test_currency_and_plus_change_nothing(text: str) -> None:
    assert numbers(text) == {Decimal(9)}


def test_the_dot_of_an_abbreviation_is_no_decimal_point() -> None:
    assert numbers("Rs.50") == {Decimal(50)}
    assert numbers("$.50") == {Decimal("0.50")}


@pytest.mark.parametrize("text", ["9.00 CR", "9.00CR", "9,00 Cr.", "-9.00 CR", "9.00 DR", "RM 9.00 CR"])
def test_credit_and_debit_leave_the_sign_open(text: str) -> None:
    assert numbers(text) == {Decimal(9), Decimal(-9)}


def test_a_percentage_is_a_number_and_a_share() -> None:
    assert numbers("12%") == numbers("12 %") == {Decimal(12), Decimal("0.12")}
    assert numbers("-7,5 %") == {Decimal("-7.5"), Decimal("-0.075")}
    assert numbers("5‰") == {Decimal(5), Decimal("0.005")}
    assert numbers("0%") == {Decimal(0)}


@pytest.mark.parametrize("text", ["3", "\u0663", "\uff13", "\u0969"])
def test_digits_of_any_script(text: str) -> None:
    assert numbers(text) == {Decimal(3)}


def test_arabic_marks_have_one_meaning() -> None:
    assert numbers("\u0663\u066c\u0664\u0665\u0666") == {Decimal(3456)}
    assert numbers("\u0663\u066b\u0664\u0665\u0666") == {Decimal("3.456")}


@pytest.mark.parametrize(
    "text",
    parts(
        "| |-|€|x|A5|5 kg|No. 5|2 x 5|5-10|1/2|½|10²|1\u0663|9.|9.00.|--9|-9-|(9|9)|)9(|-9+|+-9|1,23,45|1,2,3|"
        "1.234.56|1'23|1  234|12'34.5|0,123,456|1e5|1,234.567.890|1_000|50¢|9%‰|9 C|9 CR DR|9±|NaN|Infinity|"
        "25.12.2018|9\x00|€€\ud800 9"
    ),
)
def test_what_is_no_number(text: str) -> None:
    assert numbers(text) == frozenset()
    assert number(text) is None


def test_the_length_is_bounded() -> None:
    assert numbers("9" * LONGEST) == {Decimal("9" * LONGEST)}
    assert numbers("9" * (LONGEST + 1)) == frozenset()
    assert numbers(" " * LONGEST + "9") == frozenset()
    assert dates("25/12/2018".ljust(LONGEST)) == {CHRISTMAS}
    assert dates("25/12/2018".ljust(LONGEST + 1)) == frozenset()


@given(CENTS, st.sampled_from([(",", "."), (".", ","), ("'", "."), (" ", ","), ("", "."), ("", ",")]))
def test_an_amount_is_among_its_readings_in_every_style(amount: Decimal, style: tuple[str, str]) -> None:
    printed = f"{amount:,.2f}".translate({ord(","): style[0], ord("."): style[1]})
    assert numbers(printed) == numbers(f"RM {printed}") == numbers(f"{printed} EUR") == {amount}
    assert numbers(f"-{printed}") == numbers(f"({printed})") == {-amount}


@given(st.integers(0, 10**9), st.sampled_from(",."))
def test_whole_thousands_are_among_their_readings(value: int, mark: str) -> None:
    readings = numbers(f"{value:,}".replace(",", mark))
    assert value in readings
    assert len(readings) == (2 if 1000 <= value < 10**6 else 1)


@given(CENTS, st.integers(0, 20), st.sampled_from("0123456789"))
def test_another_digit_is_another_number(amount: Decimal, place: int, digit: str) -> None:
    printed = f"{amount:,.2f}"
    places = [at for at, sign in enumerate(printed) if sign.isdigit()]
    at = places[place % len(places)]
    altered = printed[:at] + digit + printed[at + 1 :]
    assert altered == printed or not numbers(altered) & numbers(printed)


@given(st.text(max_size=LONGEST + 5) | st.text("0123456789.,' -()$%RMCE", max_size=20))
def test_any_text_is_read_or_not(text: str) -> None:
    for reading in numbers(text):
        assert reading.is_finite()
        assert reading.copy_abs() < 10**LONGEST
    assert len(numbers(text)) <= 8
    assert len(dates(text)) <= 6


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (9, "9"),
        (-9, "-9"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e22, "1e22"),
        (10**LONGEST - 1, "9" * LONGEST),
        (Decimal("9.90"), "9.9"),
        (Decimal("1e-64"), "1e-64"),
        ("9,90", "9.9"),
        ("RM 1.234,5", "1234.5"),
    ],
)
def test_a_scalar_is_an_exact_number(value: Any, exact: str) -> None:
    assert number(value) == Decimal(exact)


@pytest.mark.parametrize("value", [None, True, False, [], {}, b"9", 9j, "", "x", "1,234", "12%", "9 CR"])
def test_a_scalar_that_is_no_number_or_not_one(value: Any) -> None:
    assert number(value) is None


def test_a_number_without_bound_is_none() -> None:
    assert [number(value) for value in (10**LONGEST, -(10**LONGEST), 1 << 100_000)] == [None] * 3
    assert [number(float(text)) for text in parts("nan|inf|-inf|1e64|1e308|5e-324")] == [None] * 6
    for text in parts("NaN|sNaN|-Infinity|1e64|1e999999999|0e999999999|1e-65|1e-999999999"):
        assert number(Decimal(text)) is None


@given(st.floats(-1e60, 1e60, allow_subnormal=False))
def test_a_float_is_what_it_prints_as(value: float) -> None:
    exact = number(value)
    assert exact is None or float(exact) == value
    assert exact is not None or 0 < abs(value) < 1e-40


@pytest.mark.parametrize(
    "text",
    parts(
        "25/12/2018|25-12-2018|25.12.2018|25 12 2018|25 / 12 / 2018|25. 12. 2018|25\u201312\u20132018|"
        "12/25/2018|2018-12-25|2018/12/25|2018. 12. 25.|20181225|25122018|12252018|(25/12/2018)|25 DEC 2018|"
        "25-Dec-2018|25/DEC/2018|25DEC2018|25 Dec 18|25DEC18|Dec. 25, 2018|Dec 25 '18|December 25th, 2018|"
        "25th of December 2018|2018-Dec-25|2018 December 25|25. Dezember 2018|25 dez. 2018|"
        "le 25 décembre 2018|25 de\u0301c. 2018|25 de diciembre de 2018|25 dicembre 2018|25 december 2018|"
        "25ste december 2018|25 de dezembro de 2018|25 dic 2018|"
        "\u0662\u0665/\u0661\u0662/\u0662\u0660\u0661\u0668|Tue 25/12/2018|"
        "Tuesday, 25 Dec 2018|Di., 25.12.2018|mar 25 dec 2018|terça-feira, 25/12/2018"
    ),
)
def test_one_day_printed_in_many_ways(text: str) -> None:
    assert dates(text) == {CHRISTMAS}


@pytest.mark.parametrize(
    "time",
    parts(
        " 8:01:11 PM| 17:42|, 17:42| 17h30| 17.42 Uhr| um 17:42| at 5pm| à 17h30| 5 p.m.| 24:00|T17:42:00Z|"
        "T17:42:00.123+01:00| 17:42:00 UTC| 17:42 h"
    ),
)
@pytest.mark.parametrize(
    "day", ["25/12/2018", "25.12.2018", "2018-12-25", "25 Dec 2018", "Tue, Dec 25 2018", "20181225"]
)
def test_a_time_behind_the_day_changes_nothing(day: str, time: str) -> None:
    assert dates(day + time) == {CHRISTMAS}


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("03/04/2018", "2018-04-03 2018-03-04"),
        ("03.04.2018 17:42", "2018-04-03 2018-03-04"),
        ("04/04/2018", "2018-04-04"),
        ("2018-03-04", "2018-03-04"),
        ("03042018", "2018-04-03 2018-03-04"),
        ("20121012", "2012-10-12"),
        ("25.12.18", "2018-12-25 2025-12-18"),
        ("25. 12.18", "2018-12-25 2025-12-18"),
        ("10/11/12", "2012-11-10 2012-10-11 2010-11-12"),
        ("31/12/99", "1999-12-31"),
        ("18-1-5", "2018-01-05"),
        ("5/1/18", "2018-01-05 2018-05-01"),
        ("1 Jan 68", "2068-01-01"),
        ("1 Jan 69", "1969-01-01"),
        ("5 jui 2018", "2018-06-05 2018-07-05"),
        ("mar 25 2018", "2018-03-25"),
        ("1er août 2018", "2018-08-01"),
        ("1º de mayo de 2018", "2018-05-01"),
        ("1. Jänner 2018", "2018-01-01"),
        ("5 mrt 2018", "2018-03-05"),
        ("29/02/2016", "2016-02-29"),
    ],
)
def test_a_day_that_is_open_has_all_its_readings(text: str, readings: str) -> None:
    assert dates(text) == {date.fromisoformat(each) for each in readings.split()}


@pytest.mark.parametrize(
    "text",
    parts(
        "|today|25|2018|12/2018|Dec 2018|25 Dec|25/12|251218|31/02/2018|29/02/2018|00/00/0000|25/13/2018|"
        "25/12-2018|25/12/2018/1|25/12/218|125/12/2018|25 De 2018|25 Decem6er 2018|25 Dec Jan|"
        "25 December25 2018|xyz 25/12/2018|25/12/2561|1/1/1440|17:42|25/12/2018 17:99|25/12/2018 17:42 x|"
        "²5/12/2018|25/12/2018¹|2\u0665/12/2018|18 Dec 2561|18 Dec 25 2018|1,234,567|25:12:2018|Dec 25 18:30"
    ),
)
def test_what_is_no_date(text: str) -> None:
    assert dates(text) == frozenset()


@given(DAYS, st.sampled_from("/.- "))
def test_a_day_in_digits_is_among_its_readings(day: date, mark: str) -> None:
    for order in ("%d/%m/%Y", "%m/%d/%Y"):
        readings = dates(day.strftime(order.replace("/", mark)))
        assert day in readings
        assert len(readings) == (1 if day.day > 12 or day.day == day.month else 2)
    assert dates(day.strftime("%Y/%m/%d".replace("/", mark))) == {day}
    assert dates(day.strftime("%Y%m%d")) == {day}
    assert dates(f"{day.day}/{day.month}/{day.year}") >= {day}
    if 1969 <= day.year <= 2068:
        for order in ("%d/%m/%y", "%m/%d/%y", "%y/%m/%d"):
            assert day in dates(day.strftime(order.replace("/", mark)))


@given(DAYS, st.sampled_from(LANGUAGES), st.integers(4, 10), st.sampled_from([str.upper, str.lower, str.title]))
def test_a_day_with_its_months_name_is_one_day(day: date, names: list[str], length: int, case: Any) -> None:
    name = case(names[day.month - 1])
    for month in {name, name[:length], name[:length] + "."}:
        for printed in (
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.year} {month} {day.day}",
        ):
            assert dates(printed) == dates(unicodedata.normalize("NFD", printed)) == {day}


@given(DAYS, st.integers(1, 400))
def test_another_day_is_no_reading_of_iso(day: date, apart: int) -> None:
    assert day + timedelta(apart) not in dates(day.isoformat())


@pytest.mark.parametrize("text", ["2 may onxe", "may 2 abcd", "abcd may 2", "may may 2018", "2 may ab"])
def test_a_word_is_no_year_and_no_day(text: str) -> None:
    assert dates(text) == frozenset()
