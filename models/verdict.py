"""What comes of cross-field rules on a finished answer. What cannot be judged has not passed.

Exact decimal arithmetic, no floats. Knows nothing of schemas or of the document.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from itertools import pairwise
from math import prod
from typing import Any, Literal

from stdnum import iban, luhn
from stdnum.eu import vat

from models.reading import LONGEST, dates, number, numbers
from models.rules import DIGITS, MAX_POINTERS, Path, Rule, pointer, shared, step

Places = list[tuple[Path, Any]]  # where a path leads, and what is there; None for what is missing
Line = Callable[[Path], Places]  # where it leads in one line

MAX_ELEMENTS = 2_000  # that the stars of a pointer stand for
MAX_LISTED = 100  # pointers in a result
# Holds any product of MAX_POINTERS numbers; were it too narrow, it would raise rather than round.
EXACT = Context(prec=MAX_POINTERS * 4 * LONGEST, traps=[Inexact, InvalidOperation])


@dataclass(frozen=True)
class Result:
    """What came of a rule. `passed` None: it could not be judged, and `reason` says why.

    `pointers` are the places in the answer that fail or cannot be judged, the first MAX_LISTED; `expected` (computed)
    and `found` (in the answer) belong to the first of them: exact decimals, None where the rule is not about numbers.
    """

    rule: str
    passed: bool | None
    on_fail: Literal["report", "error"]
    reason: str | None = None
    expected: str | None = None
    found: str | None = None
    pointers: tuple[str, ...] = ()


class _Unjudged(Exception):
    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


def check(rules: Iterable[Rule], answer: Any) -> list[Result]:
    """One result a rule, in their order. Over an array without elements a rule has passed, and `reason` says so."""
    with localcontext(EXACT):
        return [_judge(rule, answer) for rule in rules]


def broken(results: Iterable[Result]) -> list[Result]:
    """Those that make the answer an error: on_fail "error" and not passed. A promise nobody could check is not kept."""
    return [result for result in results if result.on_fail == "error" and result.passed is not True]


def _judge(rule: Rule, answer: Any) -> Result:
    """The rule over all its lines: one that fails outweighs one that could not be judged."""
    results: list[Result] = []
    for part in [replace(rule, of=(path,)) for path in rule.of] if rule.kind in DIGITS else [rule]:
        try:
            results += [_judge_line(part, answer, start) for start, _ in _places(answer, part.lines)]
        except _Unjudged as why:
            results.append(_result(rule, None, [why.path], why.reason))
    worst = [each for each in results if each.passed is False] or [each for each in results if each.passed is None]
    if not worst:
        empty = Result(rule.name, True, rule.on_fail, None if results else "there is nothing to judge")
        return replace(results[0], pointers=()) if len(results) == 1 else empty
    reason = f"{worst[0].reason} ({len(worst)} of {len(results)})" if len(results) > 1 else worst[0].reason
    return replace(worst[0], reason=reason, pointers=tuple(at for each in worst for at in each.pointers)[:MAX_LISTED])


def _judge_line(rule: Rule, answer: Any, start: Path) -> Result:
    def line(path: Path) -> Places:
        end = shared(path, rule.lines)
        places = _places(answer, start[:end] + path[end:])
        for at, value in places:
            if value is None:
                raise _Unjudged(at, "a value is missing or null")
        return places

    try:
        return JUDGES[rule.kind](rule, line)
    except _Unjudged as why:
        return _result(rule, None, [why.path], why.reason)


def _result(rule: Rule, passed: bool | None, paths: Iterable[Path], reason: str = "it does not hold") -> Result:
    return Result(rule.name, passed, rule.on_fail, None if passed else reason, pointers=tuple(map(pointer, paths)))


def _amounts(line: Line, paths: Iterable[Path]) -> list[Decimal]:
    return [_amount(at, value) for path in paths for at, value in line(path)]


def _amount(at: Path, value: Any) -> Decimal:
    exact = number(value)
    if exact is None:
        several = isinstance(value, str) and numbers(value)
        raise _Unjudged(at, "a text may be read as more than one number" if several else "a value is no number")
    return exact


def _sum(rule: Rule, line: Line) -> Result:
    return _equals(rule, line, sum(_amounts(line, rule.of)) - sum(_amounts(line, rule.minus), Decimal(0)))


def _product(rule: Rule, line: Line) -> Result:
    return _equals(rule, line, prod(_amounts(line, rule.of), start=Decimal(1)))


def _equals(rule: Rule, line: Line, expected: Decimal) -> Result:
    [(at, value)] = line(rule.equals or ())
    found = _amount(at, value)
    result = _result(rule, abs(found - expected) <= rule.tolerance, [at])
    return replace(result, expected=_digits(expected), found=_digits(found))


def _equal(rule: Rule, line: Line) -> Result:
    places = [place for path in rule.of for place in line(path)]
    first, *others = (_amount(*place) for place in places)
    result = _result(rule, max(first, *others) - min(first, *others) <= rule.tolerance, [at for at, _ in places])
    farthest = max(others, key=lambda amount: abs(amount - first))
    return replace(result, expected=_digits(first), found=_digits(farthest))


def _digits(amount: Decimal) -> str:
    return f"{amount + 0:f}"  # no -0


def _order(rule: Rule, line: Line) -> Result:
    """Fails where no choice of readings is in order; holds where every one is."""
    places = [(at, _days(at, value)) for path in rule.of for at, value in line(path)]
    latest = date.min
    for _, days in places:
        later = [day for day in days if day >= latest]
        if not later:
            return _result(rule, False, [at for at, _ in places])
        latest = later[0]
    for (before, earlier), (at, later) in pairwise(places):
        if earlier[-1] > later[0]:
            raise _Unjudged(at if len(later) > 1 else before, "a text may be read as more than one day")
    return _result(rule, True, [])


def _days(at: Path, value: Any) -> list[date]:
    days = sorted(dates(value)) if isinstance(value, str) else []
    if not days:
        raise _Unjudged(at, "a value is no date")
    return days


def _check_digits(rule: Rule, line: Line) -> Result:
    [(at, value)] = line(rule.of[0])
    whole = rule.kind == "luhn" and type(value) is int and 0 <= value < 10**LONGEST  # zeros in front count nothing
    text = "".join(value.split()) if isinstance(value, str) else str(value) if whole else ""
    if not text:
        raise _Unjudged(at, "a value is no text")
    if rule.kind == "vat" and text[:2].lower() not in COUNTRIES:
        raise _Unjudged(at, "a value does not begin with a country of the EU")
    return _result(rule, len(text) <= LONGEST and text.isascii() and VALID[rule.kind](text), [at])


def _luhn(text: str) -> bool:
    return bool(re.fullmatch("[0-9](?:-?[0-9])+", text)) and luhn.is_valid(text.replace("-", ""))


VALID: dict[str, Callable[[str], bool]] = {"iban": iban.is_valid, "vat": vat.is_valid, "luhn": _luhn}
COUNTRIES = vat.MEMBER_STATES | {"el", "eu", "im"}  # Greece by its own code; the one-stop shops
JUDGES: dict[str, Callable[[Rule, Line], Result]] = {"sum": _sum, "product": _product, "equal": _equal, "order": _order}
JUDGES |= dict.fromkeys(DIGITS, _check_digits)


def _places(answer: Any, path: Path) -> Places:
    """What lies at the path, and where. A star over no array stays one, and what it stands for is missing."""
    found: Places = [((), answer)]
    for key in path:
        found = [((*at, part), each) for at, value in found for part, each in _behind(value, key)]
        if len(found) > MAX_ELEMENTS:
            raise _Unjudged(path, f"there are more than {MAX_ELEMENTS} elements")
    return found


def _behind(value: Any, key: str) -> list[tuple[str, Any]]:
    every = key == "*" and isinstance(value, list)
    return [(str(at), each) for at, each in enumerate(value)] if every else [(key, step(value, key))]
