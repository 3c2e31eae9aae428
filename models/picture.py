"""A picture as a model reads it: pixels, a token for each square of them, and what stands for it in a prompt.

Knows no files and no torch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLIND = "the served model reads no images"


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels` uint8 [height, width, 3], RGB, of the very size at which it is read: each square of `side` pixels is a
    token."""

    pixels: NDArray[np.uint8]
    side: int

    @property
    def rows(self) -> int:
        return int(self.pixels.shape[0]) // self.side

    @property
    def columns(self) -> int:
        return int(self.pixels.shape[1]) // self.side

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Positions that it takes: what comes behind it is as far from its first token as its longer side says."""
        return max(self.rows, self.columns)

    @cached_property
    def id(self) -> int:
        """What stands in a prompt for each of its tokens: below 0, where no token is, and the digest of all of it, so
        that pictures are told apart, and equal ones found, as text is."""
        content = hashlib.sha256(repr((self.pixels.shape, self.side)).encode() + self.pixels.tobytes())
        return -1 - int.from_bytes(content.digest())

    @property
    def ids(self) -> list[int]:
        return [self.id] * self.tokens


class Shown(NamedTuple):
    """A picture in a prompt: its first token's place, and what that one's position is."""

    picture: Picture
    start: int
    position: int

    @property
    def end(self) -> int:
        return self.start + self.picture.tokens


def locate(ids: Sequence[int], pictures: Sequence[Picture]) -> list[Shown]:
    """Where in a prompt these pictures stand, in their order; ValueError unless just they do, each whole."""
    found: list[Shown] = []
    end = behind = 0
    for picture in pictures:
        start = next((at for at in range(end, len(ids)) if ids[at] < 0), len(ids))
        found.append(Shown(picture, start, behind + start - end))
        end, behind = found[-1].end, found[-1].position + picture.length
        if list(ids[start:end]) != picture.ids:
            raise ValueError("the prompt does not hold its pictures")
    if any(token < 0 for token in ids[end:]):
        raise ValueError("the prompt holds pictures that it has not got")
    return found


def positions(shown: Sequence[Shown], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Time, height and width of the tokens from `start` to `end` of a prompt and its answer (arXiv 2409.12191, 2.1):
    of text all three are one number, which goes on behind a picture from its longer side."""
    by = 0  # how far a position is from the place
    for picture, first, position in shown:
        for at in range(start, min(first, end)):
            yield (at + by,) * 3
        for at in range(max(start, first), min(first + picture.tokens, end)):
            row, column = divmod(at - first, picture.columns)
            yield position, position + row, position + column
        start = max(start, first + picture.tokens)
        by = position + picture.length - first - picture.tokens
    for at in range(start, end):
        yield (at + by,) * 3
