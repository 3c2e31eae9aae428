"""A text reduced to its letters and digits, each with its place in the original, and where it is parted into words.

Blanks, punctuation and Unicode's several forms of one letter (composed, ligatures, full width) are gone; so are, but
in `skeleton` only, case and the difference between what OCR takes for each other. Knows no values.
"""

import re
import unicodedata
from bisect import bisect_left
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

# Scripts written without blanks, or with endings joined to the word: any place in them may be an edge.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_RUN = re.compile("[am]+|9+|.", re.DOTALL)
ALIKE = {"o": "0Oo", "l": "1lI|", "s": "5Ss", "b": "8B", "z": "2Zz"}  # what OCR takes for each other
PAIRS = {"m": "rn", "w": "vv"}  # and for two


class Place(NamedTuple):
    """Offsets, and how well the place is set off: 3 or 2 as Form.edge has it."""

    start: int
    end: int
    rank: int


class _Kinds(dict[int, str]):
    """For str.translate: a letter, 9 digit, m mark on what is before, x edged on both sides, a blank for the rest."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        category = unicodedata.category(sign)
        kind = {"M": "m", "L": "a", "N": "a"}.get(category[0], " ")
        if category == "Nd":
            kind = "9"
        elif category == "No" or (kind == "a" and _UNSPACED.match(sign)):
            kind = "x"
        elif "\ufe00" <= sign <= "\ufe0f":  # a mark that only says how an emoji is drawn
            kind = " "
        self[code] = kind
        return kind


class _Folds(dict[str, str]):
    """The letters, digits and marks that a character is made of, case kept; none for the rest."""

    def __missing__(self, sign: str) -> str:
        whole = sign if unicodedata.category(sign) == "No" else unicodedata.normalize("NFKD", sign)  # 10² is not 102
        parts = "".join(part if len(part.casefold()) == 1 else part.casefold() for part in whole)
        self[sign] = "".join(part for part in parts if part == "|" or _KINDS[ord(part)] != " ")
        return self[sign]


class _Skeletons(dict[str, str]):
    """One form of all that may be taken for each other."""

    def __missing__(self, sign: str) -> str:
        small = sign.casefold()
        found = next((name for name, signs in ALIKE.items() if small in signs.casefold()), small)
        self[sign] = PAIRS.get(found, found)
        return self[sign]


_KINDS, _FOLDS, _SKELETONS = _Kinds(), _Folds(), _Skeletons()


class Form:
    """A text with its letters and digits (`signs`), where in it each stands (`origin`), and their `skeleton`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._kinds = text.translate(_KINDS)
        # A bar between blanks or bars parts the cells of a table; beside a letter or digit it may be one.
        folds = map(_FOLDS.__getitem__, re.sub(r"(?<!\w)\|(?!\w)", " ", text))
        folded = [(sign, place) for place, whole in enumerate(folds) for sign in whole]
        self.signs = "".join(sign for sign, _ in folded)
        self.origin = [place for _, place in folded]
        bones = [_SKELETONS[sign] for sign in self.signs]
        self.skeleton = "".join(bones)
        self._at = [0, *accumulate(map(len, bones))]

    def edge(self, place: int) -> int:
        """How well the text is parted here.

        3: well; 2: what is here is a part of something longer, as in 12|/05 and A-|12; 1: letter and digit meet; 0: not
        at all, which is also within numbers: 1|,234.
        """
        if place in (0, len(self.text)):
            return 3
        before, after = self._kinds[place - 1], self._kinds[place]
        if after == "m" and before != " ":
            return 0
        before, after = before.replace("m", "a"), after.replace("m", "a")
        if "x" in (before, after) or before == after == " ":
            return 3
        if " " not in (before, after):
            return int(before != after and not self._zero(place - (after == "9")))
        return self._joint(place - 1, before == " ", (before + after).strip())

    def _joint(self, place: int, ahead: bool, inner: str) -> int:
        """The same where `inner`, a letter or digit, meets neither; `ahead`: the other one, at `place`, comes first."""
        joint, beyond = (place, place - 1) if ahead else (place + 1, place + 2)
        mark, outer = self.text[joint], self._kinds[beyond : beyond + 1].replace("m", "a") if beyond >= 0 else ""
        if inner == outer == "9" and mark in ".,'\u2019":
            return 0
        return 2 if outer in ("a", "9") and mark in ("-/_@.:'\u2019&" if outer == inner else "-/_@") else 3

    def _zero(self, place: int) -> bool:
        """Whether this letter beside a digit is alone and drawn like one: 62.0O is no 62.0."""
        alone = "a" not in self._kinds[max(0, place - 1) : place] + self._kinds[place + 1 : place + 2]
        return alone and self.text[place] in "OoI"

    def room(self, start: int, end: int, loose: bool) -> int:
        """How well a place is set off, 3 or 2 as above, 0: not; `loose`: letters may touch its digits, as in RM1.38."""
        rank = min(3 if loose and edge == 1 else edge for edge in (self.edge(start), self.edge(end)))
        return rank if rank > 1 else 0

    def past(self, place: int) -> int:
        """The end of the run of letters or of digits that `place` is in."""
        run = _RUN.match(self._kinds, place)
        return run.end() if run else place

    def sign(self, bone: int) -> int | None:
        """Which sign begins here in the skeleton, if it also begins a character of the text."""
        index = bisect_left(self._at, bone)
        whole = index == 0 or self.origin[index - 1] != self.origin[index]
        return index if self._at[index] == bone and whole else None

    def bone(self, place: int) -> int:
        """Where in the skeleton that begins which stands at `place` or behind it."""
        return self._at[bisect_left(self.origin, place)]

    def gap(self, index: int) -> str:
        """What stands before a sign, back to the sign before it."""
        return self.text[self.origin[index - 1] + 1 : self.origin[index]]

    def before(self, index: int) -> str:
        """The sign that touches this one in front, or nothing."""
        return self.signs[index - 1] if index and not self.gap(index) else ""

    def behind(self, index: int) -> str:
        return self.signs[index + 1] if index + 1 < len(self.signs) and not self.gap(index + 1) else ""

    @cached_property
    def words(self) -> list[int]:
        """For each sign, the number of the piece between blanks that it is in."""
        ends = [found.end() for found in re.finditer(r"\S+", self.text)]
        return [bisect_left(ends, place + 1) for place in self.origin]
