"""A document too long for the model as windows that are not, each of them places in the caller's own pages.

Knows tokens only by a function that counts them, and nothing of questions and answers.

Neighbours overlap by an eighth of a window, or LINES lines where that is more: what one window's end cuts in two, a
value or a row of a table with its continuation lines, is whole in the next unless it is longer than that. An overlap is
at most half of a window, in characters and in tokens, so that each has something new; no text is in three windows.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import regex

from models.failure import Failure

MOST = 64  # windows
LEAST = 64  # tokens of document that a window has room for: with fewer nothing would be read in its context
SHARE = 8  # of a window, an eighth: the least overlap, and where its end is looked for
CAP = 3  # of a window, a third: the most that is asked for, as looking for a good place takes up to half as much again
LINES = 3
SLACK = 32  # of its room, a 32nd may be left unused: the search for the end costs an encoding each time
RATE = 3.0  # characters a token before anything is known
NEAR = 128  # characters around a place from which its clusters are told
GUESSES = 4

LINE = regex.compile(r"\r?\n|[\r\f\x85\u2028\u2029]")
# The places to cut behind, best first; better than all is the end of a page.
ENDS = [
    regex.compile(r"\n[ \t\r]*\n\s*"),
    LINE,
    regex.compile(r"[.!?\u2026][\"'\u2019\u201d\u00bb)\]]*\s+|[\u3002\uff01\uff1f]"),
    regex.compile(r"\s+"),
]
CLUSTER = regex.compile(r"\X")


@dataclass(frozen=True)
class Piece:
    """page[start:end] of the caller's page number `page`; offsets count code points."""

    page: int
    start: int
    end: int

    def text(self, pages: Sequence[str]) -> str:
        return pages[self.page][self.start : self.end]


@dataclass(frozen=True)
class Window:
    """Pages in a row but for empty ones, the first and the last perhaps in part; `number`: its index among windows."""

    number: int
    pieces: tuple[Piece, ...]

    def holds(self, page: int, start: int, end: int) -> bool:
        """Whether a place in the caller's pages is in the window as a whole."""
        return any(piece.page == page and piece.start <= start and end <= piece.end for piece in self.pieces)


Measure = Callable[[tuple[Piece, ...]], int]


def split(pages: Sequence[str], room: int, measure: Measure) -> list[Window]:
    """The windows over `pages`, in order; every character is in one of them, or in two that are neighbours.

    `measure` counts the tokens of the whole prompt with these pieces as its document (none: an empty one); for no
    window are they more than `room`. It is called some 4 times a window, rarely with more text than fits. Failure
    `context_length_exceeded` where the prompt alone leaves no room to speak of, and where MOST windows are not enough.
    """
    return _Splitter(pages, room, measure).windows()


class _Splitter:
    """Works on the pages as one text; places are offsets in it."""

    def __init__(self, pages: Sequence[str], room: int, measure: Measure) -> None:
        self._pages = pages
        self._text = "".join(pages)
        starts = accumulate(map(len, pages), initial=0)
        filled = [(number, start) for number, (page, start) in enumerate(zip(pages, starts, strict=False)) if page]
        self._numbers = [number for number, _ in filled]
        self._starts = [start for _, start in filled]
        self._room = room
        self._measure = measure
        self._alone = measure(())  # tokens of the prompt without its document
        self._rate = RATE

    def windows(self) -> list[Window]:
        if self._room - self._alone < LEAST:
            raise Failure(
                "context_length_exceeded",
                f"the prompt without its document has {self._alone} tokens; of the {max(self._room, 0)} there are "
                f"beside the answer, {LEAST} must be left for each part of the document",
            )
        found: list[Window] = []
        start = known = 0  # where the window begins, and where the one before it ended
        while True:
            end = self._end(start, known)
            found.append(Window(len(found), self._pieces(start, end)))
            if end == len(self._text):
                return found
            if len(found) == MOST or end <= known:
                raise Failure(
                    "context_length_exceeded",
                    f"the document takes more than {MOST} windows of {self._room - self._alone} tokens; "
                    f"{end} of its {len(self._text)} characters fit",
                )
            start, known = max(self._next(start, end), known), end

    def _pieces(self, start: int, end: int) -> tuple[Piece, ...]:
        first, last = bisect_right(self._starts, start) - 1, bisect_left(self._starts, end)
        pages = zip(self._numbers[first:last], self._starts[first:last], strict=True)
        return tuple(Piece(page, max(start - at, 0), min(end - at, len(self._pages[page]))) for page, at in pages)

    def _tokens(self, start: int, end: int) -> int:
        """Of the whole prompt with this part of the document."""
        return self._measure(self._pieces(start, end))

    def _end(self, start: int, known: int) -> int:
        """Where a window ends that begins at `start`; up to `known` its text is known to fit."""
        far = self._farthest(start, known)
        while far > known and far < len(self._text):
            low = max(known + (far - known + 1) // 2, far - (far - start) // SHARE)
            end = self._natural(low, far, known)
            if self._tokens(start, end) <= self._room:  # a part may have a token more than the whole
                return end
            far = end - 1
        return far

    def _farthest(self, start: int, known: int) -> int:
        """The last place up to which the text fits, or one close before it: by proportion, then by halves."""
        low, high = known, len(self._text)
        room = self._room - self._alone
        end = start + int(room * self._rate)
        guesses = 0
        while True:
            end = min(max(end, low + 1), high)
            used = self._tokens(start, end) - self._alone
            self._rate = (end - start) / max(used, 1)
            low, high = (end, high) if used <= room else (low, end - 1)
            if low >= high or room - room // SLACK <= used <= room:
                return low
            end = start + min(int(self._rate * (room - room // SLACK // 2)), (end - start) * 4)
            guesses += 1
            if guesses >= GUESSES and high < len(self._text):
                end = (low + high + 1) // 2

    def _next(self, start: int, end: int) -> int:
        """Where the window begins that follows start..end; not before the middle of that, in characters and tokens."""
        lines = [found.end() for found in LINE.finditer(self._text, start, end)][-LINES - 1 :]
        longest = end - lines[0] if len(lines) > LINES else 0
        back = min(max((end - start) // SHARE, longest), (end - start) // CAP)
        while True:
            place = self._natural(end - back - back // 2, end - back, start)
            if self._tokens(place, end) - self._alone <= (self._room - self._alone) // 2:
                return place
            back //= 2

    def _natural(self, low: int, high: int, floor: int) -> int:
        """The best place to cut at from `low` to `high`; where there is none, the last behind `floor` that is in no
        character cluster. Only one longer than NEAR, or than what is behind `floor`, is cut in two."""
        page = self._starts[bisect_right(self._starts, high) - 1]
        if page >= low:
            return page
        for pattern in ENDS:
            for found in reversed(list(pattern.finditer(self._text, low, high))):
                if found.end() in self._borders(found.end()):
                    return int(found.end())
        return max((place for place in self._borders(high) if floor < place <= high), default=high)

    def _borders(self, place: int) -> list[int]:
        """Where the character clusters around `place` end."""
        start = max(place - NEAR, 0)
        clusters: list[str] = CLUSTER.findall(self._text, start, place + NEAR)
        return [start + length for length in accumulate(map(len, clusters))]
