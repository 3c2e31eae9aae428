"""Turn markers that a tokenizer takes for plain text, and what looks like one: broken, so that no text forges a turn.

`guard` puts one word joiner, U+2060, behind the first character of each marker and of all that looks like one (other
case, other forms of the letters, Greek and Cyrillic twins, blanks or invisible characters between them), so "[INST]"
becomes "[" + U+2060 + "INST]". A text that holds joiners there gets one more, `unguard` takes one away: every text
comes back as it was.
"""

import re
import unicodedata
from functools import cache

JOINER = "\u2060"
# Letters of other scripts and signs that are drawn like those of the markers (Unicode TR 39, a choice).
TWINS = {
    "i": "\u0399\u03b9\u0406\u0456\u04c0\u04cf\u01c0|l1",
    "n": "\u039d\u0578\u057c",
    "s": "\u0405\u0455\u054f\ua731",
    "t": "\u03a4\u03c4\u0422\u0442\u1d1b",
    "y": "\u03a5\u03c5\u0423\u0443\u04ae\u04af",
    "[": "\u2045\u27e6\u2772\u3010\u3014\u301a",
    "]": "\u2046\u27e7\u2773\u3011\u3015\u301b",
    "<": "\u2039\u2329\u276c\u276e\u27e8\u3008",
    ">": "\u203a\u232a\u276d\u276f\u27e9\u3009",
    "/": "\u2044\u2215\u29f8\u2571",
}
# Where Unicode keeps other forms of ASCII: super- and subscripts, letter-like, enclosed, full-width, mathematical.
FORMS = [(0x20, 0x2FF), (0x1D00, 0x1DBF), (0x2000, 0x2BFF), (0x3200, 0x33FF), (0xFE10, 0xFFEF), (0x1D400, 0x1F1FF)]


def guard(text: str, markers: tuple[str, ...]) -> str:
    """Break every turn marker, and what looks like one, by a word joiner; `unguard` undoes it exactly."""
    return _shift(text, markers, 1)


def unguard(text: str, markers: tuple[str, ...]) -> str:
    """Take away what `guard` put in."""
    return _shift(text, markers, -1)


def _shift(text: str, markers: tuple[str, ...], by: int) -> str:
    if not markers:
        return text
    return _pattern(markers).sub(lambda found: found[1] + JOINER * max(len(found[2]) + by, 0), text)


@cache
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    """The first character of a marker, the joiners behind it; the rest is only looked at.

    Between any two characters unseen ones may stand, so joiners put in elsewhere never make or break a match. All
    repeats are possessive: the time is linear in the text.
    """
    alternatives = []
    for marker in markers:
        first, *rest = (_forms(character) for character in marker)
        body = "".join(f"{_unseen()}*+{forms}" for forms in rest)
        alternatives.append(f"{first}(?={JOINER}*+{body})")
    return re.compile(f"({'|'.join(alternatives)})({JOINER}*+)")


@cache
def beginning(markers: tuple[str, ...]) -> re.Pattern[str]:
    """What ends a text and may come to be a marker that is broken by joiners: its first character, joiners, and as much
    of the rest as is there."""
    alternatives = []
    for marker in markers:
        first, *rest = (_forms(character) for character in marker)
        body = ""
        for forms in reversed(rest[:-1]):
            body = f"(?:{forms}{_unseen()}*+{body})?+"
        alternatives.append(f"{first}(?:{JOINER}{_unseen()}*+{body})?+\\Z")
    return re.compile("|".join(alternatives))


@cache
def _forms(character: str) -> str:
    """A character class of all that Unicode calls a form of `character`, in either case."""
    wanted = character.casefold()
    ranges = (chr(number) for start, end in FORMS for number in range(start, end + 1))
    found = [form for form in ranges if unicodedata.normalize("NFKC", form).casefold() == wanted]
    return f"[{''.join(re.escape(form) for form in (*found, *TWINS.get(wanted, '')))}]"


@cache
def _unseen() -> str:
    """A character class of blanks, control and format characters, combining marks, and fillers that show nothing."""
    fillers = "\u115f\u1160\u2800\u3164\uffa0"
    hidden = [
        chr(number)
        for start, end in ((0, 0x1FFFF), (0xE0000, 0xE01FF))
        for number in range(start, end + 1)
        if unicodedata.category(chr(number)) in ("Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp") or chr(number) in fillers
    ]
    return f"[{''.join(re.escape(character) for character in hidden)}]"
