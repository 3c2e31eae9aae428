"""A tokenizer's tokens as bytes: which bytes a mask allows, and how a text is cut into the fewest tokens.

Knows nothing of JSON or of grammars.
"""

from typing import NamedTuple

import numpy as np
from llguidance import LLTokenizer


class Plan(NamedTuple):
    """Bytes that close an answer, and for each of their tails the fewest tokens and the length of the first."""

    text: bytes
    sizes: list[int]
    steps: list[int]

    @property
    def size(self) -> int:
        return self.sizes[0]

    def tail(self, start: int) -> "Plan":
        return Plan(self.text[start:], self.sizes[start:], self.steps[start:])


class Pieces:
    """The tokens of one tokenizer as bytes, and texts cut into as few of them as can be."""

    def __init__(self, tokenizer: LLTokenizer, vocabulary: int) -> None:
        self.stops = list(tokenizer.eos_tokens)
        self._tokenizer = tokenizer
        self._pieces = {
            text: token
            for token in range(min(vocabulary, tokenizer.vocab_size))
            if not tokenizer.is_special_token(token) and (text := tokenizer.decode_bytes([token]))
        }
        self._lengths: dict[bytes, list[int]] = {}
        for text in sorted(self._pieces, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[:2], [])
            if lengths[-1:] != [len(text)]:
                lengths.append(len(text))
        self.ids = [self._pieces.get(bytes([byte]), self.stops[0]) for byte in range(256)]
        runs = {
            byte: max(n for n in range(1, 129) if n == 1 or bytes([byte]) * n in self._pieces) for byte in range(256)
        }
        self._order = np.array(
            sorted((b for b in range(0x20, 256) if bytes([b]) in self._pieces), key=lambda b: (b >= 0x80, -runs[b]))
        )
        self._tokens = np.array([self.ids[byte] for byte in self._order])

    def allowed(self, mask: bytes) -> bytes:
        """The bytes that may follow under a matcher's mask, those first that long tokens repeat."""
        packed = np.frombuffer(mask, dtype=np.uint8)
        chosen = packed[self._tokens >> 3] >> (self._tokens & 7) & 1
        return bytes(self._order[chosen.astype(np.bool_)].astype(np.uint8))

    def decode(self, tokens: list[int]) -> bytes:
        return self._tokenizer.decode_bytes(tokens)

    def cover(self, text: bytes) -> Plan:
        """`text` in the fewest tokens, whatever its start is cut off."""
        sizes, steps = [0] * (len(text) + 1), [0] * (len(text) + 1)
        for start in range(len(text) - 1, -1, -1):
            best, step = len(text) + 1, 1
            for length in (*self._lengths.get(text[start : start + 2], ()), 1):
                end = start + length
                if end <= len(text) and sizes[end] + 1 < best and text[start:end] in self._pieces:
                    best, step = sizes[end] + 1, length
            sizes[start], steps[start] = best, step
        return Plan(text, sizes, steps)

    def tokens(self, plan: Plan) -> list[int]:
        """The ids of a plan."""
        ids, start = [], 0
        while start < len(plan.text):
            end = start + plan.steps[start]
            ids.append(self._pieces[plan.text[start:end]])
            start = end
        return ids

    def tails(self, plan: Plan, most: int) -> list[tuple[int, list[int]]]:
        """Where the first `most` tokens of the plan start, and the ids from there; with the stop, which only a whole
        answer has."""
        starts, ids = [0], [*self.tokens(plan), self.stops[0]]
        while starts[-1] < len(plan.text) and len(starts) < most:
            starts.append(starts[-1] + plan.steps[starts[-1]])
        return [(start, ids[count:]) for count, start in enumerate(starts)]
