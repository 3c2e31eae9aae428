"""Where in an answer we are: at which part of the schema, and where in the document a copy-only string stands.

Knows JSON byte by byte and what the document allows; the grammar's part is llguidance's.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from models.engine.place import QUOTE, START, Place
from models.engine.substrings import ESCAPED, INSIDE, OPENING, Match, Substrings
from models.schema.fields import Fields, Site

BEFORE_VALUES = b"[:,"


class Spot(NamedTuple):
    """Where in an answer we are: what the schema says of the value due or begun, of those around it with the number
    of the item in each, and how far a copy-only string has been matched."""

    place: Place
    here: Site
    around: tuple[tuple[Site, int], ...] = ()
    match: Match | None = None


class Follower:
    """Follows answers byte by byte, by one schema's fields and one document."""

    def __init__(self, fields: Fields, document: Substrings) -> None:
        self.fields = fields
        self.document = document
        self.tokens = document.vocabulary.tokens
        self.start = Spot(START, fields.root)

    def copied(self, spot: Spot) -> str | None:
        """Where the schema says that the string that is due or begun here is copy-only; None where it is not."""
        place = spot.place
        if spot.match is None and (place.quoted or place.named or place.last not in BEFORE_VALUES):
            return None
        return self.fields.copied(spot.here)

    def follow(self, spot: Spot, text: bytes) -> Spot | None:
        """The spot behind `text`, which the grammar allows; None where the document does not."""
        for byte in text:
            after = self._next(spot, byte)
            if after is None:
                return None
            spot = after
        return spot

    def _next(self, spot: Spot, byte: int) -> Spot | None:
        place, here, around, match = spot
        then = place.next(byte)
        if place.quoted:
            if match is not None:
                match = self.document.narrow(match, byte) if then.quoted else None
                if match is None and then.quoted:
                    return None
        elif byte == QUOTE:
            match = None if self.copied(spot) is None else self.document.root
        elif byte in b"{[":
            around = (*around, (here, 0))
            here = self.fields.item(here, 0) if byte in b"[" else here
        elif byte in b"}]":
            here, around = around[-1][0], around[:-1]
        elif byte in b":":
            here = self.fields.member(around[-1][0], json.loads(b'"' + place.name))
        elif byte in b"," and place.open.endswith(b"["):
            outer, count = around[-1]
            around = (*around[:-1], (outer, count + 1))
            here = self.fields.item(outer, count + 1)
        return Spot(then, here, around, match)

    def cut(self, mask: NDArray[np.uint8], spot: Spot) -> None:
        """Take the tokens that the document does not allow out of a mask of the grammar's, one bit a token."""
        if self.copied(spot) is not None:
            allowed = self.document.allowed(spot.match or self.document.root, _mode(spot.place))
            mask[: len(allowed)] &= allowed
        for token in self.risky(mask, spot):
            if self.follow(spot, self.tokens[token]) is None:
                clear(mask, token)

    def risky(self, mask: NDArray[np.uint8], spot: Spot) -> list[int]:
        """Those tokens of a mask that may begin a copy-only string behind what they begin with."""
        tokens = self.document.vocabulary.risky[_mode(spot.place)]
        found: list[int] = tokens[mask[tokens >> 3] >> (tokens & 7) & 1 == 1].tolist()
        return found

    def way(self, inner: LLMatcher, spot: Spot, fuel: Iterator[int]) -> bytes | None:
        """What ends the copy-only string begun, as the grammar and the document allow; None where none was found.

        There is none if `fuel` is left then. `inner`, the grammar's state here, is changed.
        """
        ids, todo = self.document.vocabulary.ids, [(inner, spot, b"")]
        while todo and next(fuel, None) is not None:
            inner, spot, text = todo.pop()
            if inner.validate_tokens([ids[QUOTE]]) and not spot.place.escaped:
                return text + b'"'
            forced = inner.compute_ff_bytes()
            after = self.follow(spot, forced)
            if after is None:
                continue
            if after.match is None:
                return text + forced
            inner.consume_tokens([ids[byte] for byte in forced])
            for byte, match in self.document.branches(after.match, after.place.escaped):
                if inner.validate_tokens([ids[byte]]):
                    further = inner.deep_copy()
                    further.consume_token(ids[byte])
                    branch = after._replace(place=after.place.next(byte), match=match)
                    todo.append((further, branch, text + forced + bytes([byte])))
        return None


def _mode(place: Place) -> int:
    return OPENING if not place.quoted else ESCAPED if place.escaped else INSIDE


def clear(mask: NDArray[np.uint8], token: int) -> None:
    mask[token >> 3] &= ~(1 << (token & 7)) & 0xFF
