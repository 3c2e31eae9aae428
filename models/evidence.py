"""Where each value of an answer stands in the document, or that it does not. Knows no schema and no model.

Null, true, false and blank strings have no evidence, as no place bears them. A string is looked for as it is, then by
what it means if it is a date or an amount, then as models/likeness.py has it; a JSON number by what it means.
Evidence says that a value stands there, not that the place is the right one of those that bear it.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

from models.likeness import MOST, copies, likenesses
from models.normal import Form, Place
from models.printed import Printed
from models.reading import number

FAR = 200  # letters and digits beyond which a word is not the label of a value
BEHIND = 20  # so many farther away counts a label that follows its value

Span = tuple[int, int]

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Evidence:
    """One scalar of the answer and the place that bears it.

    `text` is page[start:end] exactly; offsets count code points. `page` is None for a document of one string; it,
    `start`, `end` and `text` are None for what is absent. `candidates`: how many places bear the value equally well,
    up to likeness.MOST.
    """

    pointer: str
    value: Any
    page: int | None
    start: int | None
    end: int | None
    text: str | None
    match: Literal["exact", "normalised", "absent"]
    candidates: int


class Document:
    """One string, or a list of pages; read once, so that many values are found fast."""

    def __init__(self, pages: str | Sequence[str]) -> None:
        self._single = isinstance(pages, str)
        pages = [pages] if isinstance(pages, str) else pages
        self._starts = [0, *accumulate(len(page) + 1 for page in pages)]
        self._form = Form("\f".join(pages))
        self._printed = Printed(self._form)
        self.places = lru_cache(1024, typed=True)(self._places)
        self.label = lru_cache(1024)(self._label)

    def _places(self, value: str | int | float | Decimal) -> list[Place]:
        """Where a value stands, everywhere equally well: what the first way finds that finds anything."""
        return next((best for places in self._ways(value) if (best := self._best(places))), [])

    def _ways(self, value: str | int | float | Decimal) -> Iterator[list[Place]]:
        if isinstance(value, str):
            yield copies(self._form, value)
            yield self._printed.days(value)
            yield self._printed.sums(value)
        else:
            yield self._printed.amounts(value)
        for text in [value] if isinstance(value, str) else _spellings(value):
            yield [place for place in likenesses(self._form, text) if self._printed.bears(text, place)]

    def _best(self, places: list[Place]) -> list[Place]:
        """Those that are set off best, none of them across pages."""
        places = [place for place in places if place.end < self._starts[self._page(place) + 1]]
        rank = max((place.rank for place in places), default=0)
        return [place for place in places if place.rank == rank][:MOST]

    def _page(self, place: Place) -> int:
        return bisect_right(self._starts, place.start) - 1

    def evidence(self, pointer: str, value: Any, place: Place | None, candidates: int) -> Evidence:
        """What is said of a value that stands at a place, or nowhere."""
        if place is None:
            return Evidence(pointer, value, None, None, None, None, "absent", 0)
        page, text = self._page(place), self._form.text[place.start : place.end]
        start, end = place.start - self._starts[page], place.end - self._starts[page]
        match: Literal["exact", "normalised"] = "exact" if text == str(value) else "normalised"
        return Evidence(pointer, value, None if self._single else page, start, end, text, match, candidates)

    def span(self, start: int, end: int) -> Span:
        """A place in letters and digits, so that blanks and dots before a column are no distance."""
        return bisect_left(self._form.origin, start), bisect_left(self._form.origin, end)

    def _label(self, label: str) -> list[list[Span]]:
        """For each word of a label that the text has, where it stands, whole or cut short: Inv, Qty, Amt."""
        found = []
        for name in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", label)):
            word = name.casefold()
            cut = [short for short in self._short.get(word[0], ()) if short != word and _shortens(short, word)]
            found.append(sorted(span for each in (word, *cut) for span in self._words.get(each, ())))
        return [spans for spans in found if spans]

    @cached_property
    def _words(self) -> dict[str, list[Span]]:
        found = defaultdict(list)
        for word in re.finditer(r"[^\W\d_]+", self._form.text):
            found[word[0].casefold()].append(self.span(*word.span()))
        return found

    @cached_property
    def _short(self) -> dict[str, list[str]]:
        """By their first letter, the words that may be others cut short."""
        found = defaultdict(list)
        for word in self._words:
            if len(word) in (3, 4):
                found[word[0]].append(word)
        return found


def locate(document: Document, answer: Any, names: Mapping[str, Sequence[str]] | None = None) -> list[Evidence]:
    """The evidence for each string and number of an answer, in its order.

    Of places that bear a value equally well the one is chosen that is nearest, in a row of a list, to the other values
    of the row; else to the field's label: the last property's name on the pointer, or one of its `names`.
    """
    scalars = [(path, value) for path, value in _walk(answer) if _tells(value)]
    found = [document.places(value) for _, value in scalars]
    chosen: dict[int, Place] = {}
    near: dict[Path, list[int]] = defaultdict(list)  # of each row, where the values are that are chosen already
    for index in sorted(range(len(scalars)), key=lambda each: len(found[each])):  # first what is certain
        path, row = scalars[index][0], _row(scalars[index][0])
        labels = [_label(path), *(names or {}).get(_pointer(path), ())]
        if found[index]:
            chosen[index] = _choose(document, found[index], labels, near[row])
            if row:
                insort(near[row], chosen[index].start)
    return [
        document.evidence(_pointer(path), value, chosen.get(index), len(found[index]))
        for index, (path, value) in enumerate(scalars)
    ]


def _choose(document: Document, places: Sequence[Place], labels: Sequence[str], near: Sequence[int]) -> Place:
    if len(places) == 1:
        return places[0]
    found = [words for label in labels if (words := document.label(label))]
    sums = [0, *accumulate(near)]  # a row may have thousands of values, and each thousands of places

    def far(place: Place) -> tuple[float, float, int]:
        """From what is chosen of the row; from the words of a label, on average."""
        span = document.span(place.start, place.end)
        label = min((sum(_reach(word, span) for word in words) / len(words) for words in found), default=0)
        left = bisect_left(near, place.start)
        row = sums[-1] - 2 * sums[left] + (2 * left - len(near)) * place.start
        return row, label, place.start

    return min(places, key=far)


def _reach(words: Sequence[Span], place: Span) -> int:
    """From the nearest of these words."""
    index = bisect_left(words, place)
    before = place[0] - words[index - 1][1] if index else FAR
    behind = words[index][0] - place[1] + BEHIND if index < len(words) else FAR
    return max(0, min(FAR, before, behind))


def _shortens(short: str, word: str) -> bool:
    """Some letters of the word, in their order."""
    letters = iter(word)
    return all(letter in letters for letter in short)


def _walk(answer: Any) -> Iterator[tuple[Path, Any]]:
    """Each scalar and the way to it, in order; without recursion, as deep as the answer is."""
    waiting: list[tuple[Path, Any]] = [((), answer)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*path, str(key)), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*path, index), inner) for index, inner in reversed(list(enumerate(value)))]
        else:
            yield path, value


def _tells(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else not isinstance(value, bool | None)


def _row(path: Path) -> Path:
    """The item of a list that a property belongs to; empty where it belongs to none."""
    ends = [end for end in range(1, len(path)) if isinstance(path[end - 1], int)]
    return path[: ends[-1]] if ends else ()


def _label(path: Path) -> str:
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _pointer(path: Path) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _spellings(value: int | float | Decimal) -> list[str]:
    """A JSON number as it may be printed, where OCR has hidden it from models/printed.py."""
    exact = number(value)
    if exact is None or exact < 0:
        return []
    whole, _, decimals = f"{exact:f}".partition(".")
    full = decimals.ljust(2, "0")
    spellings = [f"{whole}.{decimals}", f"{whole}.{full}", f"{int(whole):,}.{full}"]
    return spellings if decimals else [whole, f"{int(whole):,}", *spellings[1:]]
