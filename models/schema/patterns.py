"""Regular expressions of ECMA-262, as JSON Schema has them, in the words of Rust's engine.

Where dialects differ in what a class holds (\\s, \\d, \\w), the answer must please them all: what may stand
there is what every one of ECMA, Python and Rust would take. Control characters that have no short escape in JSON are in
no class: with them llguidance lets quotes and backslashes through, and not even them. Knows nothing of schemas.
"""

import re
from collections.abc import Iterable
from itertools import accumulate

LAST = "\U0010ffff"
UNWRITTEN = r"\x00-\x07\x0b\x0e-\x1f"
KEPT = ((0x08, 0x0A), (0x0C, 0x0D), (0x20, ord(LAST)))  # all else
CONTROLLED = {"C", "Cc", "Other", "Control", "Any", "ASCII", "Assigned", "Common", "Zyyy"}  # properties they have
ANY = f"[^{UNWRITTEN}]"
BLANKS = "\t\n\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
NO_BLANKS = (
    "\x00-\x08\x0e-\x1f!-\x9f\u00a1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e"
    f"\u2060-\u2fff\u3001-{LAST}"
)
SURE_NO_BLANKS = NO_BLANKS.replace("\x00-\x08\x0e-\x1f!-\x9f", "\b!-\x84\x86-\x9f").replace(
    f"\u3001-{LAST}", f"\u3001-\ufefe\uff00-{LAST}"
)
# What stands for a class where it is asked for, and where it is ruled out: narrow and wide.
NARROW = {
    "d": "0-9",
    "D": r"\P{Nd}",
    "w": "0-9A-Za-z_",
    "W": r"\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\p{S}\p{Z}\x08\t\n\f\r\x7f-\x9f",
    "s": BLANKS,
    "S": SURE_NO_BLANKS,
}
WIDE = {
    "d": r"\p{Nd}",
    "D": rf"\x00-/:-{LAST}",
    "w": r"\p{L}\p{N}\p{M}\p{Pc}\u200c\u200d",
    "W": rf"\x00-/:-@\[-\^`\{{-{LAST}",
    "s": BLANKS + "\v\x1c-\x1f\x85\ufeff",
    "S": NO_BLANKS,
}
DOT = rf"[^\n\r{UNWRITTEN}]"  # without ECMA's U+2028 and U+2029, for which llguidance would be slow
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
SPECIAL = set("\\.+*?()|[]{}^$#&-~/")
TOKEN = re.compile(
    r"""(?P<class>\[(?:\\.|[^\]\\])*\])
      | (?P<escape>\\(?:u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|[pP]\{[A-Za-z_=]+\}|.))
      | (?P<group>\((?:\?(?::|P?<[A-Za-z_]\w*>))?(?!\?))
      | (?P<count>\{\d+(?:,\d*)?\}|[*+?]) (?P<lazy>\??) (?![+*?])
      | (?P<dot>\.)
      | (?P<plain>[)|^$]|[^\\\[(*+?])""",
    re.VERBOSE | re.DOTALL,
)
ATOM = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|[pP]\{[A-Za-z_=]+\}|.)|[^\\]", re.DOTALL)


def portable(pattern: str) -> str | None:
    """`pattern` for an engine of Rust's kind; None where it asks for more than linear time gives, or is ambiguous."""
    made, at = "", 0
    while at < len(pattern):
        if not (token := TOKEN.match(pattern, at)):
            return None
        text = token[0]
        if token["class"]:
            piece = _class(text[1:-1])
        elif token["escape"]:
            piece = _class(text) if text[1] in NARROW or text[1] in "pP" else _escape(text)
        elif token["group"]:
            piece = "(?:" if text != "(" else "("
        elif token["dot"]:
            piece = DOT
        else:
            piece = r"\{" if text == "{" else r"\}" if text == "}" else text
        if piece is None:
            return None
        made += piece
        at = token.end()
    return made


def other_than(words: Iterable[str], most: int | None = None) -> str:
    """A pattern of all strings but these and those with anything UNWRITTEN; of at most so many characters, or as many
    as they have in common with one of these."""
    return f"^(?:{_other({*words}, most)})$"


def _other(words: set[str], most: int | None) -> str:
    heads = sorted({word[0] for word in words if word})
    ways = [] if "" in words else [""]
    less = None if most is None else max(most - 1, 0)
    ways += [literal(head) + f"(?:{_other({word[1:] for word in words if word[:1] == head}, less)})" for head in heads]
    if most != 0:
        rest = f"{ANY}*" if less is None else f"{ANY}{{0,{less}}}"
        ways.append(f"[^{''.join(map(literal, heads))}{UNWRITTEN}]{rest}")
    return "|".join(ways)


