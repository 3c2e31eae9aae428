"""A short string for each pattern in a schema: what may end a string where looking at masks alone finds no way.

Knows the portable patterns of patterns.py. A sample is a guess: whoever uses one asks the matcher whether it fits.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import regex

from models.schema.patterns import TOKEN

MOST = 64  # of one schema
LONGEST = 400  # characters
# Of a class whichever is in it first; then what it says itself.
TRIED = "a0A1-._@/: +,#~zZ9%&=?!\"'()[]{}<>|*$^;\\`é"
OWN = re.compile(r"\[\\?([^pP^])", re.DOTALL)


def samples(schema: Any) -> tuple[bytes, ...]:
    """Of the patterns in `schema` as it is enforced, as they stand in JSON, without quotes."""
    found = {sample for pattern, least in _patterns(schema) if (sample := sample_of(pattern, least)) is not None}
    return tuple(json.dumps(text, ensure_ascii=False)[1:-1].encode() for text in sorted(found, key=len)[:MOST])


def _patterns(node: Any) -> Iterator[tuple[str, int]]:
    """Patterns of strings, and how long these must be."""
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            least = node.get("minLength", 0)
            yield node["pattern"], least if isinstance(least, int) else 0
        yield from (found for value in node.values() for found in _patterns(value))
    elif isinstance(node, list):
        yield from (found for value in node for found in _patterns(value))


def sample_of(pattern: str, least: int = 0) -> str | None:
    """A short text of at least so many characters that a portable pattern takes; None where none was found."""
    reader = _Reader(pattern)
    sample = reader.read()
    if sample is not None and 0 < least - len(sample) <= LONGEST:
        if pattern.startswith("^"):
            sample = _Reader(pattern, least - len(sample)).read()
        else:
            sample = "a" * (least - len(sample)) + sample
    return sample if sample is not None and len(sample) <= LONGEST else None


class _Reader:
    """Reads a pattern as the text it takes; `spare`: characters more than it must have, as far as repeats allow."""

    def __init__(self, pattern: str, spare: int = 0) -> None:
        self._tokens = list(TOKEN.finditer(pattern))
        self._spare = spare
        self._at = 0

    def read(self) -> str | None:
        """The shortest of what stands between bars, up to the end of the group."""
        ways: list[str | None] = [""]
        while self._at < len(self._tokens) and (token := self._tokens[self._at])[0] != ")":
            self._at += 1
            if token[0] == "|":
                ways.append("")
            else:
                piece = self._piece(token)
                ways[-1] = None if piece is None or ways[-1] is None else ways[-1] + piece
        return min((way for way in ways if way is not None), key=len, default=None)

    def _piece(self, token: re.Match[str]) -> str | None:
        if not token["group"]:
            piece = _one(token)
        else:
            piece = self.read()
            self._at += 1
        if self._at < len(self._tokens) and (count := self._tokens[self._at]["count"]):
            self._at += 1
            least, most = _range(count)
            more = min(self._spare, most - least) if piece is not None and len(piece) == 1 else 0
            self._spare -= more
            return "" if not least + more else None if piece is None else piece * (least + more)
        return piece


def _range(count: str) -> tuple[int, int]:
    if count in "*+?":
        return int(count == "+"), 1 if count == "?" else LONGEST
    least, _, most = count[1:-1].partition(",")
    return min(int(least), LONGEST), min(int(most or (LONGEST if "," in count else least)), LONGEST)


def _one(token: re.Match[str]) -> str | None:
    """What one token takes."""
    text = token[0]
    if text in "^$":
        return ""
    if token["class"]:
        own = OWN.match(text)
        return next((one for one in TRIED + (own[1] if own else "") if regex.fullmatch(text, one, regex.V0)), None)
    return text[-1]
