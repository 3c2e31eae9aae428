"""Where the values stand that several windows have given, and which of them are one and the same.

Knows answers, the evidence for them and which text two windows share; no model and no schema.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from models import evidence
from models.evidence import Evidence
from models.reading import number
from models.schema.dialect import escape
from models.windows import Window

EDGE = 64  # characters, none a letter or digit, that may lie between a value and the edge that it is cut by
CELL = 64  # characters


@dataclass(frozen=True)
class Reading:
    """The answer to one window; by pointer the evidence, with places in the caller's pages, and the confidence."""

    window: Window
    value: Any
    evidence: Mapping[str, Evidence]
    confidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """A value in the answer to the window of this number."""

    window: int
    pointer: str
    value: Any

    def member(self, step: str | int) -> "Given":
        """The property of this name, the item of this index."""
        return Given(self.window, f"{self.pointer}/{escape(str(step))}", self.value[step])

    @cached_property
    def canonical(self) -> Any:
        """What equal values have in common; it can be hashed."""
        return _canonical(self.value)


class Leaf(NamedTuple):
    """A scalar that stands in the text; its pointer from the value that it is in, and whether an array lies between."""

    pointer: str
    listed: bool
    page: int
    start: int
    end: int
    value: Any
    candidates: int

    @property
    def key(self) -> "Value":
        return self.pointer, _canonical(self.value)

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.end

    def meets(self, other: "Leaf") -> bool:
        return self.page == other.page and self.start < other.end and other.start < self.end


Value = tuple[str, Any]  # a leaf's pointer, and what equal values there have in common


class Bound(NamedTuple):
    """How many elements with some value are in both arrays; at how many places it stands that both windows show, and
    at how many outside that in each."""

    least: int
    most: int
    both: int
    outside: tuple[int, int]

    def less(self, used: int) -> "Bound":
        return Bound(self.least - used, self.most - used, self.both - used, self.outside)


