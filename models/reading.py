"""What a printed number or date may mean: every reading of it, never a guess at one. Knows nothing of documents.

Of one thing alone: whoever cuts it out of a text says where it begins and ends. OCR's confusions are not mended here.
The tables are ours, as babel reads by one given locale and dateutil and dateparser choose one reading by themselves.
"""

import re
import unicodedata
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

LONGEST = 64  # characters of a printed thing; and digits before and behind the point of a number
YEARS = range(1800, 2200)  # 2561 and 1440 are years of other calendars: no reading is better than a wrong one
PIVOT = 69  # POSIX: 68 is 2068 and 69 is 1969, whatever today is

_SAME = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-")
_SAME |= dict.fromkeys("\u2018\u2019\u00b4\u02bc", "'")
_SAME |= {"\u066b": "·", "\u066c": "'"}  # the Arabic marks: one is always a point, one never

# ISO 4217, a few that are gone, and what people print instead.
_MONEY = """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF
    CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF
    IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK
    MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR
    SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED
    VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG DEM FRF HRK ITL
    RM RS FR SFR KR BS RP TL DM R FT LEI KČ ZŁ DH DHS TK KSH РУБ ЛВ ГРН 円 元 원 EURO EUROS
    US$ A$ AU$ C$ CA$ HK$ N$ NT$ NZ$ S$ SG$ R$ MX$"""
_CURRENCIES = frozenset(_MONEY.split())
_DOTTED = re.compile(r"\b(RS|FR|SFR|KR|BS|CR|DR)\.")  # the dot is the word's: Rs.50 is 50, but $.50 is 0.50
_AMOUNT = re.compile(r"(\D*?)([.,·]?\d(?:[\d.,·' ]*\d)?)(?:([.,])--?)?(\D*)")
_AFFIXES = re.compile(r"[^\W\d_]+(?: ?\$)?|\S")
_WHOLE = re.compile(r"\d*|[1-9]\d{0,2}(?P<mark>[.,' ])\d{3}(?:(?P=mark)\d{3})*|[1-9]\d?(?:,\d\d)+,\d{3}")

_NUMERIC = re.compile(r"(\d{1,4}) ?([/. -]) ?(\d{1,2}) ?\2 ?(\d{1,4})\.?")
_WORDED = re.compile(r"[a-z\d .,/'ºª°-]*")
_TIME = re.compile(
    r"(?:(?<=\d)t|[ ,]+(?:at |um |as? )?)(?:[01]?\d|2[0-4])"
    r"(?:[:.h][0-5]\d(?:[:.][0-6]\d(?:[.,]\d+)?)?(?: ?[ap]\.?m\.?)?| ?[ap]\.?m\.?)"
    r" ?(?:z|utc|gmt|h|uhr|[+-]\d\d:?\d\d)?$"
)
_WEEKDAY = re.compile(r"([a-z]{2,})(?:-feira)?[., ]+")
_FILLERS = {"st", "nd", "rd", "th", "er", "e", "o", "a", "ste", "de", "del", "di", "do", "of", "the", "le", "el", "den"}


def _prefixes(names: str, shortest: int) -> dict[str, set[int]]:
    """Each way to cut a name short, and the places in the line that it may stand for; a line has one language."""
    found: dict[str, set[int]] = {}
    for line in names.splitlines():
        for place, name in enumerate(line.split(), 1):
            for end in range(min(shortest, len(name)), len(name) + 1):
                found.setdefault(name[:end], set()).add(place)
    return found


# English, German (also Austrian), French, Spanish, Italian, Dutch, Portuguese, without accents.
_MONTHS = _prefixes(
    """january february march april may june july august september october november december
    januar februar marz april mai juni juli august september oktober november dezember
    janner feber mrz
    janvier fevrier mars avril mai juin juillet aout septembre octobre novembre decembre
    enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre
    gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre
    januari februari maart april mei juni juli augustus september oktober november december
    januari februari mrt
    janeiro fevereiro marco abril maio junho julho agosto setembro outubro novembro dezembro""",
    3,
)
_WEEKDAYS = _prefixes(
    """monday tuesday wednesday thursday friday saturday sunday
    montag dienstag mittwoch donnerstag freitag samstag sonntag sonnabend
    lundi mardi mercredi jeudi vendredi samedi dimanche
    lunes martes miercoles jueves viernes sabado domingo
    lunedi martedi mercoledi giovedi venerdi sabato domenica
    maandag dinsdag woensdag donderdag vrijdag zaterdag zondag
    segunda terca quarta quinta sexta sabado domingo""",
    2,
)


def numbers(text: str) -> frozenset[Decimal]:
    """All readings of one printed number or amount, exact; none for what is no such thing or longer than LONGEST.

    - Point or comma may part decimals or, between groups of three (or Indian: 12,34,567), thousands; apostrophe and
      space only thousands. "1,234" and "1.234" are 1234 and 1.234; "1,234.5", "1234.567" and "0.123" are one number.
    - Minus stands before or behind, also behind the currency; brackets mean minus unless a sign is in them. CR and DR
      say whose, not which: both signs.
    - Currency stands on either side: a sign, ISO's code or a usual short form. Other letters make it no number.
    - "12%" is 12 and 0.12. "9,-" and "9.--" are 9. No exponents, no fractions, no cents (50¢), no bare end ("9.").
    - Digits of any script, but of one.
    """
    found = _AMOUNT.fullmatch(_DOTTED.sub(r"\1 ", _plain(text).upper()))
    if found is None:
        return frozenset()
    before, core, even, after = found.groups()
    marks = _marks(before, after)
    if marks is None:
        return frozenset()
    minus = "-" in marks or ("(" in marks and "+" not in marks)
    signs = "+-" if marks & {"CR", "DR"} else "-" if minus else "+"
    scales = (0, -2) if "%" in marks else (0, -3) if "‰" in marks else (0,)
    sizes = _sizes(core + f"{even}0" if even else core)
    return frozenset(Decimal(f"{sign}{size}E{scale}") for sign in signs for size in sizes for scale in scales)


