"""Where a value stands in a text: letter for letter, or but for case, blanks, punctuation and what OCR mistakes.

There is no edit distance. Each letter and digit of the value has its own in the text: the same, or one that OCR takes
for it, and that only where the text's is the odd one among its neighbours and the value's is not: a text's 1O.00 may
be 10.00, but no text's 10.00 is a value 1O.00. Knows nothing of dates and amounts.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter

from models.normal import ALIKE, PAIRS, Form, Place

MOST = 1_000  # places of a value that are looked at
STEPS = 20_000  # characters that are compared for a value, but for the last place, so that no text makes it slow
SHORT = 3  # with fewer letters and digits a value stands only where its own text does
WORD = 6  # from so many on a blank may be lost or put in: "area" is not in "are a"
GROUPED = 9  # from so many digits on, more than a date has, blanks and dashes only group them: telephone, account, IBAN
NAME = 32  # and in names of letters and digits up to this length: CF-77 305
_AMBIGUOUS = "".join(ALIKE.values())
_FLAT = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-") | {",": "."})
_EMPTY = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]")
_BROKEN = re.compile(r"-[ \t]*\r?\n\s*")


def copies(text: Form, value: str) -> list[Place]:
    """Where the value's own text stands as a piece of its own; MOST at most."""
    loose, steps = _figured(value), STEPS
    found: list[Place] = []
    start = text.text.find(value)
    while start >= 0 and len(found) < MOST and steps > 0:
        end, steps = start + len(value), steps - 1 - len(value) // 8
        if rank := text.room(start, end, loose):
            found.append(Place(start, end, rank))
            start = end
        else:
            start = start + 1 if text.edge(start) else max(text.past(start), start + 1)
        start = text.text.find(value, start)
    return found


def likenesses(text: Form, value: str) -> list[Place]:
    """Where it stands in another form: the places with the fewest look-alikes; MOST at most."""
    wanted, loose, steps = Form(value), _figured(value), STEPS
    found: list[tuple[int, Place]] = []
    bone = text.skeleton.find(wanted.skeleton) if len(wanted.signs) >= SHORT else -1
    while bone >= 0 and len(found) < MOST and steps > 0:
        first, steps = text.sign(bone), steps - 1 - len(value) // 8
        bone += 1
        if first is not None and text.edge(text.origin[first]):
            end, swaps = _compare(wanted, text, first)
            steps -= end - first
            start, last = text.origin[first], text.origin[end - 1]
            whole = end == len(text.signs) or text.origin[end] > last
            if swaps is not None and whole and (rank := text.room(start, last + 1, loose)):
                found.append((swaps, _widen(wanted, text.text, Place(start, last + 1, rank))))
        elif first is not None:
            bone = max(bone, text.bone(text.past(text.origin[first])))
        bone = text.skeleton.find(wanted.skeleton, bone)
    fewest = min((swaps for swaps, _ in found), default=0)
    return [place for swaps, place in found if swaps == fewest]


def _widen(value: Form, text: str, place: Place) -> Place:
    """With the marks around the value, where the same are around the place."""
    ahead, behind = value.text[: value.origin[0]], value.text[value.origin[-1] + 1 :]
    start = place.start - len(ahead) * text.endswith(ahead, 0, place.start)
    return Place(start, place.end + len(behind) * text.startswith(behind, place.end), place.rank)


def _figured(value: str) -> bool:
    """Whether digits and marks give it a form, as an amount's or a date's, that a letter beside it does not blur."""
    return re.search(r"\d[.,/:-]\d", value) is not None


def _compare(value: Form, text: Form, first: int) -> tuple[int, int | None]:
    """How far in the text it went, and how many look-alikes it met; None: the value is not there."""
    mine, theirs = 0, first
    swapped: list[int] = []
    while mine < len(value.signs):
        if mine and not _joins(value, mine, text, theirs):
            return theirs + 1, None
        taken, passed = 1, 1
        if value.signs[mine].casefold() != text.signs[theirs].casefold():
            taken, passed = _swap(value, mine, text, theirs)
            if not taken:
                return theirs + 1, None
            swapped += range(mine, mine + taken)
        mine, theirs = mine + taken, theirs + passed
    left = Counter(value.words) - Counter(value.words[index] for index in swapped) if swapped else Counter()
    # A word that is look-alikes only is another: 505 is not SOS.
    return theirs, len(swapped) if all(left[value.words[index]] for index in swapped) else None


