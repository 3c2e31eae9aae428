"""How sure the model was of each value of its answer: the probability of its tokens among those the grammar allowed.

Knows JSON text and log-probabilities; how often such a value is right is for a calibration to say.
"""

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.\w]+|[{}\[\],]', re.DOTALL)


class Span(NamedTuple):
    """Where a scalar stands in JSON text, quotes included, and its JSON pointer (RFC 6901)."""

    pointer: str
    start: int
    end: int


def spans(text: bytes) -> Iterator[Span]:
    """The scalars of valid JSON `text` in order, with offsets in bytes."""
    path: list[str | int | None] = []  # of an object None until its next name is read
    for found in LEXEME.finditer(text.decode("latin-1")):  # one character a byte
        lexeme = found[0]
        if lexeme in "{[":
            path.append(0 if lexeme == "[" else None)
        elif lexeme in "}]":
            path.pop()
        elif lexeme == ",":
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else None
        elif path and path[-1] is None:
            path[-1] = str(json.loads(lexeme.encode("latin-1")))
        else:
            pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
            yield Span(pointer, found.start(), found.end())


def measure(pieces: Sequence[bytes], logprobs: Sequence[float]) -> dict[str, float]:
    """The probability of each scalar's tokens by JSON pointer, from an answer's tokens as bytes and their logarithms.

    A token that belongs to two values counts for both. A number's end is said by the token behind it, a string's by
    its quote, so both are part of the value.
    """
    text = b"".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    found = {}
    for pointer, start, end in spans(text):
        first = bisect_right(ends, start)
        last = bisect_left(ends, end)
        if text[end - 1 : end] != b'"' and ends[last] == end:
            last += 1
        found[pointer] = math.exp(math.fsum(logprobs[first : last + 1]))
    return found
