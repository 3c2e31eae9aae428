"""The amounts and dates printed in a text, each with its place. Knows no answer and no label.

Where they begin and end is decided here, what they mean in models/reading.py.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from functools import cache, cached_property
from typing import NamedTuple

from models.normal import Form, Place
from models.reading import dates, number, numbers

_CORE = re.compile(r"\d+(?:[.,'\u2019\u00a0\u202f]\d+)*")
_SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?![.,]?\d)")
_LEFT = re.compile(
    r"(?:[+(\u2212\u2013-] ?)?((?<![^\W_])[^\W\d_]{1,4}\.?(?: ?\$)?|[^\w\s()+\u2212\u2013-])?(?: |[+(\u2212\u2013-])?$"
)
_RIGHT = re.compile(r"(?:,?--?|\)| ?[%\u2030])?((?: ?[^\W\d_]{1,5}(?![^\W_])| ?[^\w\s()+%\u2030-])(?! ?\d))?[-)]?")
# One name for each currency that has several; any other is its own.
_NAMES = {"EURO": "EUR", "EUROS": "EUR", "\u20ac": "EUR", "\u00a3": "GBP", "RM": "MYR", "US$": "USD", "S$": "SGD"}
_NAMES |= {"\u00a5": "JPY", "\uffe5": "JPY", "\u5186": "JPY", "\u20b9": "INR", "RS": "INR", "SFR": "CHF", "FR": "CHF"}

_LOOKS = str.maketrans("OoIl|SBZ", "00111582")
_NEARLY = re.compile(r"(?<![^\W_])(?<!\|)[OoIl|SBZ]*+[0-9][0-9OoIl|SBZ]*(?![^\W_])")
_MONTH, _SMALL, _YEAR = r"[^\W\d_]{3,10}\.?", r"(?: ?(?:st|nd|rd|th|er|[\u00ba\u00b0]))?", r"(?:\d{4}|\d\d)"
_DATES = [
    re.compile(rf"(?<!\d)(?=({shape})(?!\d))", re.IGNORECASE)
    for shape in (
        r"\d{1,4} ?([-./ ]) ?\d{1,2} ?\2 ?(?:\d{4}|\d{1,2})|\d{8}",
        rf"\d\d?{_SMALL}[\s.,/-]{{0,2}}(?:(?:day )?of |de |di )?{_MONTH}[\s,/'\u2019-]{{0,3}}(?:del? |of )?{_YEAR}",
        rf"\d{{4}}[\s./-]{{1,2}}{_MONTH}[\s./-]{{0,2}}\d\d?",
        rf"(?<![^\W_]){_MONTH}[\s/-]{{0,2}}\d\d?{_SMALL}[\s,./'\u2019-]{{1,3}}{_YEAR}",
    )
]
_CLOCK = re.compile(r"[^:]*?(?!0?0:00)\d?\d:\d\d", re.DOTALL)

Read = Callable[[str], frozenset[Decimal]]  # models.reading.numbers, but nothing is read twice


class Amount(NamedTuple):
    """A printed number and its currency, "" where none stands beside it.

    `plain`: a bare number of one or two digits, or with a zero in front, which may number or count anything.
    """

    place: Place
    money: str
    plain: bool


class Day(NamedTuple):
    """A printed date and, where it has several readings, the numbers it is made of."""

    place: Place
    parts: tuple[int, ...]


class Printed:
    """What is printed in one text; read when first asked for."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def amounts(self, value: int | float | Decimal) -> list[Place]:
        """Where a JSON number stands. 9.0 is no bare 9, or each price of whole units stood where things are counted."""
        exact = number(value)
        found = self._amounts.get(exact, []) if exact is not None else []
        return [each.place for each in found if not (each.plain and isinstance(value, float))]

    def sums(self, text: str) -> list[Place]:
        """Where an amount that is a string stands: each of its digits, with no other currency.

        What begins with a zero is no amount but the number of an account, a house or a page.
        """
        found = {amount for value in numbers(text) for amount in self._amounts.get(value, [])}
        return sorted(amount.place for amount in found if self._pays(text, amount.money) and self._prints(text, amount))

    def days(self, text: str) -> list[Place]:
        """Where a date that is a string stands; if both it and the text can mean two days, in the same order.

        One with a time of day, but for midnight, says more than a date and stands only as it is.
        """
        readings = dates(text) if not _CLOCK.match(text) else frozenset()
        parts = _parts(text, len(readings))
        found = {day for reading in readings for day in self._days.get(reading, [])}
        return sorted(day.place for day in found if not parts or not day.parts or parts[:2] == day.parts[:2])

    def bears(self, text: str, place: Place) -> bool:
        """Whether a place with all digits of a string has its sign, percent and currency too, if it is an amount."""
        readings = numbers(text)
        if not readings:
            return True
        (start, end), there, money = _dress(self._form, place.start, place.end, numbers)
        minus = (min(readings) < 0) == (min(there, default=Decimal(0)) < 0)
        return minus and ("%" not in text or "%" in self._form.text[start:end]) and self._pays(text, money)

    def _prints(self, text: str, amount: Amount) -> bool:
        """Whether as many digits at least are printed, apart from letters, and the percent sign if it has one."""
        start, end, _ = amount.place
        printed = self._form.text[start:end]
        digits = [sum(map(str.isdecimal, each)) for each in (printed, text)]
        zero = any(re.match(r"\D*0\d", each) for each in (printed, text))
        apart = self._form.room(start, end, loose=amount.money != "" or not printed.isdecimal())
        return apart > 0 and not zero and digits[0] >= digits[1] and ("%" in printed) == ("%" in text)

    def _pays(self, text: str, money: str) -> bool:
        """Whether a string's currency is the one beside the number, or one of the text's where none is beside it.

        A sign need not be in the text, if no other is; letters must be.
        """
        bare = re.sub(r"[\d\s.,'\u2019()+%\u2030\u2212\u2013-]|\b[CD]R\b", "", text.upper())
        asked, given = _name(bare), {money} if money else self._codes
        dollars = bare[-1:] in ("$", "D") and any(each[-1:] in ("$", "D") for each in given) and "$" in {bare, *given}
        lenient = not (money or bare.isalpha() or self._signs)
        return not bare or asked in given or dollars or lenient

    @cached_property
    def _codes(self) -> set[str]:
        """All that may be a currency in the text."""
        words = {word for word in re.findall(r"[^\W\d_]+", self._form.text.upper()) if len(word) < 6}
        return words | self._signs | {_name(each) for each in words | self._signs}

    @cached_property
    def _signs(self) -> set[str]:
        return {sign for sign in set(self._form.text) if unicodedata.category(sign) == "Sc"}

    @cached_property
    def _amounts(self) -> dict[Decimal, list[Amount]]:
        found: dict[Decimal, list[Amount]] = defaultdict(list)
        read = cache(numbers)
        for shape, most in ((_CORE, 3), (_SPACED, 2)):  # 1 234,50 may be two
            for hit in shape.finditer(self._form.text):
                for value, amount in _amount(self._form, *hit.span(), most, read):
                    found[value].append(amount)
        return dict(found)

    @cached_property
    def _days(self) -> dict[date, list[Day]]:
        found: dict[date, list[Day]] = defaultdict(list)
        read = cache(dates)
        text = _NEARLY.sub(lambda near: near[0].translate(_LOOKS), self._form.text)
        for shape in _DATES:
            for hit in shape.finditer(text):
                readings = read(hit[1])
                rank = self._form.room(*hit.span(1), loose=True) if readings else 0
                for day in readings if rank else ():
                    found[day].append(Day(Place(*hit.span(1), rank), _parts(hit[1], len(readings))))
        return dict(found)