class Sightings:
    """The answers to all windows of some pages, in their order."""

    def __init__(self, readings: Sequence[Reading], pages: Sequence[str]) -> None:
        self._readings = readings
        self._pages = pages
        self._leaves: dict[tuple[int, str], list[Leaf]] = {}
        self._shared: dict[int, evidence.Document] = {}

    def leaves(self, given: Given) -> list[Leaf]:
        """All scalars in a value that stand in its window's text; of a scalar at most itself."""
        key = given.window, given.pointer
        if key not in self._leaves:
            self._leaves[key] = list(self._walk(given, "", False))
        return self._leaves[key]

    def _walk(self, given: Given, pointer: str, listed: bool) -> Iterator[Leaf]:
        if isinstance(given.value, dict | list):
            inside = isinstance(given.value, list)
            for step in range(len(given.value)) if inside else given.value:
                inner = given.member(step)
                yield from self._walk(inner, pointer + inner.pointer[len(given.pointer) :], listed or inside)
            return
        found = self._readings[given.window].evidence.get(given.pointer)
        if found is not None and found.start is not None and found.end is not None:
            place = found.page or 0, found.start, found.end
            yield Leaf(pointer, listed, *place, given.value, found.candidates)

    def cells(self, given: Given) -> set[tuple[int, int]]:
        """Stretches of text; values that meet have one in common."""
        return {
            (leaf.page, cell)
            for leaf in self.leaves(given)
            for cell in range(leaf.start // CELL, (leaf.end - 1) // CELL + 1)
        }

    def is_cut(self, given: Given, other: Given) -> bool:
        """Whether the edge of a scalar's window has taken a part of it that another window shows."""
        for mine in self.leaves(given):
            left, right = self._edges(given.window, mine)
            for whole in self.leaves(other):
                inside = mine.page == whole.page and whole.start <= mine.start and mine.end <= whole.end
                if inside and ((left and whole.start < mine.start) or (right and mine.end < whole.end)):
                    return True
        return False

    def is_doubtful(self, given: Given, all_given: Sequence[Given]) -> bool:
        """Whether a scalar is at the edge of its window, and no other that is not ends there as well: it may be cut."""
        for mine in self.leaves(given):
            for side, at_edge in enumerate(self._edges(given.window, mine)):
                others = ((other.window, leaf) for other in all_given for leaf in self.leaves(other))
                if at_edge and not any(
                    (leaf.page, leaf.span[side]) == (mine.page, mine.span[side]) and not self._edges(window, leaf)[side]
                    for window, leaf in others
                ):
                    return True
        return False

    def _edges(self, window: int, leaf: Leaf) -> tuple[bool, bool]:
        """Whether it stands where its window, but not the document, begins, or ends; and nowhere else in it."""
        pieces, more = self._readings[window].window.pieces, window < len(self._readings) - 1
        first, last, alone = pieces[0], pieces[-1], leaf.candidates == 1
        left = alone and window > 0 and leaf.page == first.page and self._is_bare(leaf.page, first.start, leaf.start)
        return left, alone and more and leaf.page == last.page and self._is_bare(leaf.page, leaf.end, last.end)

    def _is_bare(self, page: int, start: int, end: int) -> bool:
        return end - start <= EDGE and re.search(r"[^\W_]", self._pages[page][start:end]) is None

    def likeness(self, before: Given, after: Given) -> tuple[int, int]:
        """How many of their values two elements of neighbours have at one place, how many at two.

        Those at two count only where one window shows the other's place and says otherwise, and in no inner array, as
        its elements may be numbered otherwise. Only values that stand at one place alone count, if there are any: of
        others the place is a guess.
        """
        mine, theirs = (_firm(self.leaves(each)) for each in (before, after))
        one = sum(any(leaf.meets(other) for other in theirs) for leaf in mine)
        named = {leaf.pointer: leaf for leaf in theirs if not leaf.listed}
        apart = [(leaf, named[leaf.pointer]) for leaf in mine if leaf.pointer in named]
        shown = [pair for pair in apart if self._shows(after.window, pair[0]) or self._shows(before.window, pair[1])]
        return one, sum(not leaf.meets(other) for leaf, other in shown)

    def _shows(self, window: int, leaf: Leaf) -> bool:
        return self._readings[window].window.holds(leaf.page, leaf.start, leaf.end)

    def are_one(self, before: Given, after: Given) -> bool:
        """Whether more speaks for two elements of neighbours being one than being two, and no guess."""
        one, two = self.likeness(before, after)
        firm = [any(leaf.candidates == 1 for leaf in self.leaves(each)) for each in (before, after)]
        return one > two and all(firm)

    def is_before(self, one: Given, other: Given) -> bool:
        """Whether the text has it before the other, as far as that is no guess."""
        starts = [
            [(leaf.page, leaf.start) for leaf in self.leaves(each) if leaf.candidates == 1] for each in (one, other)
        ]
        return all(starts) and min(starts[0]) < min(starts[1])

    def values(self, given: Given) -> list[Value]:
        """Those of an element that stand in the text, but those in its inner arrays if it has others."""
        leaves = self.leaves(given)
        return [leaf.key for leaf in leaves if not leaf.listed] or [leaf.key for leaf in leaves]

    def bounds(self, before: Sequence[Given], after: Sequence[Given]) -> dict[Value, Bound]:
        """For each value of the elements of two neighbours' arrays, how many of those have it that are in both.

        Each value of an array stands at a place of its own, and what one window names in the text that both show, the
        other does.
        """
        named: list[dict[Value, list[Leaf]]] = [{}, {}]
        for side, elements in enumerate((before, after)):
            for leaf in (leaf for each in elements for leaf in self.leaves(each)):
                named[side].setdefault(leaf.key, []).append(leaf)
        window = before[0].window
        return {
            value: self._bound(window, named[0].get(value, []), named[1].get(value, []))
            for value in {value for each in (*before, *after) for value in self.values(each)}
        }

    def _bound(self, window: int, mine: list[Leaf], theirs: list[Leaf]) -> Bound:
        both = self._both(window, mine, theirs)
        outside = [leaves[0].candidates - both if leaves else 0 for leaves in (mine, theirs)]
        inside = [max(0, len(each) - out) for each, out in zip((mine, theirs), outside, strict=True)]
        # Where both name it they may still mean two places, unless there is none for both.
        least = max(0, sum(inside) - both) if mine and theirs else max(inside)
        return Bound(least, min(len(mine), len(theirs), both), both, (outside[0], outside[1]))

    def _both(self, window: int, mine: list[Leaf], theirs: list[Leaf]) -> int:
        """At how many places that a window and the next one show a value stands."""
        sides = (mine[:1], window + 1), (theirs[:1], window)
        known = [self._shows(beyond, leaf) for leaves, beyond in sides for leaf in leaves if leaf.candidates == 1]
        if known:
            return int(all(known))
        if window not in self._shared:
            self._shared[window] = evidence.Document(self._overlap(window))
        found = evidence.locate(self._shared[window], (mine or theirs)[0].value)
        return sum(each.candidates for each in found)

    def _overlap(self, window: int) -> list[str]:
        before, after = (self._readings[each].window for each in (window, window + 1))
        pages = {piece.page: piece for piece in after.pieces}
        shared = [(piece, pages[piece.page]) for piece in before.pieces if piece.page in pages]
        return [self._pages[one.page][max(one.start, two.start) : min(one.end, two.end)] for one, two in shared]


def _firm(leaves: list[Leaf]) -> list[Leaf]:
    return [leaf for leaf in leaves if leaf.candidates == 1] or leaves


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return "object", frozenset((name, _canonical(inner)) for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return "array", tuple(map(_canonical, value))
    if isinstance(value, str):
        return "string", " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, bool) or value is None:
        return "constant", value
    return "number", number(value) or value