def _swap(value: Form, mine: int, text: Form, theirs: int) -> tuple[int, int]:
    """How many signs of the value and of the text look alike here; 0, 0: these may not be taken for each other."""
    own, other = value.signs[mine], text.signs[theirs]
    before, behind = value.before(mine), value.behind(mine)
    first, last = _word(value, mine)
    size = last - first
    if size > SHORT and PAIRS.get(own) == other + text.behind(theirs):
        return 1, 2
    if size > SHORT and PAIRS.get(other) == own + behind:
        return 2, 1
    if not any(own in signs and other in signs for signs in ALIKE.values()):
        return 0, 0
    if own.isalpha() and other.isalpha():  # I and l: capitals begin words or follow capitals
        fits = not before or before.isupper() if own == "I" else (before or behind).islower()
    else:
        beside = [sign for sign in text.before(theirs) + text.behind(theirs) if sign not in _AMBIGUOUS]
        against = sum(sign.isdecimal() == other.isdecimal() for sign in beside)
        fits = sum(sign.isdecimal() == own.isdecimal() for sign in before + behind) >= max(1, against)
    # At the end of a short word it may be meant: 12S, 5l, A1. O is no unit, and few names begin with a digit.
    sure = first < mine < last - 1 or size > SHORT or other in "Oo"
    return (1, 1) if fits and (sure or (own.isalpha() and not before and len(value.signs) >= WORD)) else (0, 0)


def _joins(value: Form, mine: int, text: Form, theirs: int) -> bool:
    """Whether what stands before two signs, in the value and in the text, means the same."""
    gaps = [value.gap(mine), text.gap(theirs)]
    if gaps[0] == gaps[1]:
        return True
    around = value.signs[mine - 1 : mine + 1]
    ours, other = (_EMPTY.sub("", gap.translate(_FLAT)) for gap in gaps)
    blank, blanks = (any(map(str.isspace, gap)) for gap in gaps)
    if around.isdecimal():
        if blank and blanks:  # two numbers: the mark that ends the first may be lost
            return ours.strip(".;:") == other.strip(".;:")
        listed = blanks and gaps[1][0] in ".,"  # "1. 50" is not 1.50, but "1 .50" may be
        same = ours == other and (ours != "" or blank == blanks) and not listed
        return same or ("." not in ours + other and _grouped(value, mine))
    if around.isalpha() and blank != blanks:
        return len(value.signs) >= WORD or (
            ours in ("", "-") and _BROKEN.fullmatch(gaps[1].translate(_FLAT)) is not None
        )
    return True


def _grouped(value: Form, mine: int) -> bool:
    """Whether a digit belongs to a long number, or to a long name of letters and digits, which blanks do not change."""
    middle = value.origin[mine]
    left = re.search(r"[\d\s/-]*$", value.text[max(0, middle - 2 * GROUPED) : middle].translate(_FLAT))
    right = re.match(r"[\d\s/-]*", value.text[middle : middle + 2 * GROUPED].translate(_FLAT))
    if sum(sign.isdecimal() for side in (left, right) if side for sign in side[0]) >= GROUPED:
        return True
    first, last = _word(value, mine)
    name = value.text[value.origin[first] : value.origin[last - 1] + 1] if WORD <= last - first <= NAME else ""
    return any(map(str.isalpha, name)) and re.search(r"\d[.,]\d", name) is None


def _word(value: Form, mine: int) -> tuple[int, int]:
    """The first sign between the blanks around this one, and the one behind the last."""
    word = value.words[mine]
    return bisect_left(value.words, word), bisect_right(value.words, word)