def literal(text: str) -> str:
    """A pattern of this text alone; good in a class as well where it is one character."""
    return "".join("\\" + character if character in SPECIAL else character for character in text)


def _escape(text: str) -> str | None:
    """One character, or a class by property, that stands behind a backslash."""
    kind = text[1]
    if kind in "pP":
        return text if len(text) > 2 and text[3:-1].rpartition("=")[2] not in CONTROLLED else None
    if kind in "ux":
        number = int(text[2:].strip("{}"), 16) if len(text) > 2 else 0xD800
        return None if 0xD800 <= number < 0xE000 or number > 0x10FFFF else literal(chr(number))
    if kind in CONTROLS:
        return CONTROLS[kind]
    return None if kind.isalnum() else literal(kind)


def _class(body: str) -> str | None:
    """A class in brackets; those of Rust may hold others and be intersected, so whatever looks like that is literal."""
    negated = body.startswith("^")
    if not (atoms := _atoms(body[negated:], WIDE if negated else NARROW)):
        return None
    made, apart, at = "", [], 0
    while at < len(atoms):
        (text, single), dash, end = atoms[at], atoms[at + 1 : at + 2], atoms[at + 2 : at + 3]
        at += 1
        if single:
            last = text
            if dash == [("-", True)] and end and end[0][1]:
                last = end[0][0]
                at += 2
            if last[-1] < text[-1]:
                return None
            made += _range(text[-1], last[-1])
        elif text.startswith(r"\P") and not negated:
            apart.append(rf"[^\p{text[2:]}{UNWRITTEN}]")
        else:
            made += text
    if negated:
        return f"[^{made}{UNWRITTEN}]"
    ways = [f"[{made}]"] * bool(made) + apart
    return f"(?:{'|'.join(ways)})" if len(ways) > 1 else "".join(ways) or None


def _atoms(inside: str, named: dict[str, str]) -> list[tuple[str, bool]]:
    """What stands in brackets, and whether it is one character, which may begin or end a range; none where any of it
    is not known."""
    atoms: list[tuple[str, bool]] = []
    for text in ATOM.findall(inside):
        if text[0] != "\\":
            atoms.append((text if text == "-" else literal(text), True))
        elif text[1:] in named:
            atoms.append((named[text[1:]], False))
        elif (piece := "\x08" if text == r"\b" else _escape(text)) is None:
            return []
        else:
            atoms.append((piece, text[1] not in "pP"))
    return atoms


def _range(first: str, last: str) -> str:
    """The characters from `first` to `last` that are not UNWRITTEN."""
    parts = [(max(ord(first), low), min(ord(last), high)) for low, high in KEPT]
    ends = [(literal(chr(low)), literal(chr(high))) for low, high in parts if low <= high]
    return "".join(low if low == high else f"{low}-{high}" for low, high in ends)


def ended(pattern: str) -> str:
    """With a last `$` as Python has it, for whom it stands before a last line feed as well."""
    return pattern[:-1] + r"\n?$" if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern


def bounded(pattern: str, most: int) -> str:
    """A portable pattern with bounds for what it repeats without end, unless that holds or is in another repetition:
    such automata grow beyond use. What may stand around a pattern without anchors is left as it is."""
    tokens = list(TOKEN.finditer(pattern))
    endless = list(accumulate((_least(token) is not None for token in tokens), initial=0))  # before each token
    began, opened, repeated = {}, list[int](), set[int]()
    for at, token in enumerate(tokens):
        if token["group"]:
            opened.append(at)
        elif token[0] == ")" and opened:
            began[at] = opened.pop()
            if at + 1 < len(tokens) and tokens[at + 1]["count"] not in (None, "?"):
                repeated.add(began[at])
    made, inside = "", 0
    for at, token in enumerate(tokens):
        inside += (at in repeated) - (began.get(at) in repeated)
        least, start = _least(token), began.get(at - 1, at - 1)
        if least is None or inside or endless[at] > endless[start]:
            made += token[0]
        else:
            made += f"{{{least},{max(least, most)}}}"
    return made


def _least(token: re.Match[str]) -> int | None:
    """How often something must come that may come without end; None for all else."""
    count = token["count"]
    if count in ("*", "+"):
        return int(count == "+")
    return int(count[1:-2]) if count and count.endswith(",}") else None