def number(value: Any) -> Decimal | None:
    """A scalar of an answer as an exact number: a JSON number, or a string with just one reading; else None.

    Floats are what they print as. None also beyond LONGEST digits before or behind the point, so that what is
    computed from it stays small.
    """
    if isinstance(value, str):
        readings = numbers(value)
        return next(iter(readings)) if len(readings) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, int) and abs(value) >= 10**LONGEST:
        return None
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    exponent = exact.as_tuple().exponent
    small = isinstance(exponent, int) and exponent >= -LONGEST and exact.adjusted() < LONGEST
    return exact if small else None


def dates(text: str) -> frozenset[date]:
    """All readings of one printed date; none for what is no day of YEARS or longer than LONGEST.

    - In digits: day, month, year or month, day, year or year, month, day, parted by one of / . - and blank. A year of
      two digits (see PIVOT) may stand first or last, so "25/12/18" has two readings.
    - Eight digits together in the same orders; six are a number.
    - With the month's name, whole or cut to three letters or more, in seven languages; ordinals ("25th", "1er", "25.").
    - A weekday before it is passed over, right or wrong; so is a time behind it, and brackets around it.
    """
    folded = unicodedata.normalize("NFD", _plain(text).lower())
    texts = ["".join(sign for sign in folded if not unicodedata.combining(sign)).strip("()[] ")]
    if (weekday := _WEEKDAY.match(texts[0])) and weekday[1] in _WEEKDAYS:
        texts.append(texts[0][weekday.end() :])
    texts += [_TIME.sub("", each) for each in texts]
    fields = {each for part in texts for each in (*_numeric(part), *_worded(part))}
    return frozenset(day for each in fields if (day := _day(*each)))


def _plain(text: str) -> str:
    """One form of digits, minus, apostrophe and blank; empty where too long or with digits of two scripts."""
    zeros = {ord(sign) - unicodedata.decimal(sign) for sign in text[:LONGEST] if sign.isdecimal()}
    if len(text) > LONGEST or len(zeros) > 1:
        return ""
    plain = (str(unicodedata.decimal(sign, " " if sign.isspace() else _SAME.get(sign, sign))) for sign in text)
    return "".join(plain).strip()


def _marks(before: str, after: str) -> set[str] | None:
    """What stands around the digits, currency left out; None where something is no mark, or two contradict."""
    sides = (before, {"-", "+", "("}), (after, {"-", ")", "%", "‰", "CR", "DR"})
    marks = []
    for side, allowed in sides:
        for word in _AFFIXES.findall(side):
            if word in allowed:
                marks.append(word)
            elif not (word.replace(" ", "") in _CURRENCIES or (unicodedata.category(word[0]) == "Sc" and word != "¢")):
                return None
    found = set(marks)
    at_most_one = all(len(found & each) < 2 for each in ({"-", "+"}, {"%", "‰"}, {"CR", "DR"}))
    return found if at_most_one and len(found) == len(marks) and ("(" in found) == (")" in found) else None


def _sizes(core: str) -> set[str]:
    """What digits and marks may mean: with all marks between groups, and with the last one before decimals."""
    found = set()
    if _WHOLE.fullmatch(core):
        found.add(re.sub(r"\D", "", core))
    head, mark, decimals = re.fullmatch(r"(?:(.*)([.,·]))?(.*)", core).groups()  # type: ignore[union-attr]
    if mark and decimals.isdigit() and mark not in head and _WHOLE.fullmatch(head):
        found.add(re.sub(r"\D", "", head) + "." + decimals)
    return found


def _numeric(text: str) -> Iterator[tuple[str, str, str]]:
    """Year, month, day of each order that the lengths allow."""
    if together := re.fullmatch(r"\d{8}", text):
        whole = together[0]
        yield whole[:4], whole[4:6], whole[6:]
        yield whole[4:], whole[2:4], whole[:2]
        yield whole[4:], whole[:2], whole[2:4]
    elif parted := _NUMERIC.fullmatch(text):
        first, _, second, third = parted.groups()
        yield third, second, first
        yield third, first, second
        yield first, second, third


def _worded(text: str) -> Iterator[tuple[str, str, str]]:
    """The same with the month's name; a year before it has four digits."""
    parts = [part for part in re.findall(r"\d+|[a-z]+", text) if part not in _FILLERS]
    if len(parts) != 3 or not _WORDED.fullmatch(text):
        return
    first, second, third = parts
    for month in _MONTHS.get(second, ()):
        yield third, str(month), first
        if len(first) == 4:
            yield first, str(month), third
    for month in _MONTHS.get(first, ()):
        yield third, str(month), second


def _day(year: str, month: str, day: str) -> date | None:
    if len(year) not in (2, 4) or len(month) > 2 or len(day) > 2 or not (year + day).isdigit():
        return None
    full = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= PIVOT else 2000)
    try:
        return date(full, int(month), int(day)) if full in YEARS else None
    except ValueError:
        return None
