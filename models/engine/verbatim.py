"""A matcher that holds the copy-only strings of an answer to substrings of a document.

Wraps llguidance's: a token is allowed where both the grammar and the document allow it, so that masks, drafts, forced
tokens and searches need not know of documents.
"""

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from models.engine.follower import Follower, Spot, clear
from models.failure import Failure

# A look ahead is counted, not timed: the same prompt gets the same masks.
LOOKED_AT = 64  # tokens that a mask may have for each to be asked whether its string can end
FUEL = 80  # states that the answers may take, some 15 microseconds each


class Verbatim:
    """The state of one row: llguidance's, and where in the document it is.

    Where the schema wants more of a copy-only string than a length not exceeded, no text of the document may fit, or
    none that goes on as was begun. `restrict` avoids such ends as far as it looks ahead; at one, `consume_token`
    raises Failure `verbatim_absent`.
    """

    def __init__(self, inner: LLMatcher, follower: Follower) -> None:
        """`inner`: at the start of an answer."""
        self.inner = inner
        self._follower = follower
        self._spot = follower.start
        self._lost = False

    def deep_copy(self) -> "Verbatim":
        copy = Verbatim(self.inner.deep_copy(), self._follower)
        copy._spot, copy._lost = self._spot, self._lost
        return copy

    def consume_token(self, token: int) -> bool:
        if not self.is_error() and not self.validate_tokens([token]):
            # Who takes what the masks allow comes here only where `restrict` has left nothing.
            pointer = self._follower.copied(self._spot)
            at = "" if pointer is None else f" at #{pointer}"
            raise Failure("verbatim_absent", f"no text of the document fits what the schema asks for{at}")
        return self._take(token)

    def consume_tokens(self, tokens: list[int]) -> bool:
        return all(self._take(token) for token in tokens)

    def _take(self, token: int) -> bool:
        grammatical = not self._lost and self.inner.consume_token(token)
        spot = self._follower.follow(self._spot, self._follower.tokens[token]) if grammatical else None
        self._spot, self._lost = spot or self._spot, spot is None
        return spot is not None

    def validate_tokens(self, tokens: list[int]) -> int:
        return 0 if self._lost else self._kept(tokens[: self.inner.validate_tokens(tokens)])

    def _kept(self, tokens: list[int]) -> int:
        """How many of these, which the grammar allows, the document allows."""
        spot: Spot | None = self._spot
        for count, token in enumerate(tokens):
            spot = self._follower.follow(spot, self._follower.tokens[token]) if spot else None
            if spot is None:
                return count
        return len(tokens)

    def compute_ff_tokens(self) -> list[int]:
        forced = self.inner.compute_ff_tokens()
        return forced[: self._kept(forced)]

    def compute_ff_bytes(self) -> bytes:
        """In a copy-only string, of which the schema wants more: all that ends it on one way, for none to be sought."""
        spot, forced = self._spot, self.inner.compute_ff_bytes()
        if not forced and spot.match and self._follower.fields.narrowed(spot.here):
            return self._follower.way(self.inner.deep_copy(), spot, iter(range(FUEL))) or b""
        for count in range(len(forced)):
            after = self._follower.follow(spot, forced[count : count + 1])
            if after is None:
                return forced[:count]
            spot = after
        return forced

    def compute_bitmask(self) -> bytes:
        mask = np.frombuffer(self.inner.compute_bitmask(), np.uint8).copy()
        self._follower.cut(mask, self._spot)
        return mask.tobytes()

    def is_accepting(self) -> bool:
        return not self._lost and self.inner.is_accepting()

    def is_stopped(self) -> bool:
        return self._lost or self.inner.is_stopped()

    def is_error(self) -> bool:
        return self._lost or self.inner.is_error()

    def restrict(self, masks: NDArray[np.uint8], draft: list[int]) -> None:
        """Narrow the grammar's masks [1 + draft, vocabulary / 8 rounded up], in place: for here and behind each token.

        Where no token is left one is allowed all the same, for `consume_token` to say why.
        """
        spot: Spot | None = self._spot
        for count, mask in enumerate(masks):
            spot = self._follower.follow(spot, self._follower.tokens[draft[count - 1]]) if spot and count else spot
            if spot is None:
                mask[:] = 0
            else:
                self._follower.cut(mask, spot)
                self._look_ahead(mask, spot, draft[:count])
            if not mask.any():
                mask[0] = 1

    def _look_ahead(self, mask: NDArray[np.uint8], spot: Spot, said: list[int]) -> None:
        """Take tokens away that lead into a string which no text of the document ends; but never all."""
        follower, fuel, dead = self._follower, iter(range(FUEL)), list[int]()
        within = follower.copied(spot) is not None and follower.fields.narrowed(spot.here)
        left: list[int] = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist() if within else []
        for token in left if 0 < len(left) <= LOOKED_AT else follower.risky(mask, spot):
            after = follower.follow(spot, follower.tokens[token])
            if after and after.match and follower.fields.narrowed(after.here):
                inner = self.inner.deep_copy()
                inner.consume_tokens([*said, token])
                if follower.way(inner, after, fuel) is None and next(fuel, None) is not None:
                    dead.append(token)
        if len(dead) < int(np.bitwise_count(mask).sum()):
            for token in dead:
                clear(mask, token)