def _amount(form: Form, start: int, end: int, most: int, read: Read) -> Iterator[tuple[Decimal, Amount]]:
    """What a number may mean; none for the digits of A5, as they are part of a name."""
    (first, last), readings, money = _dress(form, start, end, read)
    core = form.text[start:end]
    left, right = form.edge(start), form.edge(end)
    rank = min(most, *(3 if edge == 1 and money else 2 if edge == 1 else edge for edge in (left, right)))
    if rank == 0 or (left == 1 and core.isdecimal() and not money):
        return
    marked = re.search("[%\u2030]", form.text[first:last]) or min(readings, default=0) < 0
    place = Place(*((first, last) if marked else (start, end)), rank)
    bare = core.isdecimal() and not (money or marked)
    for value in readings:
        yield value, Amount(place, money, bare and (len(core) < 3 or core[0] == "0"))
        if value < 0:  # 9.00 stands in -9.00 too, but less well
            yield -value, Amount(Place(start, end, 1), money, False)


def _dress(form: Form, start: int, end: int, read: Read) -> tuple[tuple[int, int], frozenset[Decimal], str]:
    """With sign, percent and currency: from where to where, what it may mean, and the currency."""
    left, right = _LEFT.search(form.text, max(0, start - 10), start), _RIGHT.match(form.text, end)
    assert left and right  # both also match nothing
    before, behind = left[1] or "", right[1] or ""
    paid, owed = (side != "" and read(f"{side} 1") != frozenset() for side in (before, behind))
    first = left.start() if paid or not before else left.end(1)
    last = right.end() if owed or not behind else right.start(1)
    first += form.text[first] == " "
    money = _name(before) if paid else _name(behind) if owed else ""
    for span in ((first, last), (first, end), (start, last)):
        # A dash that joins, as in 5-10, is no sign.
        if min(map(form.edge, span)) == 3 and (readings := read(form.text[slice(*span)])):
            return span, readings, money
    return (start, end), read(form.text[start:end]), money


def _name(money: str) -> str:
    money = money.strip(" .").upper().replace(" ", "")
    return _NAMES.get(money, money)


def _parts(text: str, readings: int) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text))) if readings > 1 else ()
